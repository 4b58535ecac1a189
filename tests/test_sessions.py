"""Sessions: what they are, how a store keeps them, and a whole analysis from its first question to its archive."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, SessionArchived, SessionExpired, Unavailable
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.models import (
    AnalysisHistory,
    QueryRecord,
    Session,
    SessionState,
    SessionType,
)
from fiml.sessions.store import SessionStore, get_session_store
from fiml.testing import FrozenClock, make_query, make_session, open_temporary_store
from fiml.testing.conformance import OpenStore
from tests.conftest import opener


class CountedQueries(list[QueryRecord]):
    """A list that counts how many of its elements are looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.looks += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Any:
        self.looks += len(self)
        return super().__iter__()


class TestSessionModels:
    """Plain values, without I/O."""

    def test_the_types_are_the_specifications(self) -> None:
        assert [each.value for each in SessionType] == ["equity", "crypto", "portfolio", "comparative", "macro"]

    def test_a_query_needs_only_its_type(self, clock: FrozenClock) -> None:
        query = QueryRecord(query_type="price")

        assert (query.parameters, query.result_summary, query.execution_time_ms) == ({}, None, None)
        assert query.cache_hit is False
        assert query.timestamp == clock.now()

    def test_each_query_has_an_id_of_its_own(self) -> None:
        assert QueryRecord("price").id != QueryRecord("price").id

    def test_a_session_lives_for_the_default_time(self, clock: FrozenClock) -> None:
        session = Session(type=SessionType.EQUITY, assets=["AAPL"])

        assert session.expires_at == clock.now() + timedelta(hours=24)
        assert session.time_remaining == timedelta(hours=24)
        assert (session.version, session.is_archived, session.user_id, session.title) == (1, False, None, None)
        assert session.id.version == 4

    def test_the_default_time_is_a_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FIML_SESSION_DEFAULT_TTL_HOURS", "2")

        assert make_session().time_remaining <= timedelta(hours=2)

    def test_a_session_may_begin_expired(self, clock: FrozenClock) -> None:
        session = make_session(expires_at=clock.now() - timedelta(hours=3))

        assert session.is_expired
        assert session.time_remaining == timedelta(hours=-3)

    def test_a_session_is_expired_from_its_expiry_on(self, clock: FrozenClock) -> None:
        session = make_session()

        clock.set(session.expires_at - timedelta(microseconds=1))
        was_expired_before = session.is_expired
        clock.set(session.expires_at)

        assert (was_expired_before, session.is_expired) == (False, True)
        assert session.time_remaining == timedelta(0)

    def test_the_duration_lasts_to_the_last_access(self, clock: FrozenClock) -> None:
        session = make_session()
        assert session.duration == timedelta(0)
        clock.advance(minutes=30)

        session.touch()

        assert session.duration == timedelta(minutes=30)
        assert session.last_accessed_at == clock.now()

    def test_adding_a_query_is_an_access(self, clock: FrozenClock) -> None:
        session = make_session()
        clock.advance(minutes=1)

        session.add_query(make_query())

        assert session.last_accessed_at == clock.now()
        assert session.state.history.total_queries == 1

    def test_extending_moves_the_expiry(self) -> None:
        session = make_session()
        before = session.expires_at

        session.extend(hours=5)

        assert session.expires_at == before + timedelta(hours=5)

    def test_a_session_ends_in_the_year_9999_at_the_latest(self) -> None:
        session = make_session(expires_at=datetime.max.replace(tzinfo=UTC))

        with pytest.raises(InvalidInput, match="hours is 1, which is too far away"):
            session.extend(hours=1)

    def test_other_time_zones_become_utc(self) -> None:
        session = make_session(expires_at=datetime(2024, 12, 24, 17, 30, tzinfo=timezone(timedelta(hours=2))))

        assert session.expires_at == datetime(2024, 12, 24, 15, 30, tzinfo=UTC)
        assert session.expires_at.utcoffset() == timedelta(0)

    @pytest.mark.parametrize("name", ["created_at", "expires_at", "last_accessed_at"])
    def test_a_time_without_a_zone_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidInput, match=name):
            make_session(**{name: datetime(2024, 12, 24)})  # noqa: DTZ001

    def test_an_unknown_type_is_refused_and_the_known_are_named(self) -> None:
        with pytest.raises(InvalidInput, match="valid values are equity, crypto, portfolio, comparative, macro"):
            make_session(type="bonds")

    def test_a_history_adds_up(self, clock: FrozenClock) -> None:
        history = AnalysisHistory()
        first = clock.now()
        history.add_query(make_query("price", cache_hit=True, execution_time_ms=10))
        history.add_query(make_query("price", timestamp=clock.advance(hours=1)))
        history.add_query(make_query("fundamentals", timestamp=first - timedelta(hours=1), execution_time_ms=20))
        history.add_query(make_query("technical", cache_hit=True))

        assert history.total_queries == 4
        assert history.cache_hit_rate == 0.5
        assert (history.first_query_at, history.last_query_at) == (first - timedelta(hours=1), clock.now())
        assert history.get_query_types_summary() == {"price": 2, "fundamentals": 1, "technical": 1}

    def test_an_empty_history_adds_up_to_nothing(self) -> None:
        history = AnalysisHistory()

        assert (history.queries, history.total_queries, history.cache_hit_rate) == ([], 0, 0)
        assert (history.first_query_at, history.last_query_at) == (None, None)
        assert history.get_query_types_summary() == {}
        assert history.get_recent_queries(5) == []

    def test_recent_queries_are_the_last_ones_oldest_first(self) -> None:
        history = AnalysisHistory()
        queries = [make_query(f"{n}") for n in range(5)]
        for query in queries:
            history.add_query(query)

        assert history.get_recent_queries(2) == queries[3:]
        assert history.get_recent_queries(5) == history.get_recent_queries(99) == queries
        assert history.get_recent_queries(0) == []

    def test_queries_appended_to_the_list_count_too(self) -> None:
        history = AnalysisHistory()
        assert history.total_queries == 0

        history.queries.append(make_query("price"))

        assert history.total_queries == 1
        assert history.get_query_types_summary() == {"price": 1}

    @pytest.mark.parametrize(
        "figure", ["total_queries", "cache_hit_rate", "first_query_at", "last_query_at", "get_query_types_summary"]
    )
    def test_the_thousandth_total_costs_what_the_first_did(self, figure: str) -> None:
        queries = CountedQueries(make_query() for _ in range(1000))
        history = AnalysisHistory(queries)
        assert history.total_queries == 1000

        def look() -> int:
            queries.looks = 0
            value = getattr(history, figure)
            if callable(value):
                value()
            return queries.looks

        assert look() <= 2  # whether the last one is still the last
        history.add_query(make_query())
        assert look() <= 3

    def test_a_query_that_takes_the_place_of_another_is_counted(self) -> None:
        history = AnalysisHistory([make_query("price", cache_hit=True)])
        assert history.get_query_types_summary() == {"price": 1}

        history.queries.pop()
        history.add_query(make_query("chart"))

        assert history.get_query_types_summary() == {"chart": 1}
        assert (history.total_queries, history.cache_hit_rate) == (1, 0)

    def test_a_state_takes_and_gives_entries(self) -> None:
        state = SessionState()

        state.update_context("last_symbol", "AAPL")
        state.store_intermediate_result("fundamentals", {"pe_ratio": 28.5, "market_cap": 2.7e12})

        assert state.get_context("last_symbol") == "AAPL"
        assert state.get_context("absent") is None
        assert state.get_context("absent", "default") == "default"
        assert state.get_intermediate_result("fundamentals")["pe_ratio"] == 28.5
        assert state.get_intermediate_result("absent") is None
        assert state.context == {"last_symbol": "AAPL"}

    def test_states_share_nothing(self) -> None:
        one, other = make_session(), make_session()

        one.state.context["a"] = 1
        one.tags.append("t")
        one.add_query(make_query())

        assert (other.state.context, other.tags, other.state.history.total_queries) == ({}, [], 0)


class TestSessionStore:
    """The store as a part of a program. What its verbs promise is in the conformance suite."""

    async def test_a_store_that_is_not_open_says_so(self, sqlite_settings: Settings) -> None:
        store = SessionStore(sqlite_settings)

        with pytest.raises(Unavailable, match="initialize"):
            await store.get_session(uuid4())

    async def test_opening_and_closing_twice_is_harmless(self, backend_settings: Settings) -> None:
        store = SessionStore(backend_settings)
        await asyncio.gather(store.initialize(), store.initialize())
        session = await store.create_session(["AAPL"], SessionType.EQUITY)

        await store.shutdown()
        await store.shutdown()
        await store.initialize()

        assert await store.get_session(session.id) is not None
        await store.shutdown()

    async def test_a_store_takes_the_settings_of_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FIML_DATA_DIR", str(tmp_path / "elsewhere"))

        async with SessionStore() as store:
            await store.create_session(["AAPL"], SessionType.EQUITY)

        assert (tmp_path / "elsewhere" / "fiml.db").exists()

    async def test_others_can_not_read_the_folder_of_the_file(self, sqlite_settings: Settings) -> None:
        async with SessionStore(sqlite_settings):
            assert sqlite_settings.embedded_file.parent.stat().st_mode & 0o077 == 0

    async def test_a_process_has_one_store(self) -> None:
        first, second = await asyncio.gather(get_session_store(), get_session_store())

        assert first is second
        session = await first.create_session(["AAPL"], SessionType.EQUITY)
        assert await second.get_session(session.id) is not None
        await first.shutdown()

    async def test_the_process_store_opens_again(self) -> None:
        await (await get_session_store()).shutdown()

        store = await get_session_store()

        assert await store.list_user_sessions(None) == []
        await store.shutdown()

    async def test_data_outlives_the_store(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            live = await store.create_session(["AAPL"], SessionType.EQUITY)
            ended = await store.create_session(["MSFT"], SessionType.EQUITY)
            await store.archive_session(ended.id)

        async with open_store() as store:
            assert {summary.id for summary in await store.list_user_sessions(None, include_archived=True)} == {
                live.id,
                ended.id,
            }

    async def test_the_store_starts_no_background_work(self, open_store: OpenStore) -> None:
        before = asyncio.all_tasks()
        async with open_store() as store:
            await store.create_session(["AAPL"], SessionType.EQUITY)

            started = {task.get_coro() for task in asyncio.all_tasks() - before}

        assert not [coroutine for coroutine in started if "fiml" in repr(coroutine)]

    async def test_the_session_maker_reads_the_archive(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            session = await store.create_session(["AAPL"], SessionType.EQUITY)
            await store.archive_session(session.id)

            stats = await SessionAnalytics(store.session_maker, settings=store.settings).get_session_stats()

        assert stats["total_sessions"] == 1

    async def test_an_update_under_another_id_is_refused(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            one = await store.create_session(["AAPL"], SessionType.EQUITY)
            other = await store.create_session(["MSFT"], SessionType.EQUITY)

            with pytest.raises(InvalidInput, match=str(other.id)):
                await store.update_session(one.id, other)

    async def test_temporary_stores_are_apart(self, tmp_path: Path) -> None:
        async with open_temporary_store(tmp_path / "one") as one, open_temporary_store(tmp_path / "other") as other:
            session = await one.create_session(["AAPL"], SessionType.EQUITY)

            assert await other.get_session(session.id) is None


class TestSessionIntegration:
    """An analysis as a user does it, over real parts."""

    @pytest.fixture
    async def store(self, backend_settings: Settings, clock: FrozenClock) -> AsyncIterator[SessionStore]:
        async with opener(backend_settings)() as opened:
            yield opened

    async def test_multi_query_session_workflow(self, store: SessionStore, clock: FrozenClock) -> None:
        """The specification's examples, as one story: ask, remember, compare, come back tomorrow."""
        session = await store.create_session(
            assets=["AAPL", "GOOGL", "MSFT"],
            session_type=SessionType.COMPARATIVE,
            user_id="trader_123",
            ttl_hours=24,
            tags=["tech"],
        )

        # A first question, tracked on the object.
        session.add_query(
            QueryRecord(
                query_type="price",
                parameters={"symbol": "AAPL"},
                result_summary="AAPL: $175.43 (+2.3%)",
                execution_time_ms=142.5,
                cache_hit=False,
            )
        )
        await store.update_session(session.id, session)
        retrieved = await store.get_session(session.id)
        assert retrieved is not None
        assert retrieved.state.history.total_queries == 1

        # Context and an intermediate result accumulate.
        session.state.update_context("user_preference", "detailed_analysis")
        session.state.update_context("last_symbol", "AAPL")
        session.state.store_intermediate_result("fundamental_analysis", {"pe_ratio": 28.5, "market_cap": 2.7e12})
        await store.update_session(session.id, session)

        # Somebody else's object of the same session adds its own questions.
        clock.advance(minutes=20)
        for symbol in ("GOOGL", "MSFT"):
            await store.record_query(session.id, make_query("fundamentals", parameters={"symbol": symbol}))
        session.add_query(make_query("comparative", cache_hit=True))
        merged = await store.update_session(session.id, session)

        result = merged.state.get_intermediate_result("fundamental_analysis")
        assert result["pe_ratio"] == 28.5
        assert merged.state.get_context("last_symbol") == "AAPL"
        recent = merged.state.history.get_recent_queries(10)
        assert [query.query_type for query in recent] == ["price", "fundamentals", "fundamentals", "comparative"]
        assert merged.state.history.get_query_types_summary() == {"price": 1, "fundamentals": 2, "comparative": 1}
        assert merged.state.history.cache_hit_rate == 0.25
        assert merged.duration == timedelta(minutes=20)

        # It ends, is swept, and can still be read.
        clock.advance(hours=24)
        with pytest.raises(SessionExpired):
            await store.record_query(session.id, make_query())
        assert await store.cleanup_expired_sessions() == 1
        with pytest.raises(SessionArchived):
            await store.extend_session(session.id, hours=24)
        [summary] = await store.list_user_sessions("trader_123", include_archived=True, tag="tech")
        assert (summary.id, summary.total_queries, summary.is_archived) == (session.id, 4, True)

        # Tomorrow it goes on, with all that it knew.
        resumed = await store.resume_session(session.id)
        assert resumed.state.history.queries == merged.state.history.queries
        assert resumed.state.context == merged.state.context
        totals = await store.record_query(session.id, make_query("price"))
        assert totals.total_queries == 5

        stats = await SessionAnalytics(store.session_maker, store).get_session_stats(user_id="trader_123")
        assert (stats["total_sessions"], stats["total_queries"]) == (1, 5)

    async def test_two_users_work_side_by_side(self, store: SessionStore) -> None:
        views = {name: store.as_principal(name) for name in ("ann", "bob")}
        ids = {}
        for name, view in views.items():
            ids[name] = (await view.create_session(["AAPL"], SessionType.EQUITY)).id
            await view.record_query(ids[name], make_query())

        assert await views["ann"].get_session(ids["bob"]) is None
        assert not await views["bob"].delete_session(ids["ann"])
        assert [summary.id for summary in await views["bob"].list_user_sessions(None)] == [ids["bob"]]
        assert await views["ann"].delete_session(ids["ann"])
        assert await views["bob"].get_session(ids["bob"]) is not None

    async def test_a_session_serves_a_hundred_questions_at_once(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)

        await asyncio.gather(*(store.record_query(session.id, make_query(f"{n % 4}")) for n in range(100)))

        found = await store.get_session(session.id, recent_queries=5)
        assert found is not None
        assert found.state.history.get_query_types_summary() == {f"{n}": 25 for n in range(4)}
        assert len(found.state.history.queries) == 5
