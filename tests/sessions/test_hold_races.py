"""Holds, deletions and the retention at once, in PostgreSQL, where one can look between the other's steps."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.util import await_only

from fiml.core.config import Settings
from fiml.core.errors import SessionNotFound
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import existing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
HOLD = "INSERT INTO session_holds (id, reason, held_at) VALUES ($1, 'why', now())"
BURY = "INSERT INTO session_tombstones (id, version, deleted_at) VALUES ($1, 1, now())"


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return deployment.settings()


@pytest.fixture
async def other(deployment: Deployment) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A transaction of another process."""
    connection = await asyncpg.connect(deployment.database_url)
    yield connection
    await connection.close()


async def old_session(store: SessionStore, clock: FrozenClock) -> Session:
    """One that retention may delete."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    await store.archive_session(session.id)
    clock.advance(days=store.settings.session_retention_days, seconds=1)
    return session


async def test_a_hold_waits_for_a_deletion_that_has_begun(
    store: SessionStore, other: "asyncpg.Connection[Any]"
) -> None:
    """The deletion has its lock, and its tombstone isn't visible yet."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    async with other.transaction():
        await other.execute(LOCK, str(session.id))
        holding = asyncio.create_task(store.hold(session.id, "why"))
        while not holding.done() and not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass
        await other.execute(BURY, session.id)

    with pytest.raises(SessionNotFound):
        await holding
    assert await store.get_hold(session.id) is None


async def test_retention_passes_over_a_session_that_is_being_held(
    store: SessionStore, clock: FrozenClock, other: "asyncpg.Connection[Any]"
) -> None:
    """The hold has its lock, and isn't visible yet."""
    session = await old_session(store, clock)
    async with other.transaction():
        await other.execute(LOCK, str(session.id))
        await other.execute(HOLD, session.id)
        deleted = await store.delete_old_archived_sessions()

    assert deleted == 0
    assert (await existing(store, session.id)).is_archived


async def hold(store: SessionStore, session_id: UUID) -> None:
    await store.hold(session_id, "why")


async def archive_anew(store: SessionStore, session_id: UUID) -> None:
    await store.resume_session(session_id)
    await store.archive_session(session_id)


@pytest.mark.parametrize("meanwhile", [hold, archive_anew])
async def test_retention_looks_again_at_what_it_has_locked(
    store: SessionStore, clock: FrozenClock, meanwhile: Callable[[SessionStore, UUID], Awaitable[None]]
) -> None:
    session = await old_session(store, clock)

    def before_the_lock(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "pg_try_advisory_xact_lock" in statement:
            await_only(meanwhile(store, session.id))

    with listening(store.session_maker.kw["bind"].sync_engine, before_the_lock):
        deleted = await store.delete_old_archived_sessions()

    assert deleted == 0
    assert (await existing(store, session.id)).is_archived


async def test_a_hold_of_a_session_that_retention_deletes_meanwhile_is_taken_back(
    store: SessionStore, settings: Settings, clock: FrozenClock, other: "asyncpg.Connection[Any]"
) -> None:
    for step in count(1):
        session = await old_session(store, clock)
        frozen = Frozen(store.delete_old_archived_sessions, does_die=False)
        async with open_watched_store(settings, frozen.around) as holding:
            frozen.freeze_at(step)
            with suppress(SessionNotFound):
                await holding.hold(session.id, "why")

        is_there = await store.get_session(session.id) is not None
        assert await other.fetchval("SELECT count(*) FROM session_holds") == is_there
        if not frozen.has_thawed:
            break
        if is_there:
            await store.release(session.id)
            await store.delete_session(session.id)
    assert step > 3


async def test_a_session_that_is_created_during_the_erasure_of_its_user_is_erased_or_listed(
    store: SessionStore, settings: Settings
) -> None:
    created: list[UUID] = []

    async def create() -> None:
        created.append((await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")).id)

    for step in count(1):
        frozen = Frozen(create, does_die=False)
        async with open_watched_store(settings, frozen.around) as erasing:
            frozen.freeze_at(step)
            await erasing.erase_user("ann")

        left = {session_id for session_id in created if await store.get_session(session_id) is not None}
        assert {summary.id for summary in await store.list_user_sessions("ann")} == left
        await store.erase_user("ann")
        if not frozen.has_thawed:
            break
    assert step > 5


async def test_a_resume_that_a_dying_deletion_overtakes_brings_nothing_back(
    store: SessionStore, settings: Settings
) -> None:
    """The deletion dies once it has its tombstone, before it has removed what is live."""

    async def delete_and_die(session_id: UUID) -> None:
        faults = Faults()
        async with open_watched_store(settings, faults.around) as dying:
            faults.crash_at(3, is_reply_lost=True)
            with suppress(Crash):
                await dying.delete_session(session_id)
            faults.disarm()

    for step in count(1):
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.archive_session(session.id)
        frozen = Frozen(partial(delete_and_die, session.id), does_die=False)
        async with open_watched_store(settings, frozen.around) as resuming:
            frozen.freeze_at(step)
            with suppress(SessionNotFound):
                await resuming.resume_session(session.id)

        assert (await store.get_session(session.id) is None) == frozen.has_thawed
        if not frozen.has_thawed:
            break
    assert step > 4


async def test_an_archiving_that_died_ends_no_session_that_lived_on(
    store: SessionStore, settings: Settings, clock: FrozenClock
) -> None:
    """Nobody wrote to it, so that the copy has the same version."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    faults = Faults()
    async with open_watched_store(settings, faults.around) as dying:
        faults.crash_at(2, is_reply_lost=True)
        with suppress(Crash):
            await dying.archive_session(session.id)
        faults.disarm()
    clock.advance(hours=1)
    accessed_at = (await existing(store, session.id)).last_accessed_at
    clock.advance(hours=1)

    await store.archive_session(session.id)

    async with store.session_maker() as database:
        found = await database.execute(
            text("SELECT archived_at, last_accessed_at, ended_at FROM sessions, session_metrics")
        )
    assert tuple(found.one()) == (clock.now(), accessed_at, clock.now())


@contextmanager
def listening(engine: Any, listener: Callable[..., None]) -> Iterator[None]:
    event.listen(engine, "before_cursor_execute", listener)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", listener)
