"""What the search tools answer, and what the session learns of it, over a server in this process."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fiml.core.config import Settings
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.mcp_client import Door, door
from tests.support.servers import valkey_server


async def look(caller: Door, symbol: str, depth: str, session_id: str) -> dict[str, Any]:
    """The answer on a stock, within a session."""
    return await caller.answer("search-by-symbol", symbol=symbol, depth=depth, sessionId=session_id)


async def test_each_depth_holds_more_than_the_one_before(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "MSFT")
        quick, standard, deep = [
            await look(caller, "AAPL", depth, session_id) for depth in ("quick", "standard", "deep")
        ]

    assert (quick["technicals"], quick["fundamentals"], quick["comparisons"]) == (None, None, [])
    assert standard["technicals"]["rsi_14"] > 0
    assert standard["fundamentals"]["pe_ratio"] is None
    assert "pe_ratio" in standard["fundamentals"]["missing"]
    assert standard["comparisons"] == []
    assert deep["technicals"] == standard["technicals"]
    assert [comparison["other"] for comparison in deep["comparisons"]] == ["MSFT"]


async def test_without_a_depth_a_search_is_standard(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        found = await caller.answer("search-by-symbol", symbol="AAPL")

    assert found["depth"] == "standard"
    assert found["technicals"] is not None


@pytest.mark.parametrize(
    ("depth", "query_type"), [("quick", "price"), ("standard", "technical"), ("deep", "comparative")]
)
async def test_the_recorded_type_is_the_deepest_part_answered(
    sqlite_settings: Settings, depth: str, query_type: str
) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "MSFT")
        await look(caller, "AAPL", depth, session_id)
        info = await caller.answer("get-session-info", sessionId=session_id)

    assert info["query_types"] == {query_type: 1}


async def test_a_deep_question_with_nothing_to_compare_is_technical(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "GOOGL")
        await look(caller, "AAPL", "deep", session_id)
        info = await caller.answer("get-session-info", sessionId=session_id)

    assert info["query_types"] == {"technical": 1}


@pytest.mark.parametrize("depth", ["quick", "standard", "deep"])
async def test_the_first_question_on_a_symbol_is_no_cache_hit(sqlite_settings: Settings, depth: str) -> None:
    async with door(sqlite_settings) as caller:
        session_id, other_id = await caller.create("AAPL", "MSFT"), await caller.create("AAPL", "MSFT")
        await look(caller, "MSFT", "deep", session_id)
        await look(caller, "AAPL", "deep", other_id)

        assert (await look(caller, "AAPL", depth, session_id))["cache_hit"] is False


@pytest.mark.parametrize(
    ("earlier", "later", "is_hit"),
    [
        ("quick", "quick", True),
        ("quick", "standard", False),
        ("quick", "deep", False),
        ("standard", "quick", True),
        ("standard", "standard", True),
        ("standard", "deep", False),
        ("deep", "quick", True),
        ("deep", "standard", True),
        ("deep", "deep", True),
    ],
)
async def test_only_figures_that_the_session_holds_are_a_cache_hit(
    sqlite_settings: Settings, earlier: str, later: str, is_hit: bool
) -> None:
    async with door(sqlite_settings) as caller:
        session_id, fresh_id = await caller.create("AAPL", "MSFT"), await caller.create("AAPL", "MSFT")
        await look(caller, "AAPL", earlier, session_id)

        again = await look(caller, "AAPL", later, session_id)

        assert again["cache_hit"] is is_hit
        expected = await look(caller, "AAPL", later, fresh_id)
        for part in ("quote", "technicals", "fundamentals", "comparisons", "not_compared", "depth"):
            assert again[part] == expected[part]


async def test_a_shallow_question_does_not_make_the_session_forget_deep_figures(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "MSFT")

        hits = [
            (await look(caller, "AAPL", depth, session_id))["cache_hit"]
            for depth in ("deep", "quick", "standard", "deep")
        ]

    assert hits == [False, True, True, True]


async def test_a_symbol_is_the_same_in_small_letters(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("aapl", "MSFT")
        await look(caller, "AAPL", "deep", session_id)

        again = await look(caller, " aapl ", "deep", session_id)

    assert again["cache_hit"] is True
    assert [comparison["other"] for comparison in again["comparisons"]] == ["MSFT"]


async def test_a_deep_question_is_compared_anew_when_the_assets_have_changed(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "MSFT")
        await look(caller, "AAPL", "deep", session_id)
        session = await caller.session(session_id)
        session.assets.append("NVDA")
        await (await caller.runtime.store()).update_session(session.id, session)

        shallow, deep, again = [await look(caller, "AAPL", depth, session_id) for depth in ("standard", "deep", "deep")]

    assert [found["cache_hit"] for found in (shallow, deep, again)] == [True, False, True]
    assert [comparison["other"] for comparison in deep["comparisons"]] == ["MSFT", "NVDA"]


async def test_the_exchange_that_the_source_chooses_is_the_same_when_it_is_named(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("BTC", sessionType="crypto")
        chosen = await caller.answer("search-by-coin", symbol="BTC", sessionId=session_id)

        named = await caller.answer("search-by-coin", symbol="BTC", exchange="bitstamp", sessionId=session_id)

    assert (chosen["quote"]["exchange"], named["quote"]["exchange"]) == ("Bitstamp", "Bitstamp")
    assert named["cache_hit"] is True


async def test_the_cache_hit_rate_counts_the_questions_answered_from_the_session(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create()
        for depth in ("standard", "quick", "standard", "quick"):
            await look(caller, "AAPL", depth, session_id)
        info = await caller.answer("get-session-info", sessionId=session_id)

    assert info["cache_hit_rate"] == 0.75
    assert [query["cache_hit"] for query in info["recent_queries"]] == [False, True, True, True]


async def test_an_answer_tells_what_changed_since_the_last_look(sqlite_settings: Settings, clock: FrozenClock) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create()
        first = await look(caller, "AAPL", "quick", session_id)
        clock.advance(hours=1)
        second = await look(caller, "AAPL", "quick", session_id)
        clock.advance(hours=1)
        third = await look(caller, "AAPL", "standard", session_id)

    assert first["since_last_look"] is None
    assert second["since_last_look"]["looked_at"] == "2024-12-23T15:30:00Z"
    assert second["since_last_look"]["as_of_then"] == "2023-09-21"
    assert second["since_last_look"]["changed"] == []
    assert second["since_last_look"]["summary"] == "no figure changed; the market date is still 2023-09-21"
    assert third["since_last_look"]["looked_at"] == "2024-12-23T16:30:00Z"
    assert third["since_last_look"]["new_sections"] == ["technicals", "fundamentals"]


async def test_the_context_accumulates_with_the_questions(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "BTC")
        await look(caller, "AAPL", "standard", session_id)
        await caller.answer("search-by-coin", symbol="BTC", depth="quick", sessionId=session_id)

        state = (await caller.session(session_id)).state

    assert state.get_context("last_symbol") == "BTC"
    held = state.get_intermediate_result("answer:AAPL")
    assert held["answer"]["quote"]["price"] == 173.93
    assert state.get_intermediate_result("answer:BTC/USD@Bitstamp")["answer"]["technicals"] is None


async def test_an_asset_outside_the_sample_is_named_with_the_reason(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "GOOGL", "MSFT")

        found = await look(caller, "AAPL", "deep", session_id)

    assert found["not_compared"] == {"GOOGL": "not in the sample data"}
    assert found["truncated"] is False


async def test_assets_that_share_no_day_are_named_with_the_reason(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "BTC")

        found = await look(caller, "AAPL", "deep", session_id)

    assert found["comparisons"] == []
    assert "too few common dates" in found["not_compared"]["BTC"]


async def test_an_answer_says_when_a_session_has_more_assets_than_it_compares(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", *(f"X{number}" for number in range(99)))

        found = await look(caller, "AAPL", "deep", session_id)

    assert found["truncated"] is True
    assert len(found["comparisons"]) + len(found["not_compared"]) < 99


async def test_an_adjusted_close_is_called_so(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "MSFT")
        found = {symbol: await look(caller, symbol, "quick", session_id) for symbol in ("AAPL", "MSFT")}
        info = await caller.answer("get-session-info", sessionId=session_id)

    assert (found["AAPL"]["quote"]["price_label"], found["AAPL"]["quote"]["adjustment"]) == ("close", "splits")
    assert found["MSFT"]["quote"]["price_label"] == "adjusted close"
    assert found["MSFT"]["quote"]["adjustment"] == "splits+dividends"
    assert info["recent_queries"][1]["result_summary"].startswith("MSFT: adjusted close")


async def test_a_comparison_of_different_adjustments_says_so(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL", "MSFT", "NVDA")

        found = await look(caller, "AAPL", "deep", session_id)

    notes = {comparison["other"]: comparison["note"] for comparison in found["comparisons"]}
    assert "AAPL is adjusted for splits, MSFT for splits and dividends" in notes["MSFT"]
    assert notes["NVDA"] is None


@pytest.mark.parametrize(("tool", "symbol"), [("search-by-symbol", "AAPL"), ("search-by-coin", "BTC")])
async def test_every_price_has_its_currency_exchange_source_and_date(
    sqlite_settings: Settings, tool: str, symbol: str
) -> None:
    async with door(sqlite_settings) as caller:
        quote = (await caller.answer(tool, symbol=symbol, depth="quick"))["quote"]

    assert quote["price"] > 0
    assert quote["currency"] == "USD"
    assert quote["exchange"] in {"NASDAQ", "Bitstamp"}
    assert quote["source"] == "sample"
    assert len(quote["as_of"]) == len("2023-09-21")


async def test_a_question_without_a_session_is_not_tracked(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        found = await caller.answer("search-by-symbol", symbol="AAPL")

    assert (found["session_id"], found["tracked"], found["total_queries"]) == (None, False, None)
    assert found["reason"] == "no session was named"


async def test_a_full_session_still_gives_the_answer(tmp_path: Path) -> None:
    async with door(Settings(data_dir=tmp_path / "data", session_max_queries_per_session=2)) as caller:
        session_id = await caller.create()
        found = [await look(caller, "AAPL", "quick", session_id) for _ in range(3)]
        info = await caller.answer("get-session-info", sessionId=session_id)

    assert [answer["tracked"] for answer in found] == [True, True, False]
    assert "is full: it holds at most 2 queries" in found[2]["reason"]
    assert found[2]["quote"] == found[0]["quote"]
    assert info["total_queries"] == 2


async def test_a_store_that_cannot_be_opened_still_lets_the_market_answer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with door(Settings(data_dir=tmp_path / "file" / "data")) as caller:
        session_id = str(uuid4())
        found = await look(caller, "AAPL", "quick", session_id)
        refusal = await caller.refusal("list-sessions")

    assert found["quote"]["price"] == 173.93
    assert (found["tracked"], found["session_id"]) == (False, session_id)
    assert "set FIML_DATA_DIR" in found["reason"]
    assert (refusal["code"], "set FIML_DATA_DIR" in refusal["message"]) == ("misconfigured", True)


async def test_a_redis_that_goes_away_leaves_the_answer_untracked_until_it_is_back(deployment: Deployment) -> None:
    with valkey_server(append_only=True) as redis:
        async with door(Settings(redis_url=redis.url, database_url=deployment.database_url)) as caller:
            session_id = await caller.create()
            before = await look(caller, "AAPL", "quick", session_id)

            redis.stop()
            away = await look(caller, "AAPL", "quick", session_id)
            refusal = await caller.refusal("get-session-info", sessionId=session_id)
            redis.start()
            after = await look(caller, "AAPL", "quick", session_id)

    assert (before["tracked"], before["total_queries"]) == (True, 1)
    assert away["quote"] == before["quote"]
    assert away["tracked"] is False
    assert "is unavailable" in away["reason"]
    assert (away["session_id"], away["total_queries"]) == (session_id, None)
    assert refusal["code"] == "unavailable"
    assert (after["tracked"], after["total_queries"]) == (True, 2)


async def test_thirty_searches_at_once_in_one_session_are_all_tracked(backend_settings: Settings) -> None:
    symbols = ["AAPL", "MSFT", "NVDA"]
    async with door(backend_settings) as caller:
        session_id = await caller.create(*symbols)

        found = await asyncio.gather(*(look(caller, symbols[n % 3], "standard", session_id) for n in range(30)))

        session = await caller.session(session_id)
    assert all(answer["tracked"] for answer in found)
    assert sorted(answer["total_queries"] for answer in found) == list(range(1, 31))
    asked = [query.parameters["symbol"] for query in session.state.history.queries]
    assert sorted(asked) == sorted(symbols * 10)


async def test_a_search_counts_as_an_access_of_the_session(sqlite_settings: Settings, clock: FrozenClock) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create()
        clock.advance(hours=3)
        await look(caller, "AAPL", "quick", session_id)

        page = await caller.answer("list-sessions")

    assert page["sessions"][0]["last_accessed_at"] == "2024-12-23T18:30:00Z"
