"""Every computed figure against one worked out independently."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiml.market.indicators import compare, technicals
from fiml.market.models import Adjustment, AssetKind, Bar, Bars
from fiml.market.providers.base import last_day
from tests.support.market import sample_bars

FIRST_DAY = date(2024, 1, 1)

prices = st.floats(min_value=0.001, max_value=1e6)
price_lists = st.lists(prices, min_size=1, max_size=40) | st.lists(prices, min_size=366, max_size=370)


def make_bars(
    closes: Sequence[float],
    *,
    symbol: str = "TEST",
    first_day: date = FIRST_DAY,
    adjustment: Adjustment = Adjustment.SPLITS,
    spread: float | None = None,
    currency: str = "USD",
) -> Bars:
    """One bar a day; with a spread, highs and lows lie that far from the close."""
    days = [first_day + timedelta(days=count) for count in range(len(closes))]
    bars = tuple(
        Bar(day, None, None, None, close, None)
        if spread is None
        else Bar(day, close, close + spread, close - spread, close, 1.0)
        for day, close in zip(days, closes, strict=True)
    )
    return Bars(symbol, currency, "NYSE", "test", adjustment, bars)


def wilder_rsi(closes: Sequence[float], period: int = 14) -> float:
    """As in Wilder's book: the mean of the first changes, then smoothed."""
    changes = [later - earlier for earlier, later in pairwise(closes)]
    gain = sum(change for change in changes[:period] if change > 0) / period
    loss = sum(-change for change in changes[:period] if change < 0) / period
    for change in changes[period:]:
        gain = (gain * (period - 1) + max(change, 0.0)) / period
        loss = (loss * (period - 1) + max(-change, 0.0)) / period
    return 100 * gain / (gain + loss)


def ema(closes: Sequence[float], period: int) -> float:
    average = sum(closes[:period]) / period
    for close in closes[period:]:
        average += (close - average) * 2 / (period + 1)
    return average


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return together / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_the_rsi_begins_as_wilder_defines_it() -> None:
    """Fourteen changes gain 3.34 and lose 1.40; the fifteenth loses 0.28."""
    closes = [44.34, 44.09, 44.15, 43.61, 44.33, 44.83, 45.10, 45.42, 45.84, 46.08, 45.89, 46.03, 45.61, 46.28, 46.28]

    first = technicals(make_bars(closes), AssetKind.EQUITY).rsi_14
    second = technicals(make_bars([*closes, 46.00]), AssetKind.EQUITY).rsi_14

    assert first == pytest.approx(100 * 3.34 / 4.74, abs=1e-4)
    assert second == pytest.approx(100 * (3.34 * 13) / (3.34 * 13 + 1.40 * 13 + 0.28 * 14), abs=1e-4)


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT", "^GSPC", "BTC"])
async def test_averages_and_rsi_of_real_bars_agree_with_their_definitions(symbol: str) -> None:
    bars = await sample_bars(symbol)
    closes = [bar.close for bar in bars.bars]

    found = technicals(bars, AssetKind.EQUITY)

    assert found.bars_used == len(closes)
    assert found.sma_20 == pytest.approx(sum(closes[-20:]) / 20, abs=1e-6)
    assert found.sma_50 == pytest.approx(sum(closes[-50:]) / 50, abs=1e-6)
    assert found.sma_200 == pytest.approx(sum(closes[-200:]) / 200, abs=1e-6)
    assert found.ema_12 == pytest.approx(ema(closes, 12), abs=1e-6)
    assert found.ema_26 == pytest.approx(ema(closes, 26), abs=1e-6)
    assert found.rsi_14 == pytest.approx(wilder_rsi(closes), abs=1e-4)


def test_the_exponential_average_begins_with_a_plain_one() -> None:
    found = technicals(make_bars([*range(1, 13), 20]), AssetKind.EQUITY)

    assert found.ema_12 == pytest.approx(6.5 + (20 - 6.5) * 2 / 13, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "days", "year"), [(AssetKind.EQUITY, 63, 252), (AssetKind.INDEX, 63, 252), (AssetKind.COIN, 90, 365)]
)
def test_volatility_is_the_deviation_of_log_returns_over_a_quarter_scaled_to_a_year(
    kind: AssetKind, days: int, year: int
) -> None:
    closes = [100.0, 110.0] * 60
    step = math.log(1.1)
    mean = step * (days % 2) / days

    found = technicals(make_bars(closes), kind)

    squares = days * step**2 - days * mean**2
    assert found.volatility_days == days
    assert found.volatility_annual == pytest.approx(math.sqrt(squares / (days - 1) * year), abs=1e-6)


def test_the_drawdown_is_the_deepest_fall_with_the_dates_of_its_peak_and_its_bottom() -> None:
    closes = [100.0] * 252
    closes[10], closes[40], closes[100], closes[120] = 120.0, 90.0, 130.0, 98.0

    found = technicals(make_bars(closes), AssetKind.EQUITY)

    assert found.max_drawdown == -0.25
    assert found.max_drawdown_from == FIRST_DAY + timedelta(days=10)
    assert found.max_drawdown_to == FIRST_DAY + timedelta(days=40)


def test_a_fall_more_than_a_year_ago_is_no_drawdown_of_this_year() -> None:
    found = technicals(make_bars([200.0, *range(1, 253)]), AssetKind.EQUITY)

    assert found.max_drawdown == 0.0
    assert found.max_drawdown_from is None
    assert found.missing["max_drawdown_from"] == "the close never fell"


def test_the_extremes_of_a_year_are_of_highs_and_lows_where_there_are_any() -> None:
    closes = [100.0] * 252
    closes[30], closes[60] = 150.0, 50.0

    with_ranges = technicals(make_bars(closes, spread=2.0), AssetKind.EQUITY)
    closes_only = technicals(make_bars(closes), AssetKind.EQUITY)

    assert (with_ranges.high_low_basis, with_ranges.high_52w, with_ranges.low_52w) == ("highs and lows", 152.0, 48.0)
    assert (closes_only.high_low_basis, closes_only.high_52w, closes_only.low_52w) == ("closes", 150.0, 50.0)
    assert closes_only.high_52w_on == FIRST_DAY + timedelta(days=30)
    assert closes_only.low_52w_on == FIRST_DAY + timedelta(days=60)


@pytest.mark.parametrize(
    ("kind", "spans"), [(AssetKind.EQUITY, (1, 5, 21, 63, 252)), (AssetKind.COIN, (1, 7, 30, 90, 365))]
)
def test_returns_look_back_a_number_of_bars(kind: AssetKind, spans: tuple[int, ...]) -> None:
    closes = [float(close) for close in range(1000, 1400)]

    found = technicals(make_bars(closes), kind)

    returns = (found.return_1d, found.return_1w, found.return_1m, found.return_3m, found.return_1y)
    assert returns == tuple(round(1399 / (1399 - span) - 1, 6) for span in spans)


def test_a_figure_with_too_few_bars_is_null_and_says_how_many_it_needs() -> None:
    found = technicals(make_bars([1.0, 2.0]), AssetKind.EQUITY)

    assert found.return_1d == 1.0
    assert found.sma_20 is None
    assert found.missing["sma_20"] == "needs 20 bars, there are 2"
    assert found.missing["rsi_14"] == "needs 15 bars, there are 2"
    assert found.missing["return_1y"] == "needs 253 bars, there are 2"
    assert found.missing.keys() == {name for name, figure in found if figure is None and name != "note"}


@pytest.mark.parametrize("price", [0.0123456789, 1.23456789e-5, 1.7e-10])
def test_the_averages_and_extremes_of_a_price_far_below_one_keep_seven_digits(price: float) -> None:
    closes = [price * (1 + day % 7 / 10) for day in range(400)]

    found = technicals(make_bars(closes), AssetKind.COIN)

    assert found.sma_20 == pytest.approx(sum(closes[-20:]) / 20, rel=1e-6)
    assert found.ema_26 == pytest.approx(ema(closes, 26), rel=1e-6)
    assert (found.low_52w, found.high_52w) == pytest.approx((min(closes), max(closes)), rel=1e-6)


def test_a_price_that_never_moved_has_no_rsi() -> None:
    found = technicals(make_bars([5.0] * 30), AssetKind.EQUITY)

    assert found.rsi_14 is None
    assert found.missing["rsi_14"] == "the price never moved"


async def test_days_without_a_bar_are_named_where_they_move_the_year() -> None:
    bars = await sample_bars("BTC")

    note = technicals(bars, AssetKind.COIN).note

    assert note == ("no bars from 2019-03-20 to 2019-03-31: windows count bars, and return_1y begins on 2019-01-05")


def test_of_many_gaps_the_last_ones_are_named_and_the_others_counted() -> None:
    bars = make_bars([1.0, 2.0] * 400)
    traded_every_other_day = replace(bars, bars=bars.bars[::2])

    note = technicals(traded_every_other_day, AssetKind.COIN).note

    assert note == (
        "no bars from 2026-03-04 to 2026-03-04 and 2026-03-06 to 2026-03-06 and 2026-03-08 to 2026-03-08,"
        " and 362 more before: windows count bars, and return_1y begins on 2024-03-09"
    )


def test_a_gap_moves_no_return_over_a_year_that_there_is_none_of() -> None:
    bars = make_bars([1.0, 2.0, 3.0])

    found = technicals(replace(bars, bars=bars.bars[::2]), AssetKind.COIN)

    assert found.return_1y is None
    assert found.note == "no bars from 2024-01-02 to 2024-01-02: windows count bars"


async def test_weekends_and_holidays_are_no_gap_for_an_equity() -> None:
    assert technicals(await sample_bars("AAPL"), AssetKind.EQUITY).note is None


def test_a_comparison_covers_the_common_dates_only() -> None:
    a = make_bars([999.0, 100.0, 110.0, 120.0], symbol="A")
    b = make_bars([50.0, 40.0, 60.0, 1.0], symbol="B", first_day=FIRST_DAY + timedelta(days=1))

    found = compare(a, b)

    assert (found.overlap_from, found.overlap_to) == (date(2024, 1, 2), date(2024, 1, 4))
    assert (found.overlap_days, found.return_self, found.return_other, found.relative_return) == (3, 0.2, 0.2, 0.0)
    assert found.correlation is None
    assert found.missing == {"correlation": "needs 20 common dates, there are 3"}


@pytest.mark.parametrize(
    ("days", "missing"),
    [
        (1, ["correlation", "relative_return", "return_other", "return_self"]),
        (2, ["correlation"]),
        (19, ["correlation"]),
        (20, []),
    ],
)
def test_a_return_needs_two_common_dates_and_a_correlation_twenty(days: int, missing: list[str]) -> None:
    a, b = (make_bars([start + day % 3 for day in range(days)], symbol=f"S{start}") for start in (10.0, 20.0))

    assert sorted(compare(a, b).missing) == missing


def test_without_a_common_date_nothing_is_compared() -> None:
    found = compare(make_bars([1.0]), make_bars([1.0], symbol="LATER", first_day=date(2025, 1, 1)))

    assert found.overlap_days == 0
    assert found.missing.keys() == {name for name, figure in found if figure is None} - {"note", "other_is"}


async def test_correlation_is_pearsons_of_daily_returns() -> None:
    a, b = await sample_bars("AAPL"), await sample_bars("NVDA")
    returns = [[y.close / x.close - 1 for x, y in pairwise(each.bars)] for each in (a, b)]

    assert compare(a, b).correlation == pytest.approx(pearson(*returns), abs=1e-6)


async def test_a_series_correlates_fully_with_itself() -> None:
    bars = await sample_bars("AAPL")

    found = compare(bars, bars)

    assert (found.correlation, found.relative_return, found.note) == (1.0, 0.0, None)


def test_a_series_of_equal_returns_correlates_with_nothing() -> None:
    steady = make_bars([1.01**day for day in range(30)])
    restless = make_bars([100.0, 90.0] * 15)

    found = compare(steady, restless)

    assert found.correlation is None
    assert found.missing["correlation"] == "one of the two has the same return every day"


@pytest.mark.parametrize(
    ("first", "second", "note"),
    [
        (Adjustment.SPLITS, Adjustment.SPLITS, None),
        (
            Adjustment.SPLITS,
            Adjustment.SPLITS_AND_DIVIDENDS,
            "A is adjusted for splits, B for splits and dividends: their returns are not like for like",
        ),
        (
            Adjustment.SPLITS_AND_DIVIDENDS,
            Adjustment.NONE,
            "A is adjusted for splits and dividends, B is not adjusted: their returns are not like for like",
        ),
        (
            Adjustment.NONE,
            Adjustment.SPLITS,
            "A is not adjusted, B is adjusted for splits: their returns are like for like if A had no splits",
        ),
    ],
)
def test_unlike_adjustments_are_named(first: Adjustment, second: Adjustment, note: str | None) -> None:
    a = make_bars([1.0, 2.0], symbol="A", adjustment=first)
    b = make_bars([1.0, 2.0], symbol="B", adjustment=second)

    assert compare(a, b).note == note


@pytest.mark.parametrize(
    ("first", "second", "is_noted"), [("USD", "USD", False), ("GBp", "GBP", False), ("GBp", "USD", True)]
)
def test_unlike_currencies_are_named_but_pence_are_pounds(first: str, second: str, is_noted: bool) -> None:
    a = make_bars([1.0, 2.0], symbol="A", currency=first)
    b = make_bars([1.0, 2.0], symbol="B", currency=second)

    note = compare(a, b).note

    assert (note == f"A is priced in {first}, B in {second}: their returns leave out the exchange rate") == is_noted
    assert (note is not None) == is_noted


def test_what_is_unlike_in_two_ways_is_named_in_both() -> None:
    a = make_bars([1.0, 2.0], symbol="A", adjustment=Adjustment.SPLITS_AND_DIVIDENDS)
    b = make_bars([1.0, 2.0], symbol="B", currency="JPY")

    note = compare(a, b).note or ""

    assert "A is adjusted for splits and dividends" in note
    assert "A is priced in USD, B in JPY" in note


@pytest.mark.parametrize("closes", [[], [0.0], [-1.0], [math.nan], [math.inf]])
def test_bars_without_a_proper_close_are_refused(closes: list[float]) -> None:
    with pytest.raises(ValueError, match="TEST has"):
        make_bars(closes)


def test_bars_out_of_order_are_refused() -> None:
    bar = make_bars([1.0]).bars[0]

    with pytest.raises(ValueError, match="out of order"):
        Bars("TEST", "USD", None, "test", Adjustment.NONE, (bar, bar))


@given(closes=price_lists, kind=st.sampled_from(AssetKind))
def test_no_series_of_prices_gives_nan_or_infinity(closes: list[float], kind: AssetKind) -> None:
    found = technicals(make_bars(closes), kind)

    figures = [figure for _, figure in found if isinstance(figure, float)]
    assert all(math.isfinite(figure) for figure in figures)
    assert found.max_drawdown is None or -1 <= found.max_drawdown <= 0
    assert found.rsi_14 is None or 0 <= found.rsi_14 <= 100
    assert found.missing.keys() == {name for name, figure in found if figure is None and name != "note"}


@given(a=price_lists, b=price_lists, days_apart=st.integers(0, 30))
def test_a_comparison_is_the_mirror_of_its_reverse(a: list[float], b: list[float], days_apart: int) -> None:
    first = make_bars(a, symbol="A")
    second = make_bars(b, symbol="B", first_day=FIRST_DAY + timedelta(days=days_apart))

    there, back = compare(first, second), compare(second, first)

    assert there.correlation == back.correlation
    assert there.correlation is None or -1 <= there.correlation <= 1
    assert (there.return_self, there.return_other) == (back.return_other, back.return_self)
    assert there.overlap_days == back.overlap_days
    if there.relative_return is not None and back.relative_return is not None:
        assert there.relative_return == -back.relative_return


def test_a_change_that_is_too_small_to_be_told_is_zero_and_not_minus_zero() -> None:
    change = last_day(make_bars([100.00000001, 100.0]).bars)

    assert [str(change[name]) for name in ("change", "change_percent")] == ["0.0", "0.0"]
