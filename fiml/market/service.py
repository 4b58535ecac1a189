"""Answers about instruments, from one source."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MappingProxyType

from fiml.cache.entries import AnswerCache
from fiml.cache.opening import open_caches
from fiml.core import clock
from fiml.core.config import MarketData, Settings
from fiml.core.deadlines import answer_within
from fiml.core.errors import BadData, InvalidInput, MissingExtra, NotSupported, SymbolNotFound, Unavailable
from fiml.market.fetching import MAX_STALE, Fetched, Fetching
from fiml.market.indicators import compare, technicals
from fiml.market.models import (
    AssetKind,
    Bars,
    Comparison,
    Delivery,
    Depth,
    Fundamentals,
    Instrument,
    MarketAnswer,
    Quote,
)
from fiml.market.providers.base import MarketProvider
from fiml.market.providers.sample import SOURCE, SampleProvider

# Clients wait at least 20 s: resolving and answering together take less.
RESOLVE_TIMEOUT_S = 9.0
ANSWER_TIMEOUT_S = 9.0
# A single fetch gets only a part of the time, so that enough is left to fall back on a cache.
_FETCH_SHARE = 0.75
_OTHER_SHARE = 0.9

LIVE = "live"
# How the reason begins why another could not be compared, if it may be later.
NOT_NOW = "not now"
_PAIR = "USD"


class MarketService:
    """Resolves symbols to instruments, and answers questions about them. Errors are those of `MarketProvider`.

    Every call ends within its limit: `answer` within `answer_timeout_s`, the others within `resolve_timeout_s`. After
    that, it raises `Unavailable`, unless a cache has a usable answer.
    """

    def __init__(
        self,
        provider: MarketProvider,
        caches: Sequence[AnswerCache] = (),
        *,
        max_stale: timedelta = MAX_STALE,
        resolve_timeout_s: float = RESOLVE_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._provider = provider
        self._resolve_timeout_s = resolve_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._fetching = Fetching(
            provider,
            caches,
            max_stale=max_stale,
            resolve_timeout_s=resolve_timeout_s * _FETCH_SHARE,
            fetch_timeout_s=answer_timeout_s * _FETCH_SHARE,
        )

    @property
    def source(self) -> str:
        """The name of the source of all figures."""
        return self._provider.source

    async def equity(self, symbol: str, market: str = "US") -> Instrument:
        """The equity or index with this symbol."""
        async with answer_within(self._resolve_timeout_s, self.source):
            return (await self._fetching.instrument(symbol, AssetKind.EQUITY, market=market)).value

    async def coin(self, symbol: str, exchange: str | None = None, pair: str = "USD") -> Instrument:
        """The coin with this symbol; if no exchange is named, the provider chooses one."""
        async with answer_within(self._resolve_timeout_s, self.source):
            return (await self._fetching.instrument(symbol, AssetKind.COIN, exchange=exchange, pair=pair)).value

    async def find(self, symbol: str) -> Instrument | None:
        """The instrument with this symbol, an equity or index before a coin; `None` if there is none."""
        async with answer_within(self._resolve_timeout_s, self.source):
            return await self._find(symbol)

    async def search(self, text: str, *, limit: int = 10) -> list[Instrument]:
        """Instruments whose symbol or name contains `text`, the nearest first."""
        async with answer_within(self._resolve_timeout_s, self.source):
            return await self._provider.search(text, limit=limit)

    async def answer(
        self, instrument: Instrument, depth: Depth, others: Sequence[Instrument | str] = ()
    ) -> MarketAnswer:
        """Answer a question about an instrument; only a deep answer compares it with `others`.

        Symbols among the others are looked up as by `find`; for a coin, coins in its currency come first, then other
        coins. The instrument itself and repetitions are skipped. If the source doesn't have one of the others, doesn't
        answer about it, or has fewer than 2 common dates, that is not an error: `not_compared` says why.
        """
        async with answer_within(self._answer_timeout_s, self.source):
            if depth is Depth.QUICK:
                return _answer(await self._fetching.quote(instrument))
            started_ms = clock.stopwatch()
            quote, bars, fundamentals = await asyncio.gather(
                self._fetching.quote(instrument),
                self._fetching.bars(instrument),
                self._fetching.fundamentals(instrument),
            )
            # Only now, since a source that keeps to a slow pace may not have the time for all.
            left_s = self._answer_timeout_s * _OTHER_SHARE - started_ms() / 1000
            compared = await self._others(instrument, others if depth is Depth.DEEP else (), left_s)
        with _translated(self.source):
            found = {
                _symbol(other): its if isinstance(its, str) else _compare(bars.value, its.value, other)
                for other, its in compared
            }
            deliveries = {f"bars:{_symbol(other)}": its.delivery for other, its in compared if not isinstance(its, str)}
            return _answer(quote, bars, fundamentals, found, deliveries)

    async def aclose(self) -> None:
        """Close the source's connections and the caches."""
        await self._fetching.aclose()
        await self._provider.aclose()

    async def _find(self, symbol: str, like: Instrument | None = None) -> Instrument | None:
        """The instrument with this symbol; if it is to be like a coin, coins in its currency come first."""
        choices = [(AssetKind.EQUITY, _PAIR), (AssetKind.COIN, _PAIR)]
        if like is not None and like.kind is AssetKind.COIN:
            choices = [(AssetKind.COIN, like.currency), *reversed(choices)]
        for kind, pair in dict.fromkeys(choices):
            try:
                return (await self._fetching.instrument(symbol, kind, pair=pair)).value
            except (InvalidInput, NotSupported):
                continue
        return None

    async def _others(
        self, instrument: Instrument, others: Sequence[Instrument | str], within_s: float
    ) -> list[tuple[Instrument | str, Fetched[Bars] | str]]:
        """The others, each with its bars or why it has none."""
        wanted = [other for other in dict.fromkeys(others) if _symbol(other) != instrument.symbol]
        found = await asyncio.gather(*(self._other(other, instrument, within_s) for other in wanted))
        return [(other, bars) for other, bars in dict(found).items() if _symbol(other) != instrument.symbol]

    async def _other(
        self, other: Instrument | str, like: Instrument, within_s: float
    ) -> tuple[Instrument | str, Fetched[Bars] | str]:
        try:
            # Less than the whole time, so that one slow comparison doesn't make the whole answer late.
            async with asyncio.timeout(within_s):
                instrument = await self._find(other, like) if isinstance(other, str) else other
                if instrument is None:
                    return other, f"not in the {self.source} data"
                return instrument, await self._fetching.bars(instrument)
        except SymbolNotFound as exc:
            return other, f"not in the {exc.source} data"
        except NotSupported as exc:
            return other, str(exc)
        except Unavailable as exc:
            return other, f"{NOT_NOW}: {exc}"
        except TimeoutError:
            return other, f"{NOT_NOW}: no answer in time"


def market_source(settings: Settings) -> str:
    """The source of the market's figures, `sample` or `live`; nothing is opened.

    Raises:
        MissingExtra: FIML_MARKET_DATA is `live`, and no live source is installed.
    """
    if settings.market_data is MarketData.SAMPLE:
        return SOURCE
    from fiml.market.providers.live import live_extras  # noqa: PLC0415 - the sample doesn't need it

    if live_extras():
        return LIVE
    if settings.market_data is MarketData.LIVE:
        raise MissingExtra("live market data of stocks (of coins: 'fiml[ccxt]')", "yahoo")
    return SOURCE


def open_market(settings: Settings) -> MarketService:
    """The market that FIML_MARKET_DATA names; `auto` is live if a live source is installed, else the sample.

    Nothing is connected before the first question.

    Raises:
        MissingExtra: as `market_source`.
    """
    if market_source(settings) == SOURCE:
        return MarketService(SampleProvider())
    from fiml.market.providers.live import open_live  # noqa: PLC0415 - as above

    max_stale = timedelta(hours=settings.market_max_stale_hours)
    return MarketService(open_live(), open_caches(settings), max_stale=max_stale)


def _answer(
    quote: Fetched[Quote],
    bars: Fetched[Bars] | None = None,
    fundamentals: Fetched[Fundamentals] | None = None,
    compared: Mapping[str, Comparison | str] = MappingProxyType({}),
    deliveries: Mapping[str, Delivery] = MappingProxyType({}),
) -> MarketAnswer:
    parts = {"quote": quote, "bars": bars, "fundamentals": fundamentals}
    return MarketAnswer(
        quote=quote.value,
        delivery={name: part.delivery for name, part in parts.items() if part is not None} | dict(deliveries),
        technicals=None if bars is None else technicals(bars.value, quote.value.kind),
        fundamentals=None if fundamentals is None else fundamentals.value,
        comparisons=[found for found in compared.values() if isinstance(found, Comparison)],
        not_compared={symbol: found for symbol, found in compared.items() if isinstance(found, str)},
    )


@contextmanager
def _translated(source: str) -> Iterator[None]:
    """Raise `BadData` if computing with a source's figures fails: such numbers can't be real prices."""
    try:
        yield
    except (ValueError, ArithmeticError) as exc:  # pydantic's refusal of an infinite figure is a ValueError
        raise BadData(source, f"{type(exc).__name__} in figures computed from it") from exc


def _compare(bars: Bars, its: Bars, other: Instrument | str) -> Comparison | str:
    comparison = compare(bars, its)
    if comparison.overlap_days < 2:
        return f"too few common dates: {_span(bars)}, {_span(its)}"
    return comparison.model_copy(update={"other_is": _identity(other, its)})


def _identity(other: Instrument | str, bars: Bars) -> str | None:
    """What a symbol stands for: `LTC` is a coin, and the stock of a company."""
    if isinstance(other, str):
        return None
    told = (other.name, other.kind.value, other.exchange, f"in {other.currency}", f"source {bars.source}")
    return ", ".join(part for part in told if part is not None)


def _symbol(other: Instrument | str) -> str:
    return other if isinstance(other, str) else other.symbol


def _span(bars: Bars) -> str:
    return f"{bars.symbol} has {bars.bars[0].date} to {bars.as_of}"
