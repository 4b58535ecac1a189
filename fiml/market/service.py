"""Answers about instruments, made from one source."""

import asyncio
from collections.abc import Sequence

from fiml.core.config import MarketData, Settings
from fiml.core.errors import InvalidInput, NotSupported, SymbolNotFound
from fiml.market.indicators import compare, technicals
from fiml.market.models import AssetKind, Bars, Comparison, Depth, Instrument, MarketAnswer
from fiml.market.providers.base import MarketProvider
from fiml.market.providers.sample import SampleProvider


class MarketService:
    """Resolves what is asked about, and answers as deep as asked. Errors are those of `MarketProvider`."""

    def __init__(self, provider: MarketProvider) -> None:
        self._provider = provider

    @property
    def source(self) -> str:
        """Where all figures come from."""
        return self._provider.source

    async def equity(self, symbol: str, market: str = "US") -> Instrument:
        """The equity or index with this symbol."""
        return await self._provider.instrument(symbol, AssetKind.EQUITY, market=market)

    async def coin(self, symbol: str, exchange: str | None = None, pair: str = "USD") -> Instrument:
        """The coin with this symbol, on the provider's choice of exchanges where none is named."""
        return await self._provider.instrument(symbol, AssetKind.COIN, exchange=exchange, pair=pair)

    async def find(self, symbol: str) -> Instrument | None:
        """The instrument with this symbol, an equity or index before a coin; None if there is none."""
        for kind in (AssetKind.EQUITY, AssetKind.COIN):
            try:
                return await self._provider.instrument(symbol, kind)
            except InvalidInput:
                continue
        return None

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        """Instruments whose symbol or name holds `text`, the nearest first."""
        return await self._provider.search(text, limit=limit)

    async def answer(self, instrument: Instrument, depth: Depth, others: Sequence[Instrument] = ()) -> MarketAnswer:
        """What there is to say about an instrument; only a deep answer compares it with `others`.

        The instrument itself and repetitions among the others are passed over. Another that the source
        doesn't have, or that shares fewer than 2 dates, stands in `not_compared`; it is no error.
        """
        quote = await self._provider.quote(instrument)
        if depth is Depth.QUICK:
            return MarketAnswer(quote=quote, technicals=None, fundamentals=None, comparisons=[], not_compared={})
        bars, fundamentals = await asyncio.gather(
            self._provider.bars(instrument), self._provider.fundamentals(instrument)
        )
        compared = await self._compare(bars, others) if depth is Depth.DEEP else {}
        return MarketAnswer(
            quote=quote,
            technicals=technicals(bars, instrument.kind),
            fundamentals=fundamentals,
            comparisons=[found for found in compared.values() if isinstance(found, Comparison)],
            not_compared={symbol: found for symbol, found in compared.items() if isinstance(found, str)},
        )

    async def aclose(self) -> None:
        """Let go of the source's connections."""
        await self._provider.aclose()

    async def _compare(self, bars: Bars, others: Sequence[Instrument]) -> dict[str, Comparison | str]:
        wanted = {other.symbol: other for other in others if other.symbol != bars.symbol}
        found = await asyncio.gather(*(self._compare_with(bars, other) for other in wanted.values()))
        return dict(zip(wanted, found, strict=True))

    async def _compare_with(self, bars: Bars, instrument: Instrument) -> Comparison | str:
        try:
            other = await self._provider.bars(instrument)
        except SymbolNotFound as exc:
            return f"not in the {exc.source} data"
        comparison = compare(bars, other)
        if comparison.overlap_days < 2:
            return f"too few common dates: {_span(bars)}, {_span(other)}"
        return comparison


def open_market(settings: Settings) -> MarketService:
    """The market that FIML_MARKET_DATA names; `auto` is the sample, as there is no live source yet.

    Raises:
        NotSupported: it names `live`.
    """
    if settings.market_data is MarketData.LIVE:
        raise NotSupported("live market data is not part of this version", "set FIML_MARKET_DATA=sample")
    return MarketService(SampleProvider())


def _span(bars: Bars) -> str:
    return f"{bars.symbol} has {bars.bars[0].date} to {bars.as_of}"
