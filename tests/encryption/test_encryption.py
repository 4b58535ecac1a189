"""Encryption at rest: nothing readable reaches an engine, and what was altered or moved is an error."""

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import CorruptRecord, InvalidInput, MissingKey, NotEncrypted
from fiml.sessions import sealed, stored_json
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.keyring import KeyFile
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import content, existing
from tests.support.encryption import with_keys
from tests.support.mcp_client import door
from tests.support.stored_bytes import stored_bytes

WORDS = ("kumquat", "rhubarb", "physalis", "tamarind", "quince", "medlar", "loquat", "durian")
NUMBERS = (73819264.5, 918273645.25)
MARKERS = [word.encode() for word in WORDS] + [str(number).encode() for number in NUMBERS]


@pytest.fixture
def key_file(keys: KeyFile) -> Path:
    return keys.path


@pytest.fixture
def settings(plain_settings: Settings, key_file: Path) -> Settings:
    """A deployment that encrypts."""
    return with_keys(plain_settings, key_file)


@pytest.fixture
def embedded(tmp_path: Path, key_file: Path) -> Settings:
    """An embedded deployment that encrypts."""
    return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF, encryption_keys=key_file)


@pytest.fixture
async def store(embedded: Settings, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(embedded) as opened:
        yield opened


async def marked_session(store: SessionStore, **fields: Any) -> Session:
    """A session with a marker in every place where a value may stand."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY, tags=["tech"], title="In clear", **fields)
    session.state.metadata["of"] = {"nested": [WORDS[0], NUMBERS[0]]}
    await store.update_session(session.id, session)
    query = QueryRecord("price", {"symbol": WORDS[1]}, f"a {WORDS[2]}", figures={"price": NUMBERS[1]})
    await store.record_query(session.id, query, intermediate_results={"last": WORDS[3]})
    await store.remember(session.id, context={"a": WORDS[4]}, preferences={"b": WORDS[5]}, notes=[WORDS[6]])
    await store.remember(session.id, conclusions=[WORDS[7]])
    return await existing(store, session.id)


async def marked_sessions(store: SessionStore, clock: FrozenClock) -> list[Session]:
    """One live, one archived and resumed, one archived, one swept."""
    sessions = [await marked_session(store, ttl_hours=hours) for hours in (9, 9, 9, 1)]
    for session in sessions[1:3]:
        await store.archive_session(session.id)
    await store.resume_session(sessions[1].id)
    clock.advance(hours=2)
    assert await store.cleanup_expired_sessions() == 1
    assert len(await store.search_sessions(None, tag="tech")) == len(sessions)  # what is indexed now is indexed
    return sessions


def found_markers(stored: bytes) -> list[bytes]:
    return [marker for marker in MARKERS if marker in stored.lower()]


async def test_no_value_is_readable_in_any_engine(settings: Settings, clock: FrozenClock) -> None:
    async with SessionStore(settings) as store:
        sessions = await marked_sessions(store, clock)
        while_open = await stored_bytes(settings)
        for session in sessions:
            assert content(await existing(store, session.id)) == content(session)
    stored = await stored_bytes(settings)

    assert found_markers(while_open + stored) == []
    assert b"in clear" in stored.lower()  # a title, and with it a sign that this looks where it should


async def test_without_encryption_the_same_check_finds_every_value(
    plain_settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(plain_settings) as store:
        await marked_sessions(store, clock)
        stored = await stored_bytes(plain_settings)

    assert found_markers(stored) == MARKERS


async def test_what_is_in_quarantine_is_encrypted_too(
    store: SessionStore, embedded: Settings, clock: FrozenClock
) -> None:
    session = await marked_session(store, ttl_hours=1)
    change_file(embedded, "DELETE FROM active_queries")
    clock.advance(hours=2)

    assert (await store.sweep()).quarantined == 1

    kept = str(await store.get_quarantined(session.id)).encode()
    assert found_markers(kept) == []
    assert b"fiml-enc:1:k1:" in kept


def change_file(settings: Settings, *statements: str) -> None:
    with closing(sqlite3.connect(settings.embedded_file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


async def two_sessions(store: SessionStore) -> tuple[Session, Session]:
    """Two sessions with the same entries, and two queries each."""
    found = []
    for name in ("one", "two"):
        session = await store.create_session([name], SessionType.EQUITY)
        for n in range(2):
            await store.record_query(
                session.id,
                make_query(id=UUID(int=n), parameters={"n": f"{name} {n}"}),
                context={f"k{n}": f"{name} {n}"},
            )
        found.append(await existing(store, session.id))
    return found[0], found[1]


MOVES: dict[str, str] = {
    "to another session": "UPDATE active_entries SET value = (SELECT value FROM active_entries other WHERE"
    " other.session_id = 'TWO' AND other.key = active_entries.key) WHERE session_id = 'ONE' AND key = 'k0'",
    "to another key": "UPDATE active_entries SET value = (SELECT value FROM active_entries other WHERE"
    " other.session_id = 'ONE' AND other.key = 'k1') WHERE session_id = 'ONE' AND key = 'k0'",
    "to another map": "UPDATE active_entries SET map = 'metadata' WHERE session_id = 'ONE' AND key = 'k0'",
    "to a query of another session": "UPDATE active_queries SET body = (SELECT body FROM active_queries other WHERE"
    " other.session_id = 'TWO' AND other.id = active_queries.id) WHERE session_id = 'ONE'",
    "to another query": "UPDATE active_queries SET body = (SELECT replace(body, '-000000000001', '-000000000000')"
    " FROM active_queries other WHERE other.session_id = 'ONE' AND other.id LIKE '%1')"
    " WHERE session_id = 'ONE' AND id LIKE '%0'",
    "nowhere, but altered": "UPDATE active_entries SET value = substr(value, 1, 40)"
    " || CASE substr(value, 41, 1) WHEN 'A' THEN 'B' ELSE 'A' END || substr(value, 42) WHERE session_id = 'ONE'",
    "nowhere, but cut": "UPDATE active_entries SET value = substr(value, 1, 30) || '\"' WHERE session_id = 'ONE'",
    "nowhere, but emptied": "UPDATE active_entries SET value = '\"fiml-enc:1:k1:\"' WHERE session_id = 'ONE'",
    "nowhere, but nameless": "UPDATE active_entries SET value = '\"fiml-enc:1:AAAA\"' WHERE session_id = 'ONE'",
}


@pytest.mark.parametrize("where", MOVES)
async def test_a_value_that_was_moved_or_altered_is_an_error(
    store: SessionStore, embedded: Settings, where: str
) -> None:
    one, two = await two_sessions(store)

    change_file(embedded, MOVES[where].replace("ONE", one.id.hex).replace("TWO", two.id.hex))

    with pytest.raises(CorruptRecord, match=str(one.id)):
        await store.get_session(one.id)
    assert content(await existing(store, two.id)) == content(two)


async def test_an_archived_value_that_was_moved_is_an_error(settings: Settings, clock: FrozenClock) -> None:
    async with SessionStore(settings) as store:
        one, two = await two_sessions(store)
        await store.archive_session(one.id)
        assert content(await existing(store, one.id)) == content(one)
        async with store.session_maker() as sql, sql.begin():
            connection = await sql.connection()
            await connection.exec_driver_sql("UPDATE sessions SET preferences = context")

        with pytest.raises(CorruptRecord, match="of its preferences can't be decrypted with the key"):
            await store.get_session(one.id)
        assert content(await existing(store, two.id)) == content(two)


async def test_another_installation_can_not_read_it(store: SessionStore, embedded: Settings) -> None:
    session = await marked_session(store)
    assert embedded.encryption_keys is not None

    async with SessionStore(with_keys(embedded, embedded.encryption_keys, installation="theirs")) as theirs:
        with pytest.raises(CorruptRecord, match="FIML_INSTALLATION"):
            await theirs.get_session(session.id)


@pytest.mark.parametrize("is_archived", [False, True])
async def test_without_keys_ciphertext_is_an_error_that_names_the_key(
    plain_settings: Settings, settings: Settings, clock: FrozenClock, is_archived: bool
) -> None:
    async with SessionStore(settings) as store:
        session = await marked_session(store)
        asked = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.record_query(asked.id, make_query())
        if is_archived:
            await store.archive_session(session.id)
            await store.archive_session(asked.id)

    async with SessionStore(plain_settings) as blind:
        for session_id in (session.id, asked.id):
            with pytest.raises(MissingKey, match="the key 'k1', which this process doesn't have") as raised:
                await blind.get_session(session_id)
            assert raised.value.key_id == "k1"
        assert {summary.id for summary in await blind.list_user_sessions(None, True)} == {session.id, asked.id}


async def test_without_keys_ciphertext_beside_values_in_clear_is_an_error_too(
    plain_settings: Settings, settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.record_query(session.id, make_query())

    async with SessionStore(plain_settings) as blind:
        await blind.record_query(session.id, make_query(), context={"in": "clear"})

        with pytest.raises(MissingKey, match="'k1'"):
            await blind.get_session(session.id)


async def test_a_key_that_is_missing_is_named(store: SessionStore, embedded: Settings, tmp_path: Path) -> None:
    session = await marked_session(store)
    KeyFile(tmp_path / "others").add("k2")

    async with SessionStore(with_keys(embedded, tmp_path / "others")) as other:
        with pytest.raises(MissingKey, match="'k1'"):
            await other.get_session(session.id)


async def test_a_key_that_was_replaced_under_its_id_is_used_no_more(store: SessionStore, keys: KeyFile) -> None:
    """With the old key, the store would go on writing what nobody can read after its end."""
    session = await marked_session(store)
    keys.path.unlink()
    keys.add("k1")

    with pytest.raises(CorruptRecord):
        await store.get_session(session.id)


async def test_a_query_is_recorded_even_if_the_session_cannot_be_extended(
    embedded: Settings, key_file: Path, tmp_path: Path, clock: FrozenClock
) -> None:
    KeyFile(tmp_path / "others").add("k2")
    async with SessionStore(with_keys(embedded, key_file, session_smart_ttl=True)) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=24)
        clock.advance(hours=23)
        await store.record_query(session.id, make_query())
        extended = await existing(store, session.id)
    clock.advance(hours=11)

    async with SessionStore(with_keys(embedded, tmp_path / "others", session_smart_ttl=True)) as other:
        totals = await other.record_query(session.id, make_query())
        [found] = await other.list_user_sessions(None)

    assert totals.total_queries == 2
    assert found.expires_at == extended.expires_at > session.expires_at


async def test_plaintext_is_an_error_that_names_the_way_out(
    plain_settings: Settings, settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(plain_settings) as store:
        entries = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.remember(entries.id, context={"a": 1})
        queries = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.record_query(queries.id, make_query())
        empty = await store.create_session(["AAPL"], SessionType.EQUITY)

    async with SessionStore(settings) as store:
        for session_id in (entries.id, queries.id):
            with pytest.raises(NotEncrypted, match="fiml keys rotate --encrypt-plaintext"):
                await store.get_session(session_id)
        assert (await existing(store, empty.id)).state.context == {}


@pytest.mark.parametrize("member", ["result_summary", "figures"])
async def test_a_plaintext_part_of_a_query_is_refused(store: SessionStore, embedded: Settings, member: str) -> None:
    """Nobody who can write to the engine slips in a summary or a figure."""
    one, _ = await two_sessions(store)
    slip_in = {
        "result_summary": "UPDATE active_queries SET body = json_set(body, '$.result_summary', 'sell')",
        "figures": "UPDATE active_queries SET body = json_set(body, '$.figures', json('{\"price\": 1}'))",
    }
    change_file(embedded, slip_in[member])

    with pytest.raises(NotEncrypted, match="query"):
        await store.get_session(one.id)


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_a_value_that_looks_encrypted_is_refused_at_the_door(
    tmp_path: Path, key_file: Path, is_encrypted: bool
) -> None:
    looks_encrypted = f"{sealed.PREFIX}k1:AAAA"
    folder = Settings(data_dir=tmp_path / "data", encryption_keys=key_file if is_encrypted else None)

    async with SessionStore(folder) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        with pytest.raises(InvalidInput, match=r"context\.a begins with fiml-enc:1:"):
            await store.remember(session.id, context={"a": looks_encrypted})
        with pytest.raises(InvalidInput, match=r"begins with fiml-enc:1:"):
            await store.record_query(session.id, QueryRecord("price", {sealed.MEMBER: looks_encrypted}))
        nested = {"list": [looks_encrypted], "object": {sealed.MEMBER: looks_encrypted}}
        await store.remember(session.id, context=nested)
        await store.record_query(session.id, QueryRecord("price", {"a": 1, sealed.MEMBER: looks_encrypted}))

        found = await existing(store, session.id)
        assert found.state.context == nested
        assert found.state.history.queries[0].parameters == {"a": 1, sealed.MEMBER: looks_encrypted}


async def test_the_largest_values_can_be_archived_and_resumed(settings: Settings, clock: FrozenClock) -> None:
    """Ciphertext is a third longer; the limits count what is encrypted."""
    noise = random.Random(7)  # noqa: S311 - any letters that don't repeat
    letters = "".join(noise.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=stored_json.MAX_VALUE_BYTES - 2))
    parameters = {"a": letters[:-6]}
    figures = {f"f{n}": noise.random() for n in range(7000)}
    query = QueryRecord("price", parameters, letters, figures=figures)
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        with pytest.raises(InvalidInput, match="256 KiB"):
            await store.remember(session.id, context={"a": letters + "x"})
        for n in range(15):
            await store.remember(session.id, context={f"{n}": letters})
        await store.record_query(session.id, query)
        before = await existing(store, session.id)

        await store.archive_session(session.id)
        assert content(await existing(store, session.id)) == content(before)
        resumed = await store.resume_session(session.id)

        assert content(resumed) == content(before)
        assert resumed.state.history.queries == [query]


async def test_a_worker_without_keys_archives_what_is_encrypted(
    plain_settings: Settings, settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(settings) as store, SessionStore(plain_settings) as worker:
        session = await marked_session(store, ttl_hours=1)
        clock.advance(hours=2)

        assert (await worker.sweep()).archived == 1

        assert content(await existing(store, session.id)) == content(session)
        [metrics] = await SessionAnalytics(worker.session_maker).get_session_metrics()
        assert (metrics["total_queries"], metrics["query_type_summary"]) == (1, {"price": 1})


async def test_what_a_process_without_keys_wrote_is_an_error_until_it_is_taken_over(
    plain_settings: Settings, settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(settings) as store, SessionStore(plain_settings) as blind:
        session = await marked_session(store)
        await blind.record_query(session.id, make_query("blind"), context={"blind": 1})
        with pytest.raises(NotEncrypted):
            await store.get_session(session.id)

        async for _ in store.reencrypt_sessions(adopts_plaintext=True):
            pass

        found = await existing(store, session.id)
        assert found.state.context == session.state.context | {"blind": 1}
        assert [query.query_type for query in found.state.history.queries] == ["price", "blind"]


async def test_an_assistant_works_on_and_is_told_what_it_can_search_by(embedded: Settings, clock: FrozenClock) -> None:
    async with door(embedded) as caller:
        session_id = await caller.create("AAPL", title="Large caps")
        asked = {"symbol": "AAPL", "depth": "quick", "sessionId": session_id}
        await caller.answer("search-by-symbol", **asked)
        await caller.answer("update-session-context", sessionId=session_id, conclusion=WORDS[0])
        again = await caller.answer("search-by-symbol", **asked)
        context = await caller.answer("get-session-context", sessionId=session_id)
        refused = await caller.refusal("search-sessions", text=WORDS[0])
        found = await caller.answer("search-sessions", symbol="AAPL")

    assert again["cache_hit"]
    assert WORDS[0] in str(context)
    assert refused["code"] == "not_supported"
    assert [each["session_id"] for each in found["sessions"]] == [session_id]
    assert found_markers(await stored_bytes(embedded)) == []
