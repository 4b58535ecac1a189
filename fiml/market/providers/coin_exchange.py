"""One exchange for coins, through ccxt."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from fiml.core import clock
from fiml.core.errors import (
    BadData,
    FimlError,
    MissingExtra,
    NotSupported,
    RateLimited,
    SymbolNotFound,
    Unavailable,
)
from fiml.core.log import get_logger
from fiml.core.shared_look import SharedLook
from fiml.market.providers.guard import Guard, retry_moment
from fiml.market.providers.texts import clean

T = TypeVar("T")

DAYS = 720
# How many requests may start within how many seconds, where that is fewer than a guard's default.
_RATES = {"kraken": (3.0, 3.0)}
# How many candles an exchange sends at once, where that is fewer than all.
_CANDLES_AT_ONCE = {"coinbase": 300}
# What ccxt's code raises if an answer doesn't have the form that it expects.
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)
_MARKETS_KEPT = timedelta(days=1)
# How old the list of markets is at least before it is asked for again.
_MARKETS_RENEWED = timedelta(minutes=1)
_RENEWED_AFTER_FAILURE = timedelta(minutes=5)
_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_log = get_logger()


def exchange_guard(name: str, **limits: Any) -> Guard:
    """The guard of an exchange, which keeps to its pace."""
    return Guard(name, **{"rate": _RATES[name], **limits} if name in _RATES else limits)


class CoinExchange:
    """An exchange's public figures; its errors are those of `MarketProvider`.

    The guard keeps to the exchange's pace. ccxt would too, but its wait would count as the exchange's. `url` replaces
    the exchange's own address; asking for the markets takes at most `markets_within_s`, by default as long as any call.
    """

    def __init__(
        self, name: str, guard: Guard, *, url: str | None = None, markets_within_s: float | None = None
    ) -> None:
        self.name = name
        self._guard = guard
        self._url = url
        self._markets_within_s = markets_within_s
        self._ccxt: Any = None
        self._loading = SharedLook(self._load)
        self._loaded_at: datetime | None = None
        self._failed_at: datetime | None = None

    async def markets(self, *, kept: timedelta = _MARKETS_KEPT) -> Mapping[str, Mapping[str, Any]]:
        """The exchange's spot markets by name, such as `BTC/USD`; asked for if the list is older than `kept`.

        If that fails, an old list lasts five minutes longer.
        """
        is_current = clock.is_within(kept, since=self._loaded_at)
        if not is_current and not clock.is_within(_RENEWED_AFTER_FAILURE, since=self._failed_at):
            try:
                await self._loading.result()
            except (Unavailable, BadData) as exc:
                if self._loaded_at is None:
                    raise
                self._failed_at = clock.now()
                _log.warning("old_markets_kept", exchange=self.name, problem=str(exc))
        return {name: market for name, market in self._exchange().markets.items() if market["spot"]}

    async def has(self, market: str) -> bool:
        """Whether the exchange has a market; it may have listed it in the last minute only."""
        return market in await self.markets() or market in await self.markets(kept=_MARKETS_RENEWED)

    def is_halted(self, market: str) -> bool:
        """Whether a market of the exchange isn't traded now; the markets must be loaded."""
        return (self._exchange().markets.get(market) or {}).get("active") is False

    def coin_name(self, coin: str) -> str:
        """The exchange's name for a coin, or the coin's code if it has none; the markets must be loaded."""
        currency = (self._exchange().currencies or {}).get(coin) or {}
        name = clean(currency.get("name"))
        return name if any(character.islower() for character in name) else coin  # Kraken's names are just other codes

    async def ticker(self, market: str) -> Mapping[str, Any]:
        """The last price, in the form of ccxt."""
        await self.markets()
        ticker: Mapping[str, Any] = await self._ask(lambda: self._exchange().fetch_ticker(market), market)
        return ticker

    async def hours(self, market: str, *, since: datetime) -> list[list[Any]]:
        """Hourly candles, oldest first, the last one unfinished. Each is ms, open, high, low, close, volume."""
        return await self._candles(market, "1h", round(since.timestamp() * 1000), 72)

    async def days(self, market: str) -> list[list[Any]]:
        """Daily candles in UTC, oldest first, the last one unfinished; at most `DAYS`."""
        today = round(clock.now().timestamp() * 1000) // _DAY_MS * _DAY_MS
        at_once = _CANDLES_AT_ONCE.get(self.name, DAYS)
        by_moment: dict[int, list[Any]] = {}
        for back in range(DAYS - 1, -1, -at_once):  # page by page: an exchange sends no more at once
            page = await self._candles(market, "1d", today - back * _DAY_MS, at_once)
            by_moment |= {candle[0]: candle for candle in page}
        return [by_moment[moment] for moment in sorted(by_moment)]

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        await self._loading.close()
        exchange, self._ccxt, self._loaded_at = self._ccxt, None, None
        if exchange is not None:
            await exchange.close()

    async def _candles(self, market: str, length: str, since_ms: int, limit: int) -> list[list[Any]]:
        await self.markets()
        candles: list[list[Any]] = await self._ask(
            lambda: self._exchange().fetch_ohlcv(market, length, since=since_ms, limit=limit), market
        )
        if not all(isinstance(candle[0], int) for candle in candles):
            raise BadData(self.name, f"{market} has a candle without a time")
        return candles

    async def _load(self) -> None:
        await self._ask(self._load_markets, "the markets", within_s=self._markets_within_s)

    async def _load_markets(self) -> None:
        exchange = self._exchange()
        before = exchange.markets
        await exchange.load_markets(reload=True)
        if not exchange.markets:  # ccxt takes a cut-off answer for one without markets
            exchange.markets = before
            raise BadData(self.name, "no markets")
        self._loaded_at, self._failed_at = clock.now(), None

    async def _ask(self, function: Callable[[], Awaitable[T]], what: str, *, within_s: float | None = None) -> T:
        async def ask() -> T:
            try:
                return await function()
            except FimlError:
                raise
            except _UNREADABLE as exc:
                raise BadData(self.name, f"{type(exc).__name__}: {clean(str(exc))}") from exc
            except self._errors().BaseError as exc:
                raise self._translated(exc, what) from exc

        if self._ccxt is None:
            # Loading ccxt takes more than a second: in a thread, to not block the loop, and outside the guard's limits.
            await asyncio.to_thread(_load)
            self._exchange()
        return await self._guard.call(ask, within_s=within_s)

    def _exchange(self) -> Any:
        if self._ccxt is None:
            self._ccxt = self._open()
        return self._ccxt

    def _open(self) -> Any:
        async_support = _load()
        # ccxt uses deprecated parts of aiohttp, which fiml's users can't do anything about.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ccxt\b")
        options = {"timeout": round(self._guard.attempt_timeout_s * 1000), "enableRateLimit": False}
        exchange = getattr(async_support, self.name)(options)
        # ccxt takes status 451 for a temporary failure, but a blocked location stays blocked.
        exchange.httpExceptions = exchange.httpExceptions | {"451": async_support.RestrictedLocation}
        if self._url is not None:
            exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], self._url)
        return exchange

    def _errors(self) -> Any:
        from ccxt.base import errors  # noqa: PLC0415 - an extra, loaded when first used

        return errors

    def _translated(self, exc: Exception, what: str) -> FimlError:
        errors = self._errors()
        if isinstance(exc, errors.BadSymbol):
            return SymbolNotFound(what, source=self.name, known=[], is_nearest=True)
        if isinstance(exc, errors.RateLimitExceeded | errors.DDoSProtection):
            headers = self._exchange().last_response_headers or {}
            return RateLimited(self.name, retry_moment(headers.get("Retry-After")))
        if isinstance(exc, errors.RestrictedLocation | errors.PermissionDenied):
            return NotSupported(f"{self.name} isn't available in this location", "name another exchange, or none")
        if isinstance(exc, errors.NetworkError):
            return Unavailable(self.name, type(exc).__name__)
        return BadData(self.name, f"{type(exc).__name__}: {clean(str(exc))}")


def _load() -> Any:
    try:
        from ccxt import async_support  # noqa: PLC0415 - an extra, loaded when first used
    except ImportError as exc:
        raise MissingExtra("market data of coins", "ccxt") from exc
    return async_support


def moment_of(ms: float) -> datetime:
    """The moment of a candle or ticker."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def price_before(candles: list[list[Any]], moment: datetime) -> float | None:
    """The close of the last hour that was over at `moment`; None if the candles don't reach back to it."""
    over = [candle for candle in candles if moment_of(candle[0] + _HOUR_MS) <= moment]
    return over[-1][4] if over else None
