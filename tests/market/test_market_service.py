"""Questions to the market as a whole, on the shipped history; how it is cached and bounded where it is live."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date

import pytest

from fiml.cache import CacheEntry
from fiml.cache.l1_cache import MemoryL1Cache
from fiml.core.config import MarketData, Settings
from fiml.core.errors import InvalidInput, MissingExtra, SymbolNotFound, Unavailable
from fiml.market.freshness import trading_of
from fiml.market.models import Adjustment, AssetKind, Bars, Delivery, Depth, Instrument, MarketAnswer, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService, open_market
from fiml.testing import FrozenClock

SYMBOLS = [
    "AAPL",
    "AMZN",
    "GOOG",
    "META",
    "NFLX",
    "NVDA",
    "AMD",
    "BAC",
    "BBY",
    "CVX",
    "GE",
    "HD",
    "JNJ",
    "JPM",
    "KO",
    "LLY",
    "MRK",
    "MSFT",
    "PEP",
    "PFE",
    "PG",
    "RRC",
    "UNH",
    "WMT",
    "XOM",
    "^GSPC",
    "BTC",
    "ETH",
    "LTC",
]


APPLE = Instrument(symbol="AAPL", name="Apple Inc.", kind=AssetKind.EQUITY, currency="USD", exchange="NASDAQ")
NVIDIA = Instrument(symbol="NVDA", name="NVIDIA", kind=AssetKind.EQUITY, currency="USD", exchange="NASDAQ")


class Exchange(SampleProvider):
    """The sample's figures as another source's, which hangs or fails at some questions."""

    source = "exchange"

    def __init__(self, hanging: Collection[str] = (), failing: Collection[str] = ()) -> None:
        self.asked: list[str] = []
        self._hanging = hanging
        self._failing = failing

    async def _asked(self, question: str, symbol: str) -> None:
        self.asked.append(question)
        names = {question, f"{question} of {symbol}"}
        if names & set(self._hanging):
            await asyncio.Event().wait()
        if names & set(self._failing):
            raise Unavailable(self.source, "it is closed")

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        await self._asked("instrument", symbol)
        return await super().instrument(symbol, kind, market=market, exchange=exchange, pair=pair)

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        await self._asked("search", text)
        return await super().search(text, limit=limit)

    async def quote(self, instrument: Instrument) -> Quote:
        await self._asked("quote", instrument.symbol)
        return await super().quote(instrument)

    async def bars(self, instrument: Instrument) -> Bars:
        await self._asked("bars", instrument.symbol)
        return await super().bars(instrument)

    async def aclose(self) -> None:
        self.asked.append("aclose")


class Newcomer(SampleProvider):
    """The sample, in which NVDA has as many days as given."""

    def __init__(self, days: int) -> None:
        super().__init__()
        self._days = days

    async def bars(self, instrument: Instrument) -> Bars:
        bars = await super().bars(instrument)
        return replace(bars, bars=bars.bars[-self._days :]) if instrument.symbol == "NVDA" else bars


class Hanging(MemoryL1Cache):
    """A cache whose engine accepts and says nothing."""

    async def get(self, key: str) -> CacheEntry | None:
        await asyncio.Event().wait()
        return await super().get(key)


class Extras:
    """Which extras for live figures seem to be installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def are_installed(self, names: list[str]) -> None:
        self._monkeypatch.setattr("fiml.market.providers.live.live_extras", lambda: names)


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> Extras:
    return Extras(monkeypatch)


@asynccontextmanager
async def closing(market: MarketService) -> AsyncIterator[MarketService]:
    try:
        yield market
    finally:
        await market.aclose()


@pytest.fixture
def market() -> MarketService:
    return open_market(Settings(market_data=MarketData.SAMPLE))


async def named(market: MarketService, *symbols: str) -> list[Instrument]:
    found = [await market.find(symbol) for symbol in symbols]
    return [instrument for instrument in found if instrument is not None]


def count_tokens(answer: MarketAnswer) -> float:
    """A token is 4 bytes of compact JSON."""
    return len(json.dumps(answer.model_dump(mode="json"), separators=(",", ":"), allow_nan=False).encode()) / 4


@pytest.mark.parametrize("depth", Depth)
@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_every_symbol_answers_at_every_depth_in_proper_json(
    market: MarketService, symbol: str, depth: Depth
) -> None:
    [instrument] = await named(market, symbol)

    answer = await market.answer(instrument, depth, await named(market, *SYMBOLS))

    text = json.dumps(answer.model_dump(mode="json"), allow_nan=False)
    assert MarketAnswer.model_validate_json(text) == answer
    assert answer.quote.symbol == symbol
    assert answer.quote.source == market.source == "sample"
    assert (answer.technicals is None) == (depth is Depth.QUICK)
    assert (answer.fundamentals is None) == (depth is Depth.QUICK)
    assert len(answer.comparisons) + len(answer.not_compared) == (len(SYMBOLS) - 1 if depth is Depth.DEEP else 0)


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_the_same_question_has_the_same_answer(market: MarketService, symbol: str, clock: FrozenClock) -> None:
    [instrument] = await named(market, symbol)
    others = await named(market, "AAPL", "BTC")

    first, second = [await market.answer(instrument, Depth.DEEP, others) for _ in range(2)]

    assert first == second


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_a_quick_answer_stays_below_600_tokens(market: MarketService, symbol: str) -> None:
    [instrument] = await named(market, symbol)

    assert count_tokens(await market.answer(instrument, Depth.QUICK)) < 600


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_a_deep_answer_with_four_others_stays_below_2000_tokens(market: MarketService, symbol: str) -> None:
    [instrument] = await named(market, symbol)
    others = [other for other in SYMBOLS if other not in {symbol, "BTC", "ETH", "LTC"}][-4:]

    answer = await market.answer(instrument, Depth.DEEP, await named(market, *others))

    assert count_tokens(answer) < 2000


async def test_apple_and_microsoft_are_compared_over_their_common_dates_with_a_warning(market: MarketService) -> None:
    apple, microsoft = await named(market, "AAPL", "MSFT")

    [found] = (await market.answer(apple, Depth.DEEP, [microsoft])).comparisons

    assert (found.symbol, found.other) == ("AAPL", "MSFT")
    assert found.other_is == "Microsoft Corporation, equity, NASDAQ, in USD, source sample"
    assert (found.overlap_from, found.overlap_to) == (date(2021, 9, 21), date(2022, 12, 28))
    assert found.overlap_days == 321
    assert found.return_self == pytest.approx(126.04 / 143.43 - 1, abs=1e-6)
    assert found.note == (
        "AAPL is adjusted for splits, MSFT for splits and dividends: their returns are not like for like"
    )


async def test_the_asked_instrument_and_repetitions_are_not_compared(market: MarketService) -> None:
    apple, nvidia = await named(market, "AAPL", "NVDA")

    answer = await market.answer(apple, Depth.DEEP, [nvidia, apple, nvidia])

    assert [found.other for found in answer.comparisons] == ["NVDA"]
    assert answer.not_compared == {}


async def test_another_that_cant_be_compared_is_reported_with_the_reason(market: MarketService) -> None:
    apple, bitcoin = await named(market, "AAPL", "BTC")
    tesla = Instrument(symbol="TSLA", name="Tesla, Inc.", kind=AssetKind.EQUITY, currency="USD", exchange="NASDAQ")

    answer = await market.answer(apple, Depth.DEEP, [tesla, bitcoin])

    assert answer.comparisons == []
    assert answer.not_compared == {
        "TSLA": "not in the sample data",
        "BTC": "too few common dates: AAPL has 2021-09-21 to 2023-09-21, BTC has 2018-01-06 to 2020-01-17",
    }


@pytest.mark.parametrize(("days", "compared"), [(1, []), (2, ["NVDA"])])
async def test_another_is_compared_from_the_second_common_date_on(days: int, compared: list[str]) -> None:
    market = MarketService(Newcomer(days))

    answer = await market.answer(await market.equity("AAPL"), Depth.DEEP, ["NVDA"])

    assert [found.other for found in answer.comparisons] == compared
    assert len(answer.not_compared) == 1 - len(compared)


@pytest.mark.parametrize("symbol", ["GOOGL", "TSLA"])
async def test_an_unknown_equity_is_an_error_and_never_a_neighbour(market: MarketService, symbol: str) -> None:
    with pytest.raises(SymbolNotFound, match=f"'{symbol}' is not in the sample data; it has .*GOOG, ") as caught:
        await market.equity(symbol)

    assert "BTC" not in caught.value.known


async def test_an_index_is_found_as_an_equity_too(market: MarketService) -> None:
    index = await market.equity("^GSPC")

    assert (index.kind, index.exchange) == (AssetKind.INDEX, None)
    assert (await market.answer(index, Depth.QUICK)).quote.adjustment is Adjustment.NONE


async def test_a_market_is_named_in_any_case(market: MarketService) -> None:
    assert await market.equity("AAPL", " us ") == await market.equity("AAPL")
    assert await market.coin("BTC", "BITSTAMP", "usd") == await market.coin("BTC")


async def test_a_market_that_is_not_there_is_refused_with_the_valid_one(market: MarketService) -> None:
    with pytest.raises(InvalidInput, match=r"market 'DE' .*valid: US"):
        await market.equity("AAPL", "DE")
    with pytest.raises(InvalidInput, match=r"exchange 'Kraken' .*valid: Bitstamp"):
        await market.coin("BTC", "Kraken")
    with pytest.raises(InvalidInput, match=r"pair 'EUR' .*valid: USD"):
        await market.coin("BTC", pair="EUR")


async def test_a_symbol_of_any_kind_is_found_and_an_unknown_one_is_not(market: MarketService) -> None:
    found = [await market.find(symbol) for symbol in ("aapl", "^gspc", "btc", "TSLA", "no symbol", "")]

    assert [one.kind if one else None for one in found] == ["equity", "index", "coin", None, None, None]


async def test_the_market_can_be_searched(market: MarketService) -> None:
    assert [one.symbol for one in await market.search("apple")] == ["AAPL"]


@pytest.mark.parametrize(
    ("depth", "parts"),
    [
        (Depth.QUICK, ["quote"]),
        (Depth.STANDARD, ["quote", "bars", "fundamentals"]),
        (Depth.DEEP, ["quote", "bars", "fundamentals"]),
    ],
)
async def test_an_answer_says_of_each_part_how_it_got_here(
    market: MarketService, clock: FrozenClock, depth: Depth, parts: list[str]
) -> None:
    [apple] = await named(market, "AAPL")

    delivery = (await market.answer(apple, depth)).delivery

    always = Delivery(layer="provider", known_at=clock.now(), fresh_until=None, is_stale=False, age_seconds=0)
    assert delivery == dict.fromkeys(parts, always)
    assert list(delivery) == parts


async def test_others_may_be_named_by_their_symbols(market: MarketService) -> None:
    apple, nvidia = await named(market, "AAPL", "NVDA")

    answer = await market.answer(apple, Depth.DEEP, ["nvda", nvidia, "TSLA", "aapl", "btc", "no symbol"])

    assert [found.other for found in answer.comparisons] == ["NVDA"]
    assert list(answer.not_compared) == ["TSLA", "BTC", "no symbol"]
    assert answer.not_compared["TSLA"] == "not in the sample data"


class TestLiveMarket:
    """Over a source that isn't the sample, with caches."""

    async def test_a_question_costs_one_fetch_of_each_part_until_it_is_past(self, clock: FrozenClock) -> None:
        exchange = Exchange()
        async with closing(MarketService(exchange, (MemoryL1Cache(),))) as market:
            for _ in range(3):
                await market.answer(await market.equity("AAPL"), Depth.STANDARD)
            assert exchange.asked == ["instrument", "quote", "bars"]

            clock.advance(seconds=15)
            delivery = (await market.answer(await market.equity("AAPL"), Depth.STANDARD)).delivery

            assert exchange.asked == ["instrument", "quote", "bars", "quote"]

        assert [part.layer for part in delivery.values()] == ["provider", "l1", "l1"]

    async def test_what_was_found_is_found_again_without_the_source(self, clock: FrozenClock) -> None:
        exchange = Exchange()
        async with closing(MarketService(exchange, (MemoryL1Cache(),))) as market:
            found = [await market.find("BTC") for _ in range(2)] + [await market.coin("btc")]
            assert exchange.asked == ["instrument", "instrument"]  # whether it is an equity, then a coin
        assert [one and one.kind for one in found] == [AssetKind.COIN] * 3

    async def test_a_source_that_hangs_ends_at_the_limit(self, clock: FrozenClock) -> None:
        exchange = Exchange(hanging={"quote", "instrument", "search"})
        market = MarketService(exchange, (MemoryL1Cache(),), resolve_timeout_s=0.3, answer_timeout_s=0.3)
        async with closing(market), asyncio.timeout(5):
            for question in (
                market.answer(APPLE, Depth.QUICK),
                market.answer(APPLE, Depth.DEEP),
                market.equity("AAPL"),
                market.coin("BTC"),
                market.find("AAPL"),
                market.search("apple"),
            ):
                with pytest.raises(Unavailable, match=r"exchange is unavailable \(no answer within 0\.\d+ s\)"):
                    await question

    async def test_a_cache_that_hangs_does_not_hold_up_an_answer(self, clock: FrozenClock) -> None:
        """Its second of patience is longer than the limit here."""
        market = MarketService(Exchange(), (Hanging(),), answer_timeout_s=0.3)
        async with closing(market), asyncio.timeout(5):
            with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
                await market.answer(APPLE, Depth.QUICK)

    @pytest.mark.parametrize("other", ["NVDA", NVIDIA], ids=["symbol", "instrument"])
    async def test_another_that_hangs_is_not_compared(self, clock: FrozenClock, other: Instrument | str) -> None:
        exchange = Exchange(hanging={"bars of NVDA"})
        await trading_of(APPLE, clock.now())  # the calendar takes seconds to load, which are not the source's
        async with closing(MarketService(exchange, (MemoryL1Cache(),), answer_timeout_s=0.4)) as market:
            answer = await market.answer(APPLE, Depth.DEEP, [other, "AMZN"])

        assert [found.other for found in answer.comparisons] == ["AMZN"]
        assert answer.not_compared["NVDA"].startswith("not now: ")

    async def test_another_whose_source_is_away_is_not_compared(self, clock: FrozenClock) -> None:
        exchange = Exchange(failing={"bars of NVDA"})
        async with closing(MarketService(exchange, (MemoryL1Cache(),))) as market:
            answer = await market.answer(APPLE, Depth.DEEP, [NVIDIA])

        assert answer.not_compared == {
            "NVDA": "not now: exchange is unavailable (it is closed); try again, or run `fiml doctor`"
        }

    async def test_an_instrument_whose_source_is_away_is_an_error(self, clock: FrozenClock) -> None:
        async with closing(MarketService(Exchange(failing={"bars of AAPL"}), (MemoryL1Cache(),))) as market:
            with pytest.raises(Unavailable, match="it is closed"):
                await market.answer(APPLE, Depth.DEEP, [NVIDIA])

    async def test_closing_closes_the_caches_and_the_source(self, clock: FrozenClock) -> None:
        exchange, memory = Exchange(), MemoryL1Cache()
        market = MarketService(exchange, (memory,))
        await market.equity("AAPL")

        await market.aclose()
        await market.aclose()

        assert not memory._entries
        assert exchange.asked == ["instrument", "aclose", "aclose"]


class TestOpening:
    async def test_auto_is_live_where_a_live_source_is_installed(self, extras: Extras) -> None:
        extras.are_installed(["ccxt"])
        settings = Settings(market_data=MarketData.AUTO)

        async with closing(open_market(settings)) as market:
            assert market.source == "live"
        assert not settings.embedded_file.exists()

    async def test_auto_is_the_sample_where_none_is(self, extras: Extras) -> None:
        extras.are_installed([])

        async with closing(open_market(Settings(market_data=MarketData.AUTO))) as market:
            assert market.source == "sample"

    async def test_the_sample_is_the_sample_whatever_is_installed(self, extras: Extras) -> None:
        extras.are_installed(["yahoo", "ccxt"])

        async with closing(open_market(Settings(market_data=MarketData.SAMPLE))) as market:
            assert market.source == "sample"

    def test_live_without_a_source_is_refused_with_the_extra_to_install(self, extras: Extras) -> None:
        extras.are_installed([])

        with pytest.raises(MissingExtra, match=r"of stocks \(of coins: 'fiml\[ccxt\]'\) needs the extra \[yahoo\]"):
            open_market(Settings(market_data=MarketData.LIVE))
