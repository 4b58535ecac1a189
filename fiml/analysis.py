"""A question asked within a session: the market's answer, the record of it, and what changed since the last look."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4, uuid5

from pydantic import Field

from fiml.core import clock
from fiml.core.deadlines import answer_within
from fiml.core.errors import (
    CorruptRecord,
    FimlError,
    InvalidInput,
    Misconfigured,
    NotSupported,
    SessionFull,
    Unavailable,
    Unconfirmed,
    echo,
)
from fiml.core.log import get_logger
from fiml.core.model import Model
from fiml.looks import Held, SinceLastLook, as_deep_as, held_in, holding, result_key, since
from fiml.market.models import AssetKind, Comparison, Depth, Instrument, MarketAnswer
from fiml.market.providers.base import SAMPLE
from fiml.market.service import MarketService
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.queries import SESSION_LAYER
from fiml.sessions.values import parse_session_id
from fiml.sessions.verbs import SessionVerbs, refuse_unless_live

_log = get_logger()
Choice = TypeVar("Choice", bound=StrEnum)

MAX_COMPARED = 10
# A repeated `record_id` must be that of the same question, if it is among this many last queries. A query further back
# isn't checked, but isn't recorded twice either.
RECENT_QUERIES = 20
ANSWER_TIMEOUT_S = 17.0
# How long a question waits for a store that hangs: before the market is asked, and beyond its own limit afterwards.
STORE_TIMEOUT_S = 5.0
RECORD_TIMEOUT_S = 2.0
_STORE = "the session store"
_CHOSEN = {"exchange"}
_UNTRACKABLE = (SessionFull, Unavailable, InvalidInput, CorruptRecord, Misconfigured)
_TYPE_OF_DEPTH = {Depth.QUICK: "price", Depth.STANDARD: "technical", Depth.DEEP: "comparative"}
_MAX_FAILURE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question: about an equity or index in a `market`, or a coin on an `exchange`, priced in `pair`."""

    symbol: str
    kind: AssetKind = AssetKind.EQUITY
    depth: Depth = Depth.STANDARD
    market: str = "US"
    exchange: str | None = None
    pair: str = "USD"

    if TYPE_CHECKING:  # the fields have the types that they have afterwards

        def __init__(
            self,
            *,
            symbol: str,
            kind: AssetKind | str = AssetKind.EQUITY,
            depth: Depth | str = Depth.STANDARD,
            market: str = "US",
            exchange: str | None = None,
            pair: str = "USD",
        ) -> None: ...

    def __post_init__(self) -> None:
        """Accept kind and depth also as text.

        Raises:
            InvalidInput: there is no such kind or depth, or another part is no text.
        """
        object.__setattr__(self, "kind", _choice("kind", self.kind, AssetKind))
        object.__setattr__(self, "depth", _choice("depth", self.depth, Depth))
        texts = {"symbol": self.symbol, "market": self.market, "pair": self.pair, "exchange": self.exchange or ""}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise InvalidInput(name, f"is a {type(value).__name__}", "give a string")

    def parameters(self, instrument: Instrument | None) -> dict[str, Any]:
        """The parameters for the query's record, normalized. If the symbol wasn't resolved, as they were asked."""
        symbol = _folded(self.symbol) if instrument is None else instrument.symbol
        if self.kind is AssetKind.COIN:
            exchange = self.exchange if instrument is None else instrument.exchange
            pair = _folded(self.pair) if instrument is None else instrument.currency
            place = {"exchange": exchange, "pair": pair}
        else:
            place = {"market": _folded(self.market)}
        return {"symbol": symbol, **place, "depth": self.depth.value}


def _folded(name: str) -> str:
    return name.strip().upper()


def _choice(field: str, value: object, choices: type[Choice]) -> Choice:
    if isinstance(value, str) and value in choices.__members__.values():
        return choices(value)
    raise InvalidInput(field, f"{echo(value)} is unknown", f"valid values are {', '.join(choices)}")


class Answer(Model):
    """The market's answer, and what became of it in the session."""

    market: MarketAnswer
    depth: Depth
    not_compared_count: int = Field(0, description="assets of the session beyond the most that one answer compares")
    cache_hit: bool = False
    layer: str = Field("provider", description="who answered: the session, a cache (l1, l2) or the provider")
    tracked: bool = False
    record_id: UUID | None = Field(None, description="of the query in the session's history, to be cited")
    reason: str | None = Field(
        None, description="why the question is not in a session's history, may be lost, or is there with other figures"
    )
    session_id: UUID | None = None
    total_queries: int | None = None
    since_last_look: SinceLastLook | None = None


async def ask(
    question: Question,
    *,
    market: MarketService,
    sessions: SessionVerbs | None = None,
    session_id: UUID | str | None = None,
    record_id: UUID | str | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Answer:
    """Answer a question. Within a session, use what the session already knows if that suffices, and record the query.

    Two round trips to the store: one to read the session, one to record. A question that the market fails to answer is
    recorded too, as failed. A question that is repeated with the same `record_id` is recorded once.

    Raises:
        InvalidInput: the symbol or another argument is not valid, `record_id` belongs to another question, or a
            session is named without the store that has it; nothing is recorded.
        SessionNotFound, SessionExpired, SessionArchived: the session takes no queries.
        NotPermitted: the caller may only read the session.
        Misconfigured: this process lacks the key of the session, or a later fiml wrote it.
        Unavailable: no market data, or not within `timeout_s` seconds. (If the store is unavailable, the question is
            answered but not recorded, and `reason` says so.)
        NotSupported: the market has no such figures.
    """
    if not isinstance(question, Question):
        raise InvalidInput("question", f"is a {type(question).__name__}", 'give a Question, as Question(symbol="AAPL")')
    if session_id is None:
        return await _ask_alone(question, market, timeout_s, reason="no session was named")
    if sessions is None:
        raise InvalidInput("sessions", "is missing", "give the store that has the session, or name no session")
    parsed, asked_as = parse_session_id(session_id), _record_id(record_id)
    asked_at, elapsed_ms = clock.now(), clock.stopwatch()
    try:
        async with answer_within(STORE_TIMEOUT_S, _STORE):
            recent = 0 if asked_as is None else RECENT_QUERIES
            session = refuse_unless_live(parsed, await sessions.get_session(parsed, recent_queries=recent))
    except (Unavailable, CorruptRecord) as exc:
        answer = await _ask_alone(question, market, timeout_s - elapsed_ms() / 1000, reason=str(exc))
        return answer.model_copy(update={"session_id": parsed})
    asked = _Asked(question, market, sessions, session, asked_as or uuid4(), timeout_s, asked_at, elapsed_ms)
    try:
        async with answer_within(asked.left_s(), _name_of(market)):
            looked = await _look(question, market, session)
    except (Unavailable, NotSupported) as exc:
        await _record_failure(asked, exc)
        raise
    return await _record(asked, looked)


def _record_id(value: object) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidInput("record id", f"{echo(value)} is not a UUID", "give a UUID, or leave it out") from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that is being asked within a session, and the time it has."""

    question: Question
    market: MarketService
    sessions: SessionVerbs
    session: Session
    record_id: UUID
    timeout_s: float
    asked_at: datetime
    elapsed_ms: Callable[[], float]

    def left_s(self) -> float:
        """Seconds until the question must be answered."""
        return self.timeout_s - self.elapsed_ms() / 1000

    def recording(self) -> AbstractAsyncContextManager[None]:
        """The time in which the store must have recorded the question."""
        return answer_within(self.left_s() + RECORD_TIMEOUT_S, _STORE)

    def recorded_as(self, parameters: dict[str, Any]) -> QueryRecord | None:
        """The record that the same question has already, among the session's last ones.

        Raises:
            InvalidInput: it is that of another question.
        """
        recorded = next((query for query in self.session.state.history.queries if query.id == self.record_id), None)
        if recorded is None:
            return None
        # Without the exchange of a coin: the source may have chosen it, and may choose another one each time.
        if any(recorded.parameters.get(name) != parameters[name] for name in parameters.keys() - _CHOSEN):
            earlier = f"{recorded.symbol}, {recorded.parameters.get('depth')}"
            raise InvalidInput(
                "request id", f"{self.record_id} was already used for another question ({earlier})", "give a new UUID"
            )
        return recorded


async def _ask_alone(question: Question, market: MarketService, timeout_s: float, *, reason: str) -> Answer:
    async with answer_within(timeout_s, _name_of(market)):
        found = await market.answer(await resolve(question, market), question.depth)
    layer = found.delivery["quote"].layer
    return Answer(market=found, depth=question.depth, cache_hit=_is_cached(found), layer=layer, reason=reason)


def _name_of(market: MarketService) -> str:
    return f"the market ({market.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """The result of looking at an instrument within a session."""

    instrument: Instrument
    found: MarketAnswer
    held: Held | None
    is_hit: bool
    others: list[str]
    compared: list[str]

    @property
    def is_cache_hit(self) -> bool:
        """Whether no provider was asked. A session's first look at a symbol never counts as a cache hit."""
        return self.is_hit or (self.held is not None and _is_cached(self.found))

    @property
    def layer(self) -> str:
        """Who answered: the session, or whoever gave the quote, a cache or the provider."""
        return SESSION_LAYER if self.is_hit else self.found.delivery["quote"].layer


async def _look(question: Question, market: MarketService, session: Session) -> _Look:
    instrument = await resolve(question, market)
    others = [asset for asset in session.assets if asset.upper() != instrument.symbol]
    compared = others[:MAX_COMPARED] if question.depth is Depth.DEEP else []
    held = held_in(session, instrument, is_sample=market.source == SAMPLE)
    is_hit = held is not None and held.answers(question.depth, compared)
    if held is not None and is_hit:
        found = as_deep_as(held.answer, question.depth)
    else:
        found = await market.answer(instrument, question.depth, compared)
    return _Look(instrument=instrument, found=found, held=held, is_hit=is_hit, others=others, compared=compared)


async def _record(asked: _Asked, looked: _Look) -> Answer:
    question, found, held = asked.question, looked.found, looked.held
    parameters = question.parameters(looked.instrument)
    recorded = asked.recorded_as(parameters)
    answer = Answer(
        market=found,
        depth=question.depth,
        not_compared_count=len(looked.others) - len(looked.compared) if question.depth is Depth.DEEP else 0,
        cache_hit=looked.is_cache_hit,
        layer=looked.layer,
        session_id=asked.session.id,
        since_last_look=None if held is None else since(held, found),
    )
    quote = found.quote
    query = QueryRecord(
        id=asked.record_id,
        query_type=query_type(found),
        parameters=parameters,
        result_summary=summarize(found),
        execution_time_ms=round(asked.elapsed_ms(), 3),
        cache_hit=looked.is_cache_hit,
        timestamp=asked.asked_at,
        provider=quote.source,
        as_of=quote.market_time or quote.as_of,
        known_at=_known_at(found),
        currency=quote.currency,
        adjustment=quote.adjustment.value,
        layer=looked.layer,
        figures=found.figures,
    )
    if recorded is not None:
        # What the session stores of its last look stays as well: it belongs to the record.
        if recorded.figures != query.figures:
            told = f"the record is of {clock.to_iso(recorded.timestamp)}, and keeps the figures of then"
            answer = answer.model_copy(update={"reason": told})
        return await _track(asked, answer, query)
    kept = holding(held, question.depth, looked.instrument, found, looked.compared, is_hit=looked.is_hit)
    context = {"last_symbol": quote.symbol, "last_query_type": query.query_type}
    return await _track(asked, answer, query, context, {result_key(quote): kept.model_dump(mode="json")})


def _is_cached(found: MarketAnswer) -> bool:
    return all(part.layer != "provider" and not part.is_stale for part in found.delivery.values())


def _known_at(found: MarketAnswer) -> datetime:
    """When the whole answer was known: the moment when its newest part was learnt."""
    return max((part.known_at for part in found.delivery.values()), default=clock.now())


async def _record_failure(asked: _Asked, error: FimlError) -> None:
    """Record it under an id of its own, so that the question, asked again, can be recorded under its `record_id`."""
    parameters = asked.question.parameters(None)
    query = QueryRecord(
        id=uuid5(asked.record_id, error.code),
        query_type=_TYPE_OF_DEPTH[asked.question.depth],
        parameters=parameters,
        result_summary=f"{parameters['symbol']}: failed: {error}"[:_MAX_FAILURE_CHARACTERS],
        execution_time_ms=round(asked.elapsed_ms(), 3),
        timestamp=asked.asked_at,
        provider=asked.market.source,
        error=error.code,
    )
    session_id = asked.session.id
    try:
        async with asked.recording():
            await asked.sessions.record_query(session_id, query)
    except Unconfirmed as exc:
        _log.warning("failed_query_unconfirmed", session_id=str(session_id), reason=str(exc))
    except _UNTRACKABLE as exc:
        # The caller gets the failure itself; that it couldn't be recorded is only logged.
        _log.warning("failed_query_not_recorded", session_id=str(session_id), reason=str(exc))


async def _track(
    asked: _Asked,
    answer: Answer,
    query: QueryRecord,
    context: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
) -> Answer:
    try:
        async with asked.recording():
            totals = await asked.sessions.record_query(
                asked.session.id, query, context=context, intermediate_results=results
            )
    except Unconfirmed as exc:  # the query is recorded, but the reply with the new totals is missing
        return answer.model_copy(update={"tracked": True, "record_id": query.id, "reason": str(exc)})
    except _UNTRACKABLE as exc:
        return answer.model_copy(update={"reason": str(exc)})
    return answer.model_copy(update={"tracked": True, "record_id": query.id, "total_queries": totals.total_queries})


def query_type(answer: MarketAnswer) -> str:
    """The type of query, by the deepest part of its answer: `price`, `fundamentals`, `technical` or `comparative`."""
    if answer.comparisons:
        return "comparative"
    if answer.technicals is not None:
        return "technical"
    return "price" if answer.fundamentals is None else "fundamentals"


def summarize(answer: MarketAnswer) -> str:
    """A line for the history, with the price, its currency, date and source, and where other parts differ from them."""
    quote = answer.quote
    change = "" if quote.change_percent is None else f" ({quote.change_percent:+.2f}%)"
    line = f"{quote.symbol}: {quote.price_label} {quote.price_text}{change}, {quote.as_of}"
    as_of = quote.as_of if answer.technicals is None else answer.technicals.as_of
    others = [_compared(comparison, as_of) for comparison in answer.comparisons]
    compared = f"; compared with {', '.join(others)}" if others else ""
    stale = "" if answer.stale_since is None else f", stale: known {clock.to_iso(answer.stale_since)}"
    return f"{line}, source {quote.source}{stale}{_unlike_the_price(answer)}{compared}"


def _compared(comparison: Comparison, as_of: date) -> str:
    until = comparison.overlap_to
    return comparison.other if until in (None, as_of) else f"{comparison.other} (until {until})"


def _unlike_the_price(answer: MarketAnswer) -> str:
    """The date of the technicals and the currency of the company's amounts, where the price has another one."""
    quote, technicals, fundamentals = answer.quote, answer.technicals, answer.fundamentals
    told = ""
    if technicals is not None and technicals.as_of != quote.as_of:
        told += f"; technicals of {technicals.as_of}"
    if fundamentals is not None and fundamentals.currency != quote.currency:
        told += f"; market_cap, eps, revenue in {fundamentals.currency}"
    return told


async def resolve(question: Question, market: MarketService) -> Instrument:
    """The instrument that a question is about; errors are those of `MarketProvider.instrument`."""
    if question.kind is AssetKind.COIN:
        return await market.coin(question.symbol, question.exchange, question.pair)
    return await market.equity(question.symbol, question.market)
