"""Reads Yahoo's answers, without trusting the types in them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fiml.core import clock
from fiml.core.errors import BadData, NotSupported
from fiml.market.freshness import SETTLING
from fiml.market.models import HUNDREDTHS, Adjustment, AssetKind, Bar, Bars, Instrument, Quote
from fiml.market.providers.base import last_day
from fiml.market.providers.texts import clean

NAME = "Yahoo"
SOURCE = "yahoo"
_LONG_WEEKEND = timedelta(days=4)
KINDS = {"EQUITY": AssetKind.EQUITY, "ETF": AssetKind.EQUITY, "INDEX": AssetKind.INDEX}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: the instrument, and its days, oldest first."""

    instrument: Instrument
    bars: tuple[Bar, ...]
    market_time: datetime | None
    unfinished: str | None  # why the last day isn't complete, if it isn't
    has_gap: bool = False  # whether the last day and the one before are further apart than by a weekend or holiday


def read_chart(frame: Any, meta: Mapping[str, Any]) -> Chart:
    """A chart from yfinance's table and metadata; days without a close are left out.

    Raises:
        BadData: the symbol or currency is missing, or there is not a single close.
        NotSupported: the instrument is neither an equity nor an index.
    """
    instrument = read_instrument(meta, meta.get("instrumentType"))
    columns = (frame[name] for name in ("Open", "High", "Low", "Close", "Volume"))
    days = [_bar(*row) for row in zip(frame.index, *columns, strict=True)]
    bars = tuple(bar for bar in days if bar is not None)
    if not bars:
        raise BadData(NAME, f"no close of {instrument.symbol}")
    moment = moment_of(meta.get("regularMarketTime"))
    # In the table's time zone, since a market's day isn't the day in UTC.
    local = moment.astimezone(frame.index[-1].tzinfo).date() if moment else None
    market_time = moment if local == bars[-1].date else None
    unfinished = None if market_time is None else _unfinished(meta, market_time)
    return Chart(instrument, bars, market_time, unfinished, _has_gap(days, bars))


def read_instrument(facts: Mapping[str, Any], yahoo_kind: object) -> Instrument:
    """An instrument from the facts in a chart or a quote.

    Raises:
        BadData: the symbol or currency is missing.
        NotSupported: the instrument is neither an equity nor an index.
    """
    symbol, currency = clean(facts.get("symbol")), clean(facts.get("currency"))
    if not symbol or not currency:
        raise BadData(NAME, f"no {'currency' if symbol else 'symbol'} of {symbol or 'an instrument'}")
    return Instrument(
        symbol=symbol,
        name=clean(facts.get("longName")) or clean(facts.get("shortName")) or symbol,
        kind=_kind(symbol, yahoo_kind),
        currency=currency,
        exchange=clean(facts.get("fullExchangeName")) or clean(facts.get("exchangeName")) or None,
    )


def quote_of(chart: Chart) -> Quote:
    """The last day of a chart, and the change from the day before."""
    instrument, last = chart.instrument, chart.bars[-1]
    figures = {"exchange": instrument.exchange, "market_time": chart.market_time, **last_day(chart.bars)}
    return Quote(
        symbol=instrument.symbol,
        name=instrument.name,
        kind=instrument.kind,
        price=last.close,
        price_label="last trade" if chart.unfinished else "close",
        currency=instrument.currency,
        source=SOURCE,
        as_of=last.date,
        adjustment=Adjustment.SPLITS,
        volume_unit="shares",
        note=_note(chart),
        missing={name: _why_missing(name) for name, figure in figures.items() if figure is None},
        **figures,
    )


def bars_of(chart: Chart) -> Bars:
    """The complete days of a chart; figures computed from today's would keep changing.

    Raises:
        BadData: the days are out of order.
    """
    instrument = chart.instrument
    try:
        return Bars(
            symbol=instrument.symbol,
            currency=instrument.currency,
            exchange=instrument.exchange,
            source=SOURCE,
            adjustment=Adjustment.SPLITS,
            bars=chart.bars[:-1] if chart.unfinished and len(chart.bars) > 1 else chart.bars,
        )
    except ValueError as exc:
        raise BadData(NAME, str(exc)) from exc


def _note(chart: Chart) -> str | None:
    notes = []
    currency = chart.instrument.currency
    if currency in HUNDREDTHS:
        whole, hundredths = HUNDREDTHS[currency]
        notes.append(f"prices are in {hundredths}: 100 {currency} are 1 {whole}")
    if chart.unfinished:
        notes.append(f"{chart.unfinished}: the last day isn't complete")
    if chart.has_gap:
        notes.append(f"the change is since {chart.bars[-2].date}: there is no close in between")
    return "; ".join(notes) or None


def _has_gap(days: Sequence[Bar | None], bars: Sequence[Bar]) -> bool:
    if len(bars) < 2:
        return False
    before, last = bars[-2:]
    is_one_missing = None in days[days.index(before) : days.index(last)]
    return is_one_missing or last.date - before.date > _LONG_WEEKEND


def number(value: object) -> float | None:
    """A finite number, also from Yahoo's `{"raw": 1.5}`; `None` for anything else."""
    raw = value.get("raw") if isinstance(value, dict) else value
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return float(raw) if math.isfinite(raw) else None


def moment_of(value: object) -> datetime | None:
    """A moment, from Yahoo's seconds since 1970 or yfinance's datetime; `None` for anything else."""
    seconds = value.timestamp() if isinstance(value, datetime) else number(value)
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _bar(day: Any, *figures: Any) -> Bar | None:
    opened, high, low, close = (_positive(figure) for figure in figures[:4])
    # yfinance writes a volume of 0 if Yahoo has none, as for an index.
    return None if close is None else Bar(day.date(), opened, high, low, close, _positive(figures[4]))


def _positive(figure: Any) -> float | None:
    value = float(figure)
    return value if math.isfinite(value) and value > 0 else None


def _kind(symbol: str, yahoo_kind: object) -> AssetKind:
    if yahoo_kind in KINDS:
        return KINDS[str(yahoo_kind)]
    name = clean(yahoo_kind) or "of no kind"
    if name == "CRYPTOCURRENCY":
        raise NotSupported(f"{symbol} is a coin, not an equity", "ask for it as a coin (search_by_coin)")
    raise NotSupported(f"{symbol} is {name} at Yahoo", "equities, funds traded like them, and indices are supported")


def _unfinished(meta: Mapping[str, Any], market_time: datetime) -> str | None:
    hours = (meta.get("currentTradingPeriod") or {}).get("regular") or {}
    start, end = moment_of(hours.get("start")), moment_of(hours.get("end"))
    now = clock.now()
    if start is None or end is None or now < start or market_time < start:
        return None
    if now < end:
        return "the market is open"
    # Prices of many markets are late: soon after the close, the last one is from before it.
    return "the closing price isn't in yet" if market_time < end and now - end < SETTLING else None


def _why_missing(field: str) -> str:
    if field in {"previous_close", "change", "change_percent"}:
        return "Yahoo has only one day of this symbol"
    if field == "market_time":
        return "Yahoo reports no price time on the last bar's day"
    if field == "volume":
        return "Yahoo gives no volume, or none above zero, for the last day"
    return "Yahoo doesn't report it"
