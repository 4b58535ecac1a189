"""A resume that stands still while others go on: what they did counts, however late it goes on itself."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from fiml.core.config import Settings
from fiml.core.errors import SessionNotFound
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import existing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return deployment.settings()


async def begin_to_delete(store: SessionStore, settings: Settings, session_id: UUID) -> None:
    """As a process that dies behind the step from which on the session is deleted."""
    faults = Faults()
    async with open_watched_store(settings, faults.around) as dying:
        for step in count(1):
            faults.crash_at(step, is_reply_lost=True)
            with suppress(Crash):
                await dying.delete_session(session_id)
            faults.disarm()
            async with store.session_maker() as database:
                if (await database.execute(text("SELECT count(*) FROM session_tombstones"))).scalar_one():
                    return


async def write_and_archive(store: SessionStore, settings: Settings, session_id: UUID) -> None:
    """So long ago that Redis doesn't remember it."""
    await store.resume_session(session_id)
    await store.record_query(session_id, make_query("newer"))
    await store.archive_session(session_id)
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        client.delete(f"fiml:{{{session_id.hex}}}:floor")


async def resumed_beside(
    store: SessionStore, settings: Settings, step: int, others: Callable[..., Awaitable[None]]
) -> UUID | None:
    """A session that was resumed by a process that stood still before a step; `None` if it has fewer steps."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    await store.archive_session(session.id)
    frozen = Frozen(partial(others, store, settings, session.id), does_die=False)
    async with open_watched_store(settings, frozen.around) as watched:
        frozen.freeze_at(step)
        with suppress(SessionNotFound):
            await watched.resume_session(session.id)
    return session.id if frozen.has_thawed else None


async def test_what_somebody_began_to_delete_does_not_come_back(store: SessionStore, settings: Settings) -> None:
    for step in count(1):
        session_id = await resumed_beside(store, settings, step, begin_to_delete)
        if session_id is None:
            break
        assert await store.get_session(session_id) is None
        async with store.session_maker() as database, database.begin():
            await database.execute(text("DELETE FROM session_tombstones"))
    assert step > 3


async def test_what_somebody_wrote_and_archived_stays(store: SessionStore, settings: Settings) -> None:
    for step in count(1):
        session_id = await resumed_beside(store, settings, step, write_and_archive)
        if session_id is None:
            break
        assert (await existing(store, session_id)).state.history.get_query_types_summary() == {"newer": 1}
    assert step > 3
