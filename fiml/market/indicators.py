"""Figures computed from bars, by pure functions.

Fractions and prices are rounded to 6 decimals (prices below 1 to 7 digits), the RSI to 4.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

from fiml.market.models import Adjustment, AssetKind, Bar, Bars, Comparison, Technicals, rounded, whole_currency

MIN_COMMON_DATES = 20

_RSI_PERIOD = 14
# The last ones: a coin that is hardly traded has a gap every other day.
_GAPS_NAMED = 3
_ADJUSTED = {
    Adjustment.NONE: "not adjusted",
    Adjustment.SPLITS: "adjusted for splits",
    Adjustment.SPLITS_AND_DIVIDENDS: "adjusted for splits and dividends",
}


@dataclass(frozen=True, slots=True)
class _Calendar:
    """How many bars make up a span of time, and the longest step in days between two of them."""

    day: int
    week: int
    month: int
    quarter: int
    year: int
    max_step_days: int


_EXCHANGE = _Calendar(day=1, week=5, month=21, quarter=63, year=252, max_step_days=7)
_CALENDARS = {
    AssetKind.EQUITY: _EXCHANGE,
    AssetKind.INDEX: _EXCHANGE,
    AssetKind.COIN: _Calendar(day=1, week=7, month=30, quarter=90, year=365, max_step_days=1),
}


class _Absent(str):
    """The reason why a figure is missing, used in place of the figure."""

    __slots__ = ()


def technicals(bars: Bars, kind: AssetKind) -> Technicals:
    """Averages, momentum, risk and returns as of the last bar.

    SMA, EMA and RSI are talipp's. Its RSI starts with averages over 13 changes and smooths in the 14th, which equals
    Wilder's mean of the first 14: from the first figure on, both definitions agree.
    """
    calendar = _CALENDARS[kind]
    closes = [bar.close for bar in bars.bars]
    year = bars.bars[-calendar.year :]
    figures = {
        **_averages(closes),
        "rsi_14": _rsi(closes),
        "volatility_annual": _volatility(closes, calendar),
        **_drawdown(year, calendar.year),
        **_extremes(year, calendar.year),
        **_returns(closes, calendar),
    }
    return Technicals(
        as_of=bars.as_of,
        source=bars.source,
        adjustment=bars.adjustment,
        bars_used=len(closes),
        volatility_days=calendar.quarter,
        high_low_basis="highs and lows" if _has_ranges(year) else "closes",
        note=_gaps(bars.bars[-calendar.year - 1 :], calendar),
        **_split(figures),
    )


def compare(a: Bars, b: Bars) -> Comparison:
    """Compare `a` with `b` over the dates that both have.

    Returns are from the first common date to the last. The correlation needs 20 common dates, and movement in both.
    """
    closes_a, closes_b = ({bar.date: bar.close for bar in each.bars} for each in (a, b))
    common = sorted(closes_a.keys() & closes_b.keys())
    aligned_a, aligned_b = ([closes[day] for day in common] for closes in (closes_a, closes_b))
    no_overlap = _Absent(f"{a.symbol} and {b.symbol} have no date in common")
    return_a, return_b = _total_return(aligned_a), _total_return(aligned_b)
    is_known = not isinstance(return_a, _Absent) and not isinstance(return_b, _Absent)
    figures = {
        "overlap_from": common[0] if common else no_overlap,
        "overlap_to": common[-1] if common else no_overlap,
        "return_self": return_a,
        "return_other": return_b,
        "relative_return": rounded(return_a - return_b) if is_known else return_a,
        "correlation": _correlation(aligned_a, aligned_b),
    }
    notes = [note for note in (_unlike_adjustments(a, b), _unlike_currencies(a, b)) if note is not None]
    return Comparison(
        symbol=a.symbol,
        other=b.symbol,
        overlap_days=len(common),
        note="; ".join(notes) or None,
        **_split(figures),
    )


def _split(figures: dict[str, Any]) -> dict[str, Any]:
    missing = {name: str(figure) for name, figure in figures.items() if isinstance(figure, _Absent)}
    return {**figures, **dict.fromkeys(missing), "missing": missing}


def _too_few(needed: int, found: int) -> _Absent:
    return _Absent(f"needs {needed} bars, there are {found}")


def _rounded_price(price: float) -> float:
    """To 6 decimals, but to at least 7 digits: a coin may cost less than a millionth."""
    return round(price, max(6, 6 - math.floor(math.log10(price))))


def _of_closes(closes: Sequence[float], needed: int, figure: Callable[[], float]) -> float | _Absent:
    return figure() if len(closes) >= needed else _too_few(needed, len(closes))


def _averages(closes: list[float]) -> dict[str, float | _Absent]:
    from talipp.indicators import EMA, SMA  # noqa: PLC0415 - a quick answer doesn't need talipp

    def simple(period: int) -> float | _Absent:
        # Only the bars of the window: talipp accumulates rounding errors from bar to bar.
        return _of_closes(closes, period, lambda: _rounded_price(float(SMA(period, closes[-period:])[-1])))

    def exponential(period: int) -> float | _Absent:
        return _of_closes(closes, period, lambda: _rounded_price(float(EMA(period, closes)[-1])))

    return {
        "sma_20": simple(20),
        "sma_50": simple(50),
        "sma_200": simple(200),
        "ema_12": exponential(12),
        "ema_26": exponential(26),
    }


def _rsi(closes: list[float]) -> float | _Absent:
    from talipp.indicators import RSI  # noqa: PLC0415 - a quick answer doesn't need talipp

    if len(closes) <= _RSI_PERIOD:
        return _too_few(_RSI_PERIOD + 1, len(closes))
    if min(closes) == max(closes):
        return _Absent("the price never moved")
    return rounded(float(RSI(_RSI_PERIOD, closes)[-1]), 4)


def _volatility(closes: list[float], calendar: _Calendar) -> float | _Absent:
    window = closes[-calendar.quarter - 1 :]

    def annual() -> float:
        returns = [math.log(later / earlier) for earlier, later in pairwise(window)]
        return rounded(statistics.stdev(returns) * math.sqrt(calendar.year))

    return _of_closes(closes, calendar.quarter + 1, annual)


def _returns(closes: list[float], calendar: _Calendar) -> dict[str, float | _Absent]:
    def over(count: int) -> float | _Absent:
        return _of_closes(closes, count + 1, lambda: rounded(closes[-1] / closes[-count - 1] - 1))

    return {
        "return_1d": over(calendar.day),
        "return_1w": over(calendar.week),
        "return_1m": over(calendar.month),
        "return_3m": over(calendar.quarter),
        "return_1y": over(calendar.year),
    }


def _drawdown(bars: Sequence[Bar], needed: int) -> dict[str, Any]:
    names = ("max_drawdown", "max_drawdown_from", "max_drawdown_to")
    if len(bars) < needed:
        return dict.fromkeys(names, _too_few(needed, len(bars)))
    deepest, high, low, peak = 0.0, bars[0], bars[0], bars[0]
    for bar in bars:
        peak = bar if bar.close > peak.close else peak
        fall = bar.close / peak.close - 1
        if fall < deepest:
            deepest, high, low = fall, peak, bar
    if deepest == 0.0:
        never = _Absent("the close never fell")
        return dict(zip(names, (0.0, never, never), strict=True))
    return dict(zip(names, (rounded(deepest), high.date, low.date), strict=True))


def _has_ranges(bars: Sequence[Bar]) -> bool:
    return all(bar.high is not None and bar.low is not None for bar in bars)


def _extremes(bars: Sequence[Bar], needed: int) -> dict[str, Any]:
    names = ("high_52w", "high_52w_on", "low_52w", "low_52w_on")
    if len(bars) < needed:
        return dict.fromkeys(names, _too_few(needed, len(bars)))
    highs, lows = ((bar.close, bar.date) for bar in bars), ((bar.close, bar.date) for bar in bars)
    if _has_ranges(bars):
        highs = ((bar.high or bar.close, bar.date) for bar in bars)
        lows = ((bar.low or bar.close, bar.date) for bar in bars)
    high, high_on = max(highs, key=lambda pair: pair[0])
    low, low_on = min(lows, key=lambda pair: pair[0])
    return dict(zip(names, (_rounded_price(high), high_on, _rounded_price(low), low_on), strict=True))


def _gaps(bars: Sequence[Bar], calendar: _Calendar) -> str | None:
    longest = timedelta(days=calendar.max_step_days)
    day = timedelta(days=1)
    gaps = [
        f"{earlier.date + day} to {later.date - day}"
        for earlier, later in pairwise(bars)
        if later.date - earlier.date > longest
    ]
    if not gaps:
        return None
    named = " and ".join(gaps[-_GAPS_NAMED:])
    more = f", and {len(gaps) - _GAPS_NAMED} more before" if len(gaps) > _GAPS_NAMED else ""
    year = f", and return_1y begins on {bars[0].date}" if len(bars) > calendar.year else ""
    return f"no bars from {named}{more}: windows count bars{year}"


def _total_return(closes: Sequence[float]) -> Any:
    if len(closes) < 2:
        return _Absent(f"needs 2 common dates, there are {len(closes)}")
    return rounded(closes[-1] / closes[0] - 1)


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | _Absent:
    if len(a) < MIN_COMMON_DATES:
        return _Absent(f"needs {MIN_COMMON_DATES} common dates, there are {len(a)}")
    returns_a, returns_b = ([later / earlier - 1 for earlier, later in pairwise(closes)] for closes in (a, b))
    if min(statistics.pstdev(returns_a), statistics.pstdev(returns_b)) < 1e-12:
        return _Absent("one of the two has the same return every day")
    coefficient = statistics.correlation(returns_a, returns_b)
    return rounded(max(-1.0, min(1.0, coefficient)))


def _unlike_currencies(a: Bars, b: Bars) -> str | None:
    if whole_currency(a.currency) == whole_currency(b.currency):
        return None
    return (
        f"{a.symbol} is priced in {a.currency}, {b.symbol} in {b.currency}: their returns leave out the exchange rate"
    )


def _unlike_adjustments(a: Bars, b: Bars) -> str | None:
    adjustments = {a.adjustment, b.adjustment}
    if len(adjustments) == 1:
        return None
    first, second = _ADJUSTED[a.adjustment], _ADJUSTED[b.adjustment]
    second = f"is {second}" if Adjustment.NONE in adjustments else second.removeprefix("adjusted ")
    verdict = "their returns are not like for like"
    if Adjustment.SPLITS_AND_DIVIDENDS not in adjustments:
        unadjusted = a if a.adjustment is Adjustment.NONE else b
        verdict = f"their returns are like for like if {unadjusted.symbol} had no splits"
    return f"{a.symbol} is {first}, {b.symbol} {second}: {verdict}"
