"""Market figures from the files that ship with fiml: real history, no network."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files

from fiml.core.errors import Misconfigured, SymbolNotFound
from fiml.market.models import Adjustment, AssetKind, Bar, Bars, Fundamentals, Instrument, Quote
from fiml.market.providers.base import SAMPLE, check_choice, check_limit, last_day, matching, no_fundamentals, to_symbol

SOURCE = SAMPLE
CURRENCY = "USD"
MARKETS = ["US"]
EXCHANGES = ["Bitstamp"]
PAIRS = ["USD"]

_KINDS_FOUND_AS = {
    AssetKind.EQUITY: (AssetKind.EQUITY, AssetKind.INDEX),
    AssetKind.INDEX: (AssetKind.INDEX,),
    AssetKind.COIN: (AssetKind.COIN,),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    instrument: Instrument
    bars: Bars
    note: str | None


class SampleProvider:
    """The sample as a `MarketProvider`; its files are read once in a process, at the first question."""

    source = SOURCE

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        if kind is AssetKind.COIN:
            check_choice("exchange", EXCHANGES[0] if exchange is None else exchange, EXCHANGES)
            check_choice("pair", pair, PAIRS)
        else:
            check_choice("market", market, MARKETS)
        return _find(symbol, _KINDS_FOUND_AS[kind]).instrument

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        check_limit(limit)
        return matching([entry.instrument for entry in _sample().values()], text)[:limit]

    async def quote(self, instrument: Instrument) -> Quote:
        return _quote(_find(instrument.symbol))

    async def bars(self, instrument: Instrument) -> Bars:
        return _find(instrument.symbol).bars

    async def fundamentals(self, instrument: Instrument) -> Fundamentals:
        return no_fundamentals(instrument, source=SOURCE, reason="the sample has prices only")

    async def aclose(self) -> None:
        """Nothing is held open."""


def _find(symbol: str, kinds: Iterable[AssetKind] = tuple(AssetKind)) -> _Entry:
    wanted = to_symbol(symbol)
    entries = {key: entry for key, entry in _sample().items() if entry.instrument.kind in kinds}
    if wanted not in entries:
        named = (key for key, entry in sorted(entries.items()) if wanted in entry.instrument.name.upper())
        raise SymbolNotFound(wanted, source=SOURCE, known=sorted(entries), meant=next(named, None))
    return entries[wanted]


def _quote(entry: _Entry) -> Quote:
    instrument, last = entry.instrument, entry.bars.bars[-1]
    figures = {"exchange": instrument.exchange, **last_day(entry.bars.bars)}
    is_adjusted = entry.bars.adjustment is Adjustment.SPLITS_AND_DIVIDENDS
    return Quote(
        symbol=instrument.symbol,
        name=instrument.name,
        kind=instrument.kind,
        price=last.close,
        price_label="adjusted close" if is_adjusted else "close",
        currency=instrument.currency,
        source=SOURCE,
        as_of=last.date,
        adjustment=entry.bars.adjustment,
        volume_unit="coins" if instrument.kind is AssetKind.COIN else "shares",
        note=entry.note,
        missing={name: _why_missing(name) for name, figure in figures.items() if figure is None},
        **figures,
    )


def _why_missing(field: str) -> str:
    if field == "exchange":
        return "an index is calculated, not listed"
    if field in {"previous_close", "change", "change_percent"}:
        return "the sample has one bar for this symbol"
    return "the sample has only closes for this symbol"


@cache
def _sample() -> dict[str, _Entry]:
    """Everything in the files, by symbol.

    Raises:
        Misconfigured: a file is missing or damaged.
    """
    try:
        rows: defaultdict[str, list[list[str]]] = defaultdict(list)
        for row in (*_rows("equities_daily.csv"), *_rows("coins_daily_usd.csv")):
            rows[row[0]].append(row)
        return {row[0]: _entry(row, rows[row[0]]) for row in _rows("instruments.csv")}
    except (OSError, LookupError, ValueError) as exc:
        raise Misconfigured(f"the sample's files can't be read ({exc!r}); reinstall fiml") from exc


def _rows(name: str) -> list[list[str]]:
    text = (files("fiml.market") / "sample" / name).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines()))[1:]


def _entry(row: list[str], bar_rows: list[list[str]]) -> _Entry:
    symbol, name, kind, exchange, note = row
    instrument = Instrument(
        symbol=symbol, name=name, kind=AssetKind(kind), currency=CURRENCY, exchange=exchange or None
    )
    bars = Bars(
        symbol=symbol,
        currency=CURRENCY,
        exchange=instrument.exchange,
        source=SOURCE,
        # The coins' file has no such column: a coin has neither splits nor dividends.
        adjustment=Adjustment.NONE if instrument.kind is AssetKind.COIN else Adjustment(bar_rows[0][7]),
        bars=tuple(map(_bar, bar_rows)),
    )
    return _Entry(instrument, bars, note or None)


def _bar(row: list[str]) -> Bar:
    _, day, opened, high, low, close, volume = row[:7]
    return Bar(date.fromisoformat(day), _number(opened), _number(high), _number(low), float(close), _number(volume))


def _number(cell: str) -> float | None:
    return float(cell) if cell else None
