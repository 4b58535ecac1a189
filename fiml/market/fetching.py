"""Parts of answers, from a cache if they are current there, else from the provider; each is fetched once at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from fiml.cache.entries import AnswerCache, CacheEntry, cache_key
from fiml.cache.forgiving import ForgivingCache
from fiml.core import clock
from fiml.core.deadlines import answer_within
from fiml.core.errors import BadData, SymbolNotFound, Unavailable
from fiml.core.log import get_logger
from fiml.core.observe import Counted, Timed, count, observed
from fiml.market.cached_values import NotFound, decode, encode
from fiml.market.freshness import NO_FUNDAMENTALS_LIFE, NOT_FOUND_LIFE, Part, fresh_until
from fiml.market.models import AssetKind, Bars, Delivery, Fundamentals, Instrument, Quote, age_s
from fiml.market.providers.base import SAMPLE, MarketProvider, to_symbol

MAX_STALE = timedelta(hours=24)
RESOLVE_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 8.0

Value = TypeVar("Value")
_Layer = Literal["provider", "l1", "l2"]
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError)
_log = get_logger()

_INSTRUMENT = TypeAdapter(Instrument)
_QUOTE = TypeAdapter(Quote)
_BARS = TypeAdapter(Bars)
_FUNDAMENTALS = TypeAdapter(Fundamentals)


@dataclass(frozen=True, slots=True)
class Fetched(Generic[Value]):
    """A part of an answer, and where it came from."""

    value: Value
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class _Found(Generic[Value]):
    """A cached value."""

    value: Value | NotFound
    entry: CacheEntry
    layer: _Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted(Generic[Value]):
    """One question to the provider."""

    key: str
    part: Part
    instrument: Instrument | None
    adapter: TypeAdapter[Value]
    timeout_s: float
    ask: Callable[[], Awaitable[Value]]


class Fetching:
    """Asks the caches in order, then the provider, whose answer is put into all caches.

    Callers that ask for the same thing at the same time share one fetch, which continues even if they are cancelled. If
    a provider fails or doesn't answer in time, its last answer is returned, marked `is_stale`, until `max_stale` after
    it was current; so if it no longer knows a symbol that it had figures of. That a symbol doesn't exist is remembered
    for a minute, in the first cache. The sample is never cached.

    Raises, besides what `MarketProvider` raises:
        Unavailable: the provider didn't answer in time, and there is no usable answer in a cache.
    """

    def __init__(
        self,
        provider: MarketProvider,
        caches: Sequence[AnswerCache] = (),
        *,
        max_stale: timedelta = MAX_STALE,
        resolve_timeout_s: float = RESOLVE_TIMEOUT_S,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self._provider = provider
        self._caches = tuple(map(_forgiving, caches)) if provider.source != SAMPLE else ()
        self._max_stale = max_stale
        self._resolve_timeout_s = resolve_timeout_s
        self._fetch_timeout_s = fetch_timeout_s
        self._flights: dict[str, asyncio.Task[Any]] = {}

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Fetched[Instrument]:
        """As the provider's `instrument`."""
        names = [to_symbol(symbol), kind.value, *(_folded(name) for name in (market, exchange, pair))]
        return await self._fetch(
            _Wanted(
                key=cache_key(self._provider.source, Part.INSTRUMENT, *names),
                part=Part.INSTRUMENT,
                instrument=None,
                adapter=_INSTRUMENT,
                timeout_s=self._resolve_timeout_s,
                ask=lambda: self._provider.instrument(symbol, kind, market=market, exchange=exchange, pair=pair),
            )
        )

    async def quote(self, instrument: Instrument) -> Fetched[Quote]:
        """As the provider's `quote`."""
        return await self._fetch_part(Part.QUOTE, instrument, _QUOTE, self._provider.quote)

    async def bars(self, instrument: Instrument) -> Fetched[Bars]:
        """As the provider's `bars`."""
        return await self._fetch_part(Part.BARS, instrument, _BARS, self._provider.bars)

    async def fundamentals(self, instrument: Instrument) -> Fetched[Fundamentals]:
        """As the provider's `fundamentals`."""
        return await self._fetch_part(Part.FUNDAMENTALS, instrument, _FUNDAMENTALS, self._provider.fundamentals)

    async def aclose(self) -> None:
        """Cancel the fetches under way, whose callers get `Unavailable`, and close the caches."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        for one in self._caches:
            await one.aclose()

    async def _fetch_part(
        self,
        part: Part,
        instrument: Instrument,
        adapter: TypeAdapter[Value],
        ask: Callable[[Instrument], Awaitable[Value]],
    ) -> Fetched[Value]:
        names = (instrument.kind.value, instrument.symbol, instrument.exchange, instrument.currency)
        return await self._fetch(
            _Wanted(
                key=cache_key(self._provider.source, part, *names),
                part=part,
                instrument=instrument,
                adapter=adapter,
                timeout_s=self._fetch_timeout_s,
                ask=lambda: ask(instrument),
            )
        )

    async def _fetch(self, wanted: _Wanted[Value]) -> Fetched[Value]:
        flight = self._flights.get(wanted.key)
        if flight is None:
            flight = self._begin(wanted.key, self._find(wanted))
        try:
            fetched = cast("Fetched[Value]", await asyncio.shield(flight))
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if flight.cancelled() and not (caller and caller.cancelling()):
                raise Unavailable(self._provider.source, "the market service was closed during the call") from None
            raise
        delivery = fetched.delivery
        count(Counted.MARKET_ANSWERS, delivery.layer, str(delivery.is_stale).lower())
        return fetched

    def _begin(self, key: str, work: Coroutine[Any, Any, Fetched[Value]]) -> asyncio.Task[Fetched[Value]]:
        flight = asyncio.create_task(work, name=f"fiml-fetch-{key}")
        self._flights[key] = flight
        flight.add_done_callback(partial(self._end, key))
        return flight

    def _end(self, key: str, flight: asyncio.Task[Any]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # retrieved here, in case all callers were cancelled

    async def _find(self, wanted: _Wanted[Value]) -> Fetched[Value]:
        kept = await self._look(wanted)
        if kept is not None and kept.entry.is_current:
            return _delivered(kept, is_stale=False)
        last = kept if kept is not None and self._is_usable(kept) else None
        try:
            return await self._ask(wanted)
        except (Unavailable, SymbolNotFound) as exc:
            # A symbol that had figures a while ago exists: it is the provider that is wrong.
            if isinstance(exc, SymbolNotFound) and (last is None or wanted.instrument is None):
                await self._put_absence(exc, wanted)
                raise
            if last is None:
                raise
            # Not the error's message, which may name the symbol: the log doesn't say what was asked.
            known_at = clock.to_iso(last.entry.known_at)
            _log.warning("stale_answer_given", part=wanted.part.value, known_at=known_at, code=exc.code)
            return _delivered(last, is_stale=True)

    async def _look(self, wanted: _Wanted[Value]) -> _Found[Value] | None:
        """The current answer of the first cache that has one, else the one that was learnt last."""
        last: _Found[Value] | None = None
        for position, one in enumerate(self._caches):
            entry = await one.get(wanted.key)
            found = None if entry is None else _read(wanted, entry, one.layer)
            if found is None:
                continue
            if found.entry.is_current:
                await _put(self._caches[:position], wanted.key, found.entry)
                return found
            if last is None or found.entry.known_at > last.entry.known_at:
                last = found
        return last

    async def _ask(self, wanted: _Wanted[Value]) -> Fetched[Value]:
        value = await self._answer(wanted)
        now = clock.now()
        if not self._caches:
            until = None if self._provider.source == SAMPLE else now
            return Fetched(value, _delivery("provider", now, until, is_stale=False))
        until = await fresh_until(wanted.part, wanted.instrument, now)
        if isinstance(value, Fundamentals) and value.is_empty:
            until = min(until, now + NO_FUNDAMENTALS_LIFE)  # perhaps the provider just had none at that moment
        await _put(self._caches, wanted.key, self._entry(value, wanted, known_at=now, until=until))
        return Fetched(value, _delivery("provider", now, until, is_stale=False))

    async def _put_absence(self, error: SymbolNotFound, wanted: _Wanted[Value]) -> None:
        now = clock.now()
        # Only in the first cache: the answer is useless after a minute, and not worth a write to the database.
        entry = self._entry(NotFound.of(error), wanted, known_at=now, until=now + NOT_FOUND_LIFE)
        await _put(self._caches[:1], wanted.key, entry)

    async def _answer(self, wanted: _Wanted[Value]) -> Value:
        try:
            with observed(Timed.FETCH, wanted.part):
                return await self._in_time(wanted)
        except Unavailable as exc:
            count(Counted.PROVIDER_ERRORS, self._provider.source, exc.code)
            raise

    async def _in_time(self, wanted: _Wanted[Value]) -> Value:
        try:
            async with answer_within(wanted.timeout_s, self._provider.source):
                return await wanted.ask()
        except ValidationError as exc:  # figures that fit no answer, such as an infinite change
            raise BadData(self._provider.source, f"{exc.error_count()} figures are invalid") from exc
        except _UNREADABLE as exc:  # what the provider's code raises if an answer isn't what it expects
            _log.exception("answer_unreadable", part=wanted.part.value)
            raise BadData(self._provider.source, f"the answer can't be read ({type(exc).__name__})") from exc

    def _entry(
        self, value: Value | NotFound, wanted: _Wanted[Value], *, known_at: datetime, until: datetime
    ) -> CacheEntry:
        keep_until = until if isinstance(value, NotFound) else until + self._max_stale
        return CacheEntry(encode(value, wanted.adapter), known_at, fresh_until=until, keep_until=keep_until)

    def _is_usable(self, found: _Found[Value]) -> bool:
        """Whether a stale answer may be used; the process that wrote it may have had another `max_stale`."""
        entry = found.entry
        until = min(entry.keep_until, entry.fresh_until + self._max_stale)
        return not isinstance(found.value, NotFound) and clock.now() < until


def _forgiving(given: AnswerCache) -> AnswerCache:
    return given if isinstance(given, ForgivingCache) else ForgivingCache(given.layer, lambda: given)


async def _put(caches: Sequence[AnswerCache], key: str, entry: CacheEntry) -> None:
    await asyncio.gather(*(one.put(key, entry) for one in caches))


def _read(wanted: _Wanted[Value], entry: CacheEntry, layer: _Layer) -> _Found[Value] | None:
    try:
        value = decode(entry.value, wanted.adapter)
    except ValueError as exc:
        _log.warning("cache_value_damaged", layer=layer, part=wanted.part.value, problem=type(exc).__name__)
        return None
    return _Found(value, entry, layer)


def _delivered(found: _Found[Value], *, is_stale: bool) -> Fetched[Value]:
    if isinstance(found.value, NotFound):
        raise found.value.error()
    entry = found.entry
    return Fetched(found.value, _delivery(found.layer, entry.known_at, entry.fresh_until, is_stale=is_stale))


def _delivery(layer: _Layer, known_at: datetime, until: datetime | None, *, is_stale: bool) -> Delivery:
    age = age_s(known_at, clock.now())
    return Delivery(layer=layer, known_at=known_at, fresh_until=until, is_stale=is_stale, age_seconds=age)


def _folded(name: str | None) -> str | None:
    return None if name is None else name.strip().upper()
