"""The sizes that limit a session are those of what it holds, whatever was done to it."""

from datetime import UTC, datetime

from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance.suite import existing


async def sizes(store: SessionStore) -> tuple[int, int]:
    """The bytes of the maps and of the history of the only session."""
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    [header] = [each async for each in store.live_headers(user_id=None, session_type=None, since=long_ago)]
    return header.maps_bytes, header.history_bytes


async def test_what_is_there_already_counts_once(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    query = make_query(result_summary="dear")
    for value in ("long" * 100, "ünd"):
        await store.record_query(session.id, query, context={"über": value, "b": value})
    read = await existing(store, session.id)
    read.state.context.pop("b")
    read.state.history.add_query(make_query())
    await store.update_session(session.id, read)
    counted = await sizes(store)

    await store.archive_session(session.id)
    await store.resume_session(session.id)

    assert counted == await sizes(store)
