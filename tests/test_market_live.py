"""Live data of both kinds: stocks from one source, coins from another."""

import sys

import pytest

from fiml.core.errors import NotSupported, Unavailable
from fiml.market.models import AssetKind
from fiml.market.providers.coins import CoinProvider
from fiml.market.providers.live import LiveProvider, live_extras, open_live
from fiml.market.providers.sample import SampleProvider
from tests.support import exchange_wire as wire
from tests.support.market_server import MarketServer, refusal

pytestmark = pytest.mark.usefixtures("retries_without_waiting", "closing_without_waiting")


async def test_each_kind_is_asked_of_its_source(coin_server: MarketServer, coins: CoinProvider) -> None:
    live = LiveProvider(SampleProvider(), coins)

    aapl = await live.instrument("AAPL", AssetKind.EQUITY)
    btc = await live.instrument("BTC", AssetKind.COIN)

    assert [(await live.quote(one)).source for one in (aapl, btc)] == ["sample", "kraken via ccxt"]
    assert [(await live.fundamentals(one)).source for one in (aapl, btc)] == ["sample", "kraken via ccxt"]
    assert live.source == "live"


async def test_a_search_joins_both_in_turn(coin_server: MarketServer, coins: CoinProvider) -> None:
    found = await LiveProvider(SampleProvider(), coins).search("", limit=3)

    assert [one.kind is AssetKind.COIN for one in found] == [False, True, False]


async def test_a_search_does_without_a_source_that_is_away(coin_server: MarketServer, coins: CoinProvider) -> None:
    for path in (wire.KRAKEN_MARKETS, wire.COINBASE_MARKETS, wire.BITSTAMP_MARKETS):
        coin_server.always(path, refusal(503))

    assert await LiveProvider(SampleProvider(), coins).search("AAPL")
    with pytest.raises(Unavailable):
        await LiveProvider(None, coins).search("BTC")


async def test_a_source_that_is_not_installed_is_named_by_its_extra() -> None:
    nothing = LiveProvider(None, None)

    with pytest.raises(NotSupported, match=r"pip install 'fiml\[ccxt\]'"):
        await nothing.instrument("BTC", AssetKind.COIN)
    with pytest.raises(NotSupported, match=r"pip install 'fiml\[yahoo\]'"):
        await nothing.instrument("AAPL", AssetKind.EQUITY)
    await nothing.aclose()


async def test_live_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_extras() == ["yahoo", "ccxt"]
    monkeypatch.setitem(sys.modules, "ccxt", None)

    live = open_live()

    assert live_extras() == ["yahoo"]
    with pytest.raises(NotSupported, match="ccxt"):
        await live.instrument("BTC", AssetKind.COIN)
    await live.aclose()
