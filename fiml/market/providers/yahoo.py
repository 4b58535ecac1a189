"""Market figures from Yahoo, through yfinance.

Yahoo's terms allow personal use: whoever passes its figures on to others needs an agreement with Yahoo.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from fiml.core import clock
from fiml.core.errors import BadData, NotSupported, SymbolNotFound, Unavailable
from fiml.market.models import AssetKind, Bars, Fundamentals, Instrument, Quote
from fiml.market.providers.base import check_limit, no_fundamentals
from fiml.market.providers.guard import Guard
from fiml.market.providers.yahoo_client import YahooClient
from fiml.market.providers.yahoo_company import fundamentals_of
from fiml.market.providers.yahoo_figures import KINDS, NAME, SOURCE, Chart, bars_of, quote_of, read_instrument
from fiml.market.providers.yahoo_symbols import is_symbol, to_yahoo

T = TypeVar("T")

_NEAREST = 5
# Shorter than the time for which a quote is current.
_CHART_LIFE = timedelta(seconds=10)
_NEAREST_TIMEOUT_S = 3
_SEARCHED_CHARACTERS = 100


class YahooProvider:
    """Yahoo as a `MarketProvider` of equities and indices.

    Prices are closes adjusted for splits, never for dividends. The change is from one daily close to the next. Some
    markets quote in hundredths of a currency: the currency is then Yahoo's own code, such as GBp, and the note says so.
    yfinance is loaded at the first question, which raises `MissingExtra` if it isn't installed.
    """

    source = SOURCE

    def __init__(self, session: Any = None, guard: Guard | None = None) -> None:
        self._guard = guard or Guard(NAME)
        self._client = YahooClient(session, limit_s=self._guard.attempt_timeout_s)
        self._charts: dict[str, tuple[datetime, Chart]] = {}
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        if kind is AssetKind.COIN:
            raise NotSupported("fiml doesn't ask Yahoo for coins", "install another source: pip install 'fiml[ccxt]'")
        wanted = to_yahoo(symbol, market)
        found = (await self._chart(wanted)).instrument
        if kind is AssetKind.INDEX and found.kind is not kind:
            raise await self._not_found(wanted)
        return found

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        check_limit(limit)
        symbols = await self._symbols_like(text, limit)
        if not symbols:
            return []
        answer = await self._call(lambda: self._client.quotes(symbols))
        found = {str(facts.get("symbol")): facts for facts in _objects(answer, "quoteResponse", "result")}
        named = (_instrument_or_none(found[symbol]) for symbol in symbols if symbol in found)
        return [instrument for instrument in named if instrument is not None]

    async def quote(self, instrument: Instrument) -> Quote:
        return quote_of(await self._chart(instrument.symbol))

    async def bars(self, instrument: Instrument) -> Bars:
        return bars_of(await self._chart(instrument.symbol))

    async def fundamentals(self, instrument: Instrument) -> Fundamentals:
        try:
            answer = await self._call(lambda: self._client.summary(instrument.symbol))
        except SymbolNotFound:  # Yahoo has no summary of indices and some funds, which do have prices
            reason = "Yahoo has no company figures for this symbol"
            return no_fundamentals(instrument, source=SOURCE, reason=reason)
        return fundamentals_of(instrument, answer)

    async def aclose(self) -> None:
        """Close the session and end the threads; doesn't wait for a thread that hangs."""
        await self._client.aclose()

    async def _call(self, question: Callable[[], Awaitable[T]]) -> T:
        await self._client.load()
        return await self._guard.call(question)

    async def _chart(self, symbol: str) -> Chart:
        """The chart, from which instrument, quote and bars are read; fetched once for callers that ask together."""
        kept = self._charts.get(symbol)
        if kept is not None and clock.is_within(_CHART_LIFE, since=kept[0]):
            return kept[1]
        lock = self._asking.setdefault(symbol, asyncio.Lock())
        async with lock:
            kept = self._charts.get(symbol)
            if kept is None or not clock.is_within(_CHART_LIFE, since=kept[0]):
                kept = (clock.now(), await self._fetch_chart(symbol))
                self._keep(symbol, kept)
        return kept[1]

    def _keep(self, symbol: str, kept: tuple[datetime, Chart]) -> None:
        past = kept[0] - _CHART_LIFE
        self._charts = {name: each for name, each in self._charts.items() if each[0] > past} | {symbol: kept}

    async def _fetch_chart(self, symbol: str) -> Chart:
        try:
            chart = await self._call(lambda: self._client.chart(symbol))
        except SymbolNotFound as exc:
            raise await self._not_found(symbol) from exc
        if chart.instrument.symbol.upper() != symbol:
            raise BadData(NAME, f"a chart of {chart.instrument.symbol} for {symbol}")
        return chart

    async def _not_found(self, symbol: str) -> SymbolNotFound:
        return SymbolNotFound(symbol, source=SOURCE, known=await self._nearest(symbol), is_nearest=True)

    async def _nearest(self, symbol: str) -> list[str]:
        try:
            async with asyncio.timeout(_NEAREST_TIMEOUT_S):
                return await self._symbols_like(symbol, _NEAREST)
        except (Unavailable, TimeoutError, SymbolNotFound):  # just a hint, which the error can do without
            return []

    async def _symbols_like(self, text: str, limit: int) -> list[str]:
        answer = await self._call(lambda: self._client.search(text[:_SEARCHED_CHARACTERS], limit=limit))
        found = [facts for facts in _objects(answer, "quotes") if facts.get("quoteType") in KINDS]
        symbols = [facts["symbol"] for facts in found if isinstance(facts.get("symbol"), str)]
        return [symbol for symbol in symbols if is_symbol(symbol)][:limit]


def _instrument_or_none(facts: dict[str, Any]) -> Instrument | None:
    """An instrument that was found; `None` if it can't be asked about, such as one without a currency."""
    try:
        return read_instrument(facts, facts.get("quoteType"))
    except (BadData, NotSupported):
        return None


def _objects(answer: Any, *path: str) -> list[dict[str, Any]]:
    """The JSON objects in the list at a path of an answer; empty if the list is null.

    Raises:
        BadData: there is no such list.
    """
    for key in path:
        answer = answer.get(key) if isinstance(answer, dict) else answer
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise BadData(NAME, f"no list at {'.'.join(path)}")
    return [one for one in answer if isinstance(one, dict)]
