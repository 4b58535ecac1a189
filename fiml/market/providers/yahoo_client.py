"""Asks Yahoo through yfinance, in threads of its own."""

import asyncio
import logging
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fiml.core import clock
from fiml.core.errors import BadData, FimlError, MissingExtra, RateLimited, SymbolNotFound, Unavailable
from fiml.market.providers.guard import retry_moment
from fiml.market.providers.texts import clean
from fiml.market.providers.yahoo_figures import NAME, SOURCE, Chart, read_chart

T = TypeVar("T")

PERIOD = "2y"
SUMMARY_MODULES = "price,quoteType,summaryDetail,defaultKeyStatistics,financialData,assetProfile"

_BASE_URL = "https://query2.finance.yahoo.com"
# The paths at which a status is about the question. (fc.yahoo.com answers 404, with the cookie that was asked for.)
_CHART = "/v8/finance/chart/"
_ABOUT_A_SYMBOL = (_CHART, "/v10/finance/quoteSummary/")
_QUESTIONS = (*_ABOUT_A_SYMBOL, "/v7/finance/quote", "/v1/finance/search")
# These statuses are about the cookie, not about the symbol.
_REFUSALS = frozenset({401, 403})
THREADS = 8
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)


class YahooClient:
    """A client of Yahoo's. `session` is a session of requests or curl_cffi, by default one that yfinance makes.

    A question takes at most `limit_s` in its thread, as far as the session's timeouts can ensure that. Errors are those
    of `MarketProvider`.
    """

    def __init__(self, session: Any = None, *, limit_s: float) -> None:
        self._session = session
        self._is_session_own = session is None
        self._limit_s = limit_s
        self._threads: ThreadPoolExecutor | None = None
        self._opening = threading.Lock()
        self._is_open = False
        self._asked = _Asked()

    async def chart(self, symbol: str) -> Chart:
        """Two years of daily bars, and Yahoo's facts about the instrument."""
        return await self._in_thread(symbol, lambda: self._chart(symbol))

    async def summary(self, symbol: str) -> Any:
        """The answer of quoteSummary, as Yahoo sent it."""
        url = f"{_BASE_URL}/v10/finance/quoteSummary/{symbol}"
        params = {"modules": SUMMARY_MODULES, "formatted": "false", "symbol": symbol, "corsDomain": "finance.yahoo.com"}
        return await self._in_thread(symbol, lambda: self._json(url, params))

    async def search(self, text: str, *, limit: int) -> Any:
        """The answer of the search, as Yahoo sent it."""
        params = {"q": text, "quotesCount": limit, "newsCount": 0, "listsCount": 0, "enableFuzzyQuery": "true"}
        return await self._in_thread(text, lambda: self._json(f"{_BASE_URL}/v1/finance/search", params))

    async def quotes(self, symbols: list[str]) -> Any:
        """Yahoo's facts about several instruments, as it sent them."""
        params = {"symbols": ",".join(symbols), "formatted": "false"}
        return await self._in_thread(params["symbols"], lambda: self._json(f"{_BASE_URL}/v7/finance/quote", params))

    async def aclose(self) -> None:
        """Close the session and end the threads, without waiting for one that hangs; may be called twice."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        if self._is_open:
            self._is_open = False
            del self._session.request
            if self._is_session_own:
                self._session.close()
                self._session = None

    async def load(self) -> None:
        """Load yfinance, outside the limits on Yahoo's time: the first time, this may take seconds."""
        if not self._is_open:
            await asyncio.get_running_loop().run_in_executor(self._pool(), self._open)

    async def _in_thread(self, symbol: str, question: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool(), self._answer, symbol, question)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fiml-yahoo")
        return self._threads

    def _answer(self, symbol: str, question: Callable[[], T]) -> T:
        yfinance = self._open()
        self._asked.begin(self._limit_s)
        try:
            return question()
        except FimlError:
            raise
        except _UNREADABLE as exc:  # before OSError, which requests' error for invalid JSON also is
            if self._asked.status in _REFUSALS:
                raise Unavailable(NAME, f"HTTP {self._asked.status}") from exc
            raise BadData(NAME, f"{type(exc).__name__}: {clean(str(exc))}") from exc
        except OSError as exc:
            raise Unavailable(NAME, type(exc).__name__) from exc
        except yfinance.exceptions.YFException as exc:
            raise _translated(exc, symbol, yfinance.exceptions, status=self._asked.status) from exc

    def _open(self) -> Any:
        with self._opening:
            yfinance = _load()
            if not self._is_open:
                self._session = self._session or yfinance._http.new_session()  # noqa: SLF001 - as yfinance opens its own
                self._session.request = self._watched(self._session.request)
                self._is_open = True
        return yfinance

    def _watched(self, request: Callable[..., Any]) -> Callable[..., Any]:
        # yfinance allows 30 s for some requests, and reacts to a refusal with half a dozen further ones.
        def watched(method: str, url: str, **arguments: Any) -> Any:
            response = request(method, url, **arguments | {"timeout": self._asked.seconds_left()})
            path = urlsplit(url).path
            if path.startswith(_QUESTIONS):
                self._asked.status = response.status_code
                _check_status(response.status_code, response.headers, path)
            if path.startswith(_CHART) and response.status_code == 200:
                _check_form(response.json())
            return response

        return watched

    def _chart(self, symbol: str) -> Chart:
        from yfinance.data import YfData  # noqa: PLC0415 - an extra, loaded when first used
        from yfinance.scrapers.history import PriceHistory  # noqa: PLC0415 - as above

        # Not through Ticker, which would first ask for the time zone and cache that answer, even an error, for ever. A
        # question with a period doesn't need the time zone.
        history = PriceHistory(YfData(session=self._session), symbol, "UTC", session=self._session)
        # With days that have no price, so that a gap can be seen.
        frame = history.history(period=PERIOD, interval="1d", auto_adjust=False, actions=True, keepna=True)
        return read_chart(frame, history.get_history_metadata())

    def _json(self, url: str, params: dict[str, Any]) -> Any:
        from yfinance.data import YfData  # noqa: PLC0415 - an extra, loaded when first used

        return YfData(session=self._session).get_raw_json(url, params=params)


class _Asked(threading.local):
    """The current question of a thread: how long it may still take, and the last status."""

    def __init__(self) -> None:
        self.status = 0
        self._limit_s = 0.0
        self._elapsed_ms: Callable[[], float] = float

    def begin(self, limit_s: float) -> None:
        self.status, self._limit_s, self._elapsed_ms = 0, limit_s, clock.stopwatch()

    def seconds_left(self) -> float:
        left = self._limit_s - self._elapsed_ms() / 1000
        if left <= 0:
            raise Unavailable(NAME, f"no answer within {self._limit_s:g} s")
        return left


class _CookieMemory:
    """Replaces yfinance's cookie file in the user's cache folder; with neither, it would fetch a cookie each time."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def lookup(self, strategy: str) -> dict[str, Any] | None:
        return self._kept.get(strategy)

    def store(self, strategy: str, cookie: Any) -> None:
        if any("A3" in at_domain.get("/", {}) for at_domain in (cookie or {}).values()):  # what yfinance reads from it
            self._kept[strategy] = {"cookie": cookie}


_COOKIES = _CookieMemory()


def _load() -> Any:
    try:
        import yfinance  # noqa: PLC0415 - an extra, loaded when first used
    except ImportError as exc:
        raise MissingExtra("market data from Yahoo", "yahoo") from exc
    yfinance.config.debug.hide_exceptions = False
    # fiml reports yfinance's failures itself.
    logging.getLogger("yfinance").setLevel(logging.CRITICAL)
    yfinance.cache._CookieCacheManager._Cookie_cache = _COOKIES  # noqa: SLF001 - there is no other way in
    # yfinance uses deprecated parts of pandas, which fiml's users can't do anything about.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"yfinance\b")
    return yfinance


def _check_form(answer: Any) -> None:
    # yfinance would take an answer without a chart for a symbol without prices.
    if not isinstance(answer, dict) or not isinstance(answer.get("chart") or answer.get("finance"), dict):
        raise BadData(NAME, "no chart")


def _check_status(status: int, headers: Mapping[str, str], path: str) -> None:
    if status == 404 and path.startswith(_ABOUT_A_SYMBOL):
        raise _not_there(path.rpartition("/")[2])
    if status == 429:
        raise RateLimited(NAME, retry_moment(headers.get("Retry-After")))
    if status == 404 or status >= 500:
        raise Unavailable(NAME, f"HTTP {status}")


def _translated(exc: Exception, symbol: str, errors: Any, *, status: int) -> FimlError:
    if isinstance(exc, errors.YFRateLimitError):
        return RateLimited(NAME, clock.now() + timedelta(seconds=60))
    if isinstance(exc, errors.YFTickerMissingError) and status not in _REFUSALS:
        return _not_there(symbol)
    return Unavailable(NAME, clean(str(exc)))


def _not_there(symbol: str) -> SymbolNotFound:
    return SymbolNotFound(symbol, source=SOURCE, known=[], is_nearest=True)
