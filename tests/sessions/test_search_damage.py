"""A search beside damaged sessions, and sessions of more words than an index holds."""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import pytest
import redis
from sqlalchemy import text

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord
from fiml.sessions.store import SessionStore
from fiml.testing.conformance.searching import begin, found, looked_up
from fiml.testing.conformance.suite import OpenStore
from tests.support.cli import run_fiml
from tests.support.damage import Surgeon
from tests.support.deployment import Deployment

DEEP = "[" * 100_000


async def test_a_damaged_live_session_is_named_and_hides_no_other(deployment: Deployment) -> None:
    async with SessionStore(deployment.settings()) as store:
        ids = [(await begin(store, title=f"number {number}")).id for number in range(4)]
        with redis.Redis.from_url(deployment.redis_url) as client:
            client.hset(f"fiml:{{{ids[0].hex}}}:header", "created", "yesterday")
            client.delete(f"fiml:{{{ids[1].hex}}}:entries")
            client.set(f"fiml:{{{ids[1].hex}}}:entries", "no hash")
            client.hset(f"fiml:{{{ids[2].hex}}}:entries", "c:deep", DEEP)

        page = await store.search_sessions(None, "number")

    assert [summary.id for summary in page] == [ids[3]]
    assert sorted(page.unreadable) == sorted(ids[:3])


async def test_the_command_line_names_the_one_session_that_can_not_be_read(deployment: Deployment) -> None:
    async with SessionStore(deployment.settings()) as store:
        session = await begin(store, title="number 0")
    with redis.Redis.from_url(deployment.redis_url) as client:
        client.hset(f"fiml:{{{session.id.hex}}}:header", "created", "yesterday")

    engines = {"FIML_REDIS_URL": deployment.redis_url, "FIML_DATABASE_URL": deployment.database_url}
    done = await asyncio.to_thread(run_fiml, "sessions", "search", "number", **engines)

    assert f"1 live session can't be read: {session.id}\n" in done.stdout


async def test_a_search_tells_nothing_of_a_damaged_session_that_was_taken_back(deployment: Deployment) -> None:
    async with SessionStore(deployment.settings()) as store:
        kept, taken_back = [await begin(store, title=f"number {number}") for number in range(2)]
        for session in (kept, taken_back):
            await store.share_session(session.id, "bob")
        await store.unshare_session(taken_back.id, "bob")
        with redis.Redis.from_url(deployment.redis_url) as client:
            for session in (kept, taken_back):
                client.hset(f"fiml:{{{session.id.hex}}}:header", "created", "yesterday")

        page = await store.as_principal("bob").search_sessions(None, "number")

    assert page == []
    assert page.unreadable == [kept.id]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE active_sessions SET assets = '[5]'",
        "UPDATE active_entries SET value = '{'",
        "UPDATE active_entries SET value = 'DEEP'".replace("DEEP", DEEP),
    ],
    ids=["an asset", "half an entry", "an entry without end"],
)
async def test_a_damaged_session_in_the_file_hides_no_other(sqlite_settings: Settings, damage: str) -> None:
    async with SessionStore(sqlite_settings) as store:
        broken = await begin(store, title="good", user_id="ann")
        await store.remember(broken.id, context={"a": "b"})
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute(damage)
        await begin(store, title="good one", user_id="bob", queries=[looked_up("AAPL", x=1.0)])

        assert await found(store, "good", user_id="bob") == ["good one"]


async def test_a_page_names_the_owner_a_damaged_live_session_and_hides_no_other_from_a_friend(
    deployment: Deployment,
) -> None:
    async with SessionStore(deployment.settings()) as store:
        damaged, good = [await begin(store, title=title, user_id="ann") for title in ("bad", "good")]
        for session in (damaged, good):
            await store.share_session(session.id, "bob")
        await Surgeon(deployment.settings(), damaged.id).damage("a date")

        for view in (store, store.as_principal("ann")):
            with pytest.raises(CorruptRecord, match=f"{damaged.id}"):
                await view.list_user_sessions("ann")
        assert [each.title for each in await store.as_principal("bob").list_user_sessions(None)] == ["good"]


@pytest.mark.parametrize("asked", [{"asset": "AAPL"}, {"tag": "tech"}])
@pytest.mark.parametrize("is_archived", [False, True])
async def test_a_filter_names_the_owner_a_damaged_session_and_hides_no_other_from_a_friend(
    sqlite_settings: Settings, is_archived: bool, asked: dict[str, Any]
) -> None:
    async with SessionStore(sqlite_settings) as store:
        damaged, good = [await begin(store, title=title, user_id="ann", tags=["tech"]) for title in ("bad", "good")]
        for session in (damaged, good):
            await store.share_session(session.id, "bob")
            if is_archived:
                await store.archive_session(session.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            for update in ("UPDATE active_sessions SET", "UPDATE sessions SET"):
                connection.execute(f"{update} assets = '[', tags = '[' WHERE id = ?", (damaged.id.hex,))
        searched: dict[str, Any] = {"symbol": asked["asset"]} if "asset" in asked else asked
        friend = store.as_principal("bob")

        with pytest.raises(CorruptRecord, match=f"{damaged.id}"):
            await store.list_user_sessions("ann", True, **asked)
        assert [each.title for each in await friend.list_user_sessions(None, True, **asked)] == ["good"]
        assert [each.title for each in await friend.search_sessions(None, **searched)] == ["good"]


async def test_a_damaged_history_in_the_archive_matches_no_figure_and_hides_no_other(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings) as store:
        for title in ("broken", "good"):
            session = await begin(store, title=title, queries=[looked_up("AAPL", x=1.0)])
            await store.archive_session(session.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE sessions SET history_queries = '[' WHERE title = 'broken'")

        assert await found(store, "x = 1") == ["good"]


async def test_damaged_metrics_in_the_file_are_damage(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await begin(store, title="good")
        await store.archive_session(session.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE session_metrics SET assets_analyzed = '['")

        with pytest.raises(CorruptRecord, match="malformed JSON"):
            await store.roll_up()


async def test_a_damaged_query_in_the_file_matches_no_figure_and_hides_no_other(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings) as store:
        await begin(store, title="broken", queries=[looked_up("AAPL", x=1.0)])
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE active_queries SET body = '{'")
        await begin(store, title="good", queries=[looked_up("AAPL", x=1.0)])

        assert await found(store, "x = 1") == ["good"]


async def test_an_archived_session_of_no_type_is_named_and_hides_no_other(open_store: OpenStore) -> None:
    async with open_store() as store:
        ids = [(await begin(store, title=f"good {number}")).id for number in range(2)]
        for session_id in ids:
            await store.archive_session(session_id)
        async with store.session_maker.begin() as connection:
            is_postgresql = connection.get_bind().dialect.name == "postgresql"
            stored = ids[0] if is_postgresql else ids[0].hex
            await connection.execute(text("UPDATE sessions SET type = 'nope' WHERE id = :id"), {"id": stored})

        page = await store.search_sessions(None, "good")

    assert [summary.id for summary in page] == [ids[1]]
    assert page.unreadable == [ids[0]]


async def test_a_session_with_more_words_than_the_index_holds_is_found_by_its_title(open_store: OpenStore) -> None:
    async with open_store() as store:
        session = await begin(store, title="zzz needle")
        for part in range(8):
            words = " ".join(f"漢字{part:02}{number:05}" + "字" * 40 for number in range(1500))
            await store.remember(session.id, context={f"k{part}": words})
        for _ in range(2):
            assert await found(store, "zzz needle") == ["zzz needle"]
            assert await found(store, "漢字0000001" + "字" * 40) == ["zzz needle"]
            await store.archive_session(session.id)


@pytest.mark.parametrize("grants", ["{", "[5]"])
async def test_damaged_grants_in_the_file_hide_no_other_session(sqlite_settings: Settings, grants: str) -> None:
    async with SessionStore(sqlite_settings) as store:
        for is_archived in (False, True):
            broken = await begin(store, title="broken", user_id="ann")
            if is_archived:
                await store.archive_session(broken.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE active_sessions SET grants = ?", (grants,))
            connection.execute("UPDATE sessions SET grants = ?", (grants,))
        good = await begin(store, title="good", user_id="ann")
        await store.share_session(good.id, "bob")

        assert [each.title for each in await store.as_principal("bob").list_user_sessions(None, True)] == ["good"]
