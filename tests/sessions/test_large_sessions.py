"""Sessions near the limit of 128 MiB go through their whole life."""

from uuid import UUID

import pytest

from fiml.core.errors import SessionFull
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing

pytestmark = pytest.mark.soak

QUERIES = 480
# Short words are the most work to index.
LONG_TEXT = "ab cd " * 42_000


@pytest.fixture
async def session(store: SessionStore) -> Session:
    """Of 115 MiB."""
    made = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    await record(store, made.id)
    return await existing(store, made.id)


async def record(store: SessionStore, session_id: UUID) -> None:
    for _ in range(QUERIES):
        await store.record_query(session_id, make_query(parameters={"text": LONG_TEXT}))


async def test_a_session_near_the_limit_is_archived_by_call_read_and_resumed(
    store: SessionStore, session: Session
) -> None:
    queries = session.state.history.queries

    assert await store.archive_session(session.id)
    ended = await existing(store, session.id)
    assert ended.is_archived
    assert ended.state.history.queries == queries
    resumed = await store.resume_session(session.id)
    assert not resumed.is_archived
    assert resumed.state.history.queries == queries


async def test_a_session_near_the_limit_is_swept_and_found(
    store: SessionStore, session: Session, clock: FrozenClock
) -> None:
    clock.advance(hours=2)

    assert await store.cleanup_expired_sessions() == 1
    [found] = await store.search_sessions(None, "cd")
    assert (found.id, found.is_archived, found.total_queries) == (session.id, True, QUERIES)


async def test_a_session_takes_no_query_beyond_the_limit(store: SessionStore, session: Session) -> None:
    with pytest.raises(SessionFull, match="134217728 bytes of queries"):
        await record(store, session.id)

    await store.remember(session.id, context={"full": True})
    full = await store.get_session(session.id, recent_queries=0)
    assert full is not None
    assert QUERIES < full.state.history.total_queries < 128 * 1024 * 1024 / len(LONG_TEXT)
    assert full.state.context == {"full": True}
