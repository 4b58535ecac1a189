"""Instruments of the sample, for tests that ask its provider."""

from fiml.core.errors import SymbolNotFound
from fiml.market.models import AssetKind, Bars, Instrument
from fiml.market.providers.base import MarketProvider
from fiml.market.providers.sample import SampleProvider


async def named(provider: MarketProvider, symbol: str) -> Instrument:
    """The instrument of a symbol, an equity or index before a coin."""
    try:
        return await provider.instrument(symbol, AssetKind.EQUITY)
    except SymbolNotFound:
        return await provider.instrument(symbol, AssetKind.COIN)


async def sample_bars(symbol: str) -> Bars:
    """An instrument's days in the sample."""
    provider = SampleProvider()
    return await provider.bars(await named(provider, symbol))
