"""Pages from which a session is left out: the ones behind it are reached all the same."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import asyncpg
import pytest
import redis

from fiml.core.config import Settings
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment

OWNER, FRIEND = "ann", "bob"
SIZES = [1, 2, 50]
DAMAGE = {
    "live": "UPDATE active_sessions SET tags = '[' WHERE id = ?",
    "archived": "UPDATE sessions SET tags = '[' WHERE id = ?",
}


@pytest.fixture
async def store(backend_settings: Settings, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(backend_settings) as opened:
        yield opened


async def some_sessions(store: SessionStore, clock: FrozenClock) -> list[Session]:
    """Five that are shared, the oldest first."""
    made = []
    for number in range(5):
        clock.advance(seconds=1)
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, title=f"word {number}")
        await store.share_session(session.id, FRIEND)
        made.append(session)
    return made


async def listed(store: SessionVerbs, *, size: int) -> list[str | None]:
    titles: list[str | None] = []
    cursor = None
    while True:
        page = await store.list_user_sessions(None, include_archived=True, limit=size, cursor=cursor)
        titles += [summary.title for summary in page]
        if page.next_cursor is None:
            return titles
        cursor = page.next_cursor


async def searched(store: SessionVerbs, *, size: int) -> list[str | None]:
    titles: list[str | None] = []
    cursor = None
    while True:
        page = await store.search_sessions(None, symbol="AAPL", limit=size, cursor=cursor)
        assert not page.truncated
        titles += [summary.title for summary in page]
        if page.next_cursor is None:
            return titles
        cursor = page.next_cursor


@pytest.mark.parametrize("size", SIZES)
async def test_a_search_goes_on_behind_a_session_of_an_unknown_type(
    store: SessionStore, backend_settings: Settings, clock: FrozenClock, size: int
) -> None:
    sessions = await some_sessions(store, clock)
    damaged = sessions[3].id
    if backend_settings.is_embedded:
        with closing(sqlite3.connect(backend_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE active_sessions SET type = 'poetry' WHERE id = ?", (damaged.hex,))
    else:
        with redis.Redis.from_url(str(backend_settings.redis_url)) as client:
            client.hset(f"fiml:{{{damaged.hex}}}:header", "type", "poetry")

    assert await searched(store, size=size) == ["word 4", "word 2", "word 1", "word 0"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", DAMAGE)
async def test_a_page_goes_on_behind_a_damaged_session_of_another(
    sqlite_settings: Settings, clock: FrozenClock, state: str, size: int
) -> None:
    async with SessionStore(sqlite_settings) as store:
        sessions = await some_sessions(store, clock)
        if state == "archived":
            for session in sessions:
                await store.archive_session(session.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            damaged = connection.execute(DAMAGE[state], (sessions[4].id.hex,))
            assert damaged.rowcount == 1

        assert await listed(store.as_principal(FRIEND), size=size) == ["word 3", "word 2", "word 1", "word 0"]


@pytest.mark.parametrize("size", SIZES)
async def test_a_page_goes_on_behind_a_copy_of_what_is_live_and_no_longer_shared(
    deployment: Deployment, clock: FrozenClock, size: int
) -> None:
    """As a resume leaves it whose process dies before it has taken the copy away."""
    async with SessionStore(deployment.settings()) as store:
        sessions = await some_sessions(store, clock)
        for session in sessions:
            await store.archive_session(session.id)
        server = await asyncpg.connect(deployment.database_url)
        await server.execute("CREATE TEMPORARY TABLE kept AS SELECT * FROM sessions WHERE id = $1", sessions[4].id)
        await store.resume_session(sessions[4].id)
        await server.execute("INSERT INTO sessions SELECT * FROM kept")
        await server.close()
        await store.unshare_session(sessions[4].id, FRIEND)
        friend = store.as_principal(FRIEND)

        assert await listed(friend, size=size) == ["word 3", "word 2", "word 1", "word 0"]
        assert await searched(friend, size=size) == ["word 3", "word 2", "word 1", "word 0"]
