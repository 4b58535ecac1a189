"""The contract between fiml and a source of market figures."""

from typing import Protocol

from fiml.core.errors import InvalidInput, echo
from fiml.market.models import AssetKind, Bars, Fundamentals, Instrument, Quote

MAX_SYMBOL_CHARACTERS = 32


class MarketProvider(Protocol):
    """One source of market figures.

    A symbol is matched without regard to case and surrounding blanks, and is unique within its source:
    where two kinds share one, the source gives them different symbols. A figure the source doesn't have
    is None with a reason; it is never made up, and never taken from another source.

    Raises, from every method that takes a symbol:
        InvalidInput: it doesn't have the form of a symbol.
        SymbolNotFound: the source doesn't have it; `known` names what it has.
        Unavailable: the source is away.
    """

    @property
    def source(self) -> str:
        """The name that answers carry."""

    async def instrument(self, symbol: str, kind: AssetKind) -> Instrument:
        """Resolve a symbol; asked for an equity, an index is found too."""

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        """Instruments whose symbol or name holds `text`, the nearest first; empty if there is none."""

    async def quote(self, symbol: str) -> Quote:
        """The last bar, and the step from the one before."""

    async def bars(self, symbol: str, *, limit: int | None = None) -> Bars:
        """The last `limit` days, or all, oldest first."""

    async def fundamentals(self, symbol: str) -> Fundamentals:
        """What the source knows beyond prices; all None where it knows nothing."""

    async def aclose(self) -> None:
        """Let go of connections; may be called twice."""


def to_symbol(text: object) -> str:
    """`text` without surrounding blanks, in upper case.

    Raises:
        InvalidInput: not 1 to 32 printable characters without blanks.
    """
    symbol = text.strip() if isinstance(text, str) else ""
    is_printable = symbol.isprintable() and not any(character.isspace() for character in symbol)
    if not 1 <= len(symbol) <= MAX_SYMBOL_CHARACTERS or not is_printable:
        valid = f"give 1 to {MAX_SYMBOL_CHARACTERS} printable characters without blanks, such as AAPL"
        raise InvalidInput("symbol", f"{echo(text)} is not a symbol", valid)
    return symbol.upper()
