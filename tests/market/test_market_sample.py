"""What the shipped history holds, asked through the provider."""

import csv
import subprocess
import sys
from collections import defaultdict
from datetime import date
from importlib.resources import files

import pytest

from fiml.core.errors import InvalidInput, SymbolNotFound
from fiml.market.models import Adjustment, AssetKind
from fiml.market.providers.base import MarketProvider
from fiml.market.providers.sample import SampleProvider
from tests.support.market import named

COINS = ["BTC", "ETH", "LTC"]


@pytest.fixture
def sample() -> MarketProvider:
    return SampleProvider()


def rows_by_symbol(file_name: str) -> dict[str, list[dict[str, str]]]:
    text = (files("fiml.market") / "sample" / file_name).read_text(encoding="utf-8")
    rows = defaultdict(list)
    for row in csv.DictReader(text.splitlines()):
        rows[row["symbol"]].append(row)
    return rows


async def test_the_last_close_of_apple_is_that_of_the_file(sample: MarketProvider) -> None:
    quote = await sample.quote(await named(sample, "AAPL"))

    assert (quote.price, quote.currency, quote.as_of) == (173.93, "USD", date(2023, 9, 21))
    assert (quote.source, quote.adjustment, quote.price_label) == ("sample", Adjustment.SPLITS, "close")
    assert (quote.open, quote.high, quote.low, quote.volume) == (174.55, 176.3, 173.86, 63047900)
    assert (quote.name, quote.exchange, quote.volume_unit) == ("Apple Inc.", "NASDAQ", "shares")
    assert quote.missing == {}


async def test_the_change_is_against_the_close_of_the_bar_before(sample: MarketProvider) -> None:
    quote = await sample.quote(await named(sample, "AAPL"))

    assert (quote.previous_close, quote.change, quote.change_percent) == (175.49, -1.56, -0.8889)


async def test_a_close_adjusted_for_dividends_is_called_so_and_stands_alone(sample: MarketProvider) -> None:
    quote = await sample.quote(await named(sample, "MSFT"))

    assert (quote.price, quote.price_label, quote.as_of) == (233.434, "adjusted close", date(2022, 12, 28))
    assert (quote.open, quote.high, quote.low, quote.volume) == (None, None, None, None)
    assert quote.missing == dict.fromkeys(
        ("open", "high", "low", "volume"), "the sample has only closes for this symbol"
    )


async def test_an_index_has_no_exchange_and_says_why(sample: MarketProvider) -> None:
    quote = await sample.quote(await named(sample, "^GSPC"))

    assert (quote.kind, quote.price, quote.price_label) == (AssetKind.INDEX, 3783.22, "close")
    assert quote.exchange is None
    assert quote.missing["exchange"] == "an index is calculated, not listed"


async def test_a_coin_counts_its_volume_in_coins_and_warns_of_its_short_last_bar(sample: MarketProvider) -> None:
    quote = await sample.quote(await named(sample, "btc"))

    assert (quote.price, quote.as_of, quote.exchange) == (8709.49, date(2020, 1, 17), "Bitstamp")
    assert (quote.volume, quote.volume_unit) == (138.49, "coins")
    assert quote.note is not None
    assert "part of its day" in quote.note


@pytest.mark.parametrize("symbol", ["GOOGL", "TSLA", "BTC"])
async def test_an_equity_that_is_not_there_is_an_error_that_names_those_that_are(
    sample: MarketProvider, symbol: str
) -> None:
    with pytest.raises(SymbolNotFound, match="GOOG, ") as caught:
        await sample.instrument(symbol, AssetKind.EQUITY)

    assert caught.value.source == "sample"
    assert caught.value.known == sorted(rows_by_symbol("equities_daily.csv"))


async def test_a_coin_that_is_not_there_is_an_error_that_names_the_coins(sample: MarketProvider) -> None:
    with pytest.raises(SymbolNotFound) as caught:
        await sample.instrument("DOGE", AssetKind.COIN)

    assert caught.value.known == COINS


async def test_an_index_is_found_as_an_index_and_as_an_equity(sample: MarketProvider) -> None:
    as_index = await sample.instrument("^gspc", AssetKind.INDEX)
    as_equity = await sample.instrument("^gspc", AssetKind.EQUITY)

    assert as_index == as_equity
    assert as_index.kind is AssetKind.INDEX


async def test_case_and_surrounding_blanks_of_a_symbol_dont_matter(sample: MarketProvider) -> None:
    assert await sample.quote(await named(sample, "  aapl\n")) == await sample.quote(await named(sample, "AAPL"))


@pytest.mark.parametrize("symbol", ["", "   ", "A B", "A\tB", "A\x00B", "A\u200bB", "X" * 33, 7, None])
async def test_what_does_not_have_the_form_of_a_symbol_is_refused(sample: MarketProvider, symbol: str) -> None:
    with pytest.raises(InvalidInput, match="is not a symbol"):
        await named(sample, symbol)


async def test_a_refused_symbol_is_repeated_in_80_characters_at_most(sample: MarketProvider) -> None:
    with pytest.raises(InvalidInput) as caught:
        await named(sample, "X" * 100_000)

    assert "X" * 79 in str(caught.value)
    assert "X" * 80 not in str(caught.value)


@pytest.mark.parametrize("file_name", ["equities_daily.csv", "coins_daily_usd.csv"])
async def test_every_row_of_the_files_becomes_a_bar(sample: MarketProvider, file_name: str) -> None:
    for symbol, rows in rows_by_symbol(file_name).items():
        found = await sample.bars(await named(sample, symbol))

        assert [bar.date.isoformat() for bar in found.bars] == [row["date"] for row in rows]
        assert [bar.close for bar in found.bars] == [float(row["close"]) for row in rows]
        assert [bar.volume for bar in found.bars] == [float(row["volume"]) if row["volume"] else None for row in rows]
        assert found.adjustment == rows[0].get("adjustment", "none")
        assert found.as_of.isoformat() == rows[-1]["date"]


def test_every_symbol_with_bars_has_a_name_and_the_other_way_round() -> None:
    named = rows_by_symbol("instruments.csv")

    assert named.keys() == rows_by_symbol("equities_daily.csv").keys() | rows_by_symbol("coins_daily_usd.csv").keys()


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused(sample: MarketProvider, limit: int) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        await sample.search("ETH", limit=limit)


async def test_fundamentals_are_all_missing_with_a_reason(sample: MarketProvider) -> None:
    fundamentals = await sample.fundamentals(await named(sample, "AAPL"))

    empty = {name for name, figure in fundamentals if figure is None and name != "note"}
    assert empty == {"as_of", "market_cap", "pe_ratio", "eps", "dividend_yield", "revenue", "sector"}
    assert fundamentals.missing == dict.fromkeys(empty, "the sample has prices only")


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("ge", ["GE", "RRC"]),
        ("alphabet", ["GOOG"]),
        ("m", ["META", "MRK", "MSFT", "AMD", "AMZN"]),
        ("bit", ["BTC"]),
        ("no such thing", []),
    ],
)
async def test_a_search_looks_in_symbols_and_names_and_puts_the_nearest_first(
    sample: MarketProvider, text: str, symbols: list[str]
) -> None:
    found = await sample.search(text, limit=5)

    assert [one.symbol for one in found] == symbols


async def test_closing_twice_does_no_harm(sample: MarketProvider) -> None:
    await sample.aclose()
    await sample.aclose()

    assert (await sample.quote(await named(sample, "AAPL"))).price == 173.93


def test_importing_the_market_reads_no_sample_and_loads_no_talipp() -> None:
    program = (
        "import sys, fiml.market.service; from fiml.market.providers import sample;"
        "print('talipp' in sys.modules, sample._sample.cache_info().currsize)"
    )

    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout

    assert printed.split() == ["False", "0"]
