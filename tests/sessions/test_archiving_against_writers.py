"""Archiving a session that others write to: it keeps them from writing for a while, and may die of anything then."""

from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import TypeVar

import pytest
from sqlalchemy import text

from fiml.core import clock as clocks
from fiml.core.config import Settings
from fiml.core.errors import Unavailable
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import existing, listing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment

SECOND_TRY = 4  # the first call of it; the first try reads, copies, and finds another version
CLOSED_S = 30
Result = TypeVar("Result")


class Foiled(Faults):
    """Ends a process whose first try is foiled: somebody writes to the session once it was read."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    async def around(self, call: Callable[[], Awaitable[Result]]) -> Result:
        if self._crash_at is not None and self.calls == 1:
            await self._meanwhile()
        return await super().around(call)


class FailsOnce(Foiled):
    """A single call fails of a process whose first try is foiled."""

    _fails_at = 0

    def __init__(self, meanwhile: Callable[[], Awaitable[object]], failure: BaseException) -> None:
        super().__init__(meanwhile)
        self._failure = failure

    def fail_at(self, call: int) -> None:
        self.crash_at(call + 1_000, is_reply_lost=False)
        self._fails_at = call

    async def around(self, call: Callable[[], Awaitable[Result]]) -> Result:
        if self._crash_at is not None and self.calls + 1 == self._fails_at:
            self.calls += 1
            raise self._failure
        return await super().around(call)


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return deployment.settings()


async def a_session(store: SessionStore) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=2)
    await store.record_query(session.id, make_query("before"), context={"kept": True})
    return await existing(store, session.id)


async def die(store: SessionStore, settings: Settings, session: Session, *, at: int, is_reply_lost: bool) -> bool:
    """Have a process archive a session that is written to meanwhile, and die at a call; `False` if it got through."""
    foiled = Foiled(lambda: store.record_query(session.id, make_query("between")))
    async with open_watched_store(settings, foiled.around) as dying:
        foiled.crash_at(at, is_reply_lost=is_reply_lost)
        with suppress(Crash):
            await dying.archive_session(session.id)
        foiled.disarm()
    return foiled.calls >= at


async def archive(store: SessionStore, session: Session, clock: FrozenClock) -> int:
    return await store.archive_session(session.id)


async def sweep(store: SessionStore, session: Session, clock: FrozenClock) -> int:
    clock.advance(hours=2)
    return await store.cleanup_expired_sessions()


@pytest.mark.parametrize("is_reply_lost", [False, True])
@pytest.mark.parametrize("mend", [archive, sweep])
async def test_a_process_that_dies_while_it_keeps_others_from_writing_leaves_the_session_as_it_was(
    store: SessionStore,
    settings: Settings,
    clock: FrozenClock,
    mend: Callable[[SessionStore, Session, FrozenClock], Awaitable[int]],
    is_reply_lost: bool,
) -> None:
    for step in count(SECOND_TRY):
        session = await a_session(store)
        has_died = await die(store, settings, session, at=step, is_reply_lost=is_reply_lost)

        [left] = await listing(store, None)
        expected = ["before", "between"]
        if not left.is_archived:
            clock.advance(seconds=CLOSED_S)
            await store.record_query(session.id, make_query("after"))
            expected.append("after")
        assert await mend(store, session, clock) == (not left.is_archived)

        found = await existing(store, session.id)
        assert found.is_archived
        assert found.expires_at == session.expires_at
        assert found.state.context == {"kept": True}
        assert [query.query_type for query in found.state.history.queries] == expected
        assert await has_ended_normally(store) == (mend is archive or left.is_archived)
        archivings = [entry.did for entry in await store.get_audit_trail(session.id)].count("archive")
        assert archivings == (mend is archive or left.is_archived)
        await store.delete_session(session.id)
        if not has_died:
            break
    assert step > SECOND_TRY + 2


@pytest.mark.parametrize(
    "failure", [Unavailable("the engine", "it is away in this test"), CancelledError()], ids=["fails", "cancelled"]
)
async def test_an_archiving_that_fails_or_is_cancelled_lets_the_others_write_at_once(
    store: SessionStore, settings: Settings, clock: FrozenClock, failure: BaseException
) -> None:
    for step in count(SECOND_TRY):
        session = await a_session(store)
        foiled = FailsOnce(partial(store.record_query, session.id, make_query("between")), failure)
        async with open_watched_store(settings, foiled.around) as archiving:
            foiled.fail_at(step)
            with suppress(type(failure)):
                await archiving.archive_session(session.id)
            foiled.disarm()

        if (await existing(store, session.id)).is_archived:
            break
        await store.record_query(session.id, make_query("after"))
    assert step > SECOND_TRY + 1


async def has_ended_normally(store: SessionStore) -> bool:
    async with store.session_maker() as session:
        return bool((await session.execute(text("SELECT completed_normally FROM session_metrics"))).scalar_one())


async def end(store: SessionStore, session: Session) -> None:
    session.expires_at = clocks.now() - timedelta(seconds=1)
    await store.update_session(session.id, session)


@pytest.mark.parametrize(
    "write",
    [
        lambda store, session: store.record_query(session.id, make_query()),
        lambda store, session: store.update_session(session.id, session),
        lambda store, session: store.extend_session(session.id, 1),
        end,
    ],
    ids=["record", "update", "extend", "end"],
)
async def test_who_writes_while_a_session_is_being_archived_is_told_to_try_again(
    store: SessionStore,
    settings: Settings,
    clock: FrozenClock,
    write: Callable[[SessionStore, Session], Awaitable[object]],
) -> None:
    session = await a_session(store)
    await die(store, settings, session, at=SECOND_TRY + 1, is_reply_lost=False)
    before = await existing(store, session.id)
    session = await existing(store, session.id)

    with pytest.raises(Unavailable, match="is being archived"):
        await write(store, session)

    assert await existing(store, session.id) == before
    clock.advance(seconds=CLOSED_S)
    await write(store, session)
