"""Fixtures for tests that ask exchanges for coins: the real ccxt, over HTTP, against a local server."""

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from fiml.market.models import AssetKind, Instrument, Quote
from fiml.market.providers.coin_exchange import exchange_guard
from fiml.market.providers.coins import CoinProvider
from fiml.testing import FrozenClock
from tests.support import exchange_wire as wire
from tests.support.market_server import MarketServer, market_server


@pytest.fixture
def closing_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """ccxt gives TLS a quarter of a second to end; there is none on loopback."""
    from ccxt.async_support.base.exchange import Exchange  # noqa: PLC0415 - takes long, and few tests need it

    monkeypatch.setattr(Exchange, "timeout_on_exit", 0)


@pytest.fixture
def coin_server(clock: FrozenClock) -> Iterator[MarketServer]:
    with market_server() as server:
        wire.serve_kraken(server, clock.now())
        wire.serve_coinbase(server, clock.now())
        wire.serve_bitstamp(server, clock.now())
        yield server


def provider_at(server: MarketServer, **guard: Any) -> CoinProvider:
    urls = {"kraken": server.url, "coinbase": server.url, "bitstamp": f"{server.url}/api"}
    return CoinProvider(urls=urls, guard=partial(exchange_guard, **{"rate": (1000, 1), **guard}))


@pytest.fixture
async def coins(coin_server: MarketServer) -> AsyncIterator[CoinProvider]:
    provider = provider_at(coin_server)
    yield provider
    await provider.aclose()


@pytest.fixture
async def impatient_coins(coin_server: MarketServer) -> AsyncIterator[CoinProvider]:
    """A provider that waits half a second at most."""
    provider = provider_at(coin_server, attempt_timeout_s=0.3, timeout_s=0.5)
    yield provider
    await provider.aclose()


def bitcoin(exchange: str = "kraken", **changes: Any) -> Instrument:
    facts = {"symbol": "BTC", "name": "Bitcoin", "kind": AssetKind.COIN, "currency": "USD", "exchange": exchange}
    return Instrument(**facts | changes)


async def quoted(coins: CoinProvider, exchange: str) -> Quote:
    return await coins.quote(await coins.instrument("btc", AssetKind.COIN, exchange=exchange))
