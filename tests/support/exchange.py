"""An exchange that counts questions and fails or hangs when told to, asked through the caches."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fiml.cache.l1_cache import MemoryL1Cache
from fiml.cache.l2_cache import L2Cache
from fiml.core.config import Synchronous
from fiml.core.errors import BadData, RateLimited, Unavailable
from fiml.db.sqlite_file import SqliteFile
from fiml.market.fetching import Fetching
from fiml.market.models import AssetKind, Bars, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.testing import FrozenClock
from fiml.testing.clock import START

AAPL = Instrument(symbol="AAPL", name="Apple Inc.", kind=AssetKind.EQUITY, currency="USD", exchange="NASDAQ")
FAILURES = [
    Unavailable("the exchange", "it is closed"),
    RateLimited("the exchange", START + timedelta(minutes=5)),
    BadData("the exchange", "no JSON"),
]


class Exchange(SampleProvider):
    """The sample's figures as another source's; it counts questions, and fails or hangs when told to."""

    source = "exchange"

    def __init__(self) -> None:
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def _asked(self) -> None:
        self.asked += 1
        self.was_asked.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        await self._asked()
        return await super().instrument(symbol, kind, market=market, exchange=exchange, pair=pair)

    async def quote(self, instrument: Instrument) -> Quote:
        await self._asked()
        return (await super().quote(instrument)).model_copy(update={"price": float(self.asked)})

    async def bars(self, instrument: Instrument) -> Bars:
        await self._asked()
        return await super().bars(instrument)


@pytest.fixture
def exchange(clock: FrozenClock) -> Exchange:
    return Exchange()


@pytest.fixture
async def file_cache(tmp_path: Path) -> AsyncIterator[L2Cache]:
    cache = L2Cache(SqliteFile(tmp_path / "fiml.db", Synchronous.OFF))
    yield cache
    await cache.aclose()


@pytest.fixture
async def fetching(exchange: Exchange, file_cache: L2Cache) -> AsyncIterator[Fetching]:
    """The market is open at the clock's first moment: a quote is current for 15 seconds."""
    fetching = Fetching(exchange, (MemoryL1Cache(), file_cache), fetch_timeout_s=0.3)
    yield fetching
    await fetching.aclose()


def anew(exchange: Exchange, file_cache: L2Cache) -> Fetching:
    """Another process over the same second cache."""
    return Fetching(exchange, (MemoryL1Cache(), file_cache))
