"""Records of every format that was ever written are read, upgraded with a copy kept, and archived whole.

`corpus` has what each format's own release wrote: an embedded file as SQL, the keys in Redis, and what they hold.
"""

import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import redis
from structlog.testing import capture_logs

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, Misconfigured, NotEncrypted
from fiml.db import schema
from fiml.sessions import sealed
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.keyring import KeyFile
from fiml.sessions.models import AnalysisHistory, QueryRecord, Session
from fiml.sessions.records import FORMAT
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import document, existing, listing
from tests.support.deployment import Deployment
from tests.support.encryption import with_keys
from tests.support.old_layout import header_key

LOOKS_ENCRYPTED = f"{sealed.PREFIX} a note of mine"
CORPUS = Path(__file__).parents[1] / "corpus"
OLD_FORMATS = list(range(1, FORMAT))
# The first lacks totals that only counting anew brings.
WHEN_WRITTEN = {number: 1 if number == 1 else FORMAT for number in OLD_FORMATS}
CHANGES: dict[str, Callable[[SessionStore, str], Awaitable[object]]] = {
    "extend": lambda store, session_id: store.extend_session(session_id, 1),
    "resume": lambda store, session_id: store.resume_session(session_id),
    "share": lambda store, session_id: store.share_session(session_id, "bob"),
}
CHANGED_BY_READING = ("last_accessed_at", "version")


def corpus(name: str) -> Any:
    return json.loads((CORPUS / name).read_text())


def old_file(settings: Settings, number: int) -> Path:
    """The embedded file as that format's release left it."""
    file = settings.embedded_file
    file.parent.mkdir(parents=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((CORPUS / f"format-{number}.sqlite.sql").read_text())
        connection.execute("PRAGMA journal_mode=WAL")
    return file


def test_the_corpus_has_every_older_format() -> None:
    for number in OLD_FORMATS:
        assert (CORPUS / f"format-{number}.sqlite.sql").exists()
        assert (CORPUS / f"format-{number}.redis.json").exists()


@pytest.mark.parametrize("number", OLD_FORMATS)
async def test_an_older_file_is_upgraded_with_a_copy_kept_and_read_whole(clock: FrozenClock, number: int) -> None:
    settings = Settings()
    file = old_file(settings, number)
    before = dump_of(file)
    expected = corpus(f"format-{number}.sqlite.json")
    clock.advance(minutes=10)

    async with SessionStore(settings) as store:
        for title, session in expected.items():
            found = await existing(store, session["id"])
            assert without(document(found)) == without(session), title
        await store.record_query(expected["live"]["id"], make_query(execution_time_ms=1))
        clock.advance(hours=3)
        assert await store.cleanup_expired_sessions() == 1
        archived = await existing(store, expected["live"]["id"])
        stats = await SessionAnalytics(store.session_maker, store).get_session_stats()
        # Of the session that was archived before: the first format's metrics have fewer figures.
        assert await store.write_missing_metrics() == (1 if number == 1 else 0)
        filled = await SessionAnalytics(store.session_maker, store).get_session_stats()

    assert archived.state.history.total_queries == 4
    assert stats["total_queries"] == filled["total_queries"] == 7
    assert filled["queries_over_time"] == [("2024-12-23", 7)]
    assert filled["popular_tags"] == [("tech", 2)]
    [copy] = file.parent.glob("*.before-*")
    assert copy.name == f"fiml.db.before-{schema.REVISIONS[-1]}"
    assert dump_of(copy) == before


def dump_of(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


def without(session: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in session.items() if name not in CHANGED_BY_READING}


@pytest.mark.parametrize("is_swept", [True, False])
@pytest.mark.parametrize("number", OLD_FORMATS)
async def test_an_older_live_session_in_redis_is_read_written_and_archived(
    deployment: Deployment, clock: FrozenClock, number: int, *, is_swept: bool
) -> None:
    stored = corpus(f"format-{number}.redis.json")
    expected = stored["session"]
    with redis.Redis.from_url(deployment.redis_url) as client:
        for key, (kind, held) in stored["keys"].items():
            restore(client, key, kind, held)
    clock.advance(minutes=10)

    async with SessionStore(deployment.settings()) as store:
        assert without(document(await existing(store, expected["id"]))) == without(expected)
        totals = await store.record_query(expected["id"], make_query(execution_time_ms=1))
        written = (await existing(store, expected["id"])).state.history
        assert totals == written.totals
        assert number == 1 or totals == AnalysisHistory(written.queries).totals
        clock.advance(hours=3)
        assert await (store.cleanup_expired_sessions() if is_swept else store.archive_session(expected["id"])) == 1
        archived = await existing(store, expected["id"])
        stats = await SessionAnalytics(store.session_maker, store).get_session_stats()
        resumed = await store.resume_session(expected["id"])
        assert [summary.id for summary in await listing(store, "ann")] == [archived.id]
    with redis.Redis.from_url(deployment.redis_url) as client:
        assert client.hget(header_key(archived.id), "format") == str(FORMAT).encode()

    assert (archived.state.history.total_queries, resumed.state.history.total_queries) == (4, 4)
    assert archived.state.context == expected["state"]["context"]
    assert stats["queries_over_time"] == [("2024-12-23", 4)]
    assert stats["p95_query_time_ms"] == pytest.approx(160, rel=0.06)


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize("number", OLD_FORMATS)
async def test_what_changes_an_older_live_session_in_redis_raises_its_format_where_it_has_all_totals(
    deployment: Deployment, clock: FrozenClock, number: int, verb: str
) -> None:
    stored = corpus(f"format-{number}.redis.json")
    session_id = stored["session"]["id"]
    with redis.Redis.from_url(deployment.redis_url) as client:
        for key, (kind, held) in stored["keys"].items():
            restore(client, key, kind, held)
    clock.advance(hours=12 if verb == "resume" else 0)

    async with SessionStore(deployment.settings()) as store:
        await CHANGES[verb](store, session_id)

    with redis.Redis.from_url(deployment.redis_url) as client:
        assert client.hget(header_key(UUID(session_id)), "format") == str(WHEN_WRITTEN[number]).encode()


@pytest.mark.parametrize("number", OLD_FORMATS)
async def test_what_is_encrypted_in_an_older_file_is_of_a_format_that_its_release_refuses(
    clock: FrozenClock, keys: KeyFile, number: int
) -> None:
    settings = Settings(encryption_keys=keys.path)
    file = old_file(settings, number)
    expected = corpus(f"format-{number}.sqlite.json")

    async with SessionStore(settings) as store:
        await encrypt(store)
        for session in expected.values():
            found = document(await existing(store, session["id"]))
            assert found | {"last_accessed_at": session["last_accessed_at"]} == session

    with closing(sqlite3.connect(file)) as connection:
        formats = connection.execute("SELECT format FROM sessions UNION ALL SELECT format FROM active_sessions")
        assert formats.fetchall() == [(WHEN_WRITTEN[number],)] * 2


@pytest.mark.parametrize("number", OLD_FORMATS)
async def test_what_is_encrypted_on_the_servers_is_of_a_format_that_its_release_refuses(
    deployment: Deployment, clock: FrozenClock, keys: KeyFile, number: int
) -> None:
    stored = corpus(f"format-{number}.redis.json")
    expected = stored["session"]
    with redis.Redis.from_url(deployment.redis_url) as client:
        for key, (kind, held) in stored["keys"].items():
            restore(client, key, kind, held)
    plain = deployment.settings()
    async with SessionStore(plain) as store:
        archived = await store.create_session(["AAPL"], "equity", user_id="ann")
        await store.remember(archived.id, context={"a": 1})
        await store.archive_session(archived.id)
    server = await asyncpg.connect(deployment.database_url)
    await server.execute("UPDATE sessions SET format = $1", number)

    async with SessionStore(with_keys(plain, keys.path)) as store:
        await encrypt(store)
        found = document(await existing(store, expected["id"]))
        assert found | {"last_accessed_at": expected["last_accessed_at"]} == expected
        assert (await existing(store, archived.id)).state.context == {"a": 1}

    with redis.Redis.from_url(deployment.redis_url) as client:
        [header] = client.scan_iter("fiml:{*:header")
        assert int(client.hget(header, "format")) == WHEN_WRITTEN[number]
    assert await server.fetchval("SELECT format FROM sessions") == WHEN_WRITTEN[number]
    await server.close()


async def encrypt(store: SessionStore) -> None:
    [*_, last] = [progress async for progress in store.reencrypt_sessions(adopts_plaintext=True)]
    assert (last.rewritten, last.unreadable, last.in_clear) == (2, 0, 0)


def restore(client: redis.Redis, key: str, kind: str, held: list[Any]) -> None:
    def raw(text: str) -> bytes:
        return text.encode("utf-8", "surrogateescape")

    match kind:
        case "hash":
            client.hset(key, mapping={raw(name): raw(value) for name, value in held})
        case "list":
            client.rpush(key, *map(raw, held))
        case "set":
            client.sadd(key, *map(raw, held))
        case "zset":
            client.zadd(key, {raw(member): score for member, score in held})


async def a_session_of_before(settings: Settings, *, is_archived: bool) -> UUID:
    """With texts that only a release without encryption took."""
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], "equity")
        await store.remember(session.id, context={"a": "before"})
        await store.record_query(session.id, QueryRecord("price", {sealed.MEMBER: "before"}))
        with closing(sqlite3.connect(settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE active_entries SET value = replace(value, 'before', ?)", (LOOKS_ENCRYPTED,))
            connection.execute("UPDATE active_queries SET body = replace(body, 'before', ?)", (LOOKS_ENCRYPTED,))
        if is_archived:
            await store.archive_session(session.id)
    return session.id


def is_as_before(session: Session) -> bool:
    [query] = session.state.history.queries
    return (session.state.context, query.parameters) == ({"a": LOOKS_ENCRYPTED}, {sealed.MEMBER: LOOKS_ENCRYPTED})


@pytest.mark.parametrize("is_archived", [False, True])
async def test_a_text_that_begins_as_an_encrypted_one_and_names_no_key_is_data(
    sqlite_settings: Settings, clock: FrozenClock, is_archived: bool
) -> None:
    session_id = await a_session_of_before(sqlite_settings, is_archived=is_archived)

    async with SessionStore(sqlite_settings) as store:
        assert is_as_before(await existing(store, session_id))
        await store.archive_session(session_id)
        assert is_as_before(await store.resume_session(session_id))
        await store.remember(session_id, remove={"context": ["a"]})
        assert (await existing(store, session_id)).state.context == {}


@pytest.mark.parametrize("is_archived", [False, True])
async def test_with_keys_such_a_text_stands_in_clear_until_it_is_taken_over(
    sqlite_settings: Settings, keys: KeyFile, clock: FrozenClock, is_archived: bool
) -> None:
    session_id = await a_session_of_before(sqlite_settings, is_archived=is_archived)

    async with SessionStore(with_keys(sqlite_settings, keys.path)) as store:
        with pytest.raises(NotEncrypted):
            await store.get_session(session_id)
        async for _ in store.reencrypt_sessions(adopts_plaintext=True):
            pass
        assert is_as_before(await existing(store, session_id))


async def test_an_upgrade_that_was_interrupted_is_begun_again_and_says_so(clock: FrozenClock) -> None:
    settings = Settings()
    file = old_file(settings, 1)
    unfinished = file.with_name(f"fiml.db.before-{schema.REVISIONS[-1]}.unfinished")
    unfinished.write_bytes(b"half a copy")

    with capture_logs() as logs:
        async with SessionStore(settings) as store:
            assert len(await listing(store, "ann")) == 2

    assert "upgrade_was_interrupted" in [entry["event"] for entry in logs]
    assert not unfinished.exists()
    assert file.with_name(f"fiml.db.before-{schema.REVISIONS[-1]}").exists()


async def test_an_upgrade_whose_copy_fails_changes_nothing(clock: FrozenClock) -> None:
    settings = Settings()
    file = old_file(settings, 1)
    (file.with_name(f"fiml.db.before-{schema.REVISIONS[-1]}.unfinished")).mkdir()

    with pytest.raises(Misconfigured, match="copy"):
        await SessionStore(settings).initialize()

    with closing(sqlite3.connect(file)) as connection:
        [revision] = connection.execute(f"SELECT version_num FROM {schema.VERSION_TABLE}").fetchone()  # noqa: S608
    assert revision == "0001"


@pytest.mark.parametrize("table", ["active_sessions", "sessions"])
async def test_a_format_that_is_no_number_is_a_corrupt_record(sqlite_settings: Settings, table: str) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], "equity")
        if table == "sessions":
            await store.archive_session(session.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as other, other:
            other.execute(f"UPDATE {table} SET format = 'new'")  # noqa: S608 - a constant

        with pytest.raises(CorruptRecord, match=str(session.id)):
            await store.get_session(session.id)
