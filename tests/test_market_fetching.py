"""Parts of answers through the caches: one fetch for all who ask, and the last answer if the provider fails."""

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from fiml.cache import CacheEntry
from fiml.cache.l1_cache import MemoryL1Cache, RedisL1Cache
from fiml.cache.l2_cache import L2Cache
from fiml.core.config import Synchronous
from fiml.core.errors import BadData, InvalidInput, RateLimited, SymbolNotFound, Unavailable
from fiml.db.redis_client import RedisClient
from fiml.db.sqlite_file import SqliteFile
from fiml.market.cached_values import NotFound, decode, encode
from fiml.market.fetching import Fetching
from fiml.market.models import AssetKind, Bars, Delivery, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.testing import FrozenClock
from fiml.testing.clock import START

AAPL = Instrument(symbol="AAPL", name="Apple Inc.", kind=AssetKind.EQUITY, currency="USD", exchange="NASDAQ")
FAILURES = [
    Unavailable("the exchange", "it is closed"),
    RateLimited("the exchange", START + timedelta(minutes=5)),
    BadData("the exchange", "no JSON"),
]


class Exchange(SampleProvider):
    """The sample's figures as another source's; it counts questions, and fails or hangs when told to."""

    source = "exchange"

    def __init__(self) -> None:
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def _asked(self) -> None:
        self.asked += 1
        self.was_asked.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        await self._asked()
        return await super().instrument(symbol, kind, market=market, exchange=exchange, pair=pair)

    async def quote(self, instrument: Instrument) -> Quote:
        await self._asked()
        return (await super().quote(instrument)).model_copy(update={"price": float(self.asked)})

    async def bars(self, instrument: Instrument) -> Bars:
        await self._asked()
        return await super().bars(instrument)


@pytest.fixture
def exchange(clock: FrozenClock) -> Exchange:
    return Exchange()


@pytest.fixture
async def file_cache(tmp_path: Path) -> AsyncIterator[L2Cache]:
    cache = L2Cache(SqliteFile(tmp_path / "fiml.db", Synchronous.OFF))
    yield cache
    await cache.aclose()


@pytest.fixture
async def fetching(exchange: Exchange, file_cache: L2Cache) -> AsyncIterator[Fetching]:
    """The market is open at the clock's first moment: a quote is current for 15 seconds."""
    fetching = Fetching(exchange, (MemoryL1Cache(), file_cache), fetch_timeout_s=0.3)
    yield fetching
    await fetching.aclose()


def anew(exchange: Exchange, file_cache: L2Cache) -> Fetching:
    """Another process over the same second cache."""
    return Fetching(exchange, (MemoryL1Cache(), file_cache))


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


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_the_last_answer_stands_in_for_a_provider_that_fails_and_says_its_age(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache, clock: FrozenClock, failure: Exception
) -> None:
    await fetching.quote(AAPL)
    clock.advance(minutes=10)
    exchange.failure = failure

    for one, layer in ((fetching, "l1"), (anew(exchange, file_cache), "l2")):
        found = await one.quote(AAPL)

        assert found.value.price == 1.0
        assert found.delivery.model_dump() == {
            "layer": layer,
            "known_at": START,
            "fresh_until": START + timedelta(seconds=15),
            "is_stale": True,
            "age_seconds": 600,
        }


async def test_of_two_last_answers_the_one_that_was_learnt_later_stands_in(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    clock.advance(minutes=1)
    await anew(exchange, file_cache).quote(AAPL)
    clock.advance(minutes=1)
    exchange.failure = FAILURES[0]

    found = await fetching.quote(AAPL)

    assert (found.value.price, found.delivery.layer, found.delivery.age_seconds) == (2.0, "l2", 60)


async def test_the_last_answer_stands_in_up_to_the_limit(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    exchange.failure = FAILURES[0]

    clock.advance(hours=24, seconds=14)
    assert (await fetching.quote(AAPL)).delivery.is_stale

    clock.advance(seconds=1)
    with pytest.raises(Unavailable, match="the exchange is unavailable"):
        await fetching.quote(AAPL)


async def test_a_lower_limit_holds_for_what_was_kept_under_a_higher_one(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    exchange.failure = FAILURES[0]
    clock.advance(minutes=1)

    with pytest.raises(Unavailable):
        await Fetching(exchange, (file_cache,), max_stale=timedelta(0)).quote(AAPL)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_a_failure_goes_on_where_nothing_is_kept(
    fetching: Fetching, exchange: Exchange, failure: Exception
) -> None:
    exchange.failure = failure

    with pytest.raises(type(failure)) as caught:
        await fetching.quote(AAPL)

    assert caught.value is failure


async def test_after_a_failure_the_provider_is_asked_again(fetching: Fetching, exchange: Exchange) -> None:
    exchange.failure = FAILURES[0]
    with pytest.raises(Unavailable):
        await fetching.quote(AAPL)
    exchange.failure = None

    assert (await fetching.quote(AAPL)).value.price == 2.0


async def test_a_provider_that_hangs_is_given_up_and_its_last_answer_given(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    exchange.gate.clear()
    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
        await fetching.quote(AAPL)
    exchange.gate.set()
    await fetching.quote(AAPL)
    clock.advance(minutes=1)
    exchange.gate.clear()

    assert (await fetching.quote(AAPL)).delivery.is_stale


async def test_that_there_is_no_such_symbol_is_remembered_for_a_minute(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    messages = []
    for seconds in (0, 59, 1):
        clock.advance(seconds=seconds)
        with pytest.raises(SymbolNotFound) as caught:
            await fetching.instrument("tsla", AssetKind.EQUITY)
        messages.append((str(caught.value), tuple(caught.value.known)))

    assert len(set(messages)) == 1
    assert exchange.asked == 2


async def test_the_nearest_symbols_are_remembered_as_such(fetching: Fetching, exchange: Exchange) -> None:
    exchange.failure = SymbolNotFound("APPL", source="exchange", known=["AAPL"], is_nearest=True)

    for _ in range(2):
        with pytest.raises(SymbolNotFound, match="'APPL' is not in the exchange data; the nearest are AAPL"):
            await fetching.quote(AAPL)

    assert exchange.asked == 1


async def test_a_symbol_that_was_not_there_is_no_stale_answer(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    with pytest.raises(SymbolNotFound):
        await fetching.instrument("TSLA", AssetKind.EQUITY)
    clock.advance(minutes=2)
    exchange.failure = FAILURES[0]

    with pytest.raises(Unavailable):
        await fetching.instrument("TSLA", AssetKind.EQUITY)


async def test_bad_input_is_not_remembered(fetching: Fetching, exchange: Exchange) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match="market 'DE'"):
            await fetching.instrument("AAPL", AssetKind.EQUITY, market="DE")

    assert exchange.asked == 2


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
