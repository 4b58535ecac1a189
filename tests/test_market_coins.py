import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import stamina
from ccxt.async_support.base.exchange import Exchange

from fiml.core.errors import (
    BadData,
    InvalidInput,
    MissingExtra,
    NotSupported,
    RateLimited,
    SymbolNotFound,
    Unavailable,
)
from fiml.market.models import Adjustment, AssetKind, Instrument, Quote
from fiml.market.providers.coins import CoinProvider
from fiml.market.providers.guard import Guard
from fiml.market.providers.live import LiveProvider, live_extras, open_live
from fiml.market.providers.sample import SampleProvider
from fiml.testing import FrozenClock
from tests.support import exchange_wire as wire
from tests.support.market_server import (
    MarketServer,
    Reply,
    dribbling,
    hanging,
    market_server,
    refusal,
    truncated,
)

NOW = datetime(2024, 12, 23, 15, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def retries_without_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture(autouse=True)
def closing_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """ccxt gives TLS a quarter of a second to end; there is none on loopback."""
    monkeypatch.setattr(Exchange, "timeout_on_exit", 0)


@pytest.fixture
def server(clock: FrozenClock) -> Iterator[MarketServer]:
    with market_server() as server:
        wire.serve_kraken(server, clock.now())
        wire.serve_coinbase(server, clock.now())
        wire.serve_bitstamp(server, clock.now())
        yield server


def provider_at(server: MarketServer, **guard: Any) -> CoinProvider:
    urls = {"kraken": server.url, "coinbase": server.url, "bitstamp": f"{server.url}/api"}
    return CoinProvider(urls=urls, guard=partial(Guard, **guard), pause_ms=1)


@pytest.fixture
async def coins(server: MarketServer) -> AsyncIterator[CoinProvider]:
    provider = provider_at(server)
    yield provider
    await provider.aclose()


@pytest.fixture
async def impatient(server: MarketServer) -> AsyncIterator[CoinProvider]:
    """A provider that waits half a second at most."""
    provider = provider_at(server, attempt_timeout_s=0.3, timeout_s=0.5)
    yield provider
    await provider.aclose()


def bitcoin(exchange: str = "kraken", **changes: Any) -> Instrument:
    facts = {"symbol": "BTC", "name": "Bitcoin", "kind": AssetKind.COIN, "currency": "USD", "exchange": exchange}
    return Instrument(**facts | changes)


async def quoted(coins: CoinProvider, exchange: str) -> Quote:
    return await coins.quote(await coins.instrument("btc", AssetKind.COIN, exchange=exchange))


class TestPrices:
    async def test_a_price_at_kraken_is_the_last_and_its_change_that_of_24_hours(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        """What ccxt calls the change there is counted from midnight."""
        quote = await quoted(coins, "kraken")

        assert (quote.price, quote.currency, quote.exchange) == (110.0, "USD", "kraken")
        assert (quote.previous_close, quote.change, quote.change_percent) == (100.0, 10.0, 10.0)
        assert (quote.change_window, quote.source) == ("24 hours", "kraken via ccxt")
        assert (quote.high, quote.low, quote.volume, quote.volume_unit) == (115.0, 95.0, 2000.5, "coins")
        assert (quote.as_of, quote.adjustment) == (date(2024, 12, 23), Adjustment.NONE)
        assert quote.missing["market_time"] == "kraken doesn't report the time of its price"

    async def test_a_price_at_coinbase_tells_its_moment_and_takes_the_day_from_the_candles(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        quote = await quoted(coins, "coinbase")

        assert (quote.price, quote.previous_close, quote.change) == (110.0, 100.0, 10.0)
        assert (quote.high, quote.low, quote.volume) == (111.0, 109.0, 24.0)
        assert (quote.market_time, quote.name) == (NOW, "Bitcoin")
        assert set(quote.missing) == {"open"}

    async def test_a_price_at_bitstamp_has_the_same_form(self, server: MarketServer, coins: CoinProvider) -> None:
        quote = await quoted(coins, "Bitstamp")

        assert (quote.price, quote.previous_close, quote.volume) == (110.0, 100.0, 2000.5)
        assert (quote.market_time, quote.source) == (NOW, "bitstamp via ccxt")

    async def test_a_coin_without_a_price_a_day_ago_has_no_change(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.KRAKEN_CANDLES, wire.kraken_candles([wire.candle(NOW, 110)]))

        quote = await quoted(coins, "kraken")

        assert (quote.price, quote.change, quote.previous_close) == (110.0, None, None)
        assert quote.missing["change"] == "kraken has no figure for the last 24 hours"

    @pytest.mark.parametrize("exchange", ["kraken", "coinbase", "bitstamp"])
    async def test_bars_are_the_days_that_are_over(
        self, server: MarketServer, coins: CoinProvider, exchange: str
    ) -> None:
        candles = wire.days(NOW, [101, 102, 103, 999])
        server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(candles))
        server.always(wire.COINBASE_CANDLES, wire.coinbase_candles(candles))
        server.always(wire.BITSTAMP_CANDLES, wire.bitstamp_candles(candles))

        bars = await coins.bars(bitcoin(exchange))

        assert [bar.close for bar in bars.bars] == [101, 102, 103]
        assert bars.as_of == date(2024, 12, 22)
        assert (bars.adjustment, bars.source) == (Adjustment.NONE, f"{exchange} via ccxt")

    async def test_two_years_of_days_are_fetched_page_by_page_where_an_exchange_sends_300(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.COINBASE_CANDLES, wire.coinbase_candles(wire.days(NOW, [1.0] * 720)))

        bars = await coins.bars(bitcoin("coinbase"))

        assert len(bars.bars) == 719
        assert server.requests[wire.COINBASE_CANDLES] == 3

    async def test_a_coin_whose_first_day_is_not_over_has_no_bars_yet(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(wire.days(NOW, [1.0])))

        with pytest.raises(BadData, match="BTC has no bars"):
            await coins.bars(bitcoin())

    async def test_coins_have_no_company_figures(self, coins: CoinProvider) -> None:
        found = await coins.fundamentals(bitcoin())

        assert found.market_cap is None
        assert set(found.missing.values()) == {"coins have no company figures"}
        assert len(found.missing) == 7

    async def test_a_search_finds_names_and_codes(self, coins: CoinProvider) -> None:
        assert [one.symbol for one in await coins.search("et")] == ["ETH"]
        assert [one.symbol for one in await coins.search("", limit=1)] == ["BTC"]
        with pytest.raises(InvalidInput):
            await coins.search("btc", limit=0)


class TestChoices:
    async def test_without_a_named_exchange_the_first_is_taken(self, coins: CoinProvider) -> None:
        found = await coins.instrument(" btc ", AssetKind.COIN)

        assert (found.symbol, found.exchange, found.currency, found.kind) == ("BTC", "kraken", "USD", AssetKind.COIN)

    @pytest.mark.parametrize("status", [451, 403, 503])
    async def test_an_exchange_that_refuses_or_is_away_is_passed_over(
        self, server: MarketServer, coins: CoinProvider, status: int
    ) -> None:
        server.always(wire.KRAKEN_MARKETS, refusal(status))

        assert (await coins.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"

    async def test_a_hung_exchange_is_passed_over(self, server: MarketServer, impatient: CoinProvider) -> None:
        server.always(wire.KRAKEN_MARKETS, hanging())

        assert (await impatient.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"

    async def test_a_coin_that_the_first_exchange_lacks_is_taken_from_the_next(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.KRAKEN_MARKETS, {"error": [], "result": {"XETHZUSD": wire.kraken_pair("ETH", "XETH")}})

        assert (await coins.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"

    async def test_a_named_exchange_that_is_blocked_here_is_not_passed_over(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.KRAKEN_MARKETS, refusal(451))

        with pytest.raises(NotSupported, match="kraken isn't available in this location; name another exchange"):
            await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")

        assert server.requests[wire.COINBASE_MARKETS] == 0

    async def test_a_named_exchange_that_is_away_is_not_passed_over(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.KRAKEN_MARKETS, refusal(503))

        with pytest.raises(Unavailable, match="kraken is unavailable"):
            await coins.instrument("BTC", AssetKind.COIN, exchange="Kraken")

        assert server.requests[wire.COINBASE_MARKETS] == 0

    async def test_a_coin_that_nobody_has_is_not_found_and_the_nearest_are_named(self, coins: CoinProvider) -> None:
        with pytest.raises(SymbolNotFound, match="the nearest are BTC") as caught:
            await coins.instrument("BTX", AssetKind.COIN)

        assert (caught.value.source, caught.value.known) == ("kraken USD", ["BTC"])

    async def test_a_coin_may_be_on_an_exchange_that_does_not_answer(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.COINBASE_MARKETS, refusal(503))

        with pytest.raises(Unavailable, match="coinbase is unavailable"):
            await coins.instrument("BTX", AssetKind.COIN)

    async def test_an_unknown_exchange_is_refused_with_the_known_ones(self, coins: CoinProvider) -> None:
        with pytest.raises(InvalidInput, match="'mtgox' is not available; valid: kraken, coinbase, bitstamp"):
            await coins.instrument("BTC", AssetKind.COIN, exchange="mtgox")

    async def test_an_unknown_pair_is_refused_with_the_known_ones(self, coins: CoinProvider) -> None:
        with pytest.raises(InvalidInput, match="'XXX' is not available; valid: USD, EUR, GBP, USDT"):
            await coins.instrument("BTC", AssetKind.COIN, pair="XXX")

    async def test_a_pair_that_the_exchange_lacks_is_not_found(self, coins: CoinProvider) -> None:
        with pytest.raises(SymbolNotFound, match="not in the kraken EUR data"):
            await coins.instrument("BTC", AssetKind.COIN, exchange="kraken", pair="eur")

    @pytest.mark.parametrize("symbol", ["", " ", "B C", "B\x00", "A" * 10_000])
    async def test_what_is_not_a_symbol_is_refused_before_an_exchange_is_asked(
        self, server: MarketServer, coins: CoinProvider, symbol: str
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            await coins.instrument(symbol, AssetKind.COIN)

        assert len(str(caught.value)) < 250
        assert server.requests.total() == 0

    @pytest.mark.parametrize("symbol", ["🚀", "B'C", 'B"C', "../BTC", "BTC/USD", "BTC:USD", "BTC?a=b"])
    async def test_what_no_exchange_has_is_looked_up_and_sent_nowhere(
        self, server: MarketServer, coins: CoinProvider, symbol: str
    ) -> None:
        with pytest.raises(SymbolNotFound):
            await coins.instrument(symbol, AssetKind.COIN, exchange="kraken")

        assert set(server.requests) == {wire.KRAKEN_MARKETS, "/0/public/Assets"}

    async def test_equities_are_asked_for_elsewhere(self, coins: CoinProvider) -> None:
        with pytest.raises(NotSupported, match="yahoo"):
            await coins.instrument("AAPL", AssetKind.EQUITY)


class TestTrouble:
    async def test_a_failure_is_followed_by_another_attempt(self, server: MarketServer, coins: CoinProvider) -> None:
        server.once(wire.KRAKEN_TICKER, refusal(500), refusal(502))

        assert (await coins.quote(bitcoin())).price == 110.0
        assert server.requests[wire.KRAKEN_TICKER] == 3

    async def test_a_rate_limit_names_the_moment_and_is_kept_to(
        self, server: MarketServer, coins: CoinProvider, clock: FrozenClock
    ) -> None:
        server.always(wire.KRAKEN_TICKER, refusal(429, Retry_After="90"))

        for _ in range(3):
            with pytest.raises(RateLimited) as caught:
                await coins.quote(bitcoin())

        assert caught.value.retry_at == clock.now() + timedelta(seconds=90)
        assert server.requests[wire.KRAKEN_TICKER] == 1

    async def test_krakens_own_wording_of_a_rate_limit_is_recognized(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        server.always(wire.KRAKEN_TICKER, {"error": ["EAPI:Rate limit exceeded"]})

        with pytest.raises(RateLimited):
            await coins.quote(bitcoin())

    @pytest.mark.parametrize(
        "sent",
        [
            truncated(wire.kraken_ticker()),
            Reply(b"<html>"),
            Reply(b""),
            {"error": [], "result": {}},
            {"error": [], "result": []},
            [],
            wire.kraken_ticker(c=["-1", "1"]),
            wire.kraken_ticker(c=["0", "1"]),
            wire.kraken_ticker(c=["nan", "1"]),
            wire.kraken_ticker(c=["much", "1"]),
            wire.kraken_ticker(c=None),
            wire.kraken_ticker(c=[True]),
            {"error": ["EGeneral:Something"]},
        ],
    )
    async def test_a_ticker_that_cannot_be_used_is_bad_data(
        self, server: MarketServer, coins: CoinProvider, sent: object
    ) -> None:
        server.always(wire.KRAKEN_TICKER, sent)

        with pytest.raises(BadData):
            await coins.quote(bitcoin())

    @pytest.mark.parametrize(
        "rows",
        [[["soon", "1", "1", "1", "1", "1", "1", 1]], [[1734825600, "1", "1", "1", "-1", "1", "1", 1]], [7], [[]]],
    )
    async def test_candles_that_cannot_be_used_are_bad_data(
        self, server: MarketServer, coins: CoinProvider, rows: list[Any]
    ) -> None:
        server.always(wire.KRAKEN_CANDLES, {"error": [], "result": {"XXBTZUSD": rows, "last": 0}})

        with pytest.raises(BadData):
            await coins.bars(bitcoin())

    @pytest.mark.parametrize(
        "sent", [truncated({"error": [], "result": {"XXBTZUSD": {}}}), {"error": [], "result": {}}]
    )
    async def test_markets_that_were_cut_off_are_asked_for_again(
        self, server: MarketServer, coins: CoinProvider, sent: object
    ) -> None:
        """ccxt would go on with an exchange that has no markets."""
        server.once(wire.KRAKEN_MARKETS, sent)
        with pytest.raises(BadData):
            await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")

        assert (await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")).symbol == "BTC"

    @pytest.mark.parametrize("slow", [hanging(), dribbling()])
    async def test_a_slow_answer_is_waited_for_no_longer_than_the_limit(
        self, server: MarketServer, impatient: CoinProvider, slow: Reply
    ) -> None:
        server.always(wire.KRAKEN_TICKER, slow)

        with pytest.raises(Unavailable, match=r"no answer within|Timeout"):
            await impatient.quote(bitcoin())

    async def test_who_gives_up_waiting_for_the_markets_cancels_nobody_else(
        self, server: MarketServer, coins: CoinProvider
    ) -> None:
        """ccxt has one loading for all who wait for it, and the first to leave cancels it."""
        server.once(wire.KRAKEN_MARKETS, hanging())
        hurried = asyncio.create_task(coins.instrument("BTC", AssetKind.COIN, exchange="kraken"))
        await asyncio.to_thread(server.wait_for, wire.KRAKEN_MARKETS)
        patient = asyncio.create_task(coins.instrument("BTC", AssetKind.COIN, exchange="kraken"))
        await asyncio.sleep(0)

        hurried.cancel()

        assert (await patient).exchange == "kraken"

    async def test_an_unreachable_exchange_is_unavailable(self) -> None:
        coins = CoinProvider(["kraken"], {"kraken": "http://127.0.0.1:9"}, pause_ms=1)

        with pytest.raises(Unavailable, match="ExchangeNotAvailable"):
            await coins.instrument("BTC", AssetKind.COIN)
        await coins.aclose()

    async def test_after_failures_in_a_row_only_the_exchange_that_failed_is_left_alone(
        self, server: MarketServer, clock: FrozenClock
    ) -> None:
        coins = provider_at(server, attempts=1, failures=1, open_s=30)
        server.once(wire.KRAKEN_MARKETS, refusal(503))

        chosen = [(await coins.instrument("BTC", AssetKind.COIN)).exchange for _ in range(2)]
        clock.advance(seconds=30)
        chosen.append((await coins.instrument("BTC", AssetKind.COIN)).exchange)

        assert chosen == ["coinbase", "coinbase", "kraken"]
        await coins.aclose()


class TestUpkeep:
    async def test_one_exchange_object_serves_all_calls(self, server: MarketServer, coins: CoinProvider) -> None:
        await asyncio.gather(*(coins.instrument("BTC", AssetKind.COIN) for _ in range(5)))
        await coins.quote(bitcoin())
        server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(wire.days(NOW, [1, 2])))
        await coins.bars(bitcoin())

        assert server.requests[wire.KRAKEN_MARKETS] == 1

    async def test_markets_are_asked_for_again_after_a_day(
        self, server: MarketServer, coins: CoinProvider, clock: FrozenClock
    ) -> None:
        for _ in range(2):
            await coins.instrument("BTC", AssetKind.COIN)
            clock.advance(hours=25)

        assert server.requests[wire.KRAKEN_MARKETS] == 2

    async def test_closing_twice_leaves_nothing_open(self, server: MarketServer) -> None:
        coins = provider_at(server)
        await coins.instrument("BTC", AssetKind.COIN)

        await coins.aclose()
        await coins.aclose()

    async def test_without_ccxt_the_extra_is_named(self, coins: CoinProvider, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ccxt", None)

        with pytest.raises(MissingExtra, match=r"fiml\[ccxt\]"):
            await coins.instrument("BTC", AssetKind.COIN)


class TestLive:
    async def test_each_kind_is_asked_of_its_source(self, server: MarketServer, coins: CoinProvider) -> None:
        live = LiveProvider(SampleProvider(), coins)

        aapl = await live.instrument("AAPL", AssetKind.EQUITY)
        btc = await live.instrument("BTC", AssetKind.COIN)

        assert [(await live.quote(one)).source for one in (aapl, btc)] == ["sample", "kraken via ccxt"]
        assert [(await live.fundamentals(one)).source for one in (aapl, btc)] == ["sample", "kraken via ccxt"]
        assert live.source == "live"

    async def test_a_search_joins_both_in_turn(self, server: MarketServer, coins: CoinProvider) -> None:
        found = await LiveProvider(SampleProvider(), coins).search("", limit=3)

        assert [one.kind is AssetKind.COIN for one in found] == [False, True, False]

    async def test_a_search_does_without_a_source_that_is_away(self, server: MarketServer, coins: CoinProvider) -> None:
        for path in (wire.KRAKEN_MARKETS, wire.COINBASE_MARKETS, wire.BITSTAMP_MARKETS):
            server.always(path, refusal(503))

        assert await LiveProvider(SampleProvider(), coins).search("AAPL")
        with pytest.raises(Unavailable):
            await LiveProvider(None, coins).search("BTC")

    async def test_a_source_that_is_not_installed_is_named_by_its_extra(self) -> None:
        nothing = LiveProvider(None, None)

        with pytest.raises(NotSupported, match=r"pip install 'fiml\[ccxt\]'"):
            await nothing.instrument("BTC", AssetKind.COIN)
        with pytest.raises(NotSupported, match=r"pip install 'fiml\[yahoo\]'"):
            await nothing.instrument("AAPL", AssetKind.EQUITY)
        await nothing.aclose()

    async def test_live_is_what_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert live_extras() == ["yahoo", "ccxt"]
        monkeypatch.setitem(sys.modules, "ccxt", None)

        live = open_live()

        assert live_extras() == ["yahoo"]
        with pytest.raises(NotSupported, match="ccxt"):
            await live.instrument("BTC", AssetKind.COIN)
        await live.aclose()
