"""What Yahoo sends, in its own forms."""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.support.market_server import MarketServer, Reply

LAST_DAY = date(2024, 12, 20)


def chart_path(symbol: str) -> str:
    return f"/v8/finance/chart/{symbol}"


def summary_path(symbol: str) -> str:
    return f"/v10/finance/quoteSummary/{symbol}"


COOKIE_PATH = "/fc.yahoo.com/"
CRUMB_PATH = "/v1/test/getcrumb"
SEARCH_PATH = "/v1/finance/search"
QUOTE_PATH = "/v7/finance/quote"


def serve_cookie(server: MarketServer) -> None:
    """What yfinance fetches first: a cookie, with a 404 as at Yahoo, and a crumb."""
    cookie = "A3=a-cookie; Domain=.yahoo.com; Path=/; Max-Age=31536000; Secure"
    server.always(COOKIE_PATH, Reply(b"", 404, {"Set-Cookie": cookie}))
    server.always(CRUMB_PATH, Reply(b"a-crumb"))


def weekdays(count: int, *, last: date = LAST_DAY) -> list[date]:
    """The `count` weekdays up to `last`."""
    days: list[date] = []
    while len(days) < count:
        if last.weekday() < 5:
            days.insert(0, last)
        last -= timedelta(days=1)
    return days


def chart(
    symbol: str,
    closes: Sequence[Any],
    *,
    last: date = LAST_DAY,
    time_zone: str = "America/New_York",
    events: dict[str, Any] | None = None,
    volume: Any = 1000,
    **meta: Any,
) -> dict[str, Any]:
    """An answer of the chart with one close for each of the last weekdays; opens are a unit below."""
    zone = ZoneInfo(time_zone)
    moments = [int(datetime.combine(day, time(9, 30), zone).timestamp()) for day in weekdays(len(closes), last=last)]
    opens = [close - 1 if isinstance(close, int | float) else None for close in closes]
    quote = {"open": opens, "high": closes, "low": opens, "close": closes, "volume": [volume] * len(closes)}
    result = {
        "meta": chart_meta(symbol, time_zone, moments[-1] if moments else 0) | meta,
        "timestamp": moments,
        "indicators": {"quote": [quote], "adjclose": [{"adjclose": closes}]},
    }
    if events:
        result["events"] = events
    return {"chart": {"result": [result], "error": None}}


def chart_meta(symbol: str, time_zone: str, opened_at: int) -> dict[str, Any]:
    return {
        "currency": "USD",
        "symbol": symbol,
        "exchangeName": "NMS",
        "fullExchangeName": "NasdaqGS",
        "instrumentType": "EQUITY",
        "regularMarketTime": opened_at + 6 * 3600 + 1800,
        "exchangeTimezoneName": time_zone,
        "regularMarketPrice": 1.0,
        "chartPreviousClose": 1.0,
        "longName": f"{symbol} Inc.",
        "validRanges": ["1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max"],
    }


def empty_chart(symbol: str) -> dict[str, Any]:
    """A range without a day."""
    result = {
        "meta": chart_meta(symbol, "America/New_York", 0),
        "indicators": {"quote": [{}], "adjclose": [{}]},
    }
    return {"chart": {"result": [result], "error": None}}


def delisted() -> dict[str, Any]:
    error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
    return {"chart": {"result": None, "error": error}}


def summary(**changes: Any) -> dict[str, Any]:
    """An answer of quoteSummary; `changes` replace modules."""
    modules: dict[str, Any] = {
        "price": {"marketCap": 3_000_000, "regularMarketTime": 1734728400},  # 2024-12-20 21:00 UTC
        "quoteType": {"timeZoneFullName": "America/New_York"},
        "summaryDetail": {"trailingPE": 30.5, "trailingAnnualDividendYield": 0.004, "dividendYield": 0.005},
        "defaultKeyStatistics": {"trailingEps": 6.1},
        "financialData": {"totalRevenue": 400_000, "financialCurrency": "USD"},
        "assetProfile": {"sector": "Technology"},
    }
    return {"quoteSummary": {"result": [modules | changes], "error": None}}


def found(*symbols: str, kind: str = "EQUITY") -> dict[str, Any]:
    """An answer of the search."""
    return {"quotes": [{"symbol": symbol, "quoteType": kind, "shortname": symbol} for symbol in symbols]}


def quotes(*facts: dict[str, Any]) -> dict[str, Any]:
    usual = {"quoteType": "EQUITY", "currency": "USD", "fullExchangeName": "NYSE", "longName": "A name"}
    return {"quoteResponse": {"result": [usual | one for one in facts], "error": None}}
