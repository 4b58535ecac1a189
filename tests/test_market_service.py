"""Questions to the market as a whole, on the shipped history."""

import json
from datetime import date

import pytest

from fiml.core.config import MarketData, Settings
from fiml.core.errors import InvalidInput, NotSupported, SymbolNotFound
from fiml.market.models import Adjustment, AssetKind, Depth, Instrument, MarketAnswer
from fiml.market.service import MarketService, open_market

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
async def test_the_same_question_has_the_same_answer(market: MarketService, symbol: str) -> None:
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


@pytest.mark.parametrize("symbol", ["GOOGL", "TSLA"])
async def test_an_unknown_equity_is_an_error_and_never_a_neighbour(market: MarketService, symbol: str) -> None:
    with pytest.raises(SymbolNotFound, match=f"'{symbol}' is not in the sample data; it has .*GOOG, ") as caught:
        await market.equity(symbol)

    assert "BTC" not in caught.value.known


async def test_an_index_comes_in_by_the_equity_door(market: MarketService) -> None:
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


async def test_a_symbol_of_any_kind_is_found_and_an_unknown_one_is_none(market: MarketService) -> None:
    found = [await market.find(symbol) for symbol in ("aapl", "^gspc", "btc", "TSLA", "no symbol", "")]

    assert [one.kind if one else None for one in found] == ["equity", "index", "coin", None, None, None]


async def test_the_market_can_be_searched(market: MarketService) -> None:
    assert [one.symbol for one in await market.search("apple")] == ["AAPL"]


async def test_auto_is_the_sample() -> None:
    market = open_market(Settings(market_data=MarketData.AUTO))

    assert market.source == "sample"
    await market.aclose()


def test_live_data_is_refused_with_the_next_step() -> None:
    with pytest.raises(NotSupported, match="live market data is not part of this version; set FIML_MARKET_DATA=sample"):
        open_market(Settings(market_data=MarketData.LIVE))
