"""The contract between fiml and a source of market figures."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from fiml.core.errors import InvalidInput, echo
from fiml.market.models import AssetKind, Bar, Bars, Fundamentals, Instrument, Quote, rounded

MAX_SYMBOL_CHARACTERS = 32
# The source of figures that never change.
SAMPLE = "sample"
_FUNDAMENTALS = ("as_of", "market_cap", "pe_ratio", "eps", "dividend_yield", "revenue", "sector")


class MarketProvider(Protocol):
    """One source of market figures.

    Symbols are matched ignoring case and surrounding blanks. All further questions take the `Instrument` that the
    source resolved: its symbol, kind, exchange and currency together identify it. A figure that the source doesn't have
    is `None`, with a reason; it is never made up, and never taken from another source.

    Raises, from every method that asks the source:
        SymbolNotFound: the source doesn't have the symbol; `known` names the nearest ones, or all.
        NotSupported: the source has no such figures for instruments of this kind.
        RateLimited, BadData, Unavailable: the source doesn't answer now, or its answer can't be used.
    """

    @property
    def source(self) -> str:
        """The name of the source as a whole; figures name the particular source they came from."""

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        """Resolve a symbol. If `kind` is an equity, an index is found too.

        `market` applies to equities, `exchange` and `pair` to coins.

        Raises:
            InvalidInput: the symbol is malformed, or the source doesn't know the market, the exchange or the pair; the
                message lists those that it knows.
        """

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        """Instruments whose symbol or name contains `text`, the nearest first."""

    async def quote(self, instrument: Instrument) -> Quote:
        """The last price, and the change from the one before."""

    async def bars(self, instrument: Instrument) -> Bars:
        """The instrument's days, oldest first: all of them, or those of the last two years if the source is live."""

    async def fundamentals(self, instrument: Instrument) -> Fundamentals:
        """What the source knows besides prices; every figure is `None` if it knows nothing."""

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""


def to_symbol(text: object) -> str:
    """`text` without surrounding blanks, in upper case.

    Raises:
        InvalidInput: the result would not be 1 to 32 printable characters without blanks.
    """
    symbol = text.strip() if isinstance(text, str) else ""
    is_printable = symbol.isprintable() and not any(character.isspace() for character in symbol)
    if not 1 <= len(symbol) <= MAX_SYMBOL_CHARACTERS or not is_printable:
        valid = f"give 1 to {MAX_SYMBOL_CHARACTERS} printable characters without blanks, such as AAPL"
        raise InvalidInput("symbol", f"{echo(text)} is not a symbol", valid)
    return symbol.upper()


def check_limit(limit: int) -> None:
    """Refuse a search for fewer than one instrument.

    Raises:
        InvalidInput: the limit is below 1.
    """
    if limit < 1:
        raise InvalidInput("limit", f"{limit} is below 1", "give 1 or more")


def matching(instruments: Iterable[Instrument], text: str) -> list[Instrument]:
    """Instruments whose symbol or name contains `text`: the symbol itself first, then symbols that begin with it."""
    wanted = text.strip().upper()
    found = [each for each in instruments if wanted in each.symbol or wanted in each.name.upper()]
    return sorted(found, key=lambda each: (each.symbol != wanted, not each.symbol.startswith(wanted), each.symbol))


def last_day(bars: Sequence[Bar]) -> dict[str, float | None]:
    """The figures of the last of some daily bars, and its step from the one before; `None` for what is missing."""
    last = bars[-1]
    previous = bars[-2].close if len(bars) > 1 else None
    return {
        "previous_close": previous,
        "change": None if previous is None else rounded(last.close - previous),
        "change_percent": None if previous is None else rounded(100 * (last.close / previous - 1), 4),
        "open": last.open,
        "high": last.high,
        "low": last.low,
        "volume": last.volume,
    }


def no_fundamentals(instrument: Instrument, *, source: str, reason: str) -> Fundamentals:
    """An instrument's fundamentals where the source has none; every figure is missing for the same reason."""
    return Fundamentals(
        symbol=instrument.symbol,
        source=source,
        currency=instrument.currency,
        missing=dict.fromkeys(_FUNDAMENTALS, reason),
        **dict.fromkeys(_FUNDAMENTALS),
    )


def check_choice(field: str, value: str, valid: list[str]) -> str:
    """The one of `valid` that `value` names, ignoring case.

    Raises:
        InvalidInput: it names none of them.
    """
    choices = {choice.upper(): choice for choice in valid}
    wanted = value.strip().upper()
    if wanted not in choices:
        raise InvalidInput(field, f"{echo(value)} is not available", f"valid: {', '.join(valid)}")
    return choices[wanted]
