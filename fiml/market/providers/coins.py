"""Market figures of coins from exchanges, through ccxt."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, TypeVar

from fiml.core import clock
from fiml.core.errors import BadData, NotSupported, SymbolNotFound, Unavailable
from fiml.market.models import Adjustment, AssetKind, Bar, Bars, Fundamentals, Instrument, Quote, rounded
from fiml.market.providers.base import check_choice, check_limit, matching, no_fundamentals, to_symbol
from fiml.market.providers.coin_exchange import CoinExchange, exchange_guard, moment_of, price_before
from fiml.market.providers.guard import Guard

T = TypeVar("T")

SOURCE = "ccxt"
EXCHANGES = ("kraken", "coinbase", "bitstamp")
PAIRS = ["USD", "EUR", "GBP", "USDT", "USDC", "BTC"]

_NEAREST = 5
_DAY = timedelta(hours=24)
_NOTE = "change, high, low and volume cover the last 24 hours; previous_close is the price at their start, to the hour"


class CoinProvider:
    """Exchanges as a `MarketProvider` of coins.

    If the question names an exchange, only that one is asked; else the first of `exchanges` that answers, serves our
    location and trades the coin (or at least has it, if none trades it now). The instrument then names its exchange,
    and all further figures come from there. ccxt is loaded at the first question, which raises `MissingExtra` if it
    isn't installed. `urls` replaces addresses of exchanges; `guard` makes an exchange's guard from its name;
    `markets_within_s` limits the time for an exchange's list of markets. Use it in one event loop only.
    """

    source = SOURCE

    def __init__(
        self,
        exchanges: Sequence[str] = EXCHANGES,
        urls: Mapping[str, str] | None = None,
        guard: Callable[[str], Guard] = exchange_guard,
        *,
        markets_within_s: float | None = None,
    ) -> None:
        self._exchanges = {
            name: CoinExchange(name, guard(name), url=(urls or {}).get(name), markets_within_s=markets_within_s)
            for name in exchanges
        }

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        if kind is not AssetKind.COIN:
            raise NotSupported("coin exchanges have no equities", "install another source: pip install 'fiml[yahoo]'")
        quoted = check_choice("pair", pair, PAIRS)
        coin = to_symbol(symbol)
        if exchange is not None:
            return await self._find(self._exchange(exchange), coin, quoted)
        try:
            return await self._first(lambda one: self._find(one, coin, quoted, is_traded=True))
        except SymbolNotFound:
            return await self._first(lambda one: self._find(one, coin, quoted))

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        """Coins on the first exchange that answers, priced in the first currency of `PAIRS`."""
        check_limit(limit)
        return (await self._first(lambda one: self._search(one, text)))[:limit]

    async def quote(self, instrument: Instrument) -> Quote:
        """The last price, and the change from 24 hours before, according to the exchange's hourly candles."""
        exchange = self._exchange(instrument.exchange or "")
        market = _market(instrument)
        since = clock.now() - _DAY - timedelta(hours=3)
        ticker = await exchange.ticker(market)
        hours = await exchange.hours(market, since=since)
        return _quote(instrument, ticker, hours, is_halted=exchange.is_halted(market))

    async def bars(self, instrument: Instrument) -> Bars:
        """The complete days (UTC) of the last two years; figures computed from today's would keep changing.

        On a coin's first day there is no other one.
        """
        exchange = self._exchange(instrument.exchange or "")
        today = clock.now().date()
        candles = await exchange.days(_market(instrument))
        try:
            days = [bar for bar in map(_bar, candles) if bar is not None]
            complete = tuple(bar for bar in days if bar.date < today)
            return Bars(
                symbol=instrument.symbol,
                currency=instrument.currency,
                exchange=exchange.name,
                source=f"{exchange.name} via ccxt",
                adjustment=Adjustment.NONE,
                bars=complete or tuple(days[-1:]),
            )
        except (ValueError, TypeError, IndexError, ArithmeticError) as exc:
            raise BadData(exchange.name, f"{_market(instrument)}: {exc}") from exc

    async def fundamentals(self, instrument: Instrument) -> Fundamentals:
        source = f"{instrument.exchange} via ccxt"
        return no_fundamentals(instrument, source=source, reason="coins have no company figures")

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        await asyncio.gather(*(exchange.aclose() for exchange in self._exchanges.values()))

    def _exchange(self, name: str) -> CoinExchange:
        return self._exchanges[check_choice("exchange", name, list(self._exchanges))]

    async def _first(self, ask: Callable[[CoinExchange], Awaitable[T]]) -> T:
        """The first answer of an exchange; if none has one, the error that explains most."""
        errors: list[Exception] = []
        for exchange in self._exchanges.values():  # one after the other: the first one's answer is enough
            try:
                return await ask(exchange)
            except (SymbolNotFound, Unavailable, NotSupported) as exc:
                errors.append(exc)
        # Unavailable first: the coin may be on the exchange that is away.
        for kind in (Unavailable, SymbolNotFound):
            for error in errors:
                if isinstance(error, kind):
                    raise error
        raise errors[0]

    async def _find(self, exchange: CoinExchange, coin: str, pair: str, *, is_traded: bool = False) -> Instrument:
        market = f"{coin}/{pair}"
        if await exchange.has(market) and not (is_traded and exchange.is_halted(market)):
            return _instrument(exchange, coin, pair)
        markets = await exchange.markets()
        coins = sorted({str(market["base"]) for market in markets.values() if market["quote"] == pair})
        nearest = get_close_matches(coin, coins, n=_NEAREST, cutoff=0.5)
        raise SymbolNotFound(coin, source=f"{exchange.name} {pair}", known=nearest, is_nearest=True)

    async def _search(self, exchange: CoinExchange, text: str) -> list[Instrument]:
        markets = await exchange.markets()
        coins = [str(market["base"]) for market in markets.values() if market["quote"] == PAIRS[0]]
        return matching([_instrument(exchange, coin, PAIRS[0]) for coin in coins], text)


def _instrument(exchange: CoinExchange, coin: str, pair: str) -> Instrument:
    return Instrument(
        symbol=coin, name=exchange.coin_name(coin), kind=AssetKind.COIN, currency=pair, exchange=exchange.name
    )


def _market(instrument: Instrument) -> str:
    return f"{instrument.symbol}/{instrument.currency}"


def _quote(instrument: Instrument, ticker: Mapping[str, Any], hours: list[list[Any]], *, is_halted: bool) -> Quote:
    exchange = str(instrument.exchange)
    price = _number(ticker.get("last"))
    if price is None:
        raise BadData(exchange, f"{_market(instrument)} has no price")
    told = _number(ticker.get("timestamp"))
    moment = moment_of(told) if told else clock.now()
    before = _number(price_before(hours, moment - _DAY))
    day = [candle for candle in hours if moment_of(candle[0]) >= moment - _DAY]
    figures = {
        "market_time": moment if told else None,
        "previous_close": before,
        "change": None if before is None else rounded(price - before, 10),
        "change_percent": None if before is None else rounded(100 * (price / before - 1), 4),
        "open": None,
        "high": _number(ticker.get("high")) or max(_column(day, 2), default=None),
        "low": _number(ticker.get("low")) or min(_column(day, 3), default=None),
        "volume": _traded(ticker.get("baseVolume"), day),
    }
    return Quote(
        symbol=instrument.symbol,
        name=instrument.name,
        kind=AssetKind.COIN,
        price=price,
        price_label="last trade",
        currency=instrument.currency,
        exchange=exchange,
        source=f"{exchange} via ccxt",
        as_of=moment.date(),
        adjustment=Adjustment.NONE,
        change_window="24 hours",
        volume_unit="coins",
        note=f"{exchange} has halted this market: the price may be old; {_NOTE}" if is_halted else _NOTE,
        missing={name: _why_missing(name, exchange) for name, figure in figures.items() if figure is None},
        **figures,
    )


def _column(candles: list[list[Any]], place: int) -> list[float]:
    numbers = (_number(candle[place]) for candle in candles)
    return [number for number in numbers if number is not None]


def _traded(told: object, day: list[list[Any]]) -> float | None:
    """The volume of 24 hours, as the ticker tells it or as its candles add up; `None` if neither has one."""
    number = 0.0 if told == 0 else _number(told)
    has_volumes = any(candle[5] is not None for candle in day)
    return sum(_column(day, 5)) if number is None and has_volumes else number


def _bar(candle: list[Any]) -> Bar | None:
    """A day; `None` if it has no price."""
    opened, high, low, close, volume = candle[1:6]
    price = _number(close)
    if price is None:
        return None
    traded = _number(volume) if volume else volume
    return Bar(moment_of(candle[0]).date(), _number(opened), _number(high), _number(low), price, traded)


def _number(value: object) -> float | None:
    """A finite number above zero; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _why_missing(field: str, exchange: str) -> str:
    if field == "open":
        return "coins trade without a break; previous_close is the price 24 hours ago"
    if field == "market_time":
        return f"{exchange} doesn't report the time of its price"
    return f"{exchange} has no figure for the last 24 hours"
