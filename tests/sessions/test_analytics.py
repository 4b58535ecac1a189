"""Statistics: the same whether they come from rollups or from metrics, and computed by the database."""

import asyncio
import csv
import json
import math
import resource
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas
import polars
import pytest
from pyarrow import parquet
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.util import await_only

from fiml.core.config import Settings
from fiml.core.errors import InvalidInput
from fiml.db.tables import session_metrics
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.analytics.export import COLUMNS, open_target, write
from fiml.sessions.analytics.figures import Filters, statement
from fiml.sessions.backends.sql import metrics
from fiml.sessions.histogram import QUERY_TIME_ERROR, percentile_ms, time_bucket
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.records import Header
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing
from tests.support.deployment import Deployment

TIMES_MS = [0.0, 0.4, 3.0, 3.1, 12.5, 90.0, 250.0, 251.0, 1000.0, 62000.0]


@pytest.fixture
def analytics(store: SessionStore) -> SessionAnalytics:
    return SessionAnalytics(store.session_maker, store)


async def a_month(store: SessionStore, clock: FrozenClock) -> None:
    """Sessions of three users over forty days, some live still."""
    for day in range(40):
        for n in range(3):
            session = await store.create_session(
                ["AAPL", "MSFT", "KO"][: n + 1],
                list(SessionType)[day % 5],
                user_id=["ann", "bob", None][n],
                ttl_hours=20,
                tags=["tech"] if day % 2 else ["tech", "food"],
            )
            for query in range((day + n) % 4):
                await store.record_query(
                    session.id,
                    make_query(f"{query}", execution_time_ms=TIMES_MS[(day + query) % 10], cache_hit=query == 1),
                )
        clock.advance(hours=24)
        if day < 38:
            await store.cleanup_expired_sessions()


async def test_analytics_over_the_store_itself_say_what_to_give(store: SessionStore) -> None:
    itself: Any = store

    with pytest.raises(InvalidInput, match=r"give store\.session_maker"):
        SessionAnalytics(itself)


async def test_the_statistics_are_what_the_sessions_add_up_to(
    store: SessionStore, analytics: SessionAnalytics, clock: FrozenClock
) -> None:
    session = await store.create_session(["AAPL", "MSFT"], SessionType.EQUITY, user_id="ann", ttl_hours=1, tags=["t"])
    for time_ms in TIMES_MS:
        await store.record_query(session.id, make_query(execution_time_ms=time_ms, cache_hit=time_ms < 1))
    clock.advance(minutes=30)
    await store.get_session(session.id)
    clock.advance(hours=1)
    await store.cleanup_expired_sessions()
    await store.create_session(["AAPL"], SessionType.CRYPTO, user_id="ann", ttl_hours=48)
    clock.advance(days=1)
    await store.create_session(["AAPL"], SessionType.MACRO, user_id="ann", ttl_hours=1)

    stats = await analytics.get_session_stats(user_id="ann")

    assert stats == {
        "total_sessions": 3,
        "active_sessions": 2,
        "archived_sessions": 1,
        "total_queries": 10,
        "avg_queries_per_session": 10 / 3,
        "avg_duration_seconds": 600.0,
        "abandonment_rate": 0.0,
        "cache_hit_rate": 0.2,
        "type_breakdown": {"crypto": 1, "equity": 1, "macro": 1},
        "top_assets": [("AAPL", 3), ("MSFT", 1)],
        "popular_tags": [("t", 1)],
        "query_type_distribution": {"price": 10},
        "queries_over_time": [("2024-12-23", 10)],
        "median_query_time_ms": pytest.approx(12.5, rel=QUERY_TIME_ERROR),
        "p95_query_time_ms": pytest.approx(62000, rel=QUERY_TIME_ERROR),
        "query_time_error": QUERY_TIME_ERROR,
        "analytics_enabled": True,
    }


async def test_rollups_say_what_the_metrics_say(
    store: SessionStore, analytics: SessionAnalytics, clock: FrozenClock
) -> None:
    filters: list[dict[str, Any]] = [{}, {"user_id": "ann"}, {"session_type": "macro"}, {"days": 3}, {"days": 100}]
    await a_month(store, clock)
    before = [await analytics.get_session_stats(**each) for each in filters]
    assert all(stats["total_sessions"] > 0 for stats in before)

    days = await store.roll_up()

    assert days >= 37
    assert await store.roll_up() == 0
    assert [await analytics.get_session_stats(**each) for each in filters] == before


@pytest.mark.parametrize("apart", [1, 2])
async def test_any_number_of_days_may_be_behind(
    store: SessionStore, analytics: SessionAnalytics, clock: FrozenClock, apart: int
) -> None:
    """As after an upgrade, when no rollup was made yet: ten years, each day or every other one."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    await store.archive_session(session.id)
    days = [metrics.day_of(clock.now() - timedelta(days=n)) for n in range(0, 3600, apart)]
    await store.keeping._transact(lambda connection: metrics.mark(connection, days))

    assert (await analytics.get_session_stats(days=3650))["total_sessions"] == 1


async def test_a_session_that_is_resumed_and_ends_again_counts_once(
    store: SessionStore, analytics: SessionAnalytics, clock: FrozenClock
) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    await store.record_query(session.id, make_query())
    await store.archive_session(session.id)
    await store.roll_up()
    for total in (2, 3):
        await store.resume_session(session.id)
        assert (await analytics.get_session_stats())["total_sessions"] == 1
        await store.record_query(session.id, make_query())
        await store.archive_session(session.id)
        assert await store.roll_up() == 1

        stats = await analytics.get_session_stats()

        assert (stats["total_sessions"], stats["total_queries"], stats["archived_sessions"]) == (1, total, 1)
    await store.delete_session(session.id)
    assert (await analytics.get_session_stats())["total_sessions"] == 0


async def test_a_session_that_has_expired_is_not_active_before_it_is_archived_either(
    store: SessionStore, analytics: SessionAnalytics, clock: FrozenClock
) -> None:
    await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    clock.advance(hours=1)

    stats = await analytics.get_session_stats()

    assert (stats["total_sessions"], stats["active_sessions"], stats["archived_sessions"]) == (1, 0, 0)
    assert stats["abandonment_rate"] == 1


async def test_a_session_that_a_crash_left_twice_counts_once(store: SessionStore, analytics: SessionAnalytics) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, tags=["t"])
    await store.record_query(session.id, make_query(execution_time_ms=5))
    read = await store.get_session(session.id)
    assert read is not None
    await analytics.record_session_metrics(read)
    await store.roll_up()
    await store.record_query(session.id, make_query(execution_time_ms=5))

    stats = await analytics.get_session_stats()

    assert (stats["total_sessions"], stats["active_sessions"], stats["archived_sessions"]) == (1, 1, 0)
    assert (stats["total_queries"], stats["popular_tags"], stats["top_assets"]) == (2, [("t", 1)], [("AAPL", 1)])


async def test_a_session_that_is_archived_while_the_statistics_are_computed_counts_once(
    store: SessionStore, analytics: SessionAnalytics
) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)

    @event.listens_for(store.session_maker.kw["bind"].sync_engine, "before_cursor_execute")
    def archive_before_live_sessions_are_subtracted(*args: Any) -> None:
        if "session_metrics.session_id IN" in args[2]:
            await_only(store.archive_session(session.id))

    stats = await analytics.get_session_stats()

    assert stats["total_sessions"] == 1
    assert await store.archive_session(session.id) is False


async def test_metrics_are_replaced_by_those_of_a_later_version_only(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    await store.record_query(session.id, make_query())
    later = await existing(store, session.id)
    of_the_same_version = await existing(store, session.id)
    of_the_same_version.add_query(make_query())

    counts = []
    for given in (session, later, session, of_the_same_version):
        await SessionAnalytics(store.session_maker).record_session_metrics(given)
        async with store.session_maker() as database:
            counts.append((await database.execute(text("SELECT total_queries FROM session_metrics"))).scalar_one())

    assert counts == [0, 1, 1, 1]


def _an_object(query: QueryRecord | None = None, **fields: Any) -> Session:
    session = Session(type=SessionType.EQUITY, assets=["AAPL"])
    if query is not None:
        session.add_query(query)
    for name, value in fields.items():
        setattr(session, name, value)
    return session


UNSTORABLE: list[Any] = [
    None,
    _an_object(id="x"),
    _an_object(user_id=5),
    _an_object(assets=None),
    _an_object(assets=["A\0"]),
    _an_object(tags=[math.nan]),
    _an_object(version=1 << 70),
    _an_object(state=None),
    _an_object(query=QueryRecord("\ud800")),
    _an_object(query=QueryRecord("price", execution_time_ms=math.nan)),
]


@pytest.mark.parametrize("given", UNSTORABLE, ids=range(len(UNSTORABLE)))
async def test_metrics_of_what_cant_be_stored_are_refused(
    store: SessionStore, analytics: SessionAnalytics, given: Any
) -> None:
    with pytest.raises(InvalidInput):
        await analytics.record_session_metrics(given)

    assert (await analytics.get_session_stats())["total_sessions"] == 0


async def test_an_asset_that_an_object_names_twice_counts_once(analytics: SessionAnalytics) -> None:
    await analytics.record_session_metrics(_an_object(assets=["AAPL", "AAPL"]))

    assert (await analytics.get_session_stats())["top_assets"] == [("AAPL", 1)]


async def test_metrics_wait_for_a_lock_of_the_embedded_file_by_trying_again_and_again(
    sqlite_settings: Settings,
) -> None:
    """A hundred tries take seconds with SQLite's own wait, which gets slower and shows only its first try."""
    tries = asyncio.Queue[None]()

    def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement == "BEGIN IMMEDIATE":
            tries.put_nowait(None)

    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        event.listen(store.session_maker.kw["bind"].sync_engine, "before_cursor_execute", hear)
        with closing(sqlite3.connect(sqlite_settings.embedded_file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            recording = asyncio.create_task(SessionAnalytics(store.session_maker).record_session_metrics(session))
            async with asyncio.timeout(10):
                for _ in range(100):
                    await tries.get()
            other.execute("ROLLBACK")
            await recording
            assert other.execute("SELECT count(*) FROM session_metrics").fetchone() == (1,)


async def test_metrics_that_are_missing_are_written_from_the_history(
    backend_settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(backend_settings.model_copy(update={"session_enable_analytics": False})) as silent:
        session = await silent.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1, tags=["t"])
        for time_ms in (1.0, 2.0, 4.0):
            await silent.record_query(session.id, make_query(execution_time_ms=time_ms))
        clock.advance(hours=1)
        await silent.cleanup_expired_sessions()
        assert await silent.write_missing_metrics() == 0
    async with SessionStore(backend_settings) as store:
        assert await store.write_missing_metrics() == 1

        assert await store.write_missing_metrics() == 0
        stats = await SessionAnalytics(store.session_maker, store).get_session_stats()
    assert (stats["total_queries"], stats["popular_tags"]) == (3, [("t", 1)])
    assert stats["median_query_time_ms"] == pytest.approx(2.0, rel=QUERY_TIME_ERROR)


def test_a_percentile_is_right_to_half_a_bucket() -> None:
    for fraction in (0.01, 0.5, 0.95, 1.0):
        times = sorted(1.07**n for n in range(-50, 200))
        histogram = Counter(map(time_bucket, times))

        found = percentile_ms(histogram, fraction)

        exact = times[max(0, -(-len(times) * int(fraction * 100) // 100) - 1)]
        assert found == pytest.approx(exact, rel=2 * QUERY_TIME_ERROR)
    assert percentile_ms({}, 0.5) is None


async def test_an_export_holds_every_row_once(
    store: SessionStore,
    analytics: SessionAnalytics,
    clock: FrozenClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fiml.sessions.analytics.export.page.__kwdefaults__", {"limit": 7})
    await a_month(store, clock)

    counts = {name: await analytics.export(tmp_path / f"rows.{name}", days=60) for name in ("csv", "jsonl", "parquet")}

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert set(counts.values()) == {len(rows)} == {38 * 3}
    assert len({row["session_id"] for row in rows}) == len(rows)
    assert [row["created_at"] for row in rows] == sorted((row["created_at"] for row in rows), reverse=True)
    with (tmp_path / "rows.csv").open() as file:
        assert [row["session_id"] for row in csv.DictReader(file)] == [row["session_id"] for row in rows]
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["session_id"] for row in table] == [row["session_id"] for row in rows]
    assert [row["total_queries"] for row in table] == [row["total_queries"] for row in rows]
    assert json.loads(table[0]["assets_analyzed"]) == rows[0]["assets_analyzed"]
    assert await analytics.export(tmp_path / "ann.csv", user_id="ann", days=60) == 38


async def test_an_export_refuses_what_it_can_not_write(analytics: SessionAnalytics, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")

    for path in (tmp_path / "there.csv", tmp_path / "rows.xls", tmp_path / "no" / "folder.csv"):
        with pytest.raises(InvalidInput):
            await analytics.export(path)

    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not (tmp_path / "rows.xls").exists()


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_an_export_that_does_not_fit_leaves_no_file(form: str, tmp_path: Path) -> None:
    target = open_target(tmp_path / f"rows.{form}", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    async def one_row(last: object) -> list[dict[str, Any]]:
        return [] if last else [dict.fromkeys(COLUMNS)]

    try:
        with pytest.raises(InvalidInput, match="can't be written"):
            await write(target, one_row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not target.path.exists()


async def test_results_become_data_frames(store: SessionStore, analytics: SessionAnalytics, clock: FrozenClock) -> None:
    await a_month(store, clock)
    stats = await analytics.get_session_stats(days=60)
    rows = await analytics.get_session_metrics(days=60, limit=50)

    frames = [stats.to_pandas(), rows.to_pandas()], [stats.to_polars(), rows.to_polars()]

    assert [type(frame) for frame in frames[0]] == [pandas.DataFrame] * 2
    assert [type(frame) for frame in frames[1]] == [polars.DataFrame] * 2
    assert [len(frame) for frame in frames[0]] == [len(frame) for frame in frames[1]] == [len(stats.rows()), 50]
    by_figure = frames[0][0].set_index(["figure", "name"])["value"]
    assert by_figure["total_sessions", ""] == stats["total_sessions"]
    assert by_figure["top_assets", "AAPL"] == 120


async def test_the_plan_reads_rollups_and_no_rolled_up_days_metrics(deployment: Deployment, clock: FrozenClock) -> None:
    """On PostgreSQL, with as many users and days that the planner has a choice."""
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        header = Header(
            session.id, "u", "equity", None, ["AAPL"], ["t"], clock.now(), session.expires_at, clock.now(), 1
        )
        row = metrics.row_of(header, clock.now())

        def fill(connection: Connection) -> None:
            rows = [
                row
                | {
                    "session_id": UUID(int=n),
                    "user_id": f"u{n % 200}",
                    "created_at": clock.now() - timedelta(minutes=n * 10),
                }
                for n in range(10_000)
            ]
            connection.execute(insert(session_metrics), rows)
            metrics.mark(connection, (metrics.day_of(clock.now() - timedelta(days=n)) for n in range(70)))

        await store.keeping._transact(fill)
        await store.roll_up()

        def explain(connection: Connection) -> str:
            connection.execute(text("ANALYZE"))
            query = statement(connection, Filters(since=clock.now() - timedelta(days=30), user_id="u7"))
            compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})  # type: ignore[no-untyped-call]
            return "\n".join(line for (line,) in connection.execute(text(f"EXPLAIN {compiled}")))

        plan = await store.keeping._transact(explain)

    assert "Seq Scan on session_metrics" not in plan
    assert "Seq Scan on session_rollups" not in plan
    assert "session_rollups_by_user" in plan
