"""Stocks, funds and indices from Yahoo: prices, symbols, and what is absent."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from fiml.core.errors import (
    BadData,
    InvalidInput,
    NotSupported,
    SymbolNotFound,
)
from fiml.market.models import Adjustment, AssetKind
from fiml.market.providers.yahoo import YahooProvider
from fiml.testing import FrozenClock
from tests.support import yahoo_wire as wire
from tests.support.market_server import (
    MarketServer,
)
from tests.support.yahoo_provider import an_instrument, quoted

pytestmark = pytest.mark.usefixtures("retries_without_waiting")


class TestPrices:
    async def test_the_price_is_the_last_daily_close(self, yahoo_server: MarketServer, yahoo: YahooProvider) -> None:
        yahoo_server.always(
            wire.chart_path("AAPL"), wire.chart("AAPL", [200.0, 205.0, 210.0], regularMarketPrice=999.0)
        )

        quote = await quoted(yahoo, "aapl")

        assert (quote.price, quote.price_label, quote.as_of) == (210.0, "close", date(2024, 12, 20))
        assert (quote.open, quote.high, quote.low, quote.volume) == (209.0, 210.0, 209.0, 1000.0)
        assert (quote.name, quote.currency, quote.exchange) == ("AAPL Inc.", "USD", "NasdaqGS")
        assert (quote.kind, quote.source, quote.volume_unit) == (AssetKind.EQUITY, "yahoo", "shares")
        assert quote.market_time == datetime(2024, 12, 20, 21, tzinfo=UTC)
        assert quote.missing == {}

    async def test_the_change_is_counted_from_the_day_before(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        """Yahoo's chartPreviousClose is the close before the whole range."""
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [100.0, 200.0, 210.0], chartPreviousClose=50.0))

        quote = await quoted(yahoo, "AAPL")

        assert (quote.previous_close, quote.change, quote.change_percent) == (200.0, 10.0, 5.0)
        assert quote.change_window == "previous close"

    async def test_a_change_over_a_missing_close_says_since_when_it_is(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        sent = wire.chart("AAPL", [90.0, 100.0, None, 110.0])
        sent["chart"]["result"][0]["indicators"]["quote"][0]["volume"][2] = None
        yahoo_server.always(wire.chart_path("AAPL"), sent)

        quote = await quoted(yahoo, "AAPL")

        assert (quote.previous_close, quote.change_percent) == (100.0, 10.0)
        assert quote.note == "the change is since 2024-12-18: there is no close in between"

    @pytest.mark.parametrize(("days", "is_told"), [(4, False), (5, True)])
    async def test_a_change_over_more_than_a_long_weekend_says_so_too(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, days: int, *, is_told: bool
    ) -> None:
        sent = wire.chart("AAPL", [100.0, 110.0])
        sent["chart"]["result"][0]["timestamp"][0] -= (days - 1) * 24 * 3600
        yahoo_server.always(wire.chart_path("AAPL"), sent)

        assert ("the change is since" in ((await quoted(yahoo, "AAPL")).note or "")) is is_told

    async def test_prices_are_adjusted_for_splits_but_not_for_dividends(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        day = wire.weekdays(2)[1]
        moment = int(datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC).timestamp())
        split = {"date": moment, "numerator": 10, "denominator": 1, "splitRatio": "10:1"}
        events = {"splits": {str(moment): split}, "dividends": {str(moment): {"date": moment, "amount": 1.0}}}
        sent = wire.chart("AAPL", [100.0, 101.0], events=events)
        sent["chart"]["result"][0]["indicators"]["adjclose"][0]["adjclose"] = [90.0, 101.0]
        yahoo_server.always(wire.chart_path("AAPL"), sent)

        bars = await yahoo.bars(an_instrument())

        assert [bar.close for bar in bars.bars] == [100.0, 101.0]
        assert bars.adjustment is Adjustment.SPLITS

    async def test_bars_are_two_years_of_days(self, yahoo_server: MarketServer, yahoo: YahooProvider) -> None:
        yahoo_server.always(f"{wire.chart_path('AAPL')}?range=2y", wire.chart("AAPL", list(range(1, 501))))

        bars = await yahoo.bars(an_instrument())

        assert len(bars.bars) == 500
        assert (bars.as_of, bars.currency, bars.source) == (date(2024, 12, 20), "USD", "yahoo")

    async def test_a_fund_traded_like_a_share_is_an_equity(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        yahoo_server.always(wire.chart_path("SPY"), wire.chart("SPY", [500.0, 501.0], instrumentType="ETF"))

        assert (await quoted(yahoo, "SPY")).kind is AssetKind.EQUITY

    async def test_an_index_is_found_where_an_equity_was_asked(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        chart = wire.chart("^GSPC", [5000.0, 5001.0], instrumentType="INDEX", volume=0)
        yahoo_server.always(wire.chart_path("^GSPC"), chart)

        quote = await quoted(yahoo, "^GSPC")

        assert quote.kind is AssetKind.INDEX
        assert quote.volume is None
        assert "no volume" in quote.missing["volume"]

    async def test_prices_in_pence_stay_pence_and_say_so(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        chart = wire.chart("VOD.L", [70.0, 71.0], currency="GBp", time_zone="Europe/London", fullExchangeName="LSE")
        yahoo_server.always(wire.chart_path("VOD.L"), chart)

        quote = await quoted(yahoo, "vod", market="UK")

        assert (quote.symbol, quote.price, quote.currency) == ("VOD.L", 71.0, "GBp")
        assert quote.note == "prices are in pence: 100 GBp are 1 GBP"

    async def test_after_a_holiday_the_last_day_is_some_days_ago(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [1.0, 2.0], last=date(2024, 12, 13)))

        assert (await quoted(yahoo, "AAPL")).as_of == date(2024, 12, 13)

    async def test_a_market_time_of_another_day_is_not_the_prices(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        later = int(datetime(2024, 12, 23, 15, tzinfo=UTC).timestamp())
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [1.0, 2.0], regularMarketTime=later))

        quote = await quoted(yahoo, "AAPL")

        assert quote.market_time is None
        assert "no price time" in quote.missing["market_time"]

    async def test_while_the_market_is_open_the_price_is_no_close_and_the_note_says_why(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, clock: FrozenClock
    ) -> None:
        opened, closes = (int(datetime(2024, 12, 23, hour, 30, tzinfo=UTC).timestamp()) for hour in (14, 21))
        hours = {"start": opened, "end": closes, "gmtoffset": -18000, "timezone": "EST"}
        chart = wire.chart(
            "AAPL",
            [1.0, 2.0],
            last=date(2024, 12, 23),
            regularMarketTime=opened + 60,
            currentTradingPeriod={"regular": hours, "pre": hours, "post": hours},
        )
        yahoo_server.always(wire.chart_path("AAPL"), chart)

        during = await quoted(yahoo, "AAPL")
        clock.advance(hours=7)
        after = await quoted(yahoo, "AAPL")

        assert (during.price, during.price_label) == (2.0, "last trade")
        assert during.note == "the market is open: the last day isn't complete"
        assert (after.price_label, after.note) == ("close", None)

    @pytest.mark.parametrize(
        ("late_minutes", "waited_minutes", "label", "complete_days"),
        [(15, 1, "last trade", 1), (15, 31, "close", 2), (0, 1, "close", 2)],
    )
    async def test_a_late_price_is_no_close_until_the_closing_price_must_be_in(
        self,
        yahoo_server: MarketServer,
        yahoo: YahooProvider,
        clock: FrozenClock,
        late_minutes: int,
        waited_minutes: int,
        label: str,
        complete_days: int,
    ) -> None:
        opens, closes = datetime(2024, 12, 23, 8, tzinfo=UTC), datetime(2024, 12, 23, 16, 30, tzinfo=UTC)
        seconds = {"start": int(opens.timestamp()), "end": int(closes.timestamp())}
        hours = {**seconds, "gmtoffset": 0, "timezone": "GMT"}
        told = int((closes - timedelta(minutes=late_minutes)).timestamp())
        period = {"regular": hours, "pre": hours, "post": hours}
        chart = wire.chart(
            "VOD.L",
            [70.0, 71.0],
            last=closes.date(),
            time_zone="Europe/London",
            regularMarketTime=told,
            currentTradingPeriod=period,
        )
        yahoo_server.always(wire.chart_path("VOD.L"), chart)
        clock.set(closes + timedelta(minutes=waited_minutes))

        quote = await quoted(yahoo, "VOD.L")
        bars = await yahoo.bars(an_instrument("VOD.L"))

        assert (quote.price, quote.price_label, len(bars.bars)) == (71.0, label, complete_days)
        assert (quote.note or "").startswith("the closing price isn't in yet") == (label == "last trade")

    @pytest.mark.parametrize("waited", [timedelta(minutes=5), timedelta(hours=8, minutes=40)])
    async def test_a_day_on_which_nobody_has_traded_yet_leaves_the_last_close_a_close(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, clock: FrozenClock, waited: timedelta
    ) -> None:
        """Soon after the opening of a market whose prices are late, and all day for a share that is hardly traded."""
        opens, closes = datetime(2024, 12, 23, 8, tzinfo=UTC), datetime(2024, 12, 23, 16, 30, tzinfo=UTC)
        seconds = {"start": int(opens.timestamp()), "end": int(closes.timestamp())}
        hours = {**seconds, "gmtoffset": 0, "timezone": "GMT"}
        chart = wire.chart(
            "VOD.L",
            [70.0, 71.0],
            last=date(2024, 12, 20),
            time_zone="Europe/London",
            regularMarketTime=int((closes - timedelta(days=3)).timestamp()),
            currentTradingPeriod={"regular": hours, "pre": hours, "post": hours},
        )
        yahoo_server.always(wire.chart_path("VOD.L"), chart)
        clock.set(opens + waited)

        quote = await quoted(yahoo, "VOD.L")
        bars = await yahoo.bars(an_instrument("VOD.L"))

        assert (quote.as_of, quote.price_label, len(bars.bars)) == (date(2024, 12, 20), "close", 2)

    async def test_a_day_without_a_close_is_left_out(self, yahoo_server: MarketServer, yahoo: YahooProvider) -> None:
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [200.0, 210.0, None]))

        quote = await quoted(yahoo, "AAPL")

        assert (quote.price, quote.as_of) == (210.0, date(2024, 12, 19))

    async def test_with_a_single_day_there_is_no_change(self, yahoo_server: MarketServer, yahoo: YahooProvider) -> None:
        yahoo_server.always(wire.chart_path("NEW"), wire.chart("NEW", [10.0]))

        quote = await quoted(yahoo, "NEW")

        assert (quote.change, quote.change_percent, quote.previous_close) == (None, None, None)
        assert quote.missing["change"] == "Yahoo has only one day of this symbol"

    @pytest.mark.parametrize("kind", ["CRYPTOCURRENCY", "CURRENCY", "FUTURE", "MUTUALFUND", None])
    async def test_what_is_neither_an_equity_nor_an_index_is_not_supported(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, kind: str | None
    ) -> None:
        yahoo_server.always(wire.chart_path("BTC-USD"), wire.chart("BTC-USD", [1.0, 2.0], instrumentType=kind))

        with pytest.raises(NotSupported, match="search_by_coin" if kind == "CRYPTOCURRENCY" else "at Yahoo"):
            await yahoo.instrument("BTC-USD", AssetKind.EQUITY)

    async def test_an_equity_is_not_found_where_an_index_was_asked(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [1.0, 2.0]))

        with pytest.raises(SymbolNotFound):
            await yahoo.instrument("AAPL", AssetKind.INDEX)

    async def test_coins_are_asked_for_elsewhere(self, yahoo: YahooProvider) -> None:
        with pytest.raises(NotSupported, match="ccxt"):
            await yahoo.instrument("BTC", AssetKind.COIN)


class TestSymbols:
    @pytest.mark.parametrize(
        ("asked", "market", "wanted"),
        [
            (" aapl ", "US", "AAPL"),
            ("VOD", "uk", "VOD.L"),
            ("VOD", "LSE", "VOD.L"),
            ("VOD.L", "US", "VOD.L"),
            ("VOD.L", "LSE", "VOD.L"),
            ("SAP.F", "DE", "SAP.F"),
            ("BRK-B", "US", "BRK-B"),
            ("BRK.B", "US", "BRK-B"),
            ("BT.A", "UK", "BT-A.L"),
            ("5", "HK", "0005.HK"),
            ("00005", "HK", "0005.HK"),
            ("5.HK", "US", "0005.HK"),
            ("80700.hk", "HK", "80700.HK"),
            ("M&M", "IN", "M&M.NS"),
            ("REI.UN", "CA", "REI-UN.TO"),
            ("TECK.B.TO", "CA", "TECK-B.TO"),
            ("600519", "CN", "600519.SS"),
            ("510300", "CN", "510300.SS"),
            ("000001", "CN", "000001.SZ"),
            ("300750", "CN", "300750.SZ"),
            ("159915", "CN", "159915.SZ"),
            ("113050", "CN", "113050.SS"),
            ("000001.SS", "CN", "000001.SS"),
            ("7203", "JP", "7203.T"),
            ("^FTSE", "UK", "^FTSE"),
            ("ERIC-B", "SE", "ERIC-B.ST"),
        ],
    )
    async def test_a_symbol_and_its_market_are_one_symbol_at_yahoo(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, asked: str, market: str, wanted: str
    ) -> None:
        yahoo_server.always(wire.chart_path(wanted), wire.chart(wanted, [1.0, 2.0]))

        assert (await yahoo.instrument(asked, AssetKind.EQUITY, market=market)).symbol == wanted

    async def test_a_suffix_of_another_market_is_refused(self, yahoo: YahooProvider) -> None:
        with pytest.raises(InvalidInput, match="belongs to the market UK, not to JP"):
            await yahoo.instrument("VOD.L", AssetKind.EQUITY, market="JP")

    async def test_an_unknown_suffix_is_refused_with_the_known_ones(self, yahoo: YahooProvider) -> None:
        with pytest.raises(InvalidInput, match=r"valid: .*\.DE.*\.L"):
            await yahoo.instrument("FOO.ZZZ", AssetKind.EQUITY)

    async def test_an_unknown_market_is_refused_with_the_known_ones(self, yahoo: YahooProvider) -> None:
        with pytest.raises(InvalidInput, match=r"'MOON' is not available; valid: US, UK, .*JP"):
            await yahoo.instrument("VOD", AssetKind.EQUITY, market="MOON")

    @pytest.mark.parametrize(
        "symbol",
        [
            "",
            "  ",
            "A B",
            'A"B',
            "A'B",
            "🚀",
            "A" * 10_000,
            "../quote",
            "..",
            ".",
            "A/B",
            "A?b=c",
            "A%2F",
            "A\x00",
            "ÄÖ",
        ],
    )
    async def test_what_is_not_a_symbol_is_refused_before_yahoo_is_asked(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, symbol: str
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            await yahoo.instrument(symbol, AssetKind.EQUITY)

        assert len(str(caught.value)) < 250
        assert yahoo_server.requests.total() == 0


class TestCharts:
    async def test_instrument_quote_and_bars_are_read_from_one_chart(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [200.0, 205.0]))

        instrument = await yahoo.instrument("AAPL", AssetKind.EQUITY)
        await asyncio.gather(yahoo.quote(instrument), yahoo.bars(instrument))

        assert yahoo_server.requests[wire.chart_path("AAPL")] == 1

    async def test_a_chart_is_asked_for_again_before_a_quote_would_be_old(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, clock: FrozenClock
    ) -> None:
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [200.0, 205.0]))
        instrument = await yahoo.instrument("AAPL", AssetKind.EQUITY)
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("AAPL", [200.0, 206.0]))
        clock.advance(seconds=10)

        assert (await yahoo.quote(instrument)).price == 206.0

    async def test_a_day_that_is_not_over_is_in_the_quote_and_not_in_the_bars(
        self, yahoo_server: MarketServer, yahoo: YahooProvider, clock: FrozenClock
    ) -> None:
        clock.set(datetime(2024, 12, 20, 16, tzinfo=UTC))
        opened, closing = (int(datetime(2024, 12, 20, hour, 30, tzinfo=UTC).timestamp()) for hour in (14, 20))
        hours: dict[str, Any] = {
            "gmtoffset": -18_000,
            "currentTradingPeriod": {
                "regular": {"start": opened, "end": closing, "timezone": "EST", "gmtoffset": -18_000}
            },
        }
        now = int(clock.now().timestamp())
        sent = wire.chart("AAPL", [200.0, 205.0, 150.0], regularMarketTime=now, **hours)
        yahoo_server.always(wire.chart_path("AAPL"), sent)
        instrument = await yahoo.instrument("AAPL", AssetKind.EQUITY)

        quote, bars = await yahoo.quote(instrument), await yahoo.bars(instrument)

        assert (quote.price, quote.as_of) == (150.0, date(2024, 12, 20))
        assert (bars.bars[-1].close, bars.as_of) == (205.0, date(2024, 12, 19))

    async def test_a_chart_of_another_symbol_is_bad_data(
        self, yahoo_server: MarketServer, yahoo: YahooProvider
    ) -> None:
        yahoo_server.always(wire.chart_path("AAPL"), wire.chart("MSFT", [200.0, 205.0]))

        with pytest.raises(BadData, match="MSFT for AAPL"):
            await yahoo.instrument("AAPL", AssetKind.EQUITY)
