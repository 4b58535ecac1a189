"""Exchanges that fail, are slow or send nonsense; and what a provider of coins keeps open."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fiml.core.errors import BadData, MissingExtra, RateLimited, Unavailable
from fiml.market.models import AssetKind
from fiml.market.providers.coins import CoinProvider
from fiml.testing import FrozenClock
from tests.support import exchange_wire as wire
from tests.support.coin_provider import bitcoin, provider_at
from tests.support.market_server import MarketServer, Reply, dribbling, hanging, refusal, truncated

NOW = datetime(2024, 12, 23, 15, 30, tzinfo=UTC)
pytestmark = pytest.mark.usefixtures("retries_without_waiting", "closing_without_waiting")


class TestTrouble:
    async def test_a_failure_is_followed_by_another_attempt(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.once(wire.KRAKEN_TICKER, refusal(500), refusal(502))

        assert (await coins.quote(bitcoin())).price == 110.0
        assert coin_server.requests[wire.KRAKEN_TICKER] == 3

    async def test_a_rate_limit_names_the_moment_and_is_kept_to(
        self, coin_server: MarketServer, coins: CoinProvider, clock: FrozenClock
    ) -> None:
        coin_server.always(wire.KRAKEN_TICKER, refusal(429, Retry_After="90"))

        for _ in range(3):
            with pytest.raises(RateLimited) as caught:
                await coins.quote(bitcoin())

        assert caught.value.retry_at == clock.now() + timedelta(seconds=90)
        assert coin_server.requests[wire.KRAKEN_TICKER] == 1

    async def test_krakens_own_wording_of_a_rate_limit_is_recognized(
        self, coin_server: MarketServer, coins: CoinProvider
    ) -> None:
        coin_server.always(wire.KRAKEN_TICKER, {"error": ["EAPI:Rate limit exceeded"]})

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
        self, coin_server: MarketServer, coins: CoinProvider, sent: object
    ) -> None:
        coin_server.always(wire.KRAKEN_TICKER, sent)

        with pytest.raises(BadData):
            await coins.quote(bitcoin())

    @pytest.mark.parametrize(
        "rows",
        [[["soon", "1", "1", "1", "1", "1", "1", 1]], [[1734825600, "1", "1", "1", "-1", "1", "1", 1]], [7], [[]]],
    )
    async def test_candles_that_cannot_be_used_are_bad_data(
        self, coin_server: MarketServer, coins: CoinProvider, rows: list[Any]
    ) -> None:
        coin_server.always(wire.KRAKEN_CANDLES, {"error": [], "result": {"XXBTZUSD": rows, "last": 0}})

        with pytest.raises(BadData):
            await coins.bars(bitcoin())

    @pytest.mark.parametrize(
        "sent", [truncated({"error": [], "result": {"XXBTZUSD": {}}}), {"error": [], "result": {}}]
    )
    async def test_markets_that_were_cut_off_are_asked_for_again(
        self, coin_server: MarketServer, coins: CoinProvider, sent: object
    ) -> None:
        """ccxt would go on with an exchange that has no markets."""
        coin_server.once(wire.KRAKEN_MARKETS, sent)
        with pytest.raises(BadData):
            await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")

        assert (await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")).symbol == "BTC"

    @pytest.mark.parametrize("slow", [hanging(), dribbling()])
    async def test_a_slow_answer_is_waited_for_no_longer_than_the_limit(
        self, coin_server: MarketServer, impatient_coins: CoinProvider, slow: Reply
    ) -> None:
        coin_server.always(wire.KRAKEN_TICKER, slow)

        with pytest.raises(Unavailable, match=r"no answer within|Timeout"):
            await impatient_coins.quote(bitcoin())

    async def test_who_gives_up_waiting_for_the_markets_cancels_nobody_else(self, coin_server: MarketServer) -> None:
        """ccxt has one loading for all who wait for it, and the first to leave cancels it."""
        coins = provider_at(coin_server, attempt_timeout_s=0.5)
        coin_server.once(wire.KRAKEN_MARKETS, hanging())
        hurried = asyncio.create_task(coins.instrument("BTC", AssetKind.COIN, exchange="kraken"))
        await asyncio.to_thread(coin_server.wait_for, wire.KRAKEN_MARKETS)
        patient = asyncio.create_task(coins.instrument("BTC", AssetKind.COIN, exchange="kraken"))
        await asyncio.sleep(0)

        hurried.cancel()

        assert (await patient).exchange == "kraken"
        await coins.aclose()

    async def test_all_who_wait_for_the_markets_of_an_exchange_that_hangs_go_on_together(
        self, coin_server: MarketServer
    ) -> None:
        coins = provider_at(coin_server, attempt_timeout_s=0.3, timeout_s=0.3, attempts=1, failures=100)
        coin_server.always(wire.KRAKEN_MARKETS, hanging())

        found = await asyncio.gather(*(coins.instrument("BTC", AssetKind.COIN) for _ in range(20)))

        assert {each.exchange for each in found} == {"coinbase"}
        assert coin_server.requests[wire.KRAKEN_MARKETS] == 1
        await coins.aclose()

    async def test_an_old_list_of_markets_is_kept_while_the_exchange_does_not_give_a_new_one(
        self, coin_server: MarketServer, clock: FrozenClock
    ) -> None:
        coins = provider_at(coin_server, attempts=1)
        await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")
        clock.advance(hours=25)
        coin_server.once(wire.KRAKEN_MARKETS, refusal(503))

        for _ in range(2):
            assert (await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")).symbol == "BTC"
        assert coin_server.requests[wire.KRAKEN_MARKETS] == 2
        clock.advance(minutes=5)
        assert (await coins.instrument("BTC", AssetKind.COIN, exchange="kraken")).symbol == "BTC"
        assert coin_server.requests[wire.KRAKEN_MARKETS] == 3
        await coins.aclose()

    async def test_an_unreachable_exchange_is_unavailable(self) -> None:
        coins = CoinProvider(["kraken"], {"kraken": "http://127.0.0.1:9"})

        with pytest.raises(Unavailable, match="ExchangeNotAvailable"):
            await coins.instrument("BTC", AssetKind.COIN)
        await coins.aclose()

    async def test_after_failures_in_a_row_only_the_exchange_that_failed_is_left_alone(
        self, coin_server: MarketServer, clock: FrozenClock
    ) -> None:
        coins = provider_at(coin_server, attempts=1, failures=1, open_s=30)
        coin_server.once(wire.KRAKEN_MARKETS, refusal(503))

        chosen = [(await coins.instrument("BTC", AssetKind.COIN)).exchange for _ in range(2)]
        clock.advance(seconds=30)
        chosen.append((await coins.instrument("BTC", AssetKind.COIN)).exchange)

        assert chosen == ["coinbase", "coinbase", "kraken"]
        await coins.aclose()


class TestUpkeep:
    async def test_one_exchange_object_serves_all_calls(self, coin_server: MarketServer, coins: CoinProvider) -> None:
        await asyncio.gather(*(coins.instrument("BTC", AssetKind.COIN) for _ in range(5)))
        await coins.quote(bitcoin())
        coin_server.always(wire.KRAKEN_CANDLES, wire.kraken_candles(wire.days(NOW, [1, 2])))
        await coins.bars(bitcoin())

        assert coin_server.requests[wire.KRAKEN_MARKETS] == 1

    async def test_markets_are_asked_for_again_after_a_day(
        self, coin_server: MarketServer, coins: CoinProvider, clock: FrozenClock
    ) -> None:
        for _ in range(2):
            await coins.instrument("BTC", AssetKind.COIN)
            clock.advance(hours=25)

        assert coin_server.requests[wire.KRAKEN_MARKETS] == 2

    async def test_closing_twice_leaves_nothing_open(self, coin_server: MarketServer) -> None:
        coins = provider_at(coin_server)
        await coins.instrument("BTC", AssetKind.COIN)

        await coins.aclose()
        await coins.aclose()

    async def test_without_ccxt_the_extra_is_named(self, coins: CoinProvider, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ccxt", None)

        with pytest.raises(MissingExtra, match=r"fiml\[ccxt\]"):
            await coins.instrument("BTC", AssetKind.COIN)
