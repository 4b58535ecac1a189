"""Pages from which a session is left out: the ones behind it are reached all the same."""

import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any

import asyncpg
import pytest
import redis
from sqlalchemy import event
from sqlalchemy.util import await_only

from fiml.core.config import Settings
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.backends.redis.fields import listed_member
from fiml.sessions.backends.redis.keys import user_key
from fiml.sessions.backends.shapes import MAX_SEARCHED
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing import FrozenClock
from fiml.testing.conformance.suite import existing, listing
from tests.support.deployment import Deployment, execute

OWNER, FRIEND = "ann", "bob"
SIZES = [1, 2, 50]
DAMAGE = {
    "live": "UPDATE active_sessions SET tags = '[' WHERE id = ?",
    "archived": "UPDATE sessions SET tags = '[' WHERE id = ?",
}


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


async def test_a_page_goes_on_behind_a_session_of_a_later_version_while_another_is_resumed(
    deployment: Deployment, clock: FrozenClock
) -> None:
    async with SessionStore(deployment.settings()) as store:
        sessions = await some_sessions(store, clock)
        for session in sessions:
            await store.archive_session(session.id)
        later = f"UPDATE sessions SET format = 99, grants = '[]' WHERE id = '{sessions[3].id}'"  # noqa: S608
        await execute(deployment.database_url, later)
        pages: list[str] = []

        @event.listens_for(store.session_maker.kw["bind"].sync_engine, "before_cursor_execute")
        def resume_before_the_second_look(*args: Any) -> None:
            if "ORDER BY sessions.created_at" in args[2]:
                pages.append(args[2])
                if len(pages) == 2:
                    await_only(store.resume_session(sessions[4].id))

        assert await listed(store, size=3) == ["word 4", "word 2", "word 1", "word 0"]
        assert not (await existing(store, sessions[4].id)).is_archived


RARE = {"type": "macro", "tag": "rare", "asset": "TSLA"}


async def rare_session(store: SessionStore, clock: FrozenClock, title: str) -> Session:
    clock.advance(seconds=1)
    return await store.create_session(["TSLA"], SessionType.MACRO, user_id=OWNER, tags=["rare"], title=title)


async def many_sessions(store: SessionStore, clock: FrozenClock, count: int) -> None:
    for _ in range(count):
        clock.advance(seconds=1)
        await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)


@pytest.mark.parametrize("include_archived", [False, True])
async def test_a_filtered_page_stops_after_a_thousand_live_sessions_and_the_next_one_goes_on(
    deployment: Deployment, clock: FrozenClock, include_archived: bool
) -> None:
    async with SessionStore(deployment.settings()) as store:
        await store.archive_session((await rare_session(store, clock, "archived, first")).id)
        await rare_session(store, clock, "live, second")
        await many_sessions(store, clock, MAX_SEARCHED)
        await rare_session(store, clock, "live, third")
        await store.archive_session((await rare_session(store, clock, "archived, fourth")).id)
        expected = ["live, third", "live, second"]
        if include_archived:
            expected = ["archived, fourth", *expected, "archived, first"]

        for name, value in RARE.items():
            filters: dict[str, Any] = {"include_archived": include_archived, name: value}
            page = await store.list_user_sessions(OWNER, **filters)

            assert [summary.title for summary in page] == expected[: 1 + include_archived]
            assert page.next_cursor is not None
            assert [summary.title for summary in await listing(store, **filters)] == expected
            full = await store.list_user_sessions(OWNER, limit=1, **filters)
            assert [summary.title for summary in full] == expected[:1]
            assert [summary.title for summary in await listing(store, limit=1, **filters)] == expected


async def test_statistics_of_live_sessions_go_on_behind_a_thousand_of_another_type(
    deployment: Deployment, clock: FrozenClock
) -> None:
    async with SessionStore(deployment.settings()) as store:
        await rare_session(store, clock, "old")
        await many_sessions(store, clock, MAX_SEARCHED)

        figures = await SessionAnalytics(store.session_maker, store).get_session_stats(session_type="macro")

        assert figures["active_sessions"] == 1


async def test_a_session_whose_ended_life_is_the_last_that_was_looked_at_is_found(
    deployment: Deployment, clock: FrozenClock
) -> None:
    """A crash may leave the entry of a life that has ended before that of the present one: here, where looks end."""
    async with SessionStore(deployment.settings()) as store:
        rare = [await rare_session(store, clock, "oldest")]
        for place_from_end in (MAX_SEARCHED - 501, 298, 199):
            rare.insert(0, await rare_session(store, clock, f"{place_from_end} before it"))
            await many_sessions(store, clock, place_from_end)
        with redis.Redis.from_url(str(deployment.redis_url)) as client:
            for session in rare[:-1]:
                await store.archive_session(session.id)
                await store.resume_session(session.id)
                client.zadd(f"fiml:{user_key(OWNER)}", {listed_member(session.created_at, session.id, 1): 0})

        expected = Counter(session.id for session in rare)
        for has_archived in (True, False):
            found = await listing(store, tag="rare", include_archived=has_archived)
            assert Counter(summary.id for summary in found) == expected
        page = await store.search_sessions(OWNER, symbol="TSLA")
        rest = await store.search_sessions(OWNER, symbol="TSLA", cursor=page.next_cursor)
        assert Counter(summary.id for summary in [*page, *rest]) == expected
