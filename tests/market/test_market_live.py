"""Live data of both kinds: stocks from one source, coins from another."""

import asyncio
import sys

import pytest

from fiml.core.errors import NotSupported, Unavailable
from fiml.market.models import AssetKind, Bars, Depth, Instrument, Quote
from fiml.market.providers.coins import CoinProvider
from fiml.market.providers.live import LiveProvider, live_extras, open_live
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
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


class Diary(SampleProvider):
    """Writes down what it is asked for, in order."""

    source = "diary"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def quote(self, instrument: Instrument) -> Quote:
        for _ in range(100):  # the others would be asked for meanwhile
            await asyncio.sleep(0)
        self.asked.append(f"quote of {instrument.symbol}")
        return await super().quote(instrument)

    async def bars(self, instrument: Instrument) -> Bars:
        self.asked.append(f"bars of {instrument.symbol}")
        return await super().bars(instrument)


async def test_the_others_of_a_deep_question_wait_until_the_symbols_own_figures_are_there() -> None:
    diary = Diary()
    market = MarketService(diary)

    await market.answer(await market.equity("AAPL"), Depth.DEEP, ["MSFT", "NVDA"])

    assert set(diary.asked[:2]) == {"quote of AAPL", "bars of AAPL"}
    assert set(diary.asked[2:]) == {"bars of MSFT", "bars of NVDA"}
