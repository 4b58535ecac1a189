import asyncio
from datetime import UTC, date, datetime
from functools import partial

import pytest

from fiml.core.errors import InvalidInput, NotSupported, SymbolNotFound, Unavailable
from fiml.market.models import Adjustment, AssetKind
from fiml.market.providers.coin_exchange import exchange_guard
from fiml.market.providers.coins import CoinProvider
from fiml.testing import FrozenClock
from tests.support import exchange_wire as wire
from tests.support.coin_provider import bitcoin, quoted
from tests.support.market_server import MarketServer, hanging, refusal

NOW = datetime(2024, 12, 23, 15, 30, tzinfo=UTC)
pytestmark = pytest.mark.usefixtures("retries_without_waiting", "closing_without_waiting")


class TestPrices:
    async def test_a_price_at_kraken_is_the_last_and_its_change_that_of_24_hours(
        self, coin_server: MarketServer, coins: CoinProvider
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
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        quote = await quoted(coins, "coinbase")

        assert (quote.price, quote.previous_close, quote.change) == (110.0, 100.0, 10.0)
        assert (quote.high, quote.low, quote.volume) == (111.0, 109.0, 24.0)
        assert (quote.market_time, quote.name) == (NOW, "Bitcoin")
        assert set(quote.missing) == {"open"}

    async def test_a_price_at_bitstamp_has_the_same_form(self, coin_server: MarketServer, coins: CoinProvider) -> None:
        quote = await quoted(coins, "Bitstamp")

        assert (quote.price, quote.previous_close, quote.volume) == (110.0, 100.0, 2000.5)
        assert (quote.market_time, quote.source) == (NOW, "bitstamp via ccxt")

    async def test_a_coin_without_a_price_a_day_ago_has_no_change(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_CANDLES, wire.kraken_candles([wire.candle(NOW, 110)]))

        quote = await quoted(coins, "kraken")

        assert (quote.price, quote.change, quote.previous_close) == (110.0, None, None)
        assert quote.missing["change"] == "kraken has no figure for the last 24 hours"

    @pytest.mark.parametrize("exchange", ["kraken", "coinbase", "bitstamp"])
    async def test_bars_are_the_days_that_are_over(
        self, coin_server: MarketServer, coins: CoinProvider, exchange: str
    ) -> None:
        candles = wire.days(NOW, [101, 102, 103, 999])
        coin_server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(candles))
        coin_server.always(wire.COINBASE_CANDLES, wire.coinbase_candles(candles))
        coin_server.always(wire.BITSTAMP_CANDLES, wire.bitstamp_candles(candles))

        bars = await coins.bars(bitcoin(exchange))

        assert [bar.close for bar in bars.bars] == [101, 102, 103]
        assert bars.as_of == date(2024, 12, 22)
        assert (bars.adjustment, bars.source) == (Adjustment.NONE, f"{exchange} via ccxt")

    async def test_two_years_of_days_are_fetched_page_by_page_where_an_exchange_sends_300(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.COINBASE_CANDLES, wire.coinbase_candles(wire.days(NOW, [1.0] * 720)))

        bars = await coins.bars(bitcoin("coinbase"))

        assert len(bars.bars) == 719
        assert coin_server.requests[wire.COINBASE_CANDLES] == 3

    async def test_a_coin_whose_first_day_is_not_over_has_that_day(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(wire.days(NOW, [1.0])))

        assert [(bar.date, bar.close) for bar in (await coins.bars(bitcoin())).bars] == [(NOW.date(), 1.0)]

    async def test_a_day_without_a_price_is_left_out(self, coin_server: MarketServer, coins: CoinProvider) -> None:
        coin_server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(wire.days(NOW, [1.0, 0.0, 2.0, 3.0])))

        assert [bar.close for bar in (await coins.bars(bitcoin())).bars] == [1.0, 2.0]

    async def test_a_day_without_a_trade_has_a_volume_of_zero(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_TICKER, wire.kraken_ticker(v=["0.0", "0.0"]))

        quote = await quoted(coins, "kraken")

        assert (quote.volume, "volume" in quote.missing) == (0.0, False)

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
    async def test_a_coin_that_was_listed_a_minute_ago_is_found(
        self, coin_server: MarketServer, coins: CoinProvider, clock: FrozenClock
    ) -> None:
        with pytest.raises(SymbolNotFound):
            await coins.instrument("SOL", AssetKind.COIN, exchange="kraken")
        coin_server.always(wire.KRAKEN_MARKETS, wire.kraken_markets(wire.kraken_pair("SOL", "SOL")))
        for _ in range(3):
            with pytest.raises(SymbolNotFound):  # asking for the list at each unknown name would be too often
                await coins.instrument("SOL", AssetKind.COIN, exchange="kraken")

        clock.advance(minutes=1)

        assert (await coins.instrument("SOL", AssetKind.COIN, exchange="kraken")).symbol == "SOL"
        assert coin_server.requests[wire.KRAKEN_MARKETS] == 2

    async def test_an_exchange_that_has_halted_a_coin_is_chosen_last(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        halted = wire.kraken_markets(
            wire.kraken_pair("XBT", "XXBT", status="cancel_only"), wire.kraken_pair("ETH", "XETH", status="cancel_only")
        )
        coin_server.always(wire.KRAKEN_MARKETS, halted)

        assert (await coins.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"
        assert (await coins.instrument("ETH", AssetKind.COIN)).exchange == "kraken"  # no other one has it
        note = (await quoted(coins, "kraken")).note
        assert note is not None
        assert note.startswith("kraken has halted this market: the price may be old; ")

    async def test_questions_keep_to_the_pace_of_the_exchange(self, coin_server: MarketServer) -> None:
        """Kraken asks for one request a second, and takes three at once."""
        coins = CoinProvider(["kraken"], {"kraken": coin_server.url}, partial(exchange_guard, timeout_s=0.3))
        coin_server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(wire.days(NOW, [1.0, 2.0])))
        await coins.instrument("BTC", AssetKind.COIN)

        answers = await asyncio.gather(*(coins.bars(bitcoin()) for _ in range(4)), return_exceptions=True)

        await coins.aclose()
        refused = [str(answer) for answer in answers if isinstance(answer, Unavailable)]
        assert len(refused) == 2
        assert all("too many calls at once" in each for each in refused)

    async def test_without_a_named_exchange_the_first_is_taken(self, coins: CoinProvider) -> None:
        found = await coins.instrument(" btc ", AssetKind.COIN)

        assert (found.symbol, found.exchange, found.currency, found.kind) == ("BTC", "kraken", "USD", AssetKind.COIN)

    @pytest.mark.parametrize("status", [451, 403, 503])
    async def test_an_exchange_that_refuses_or_is_away_is_passed_over(
        self, coin_server: MarketServer, coins: CoinProvider, status: int
    ) -> None:
        coin_server.always(wire.KRAKEN_MARKETS, refusal(status))

        assert (await coins.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"

    async def test_a_hung_exchange_is_passed_over(
        self, coin_server: MarketServer, impatient_coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_MARKETS, hanging())

        assert (await impatient_coins.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"

    async def test_a_coin_that_the_first_exchange_lacks_is_taken_from_the_next(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_MARKETS, {"error": [], "result": {"XETHZUSD": wire.kraken_pair("ETH", "XETH")}})

        assert (await coins.instrument("BTC", AssetKind.COIN)).exchange == "coinbase"

    async def test_a_named_exchange_that_is_blocked_here_is_not_passed_over(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_MARKETS, refusal(451))

        with pytest.raises(NotSupported, match="kraken isn't available in this location; name another exchange"):
            await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")

        assert coin_server.requests[wire.COINBASE_MARKETS] == 0

    async def test_a_named_exchange_that_is_away_is_not_passed_over(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_MARKETS, refusal(503))

        with pytest.raises(Unavailable, match="kraken is unavailable"):
            await coins.instrument("BTC", AssetKind.COIN, exchange="Kraken")

        assert coin_server.requests[wire.COINBASE_MARKETS] == 0

    async def test_a_coin_that_nobody_has_is_not_found_and_the_nearest_are_named(self, coins: CoinProvider) -> None:
        with pytest.raises(SymbolNotFound, match="the nearest are BTC") as caught:
            await coins.instrument("BTX", AssetKind.COIN)

        assert (caught.value.source, caught.value.known) == ("kraken USD", ["BTC"])

    async def test_a_coin_may_be_on_an_exchange_that_does_not_answer(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.COINBASE_MARKETS, refusal(503))

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
        self, coin_server: MarketServer, coins: CoinProvider, symbol: str
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            await coins.instrument(symbol, AssetKind.COIN)

        assert len(str(caught.value)) < 250
        assert coin_server.requests.total() == 0

    @pytest.mark.parametrize("symbol", ["🚀", "B'C", 'B"C', "../BTC", "BTC/USD", "BTC:USD", "BTC?a=b"])
    async def test_what_no_exchange_has_is_looked_up_and_sent_nowhere(
        self, coin_server: MarketServer, coins: CoinProvider, symbol: str
    ) -> None:
        with pytest.raises(SymbolNotFound):
            await coins.instrument(symbol, AssetKind.COIN, exchange="kraken")

        assert set(coin_server.requests) == {wire.KRAKEN_MARKETS, "/0/public/Assets"}

    async def test_equities_are_asked_for_elsewhere(self, coins: CoinProvider) -> None:
        with pytest.raises(NotSupported, match="yahoo"):
            await coins.instrument("AAPL", AssetKind.EQUITY)
