"""How long an answer is current: it depends on the part, and on when the market trades.

The calendars come from the package `exchange_calendars`. If it isn't installed, or doesn't know the market or the year,
the market counts as always open: its answers then have the short life.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from threading import Lock
from typing import Any

from fiml.core.clock import from_micros
from fiml.core.log import get_logger
from fiml.market.models import AssetKind, Instrument

QUOTE_LIFE = timedelta(seconds=15)
CLOSED_QUOTE_LIFE = timedelta(minutes=15)
BARS_LIFE = timedelta(minutes=15)
FUNDAMENTALS_LIFE = timedelta(days=1)
NO_FUNDAMENTALS_LIFE = timedelta(minutes=15)
INSTRUMENT_LIFE = timedelta(days=1)
NOT_FOUND_LIFE = timedelta(seconds=60)

# A source has a day's last price and bar only some minutes after the close: an answer from in between may lack them.
SETTLING = timedelta(minutes=30)
# A source may apply a split only some minutes after the open.
OPENING = timedelta(minutes=5)
_MARGIN = timedelta(days=15)  # longer than any market stays closed around a New Year

DEFAULT_CALENDAR = "XNYS"
_CALENDARS_BY_SUFFIX = {
    "AS": "XAMS",
    "AX": "XASX",
    "BO": "XBOM",
    "BR": "XBRU",
    "CO": "XCSE",
    "DE": "XETR",
    "HE": "XHEL",
    "HK": "XHKG",
    "IR": "XDUB",
    "JO": "XJSE",
    "KQ": "XKRX",
    "KS": "XKRX",
    "L": "XLON",
    "LS": "XLIS",
    "MC": "XMAD",
    "MI": "XMIL",
    "MX": "XMEX",
    "NS": "XBOM",  # the National and the Bombay exchange keep the same days and hours
    "NZ": "XNZE",
    "OL": "XOSL",
    "PA": "XPAR",
    "SA": "BVMF",
    "SI": "XSES",
    "SS": "XSHG",
    "ST": "XSTO",
    "SW": "XSWX",
    "SZ": "XSHG",
    "T": "XTKS",
    "TO": "XTSE",
    "TW": "XTAI",
    "V": "XTSE",
    "VI": "XWBO",
}
# For indices, whose symbols have no suffix: Yahoo's codes and names of exchanges.
_CALENDARS_BY_EXCHANGE = {
    "AMS": "XAMS",
    "AMSTERDAM": "XAMS",
    "ASX": "XASX",
    "BSE": "XBOM",
    "EBS": "XSWX",
    "FGI": "XLON",
    "FTSE INDEX": "XLON",
    "GER": "XETR",
    "HKG": "XHKG",
    "HKSE": "XHKG",
    "JPX": "XTKS",
    "KOE": "XKRX",
    "KSC": "XKRX",
    "KSE": "XKRX",
    "LSE": "XLON",
    "MCE": "XMAD",
    "MIL": "XMIL",
    "MILAN": "XMIL",
    "NSE": "XBOM",
    "NSI": "XBOM",
    "OSA": "XTKS",
    "OSAKA": "XTKS",
    "PAR": "XPAR",
    "PARIS": "XPAR",
    "SES": "XSES",
    "SHANGHAI": "XSHG",
    "SHENZHEN": "XSHG",
    "STO": "XSTO",
    "STOCKHOLM": "XSTO",
    "SWISS": "XSWX",
    "TAI": "XTAI",
    "TAIWAN": "XTAI",
    "TOKYO": "XTKS",
    "TOR": "XTSE",
    "TORONTO": "XTSE",
    "TSXV": "XTSE",
    "XETRA": "XETR",
    "ZURICH": "XSWX",
}


class Part(StrEnum):
    """What an answer is about."""

    INSTRUMENT = "instrument"
    QUOTE = "quote"
    BARS = "bars"
    FUNDAMENTALS = "fundamentals"


@dataclass(frozen=True, slots=True)
class Trading:
    """When a market trades: from `opens[i]` to `closes[i]`, sorted, in UTC. A day with a lunch break has two spans.

    `day_ends` are the closes that end a day.
    """

    opens: tuple[datetime, ...]
    closes: tuple[datetime, ...]
    day_ends: tuple[datetime, ...]

    def is_open(self, now: datetime) -> bool:
        """Whether the market trades at a moment; at the moment of the close, it doesn't."""
        begun = bisect_right(self.opens, now)
        return begun > 0 and now < self.closes[begun - 1]

    def is_settling(self, now: datetime) -> bool:
        """Whether a day has just ended, so that a source may still give a price from before its close."""
        ended = _next(self.day_ends, now - SETTLING)
        return ended is not None and ended <= now


async def fresh_until(part: Part, instrument: Instrument | None, now: datetime) -> datetime:
    """Until when an answer learnt `now` is current. Only for the part `INSTRUMENT` may the instrument be unknown."""
    match part:
        case Part.QUOTE:
            return await _quote_until(instrument, now)
        case Part.BARS:
            return await _bars_until(instrument, now)
        case Part.FUNDAMENTALS:
            return now + FUNDAMENTALS_LIFE
        case Part.INSTRUMENT:
            return now + INSTRUMENT_LIFE


async def _quote_until(instrument: Instrument | None, now: datetime) -> datetime:
    trading = await trading_of(instrument, now)
    if trading is None or trading.is_open(now) or trading.is_settling(now):
        return now + QUOTE_LIFE
    next_open = _next(trading.opens, now)
    return now + QUOTE_LIFE if next_open is None else min(next_open, now + CLOSED_QUOTE_LIFE)


async def _bars_until(instrument: Instrument | None, now: datetime) -> datetime:
    if instrument is not None and instrument.kind is AssetKind.COIN:
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        # An exchange's clock may be behind ours: then its last day isn't complete yet.
        return midnight + (OPENING if now < midnight + OPENING else timedelta(days=1))
    trading = await trading_of(instrument, now)
    if trading is None:
        return now + BARS_LIFE
    # At the close a day is complete. A split takes effect at the open, and changes all earlier days.
    turns = [(trading.day_ends, late) for late in (timedelta(0), SETTLING)]
    turns += [(trading.opens, late) for late in (timedelta(0), OPENING)]
    found = ((_next(moments, now - late), late) for moments, late in turns)
    return min((moment + late for moment, late in found if moment is not None), default=now + BARS_LIFE)


async def trading_of(instrument: Instrument | None, now: datetime) -> Trading | None:
    """When an instrument's market trades around a moment; `None` if it always trades, or has no known calendar.

    The first question about a market loads its calendar, in a thread.
    """
    name = None if instrument is None else calendar_of(instrument)
    if name is None:
        return None
    loaded = _loaded.get((name, now.year), _UNKNOWN)
    return loaded if not isinstance(loaded, _Unknown) else await asyncio.to_thread(_load, name, now.year)


def calendar_of(instrument: Instrument) -> str | None:
    """The calendar of an instrument's market, by the symbol's suffix, else by the exchange; `None` if it has none.

    A symbol without a suffix on an unknown exchange is taken for an American one.
    """
    if instrument.kind is AssetKind.COIN:
        return None
    _, dot, suffix = instrument.symbol.rpartition(".")
    if dot:
        return _CALENDARS_BY_SUFFIX.get(suffix.upper())
    return _CALENDARS_BY_EXCHANGE.get((instrument.exchange or "").upper(), DEFAULT_CALENDAR)


def _next(moments: tuple[datetime, ...], now: datetime) -> datetime | None:
    following = bisect_right(moments, now)
    return moments[following] if following < len(moments) else None


class _Unknown:
    """The calendar isn't loaded yet."""


_log = get_logger()
_UNKNOWN = _Unknown()
_loaded: dict[tuple[str, int], Trading | None] = {}
_loading = Lock()


def _load(name: str, year: int) -> Trading | None:
    with _loading:
        if (name, year) not in _loaded:
            _loaded[name, year] = _read(name, year)
        return _loaded[name, year]


def _read(name: str, year: int) -> Trading | None:
    try:
        import exchange_calendars  # noqa: PLC0415 - it brings pandas, which only live markets need
        from exchange_calendars.errors import CalendarError  # noqa: PLC0415 - as above
    except ImportError:
        return None
    # Some calendars end with the current year: if the wanted span fails, take the calendar with its default span.
    for span in (_around(year), {}):
        try:
            found = exchange_calendars.get_calendar(name, **span)
        except (CalendarError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as exc:
            _log.warning("calendar_failed", calendar=name, problem=f"{type(exc).__name__}: {exc}")
            continue
        trading = _trading(found)
        if trading.opens and trading.opens[0].year <= year <= trading.closes[-1].year:
            return trading
    return None


def _around(year: int) -> dict[str, date]:
    try:
        return {"start": date(year, 1, 1) - _MARGIN, "end": date(year, 12, 31) + _MARGIN}
    except OverflowError:
        return {}


def _trading(calendar: Any) -> Trading:
    opens, closes = _moments(calendar.opens_nanos), _moments(calendar.closes_nanos)
    pauses, resumptions = _moments(calendar.break_starts_nanos), _moments(calendar.break_ends_nanos)
    return Trading(
        opens=tuple(sorted(opens + resumptions)), closes=tuple(sorted(closes + pauses)), day_ends=tuple(closes)
    )


def _moments(nanoseconds: Iterable[int]) -> list[datetime]:
    """Nanoseconds as datetimes; for days without a break, the calendar has a negative number, which is left out."""
    return [from_micros(int(moment) // 1000) for moment in nanoseconds if moment > 0]
