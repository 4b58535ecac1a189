"""Values of another type than fiml writes, which SQLite stores in any column: damage, and told as such."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from uuid import UUID

import pytest

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, SessionArchived
from fiml.db.tables import active_sessions, sessions
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query

OWNER = "ann"
BYTES, TEXT, OTHER_JSON = "x'ff'", "'x'", """'[{"a": 1}]'"""
# The rows are found by these.
_KEYS = {"id", "user_id"}
_TEXTS = {"title", "type"}
# Reading a session doesn't need these columns of an archived one.
_UNREAD = {"first_query_at", "last_query_at", "cache_hit_rate", "archived_at", "is_archived", "trail"}
LIVE = [column.name for column in active_sessions.c if column.name not in _KEYS]
ARCHIVED = [column.name for column in sessions.c if column.name not in _KEYS | _UNREAD]
PARTS = [("active_queries", "body"), ("active_entries", "value"), ("active_trail", "entry")]

Call = Callable[[SessionStore, UUID], Awaitable[object]]
CALLS: list[Call] = [
    lambda store, session_id: store.record_query(session_id, make_query()),
    lambda store, session_id: store.extend_session(session_id, 1),
    lambda store, _: store.list_user_sessions(OWNER, include_archived=True),
    lambda store, session_id: store.get_audit_trail(session_id),
    lambda store, session_id: store.share_session(session_id, "bob"),
    lambda store, session_id: store.archive_session(session_id),
    lambda store, session_id: store.resume_session(session_id),
]


async def made_session(store: SessionStore) -> UUID:
    session = await store.create_session(["AAPL"], "equity", user_id=OWNER)
    session.add_query(make_query())
    session.state.update_context("thesis", "cheap")
    await store.update_session(session.id, session)
    return session.id


def damage(settings: Settings, table: str, column: str, value: str) -> None:
    with closing(sqlite3.connect(settings.embedded_file)) as connection, connection:
        connection.execute(f"UPDATE {table} SET {column} = {value}")  # noqa: S608 - our own names and values


async def only_damage_is_told(store: SessionStore, session_id: UUID) -> None:
    for call in CALLS:
        with suppress(CorruptRecord, SessionArchived):
            await call(store, session_id)


@pytest.mark.parametrize("wrong", [BYTES, TEXT, OTHER_JSON])
@pytest.mark.parametrize("column", LIVE)
async def test_a_live_session_with_a_value_of_another_type_is_damaged(
    sqlite_settings: Settings, column: str, wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session_id = await made_session(store)
        damage(sqlite_settings, "active_sessions", column, wrong)

        if wrong == BYTES or column not in _TEXTS:
            with pytest.raises(CorruptRecord):
                await store.get_session(session_id)
        await only_damage_is_told(store, session_id)


@pytest.mark.parametrize("wrong", [BYTES, TEXT, OTHER_JSON])
@pytest.mark.parametrize("column", ARCHIVED)
async def test_an_archived_session_with_a_value_of_another_type_is_damaged(
    sqlite_settings: Settings, column: str, wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session_id = await made_session(store)
        await store.archive_session(session_id)
        assert await store.get_session(session_id) is not None
        damage(sqlite_settings, "sessions", column, wrong)

        if wrong == BYTES or column not in _TEXTS:
            with pytest.raises(CorruptRecord):
                await store.get_session(session_id)
        await only_damage_is_told(store, session_id)


@pytest.mark.parametrize("wrong", [BYTES, TEXT])
async def test_a_listing_with_an_id_that_is_none_tells_damage(sqlite_settings: Settings, wrong: str) -> None:
    async with SessionStore(sqlite_settings) as store:
        await made_session(store)
        damage(sqlite_settings, "active_sessions", "id", wrong)

        with pytest.raises(CorruptRecord):
            await store.list_user_sessions(OWNER)


@pytest.mark.parametrize("wrong", [BYTES, TEXT, "upper(id)"])
async def test_a_row_whose_id_is_none_does_not_hold_up_the_sweep(
    sqlite_settings: Settings, clock: FrozenClock, wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        await made_session(store)
        damage(sqlite_settings, "active_sessions", "id", wrong)
        session_id = await made_session(store)
        clock.advance(days=30)

        assert await store.cleanup_expired_sessions() == 1

        session = await store.get_session(session_id)
        assert session is not None
        assert session.is_archived


async def test_an_expiry_before_all_times_leaves_the_figures_of_the_store(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings) as store:
        await made_session(store)
        damage(sqlite_settings, "active_sessions", "expires_at", str(-(2**62)))

        figures = await store.figures()

        assert (figures.live, figures.waiting, figures.oldest_waiting) == (1, 1, None)


@pytest.mark.parametrize("wrong", [BYTES, TEXT])
async def test_a_user_with_a_row_whose_id_is_none_is_not_reported_as_erased(
    sqlite_settings: Settings, wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        await made_session(store)
        damage(sqlite_settings, "active_sessions", "id", wrong)

        with pytest.raises(CorruptRecord, match="live session"):
            await store.erase_user(OWNER)


async def test_damaged_metrics_of_another_user_do_not_keep_a_user_from_being_erased(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings) as store:
        for user in ("bob", OWNER):
            session = await store.create_session(["AAPL"], "equity", user_id=user, tags=[f"of {user}"])
            await store.archive_session(session.id)
        await store.roll_up()
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE session_metrics SET assets_analyzed = 'x' WHERE user_id = 'bob'")

        receipt = await store.erase_user(OWNER)

        assert len(receipt.erased) == 1
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection:
            left = connection.execute("SELECT tags FROM session_metrics UNION ALL SELECT tags FROM session_rollups")
            assert left.fetchall() == [('["of bob"]',)]


@pytest.mark.parametrize("wrong", [BYTES, TEXT])
@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("sessions.id", lambda store: store.list_user_sessions(OWNER, include_archived=True)),
        ("search_pending.session_id", lambda store: store.search_sessions(OWNER, "cheap")),
        ("rollup_marks.day", SessionStore.roll_up),
    ],
)
async def test_an_id_or_a_day_beside_the_live_sessions_that_is_none_is_damage(
    sqlite_settings: Settings, place: str, call: Callable[[SessionStore], Awaitable[object]], wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        await store.archive_session(await made_session(store))
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            table, column = place.split(".")
            connection.execute(f"DELETE FROM {table} WHERE rowid > (SELECT min(rowid) FROM {table})")  # noqa: S608 - our own
        damage(sqlite_settings, table, column, wrong)

        with pytest.raises(CorruptRecord, match="can't be read"):
            await call(store)


@pytest.mark.parametrize(("table", "column"), PARTS)
async def test_a_part_of_a_session_that_is_no_text_is_damaged(
    sqlite_settings: Settings, table: str, column: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session_id = await made_session(store)
        damage(sqlite_settings, table, column, BYTES)

        with pytest.raises(CorruptRecord):
            await (store.get_audit_trail if table == "active_trail" else store.get_session)(session_id)
        await only_damage_is_told(store, session_id)


@pytest.mark.parametrize("wrong", ["'no JSON'", "'[1'", "x'ff'"])
async def test_damaged_metrics_are_a_corrupt_record(sqlite_settings: Settings, tmp_path: Path, wrong: str) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], "equity")
        await store.archive_session(session.id)
        damage(sqlite_settings, "session_metrics", "assets_analyzed", wrong)
        analytics = SessionAnalytics(store.session_maker)

        with pytest.raises(CorruptRecord):
            await analytics.get_session_stats()
        with pytest.raises(CorruptRecord, match=f"the metrics of session {session.id}"):
            await analytics.get_session_metrics()
        with pytest.raises(CorruptRecord, match=f"the metrics of session {session.id}"):
            await analytics.export(tmp_path / "rows.csv")

    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(("column", "wrong"), [("total_queries", TEXT), ("query_types", "7.5"), ("assets", "7.5")])
async def test_damaged_totals_of_a_live_session_are_a_corrupt_record(
    sqlite_settings: Settings, column: str, wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], "equity")
        damage(sqlite_settings, "active_sessions", column, wrong)

        with pytest.raises(CorruptRecord, match=str(session.id)):
            await SessionAnalytics(store.session_maker, store).get_session_stats()
