"""Fixtures for tests that ask Yahoo: the real yfinance, over HTTP, against a local server."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import requests
import stamina

from fiml.market.models import AssetKind, Instrument, Quote
from fiml.market.providers.guard import Guard
from fiml.market.providers.yahoo import YahooProvider
from tests.support import yahoo_wire as wire
from tests.support.market_server import (
    MarketServer,
    market_server,
    yahoo_session,
)


@pytest.fixture
def retries_without_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
def yahoo_server() -> Iterator[MarketServer]:
    with market_server() as server:
        wire.serve_cookie(server)
        server.always(wire.SEARCH_PATH, wire.found())
        yield server


@pytest.fixture
def plain_session(yahoo_server: MarketServer) -> Iterator[requests.Session]:
    with yahoo_session(yahoo_server) as session:
        yield session


@pytest.fixture
async def yahoo(plain_session: requests.Session) -> AsyncIterator[YahooProvider]:
    provider = YahooProvider(plain_session)
    yield provider
    await provider.aclose()


@pytest.fixture
async def impatient_yahoo(plain_session: requests.Session) -> AsyncIterator[YahooProvider]:
    """A provider that waits half a second at most."""
    provider = YahooProvider(plain_session, Guard("Yahoo", attempt_timeout_s=0.3, timeout_s=0.5))
    yield provider
    await provider.aclose()


async def quoted(yahoo: YahooProvider, symbol: str, **asked: Any) -> Quote:
    return await yahoo.quote(await yahoo.instrument(symbol, AssetKind.EQUITY, **asked))


def an_instrument(symbol: str = "AAPL", **changes: Any) -> Instrument:
    facts = {"name": "A name", "kind": AssetKind.EQUITY, "currency": "USD", "exchange": "NasdaqGS"}
    return Instrument(symbol=symbol, **facts | changes)
