"""Parts of answers through the caches: one fetch for all who ask, and caches that fail cost nobody an answer."""

import asyncio
import gc
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from fiml.cache import CacheEntry
from fiml.cache.l1_cache import MemoryL1Cache, RedisL1Cache
from fiml.cache.l2_cache import L2Cache
from fiml.core.config import Synchronous
from fiml.core.errors import SymbolNotFound, Unavailable
from fiml.db.redis_client import RedisClient
from fiml.db.sqlite_file import SqliteFile
from fiml.market.cached_values import NotFound, decode, encode
from fiml.market.fetching import Fetching
from fiml.market.models import AssetKind, Delivery
from fiml.market.providers.sample import SampleProvider
from fiml.testing import FrozenClock
from fiml.testing.clock import START
from tests.support.exchange import AAPL, FAILURES, Exchange, anew


async def test_the_first_answer_is_the_providers_and_the_next_one_the_caches(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    first = await fetching.quote(AAPL)
    clock.advance(seconds=14)
    second = await fetching.quote(AAPL)

    until = START + timedelta(seconds=15)
    assert first.value == second.value
    assert first.delivery == Delivery(
        layer="provider", known_at=START, fresh_until=until, is_stale=False, age_seconds=0
    )
    assert second.delivery == Delivery(layer="l1", known_at=START, fresh_until=until, is_stale=False, age_seconds=14)
    assert exchange.asked == 1


async def test_what_is_not_current_any_more_is_asked_for_again(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    clock.advance(seconds=15)

    found = await fetching.quote(AAPL)

    assert (found.value.price, found.delivery.layer, exchange.asked) == (2.0, "provider", 2)


async def test_a_hit_in_the_second_cache_fills_the_first(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache
) -> None:
    await fetching.quote(AAPL)
    other = anew(exchange, file_cache)

    layers = [(await other.quote(AAPL)).delivery.layer for _ in range(2)]

    assert layers == ["l2", "l1"]
    assert exchange.asked == 1


async def test_every_part_is_the_same_after_the_way_through_the_caches(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache
) -> None:
    other = anew(exchange, file_cache)

    for part in ("quote", "bars", "fundamentals"):
        fetched, cached = await getattr(fetching, part)(AAPL), await getattr(other, part)(AAPL)
        assert (fetched.value, cached.delivery.layer) == (cached.value, "l2")
    resolved = [await one.instrument("AAPL", AssetKind.EQUITY) for one in (fetching, other)]
    assert [one.value for one in resolved] == [AAPL, AAPL]
    assert (await other.bars(AAPL)).value.bars[0] == (await SampleProvider().bars(AAPL)).bars[0]


async def test_a_symbol_is_resolved_once_whatever_its_case(fetching: Fetching, exchange: Exchange) -> None:
    found = [await fetching.instrument(symbol, AssetKind.EQUITY, market="us ") for symbol in ("aapl", " AAPL", "Aapl")]

    assert {one.value for one in found} == {AAPL}
    assert exchange.asked == 1


async def test_other_parameters_make_another_question(fetching: Fetching, exchange: Exchange) -> None:
    await fetching.instrument("BTC", AssetKind.COIN)
    await fetching.instrument("BTC", AssetKind.COIN, exchange="Bitstamp")
    with pytest.raises(SymbolNotFound):
        await fetching.instrument("BTC", AssetKind.EQUITY)
    await fetching.quote(AAPL)
    await fetching.quote(AAPL.model_copy(update={"exchange": "LSE"}))

    assert exchange.asked == 5


async def test_a_hundred_who_ask_at_once_cost_one_fetch(fetching: Fetching, exchange: Exchange) -> None:
    exchange.gate.clear()
    callers = [asyncio.create_task(fetching.quote(AAPL)) for _ in range(100)]
    await exchange.was_asked.wait()

    exchange.gate.set()
    found = await asyncio.gather(*callers)

    assert {one.value.price for one in found} == {1.0}
    assert exchange.asked == 1


async def test_a_hundred_who_ask_at_once_share_one_failure(fetching: Fetching, exchange: Exchange) -> None:
    exchange.failure = FAILURES[0]

    found = await asyncio.gather(*(fetching.quote(AAPL) for _ in range(100)), return_exceptions=True)

    assert {type(one) for one in found} == {Unavailable}
    assert exchange.asked == 1


async def test_a_caller_who_leaves_takes_nothing_from_the_others(fetching: Fetching, exchange: Exchange) -> None:
    exchange.gate.clear()
    first, second = [asyncio.create_task(fetching.quote(AAPL)) for _ in range(2)]
    await exchange.was_asked.wait()

    first.cancel()
    await asyncio.wait([first])
    exchange.gate.set()

    assert (await second).value.price == 1.0
    assert first.cancelled()


async def test_a_fetch_goes_on_for_the_next_caller_when_all_have_left(fetching: Fetching, exchange: Exchange) -> None:
    exchange.gate.clear()
    caller = asyncio.create_task(fetching.quote(AAPL))
    await exchange.was_asked.wait()
    caller.cancel()
    await asyncio.wait([caller])

    exchange.gate.set()

    assert (await fetching.quote(AAPL)).value.price == 1.0
    assert exchange.asked == 1


async def test_a_failure_that_nobody_waits_for_makes_no_noise(fetching: Fetching, exchange: Exchange) -> None:
    """asyncio would tell the loop that an exception was never retrieved."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    exchange.gate.clear()
    exchange.failure = FAILURES[0]
    caller = asyncio.create_task(fetching.quote(AAPL))
    await exchange.was_asked.wait()
    caller.cancel()
    exchange.gate.set()

    await asyncio.wait(fetching._flights.values())
    gc.collect()

    assert told == []


async def test_closing_ends_a_fetch_and_its_callers_get_an_error(fetching: Fetching, exchange: Exchange) -> None:
    exchange.gate.clear()
    caller = asyncio.create_task(fetching.quote(AAPL))
    await exchange.was_asked.wait()

    await fetching.aclose()

    with pytest.raises(Unavailable, match="the market service was closed during the call"):
        await caller
    assert not fetching._flights


async def test_a_redis_that_is_away_costs_nobody_an_answer(exchange: Exchange, file_cache: L2Cache) -> None:
    fetching = Fetching(exchange, (RedisL1Cache(RedisClient("redis://127.0.0.1:1/0")), file_cache))

    with capture_logs() as logs:
        layers = [(await fetching.quote(AAPL)).delivery.layer for _ in range(2)]

    assert layers == ["provider", "l2"]
    assert {log["event"] for log in logs} == {"cache_failed"}
    await fetching.aclose()


async def test_a_file_that_is_not_a_database_costs_nobody_an_answer(exchange: Exchange, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("no database, and long enough to be taken for none" * 100)
    fetching = Fetching(exchange, (L2Cache(SqliteFile(tmp_path / "broken.db", Synchronous.OFF)),))

    with capture_logs() as logs:
        found = await fetching.quote(AAPL)

    assert found.delivery.layer == "provider"
    assert {log["event"] for log in logs} == {"cache_failed"}
    await fetching.aclose()


@pytest.mark.parametrize(
    "value", ["", "null", "{}", '{"price": 1}', '{"not_found": 1}', '{"not_found":{"symbol":"A"}}']
)
async def test_a_damaged_value_is_a_miss_and_is_replaced(exchange: Exchange, clock: FrozenClock, value: str) -> None:
    memory = MemoryL1Cache()
    fetching = Fetching(exchange, (memory,))
    await fetching.quote(AAPL)
    [key] = memory._entries
    later = clock.now() + timedelta(days=1)
    await memory.put(key, CacheEntry(value, clock.now(), fresh_until=later, keep_until=later))

    with capture_logs() as logs:
        prices = [(await fetching.quote(AAPL)).value.price for _ in range(2)]

    assert prices == [2.0, 2.0]
    assert [log["event"] for log in logs] == ["cache_value_damaged"]


async def test_the_log_does_not_say_what_was_asked(exchange: Exchange, clock: FrozenClock) -> None:
    memory = MemoryL1Cache()
    fetching = Fetching(exchange, (memory,))
    await fetching.quote(AAPL)
    [key] = memory._entries
    later = clock.now() + timedelta(days=1)

    with capture_logs() as logs:
        for failure in (KeyError("AAPL"), SymbolNotFound("AAPL", source="exchange", known=[])):
            clock.advance(minutes=1)
            exchange.failure = failure
            await fetching.quote(AAPL)
        exchange.failure = None
        await memory.put(key, CacheEntry('{"symbol": "AAPL"}', clock.now(), fresh_until=later, keep_until=later))
        await fetching.quote(AAPL)

    assert {log["event"] for log in logs} == {"answer_unreadable", "stale_answer_given", "cache_value_damaged"}
    assert "AAPL" not in str(logs)


async def test_an_answer_from_a_clock_that_is_ahead_has_no_negative_age(fetching: Fetching, clock: FrozenClock) -> None:
    await fetching.quote(AAPL)
    clock.advance(seconds=-30)

    assert (await fetching.quote(AAPL)).delivery.age_seconds == 0


async def test_without_caches_the_provider_is_asked_each_time_and_an_answer_expires_at_once(
    exchange: Exchange,
) -> None:
    fetching = Fetching(exchange)

    found = [await fetching.quote(AAPL) for _ in range(2)]

    assert [one.value.price for one in found] == [1.0, 2.0]
    assert found[0].delivery == Delivery(
        layer="provider", known_at=START, fresh_until=START, is_stale=False, age_seconds=0
    )


async def test_the_sample_is_never_cached_and_is_always_current(clock: FrozenClock) -> None:
    memory = MemoryL1Cache()
    fetching = Fetching(SampleProvider(), (memory,))

    found = [await fetching.quote(AAPL) for _ in range(2)]

    assert not memory._entries
    assert {(one.delivery.layer, one.delivery.fresh_until) for one in found} == {("provider", None)}


@pytest.mark.parametrize("meant", [None, "A"])
@pytest.mark.parametrize("is_nearest", [True, False])
def test_that_there_is_no_such_symbol_says_the_same_from_a_cache(*, is_nearest: bool, meant: str | None) -> None:
    error = SymbolNotFound("ALPHA", source="exchange", known=["A"], is_nearest=is_nearest, meant=meant)
    adapter = TypeAdapter(str)

    again = decode(encode(NotFound.of(error), adapter), adapter)

    assert isinstance(again, NotFound)
    assert str(again.error()) == str(error)
    assert (again.is_nearest, again.meant) == (is_nearest, meant)


def test_that_there_is_no_such_symbol_is_read_as_it_was_kept_before() -> None:
    text = '{"not_found":{"symbol":"B","source":"exchange","known":["A"],"is_nearest":true}}'

    assert decode(text, TypeAdapter(str)) == NotFound(symbol="B", source="exchange", known=["A"], is_nearest=True)
