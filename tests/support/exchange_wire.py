"""What Kraken, Coinbase and Bitstamp send, in their own forms, for Bitcoin and Ether in dollars."""

from datetime import datetime, timedelta
from typing import Any

from tests.support.market_server import MarketServer

HOURS = 30
DAYS = 5

KRAKEN_MARKETS = "/0/public/AssetPairs"
KRAKEN_TICKER = "/0/public/Ticker"
KRAKEN_CANDLES = "/0/public/OHLC"
COINBASE_MARKETS = "/api/v3/brokerage/market/products"
COINBASE_TICKER = "/api/v3/brokerage/market/products/BTC-USD/ticker"
COINBASE_CANDLES = "/api/v3/brokerage/market/products/BTC-USD/candles"
BITSTAMP_MARKETS = "/api/v2/markets/"
BITSTAMP_TICKER = "/api/v2/ticker/btcusd/"
BITSTAMP_CANDLES = "/api/v2/ohlc/btcusd/"


def serve_kraken(server: MarketServer, now: datetime) -> None:
    """Bitcoin at 110, 100 a day before; Ether has no candles."""
    assets = {"XXBT": _kraken_asset("XBT"), "XETH": _kraken_asset("ETH"), "ZUSD": _kraken_asset("USD")}
    pairs = {"XXBTZUSD": kraken_pair("XBT", "XXBT"), "XETHZUSD": kraken_pair("ETH", "XETH")}
    server.always("/0/public/Assets", {"error": [], "result": assets})
    server.always(KRAKEN_MARKETS, {"error": [], "result": pairs})
    server.always(KRAKEN_TICKER, kraken_ticker())
    server.always(KRAKEN_CANDLES, kraken_candles(hours(now)))


def kraken_ticker(**changes: Any) -> dict[str, Any]:
    """Its `o` is the price at midnight, not that of 24 hours ago."""
    ticker = {
        "a": ["111.0", "1", "1.0"],
        "b": ["109.0", "1", "1.0"],
        "c": ["110.0", "0.5"],
        "v": ["10.0", "2000.5"],
        "p": ["105.0", "105.0"],
        "t": [5, 10],
        "l": ["105.0", "95.0"],
        "h": ["112.0", "115.0"],
        "o": "108.0",
    }
    return {"error": [], "result": {"XXBTZUSD": ticker | changes}}


def kraken_candles(candles: list[list[float]]) -> dict[str, Any]:
    rows = [[int(at), *map(str, [o, h, low, c, c, volume]), 7] for at, o, h, low, c, volume in candles]
    return {"error": [], "result": {"XXBTZUSD": rows, "last": 0}}


def serve_coinbase(server: MarketServer, now: datetime) -> None:
    server.always("/v2/currencies", {"data": [{"id": "USD", "name": "US Dollar", "min_size": "0.01"}]})
    bitcoin = {"asset_id": "5b71", "code": "BTC", "name": "Bitcoin", "type": "crypto"}
    server.always("/v2/currencies/crypto", {"data": [bitcoin]})
    server.always("/v2/exchange-rates", {"data": {"currency": "USD", "rates": {"BTC": "0.01"}}})
    server.always(COINBASE_MARKETS, {"products": [_coinbase_product()], "num_products": "1"})
    server.always(f"{COINBASE_MARKETS}?product_type=FUTURE", {"products": [], "num_products": "0"})
    trade = {"trade_id": "1", "product_id": "BTC-USD", "price": "110.0", "size": "1", "time": iso(now), "side": "BUY"}
    server.always(COINBASE_TICKER, {"trades": [trade], "best_bid": "109", "best_ask": "111"})
    server.always(COINBASE_CANDLES, coinbase_candles(hours(now)))


def coinbase_candles(candles: list[list[float]]) -> dict[str, Any]:
    names = ("start", "open", "high", "low", "close", "volume")
    rows = [dict(zip(names, [str(int(row[0])), *map(str, row[1:])], strict=True)) for row in candles]
    return {"candles": rows[::-1]}  # Coinbase has the newest first


def serve_bitstamp(server: MarketServer, now: datetime) -> None:
    market = {
        "name": "BTC/USD",
        "market_symbol": "btcusd",
        "base_currency": "BTC",
        "base_decimals": 8,
        "counter_currency": "USD",
        "counter_decimals": 0,
        "minimum_order_value": "10",
        "trading": "Enabled",
        "instant_order_counter_decimals": 2,
        "instant_and_market_orders": "Enabled",
        "description": "Bitcoin / U.S. dollar",
        "market_type": "SPOT",
    }
    server.always(BITSTAMP_MARKETS, [market])
    figures = {"high": "115", "last": "110", "bid": "109", "vwap": "105", "volume": "2000.5", "low": "95", "ask": "111"}
    moment = {"timestamp": str(int(now.timestamp())), "open": "108", "open_24": "100", "percent_change_24": "10"}
    server.always(BITSTAMP_TICKER, figures | moment)
    server.always(BITSTAMP_CANDLES, bitstamp_candles(hours(now)))


def bitstamp_candles(candles: list[list[float]]) -> dict[str, Any]:
    names = ("timestamp", "open", "high", "low", "close", "volume")
    rows = [dict(zip(names, [str(int(row[0])), *map(str, row[1:])], strict=True)) for row in candles]
    return {"data": {"pair": "BTC/USD", "ohlc": rows}}


def hours(now: datetime) -> list[list[float]]:
    """Candles of the hours up to now: 100 until a day ago, 110 since; one coin each."""
    start = now.replace(minute=0, second=0, microsecond=0)
    moments = [start - timedelta(hours=back) for back in range(HOURS, -1, -1)]
    closes = [100 if moment + timedelta(hours=1) <= now - timedelta(hours=24) else 110 for moment in moments]
    return [candle(moment, close) for moment, close in zip(moments, closes, strict=True)]


def days(now: datetime, closes: list[float]) -> list[list[float]]:
    """Candles of the days up to today, which isn't complete."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    last = len(closes) - 1
    return [candle(today - timedelta(days=last - place), close) for place, close in enumerate(closes)]


def candle(moment: datetime, close: float) -> list[float]:
    return [moment.timestamp(), close, close + 1, close - 1, close, 1]


def iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.000000Z"


def _kraken_asset(name: str) -> dict[str, Any]:
    return {"aclass": "currency", "altname": name, "decimals": 8, "display_decimals": 5, "status": "enabled"}


def kraken_pair(name: str, asset: str, *, status: str = "online") -> dict[str, Any]:
    return {
        "altname": f"{name}USD",
        "wsname": f"{name}/USD",
        "aclass_base": "currency",
        "base": asset,
        "aclass_quote": "currency",
        "quote": "ZUSD",
        "lot": "unit",
        "pair_decimals": 1,
        "lot_decimals": 8,
        "lot_multiplier": 1,
        "leverage_buy": [2],
        "leverage_sell": [2],
        "fees": [[0, 0.26]],
        "fees_maker": [[0, 0.16]],
        "fee_volume_currency": "ZUSD",
        "margin_call": 80,
        "margin_stop": 40,
        "ordermin": "0.0001",
        "costmin": "0.5",
        "tick_size": "0.1",
        "status": status,
    }


def kraken_markets(*pairs: dict[str, Any]) -> dict[str, Any]:
    return {"error": [], "result": {f"{pair['base']}ZUSD": pair for pair in pairs}}


def _coinbase_product() -> dict[str, Any]:
    return {
        "product_id": "BTC-USD",
        "price": "110",
        "price_percentage_change_24h": "10",
        "volume_24h": "2000",
        "base_increment": "0.00000001",
        "quote_increment": "0.01",
        "quote_min_size": "1",
        "quote_max_size": "150000000",
        "base_min_size": "0.00000001",
        "base_max_size": "3400",
        "base_name": "Bitcoin",
        "quote_name": "US Dollar",
        "is_disabled": False,
        "status": "online",
        "trading_disabled": False,
        "product_type": "SPOT",
        "quote_currency_id": "USD",
        "base_currency_id": "BTC",
        "price_increment": "0.01",
        "display_name": "BTC-USD",
        "product_venue": "CBE",
    }
