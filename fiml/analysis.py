"""A question asked within a session: the market's answer, the record of it, and what changed since the last look."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError

from fiml.core import clock
from fiml.core.errors import (
    CorruptRecord,
    InvalidInput,
    SessionFull,
    Unavailable,
)
from fiml.market.models import AssetKind, Depth, Instrument, MarketAnswer
from fiml.market.service import MarketService
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionVerbs, refuse_unless_live
from fiml.sessions.values import parse_session_id

MAX_COMPARED = 10
_DEPTHS = list(Depth)
_SECTIONS = ("quote", "technicals", "fundamentals")
_UNTRACKABLE = (SessionFull, Unavailable, InvalidInput, CorruptRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: an equity or index in a `market`, or a coin on an `exchange` against `pair`."""

    symbol: str
    kind: AssetKind = AssetKind.EQUITY
    depth: Depth = Depth.STANDARD
    market: str = "US"
    exchange: str | None = None
    pair: str = "USD"

    def parameters(self, instrument: Instrument) -> dict[str, Any]:
        """What the record of the query says was asked."""
        place = {"exchange": instrument.exchange, "pair": self.pair} if self.kind is AssetKind.COIN else {}
        market = {} if place else {"market": self.market}
        return {"symbol": instrument.symbol, **market, **place, "depth": self.depth.value}


class FigureChange(BaseModel):
    """A figure that differs from the last look."""

    figure: str
    before: float | str | None
    now: float | str | None


class SinceLastLook(BaseModel):
    """What is different since the session last looked at the symbol."""

    looked_at: datetime
    as_of_then: str = Field(description="market date of the figures at the last look")
    changed: list[FigureChange]
    new_sections: list[str] = Field(description="parts of the answer that the last look didn't have")
    summary: str


class Answer(BaseModel):
    """The market's answer, and what became of it in the session."""

    market: MarketAnswer
    depth: Depth
    not_compared_count: int = Field(0, description="assets of the session beyond the most that one answer compares")
    cache_hit: bool = False
    tracked: bool = False
    reason: str | None = Field(None, description="why the question is not in a session's history")
    session_id: UUID | None = None
    total_queries: int | None = None
    since_last_look: SinceLastLook | None = None


class _Held(BaseModel):
    """What a session keeps of its last look at a symbol, as an intermediate result."""

    kind: AssetKind
    depth: Depth
    looked_at: datetime
    compared_with: list[str]
    answer: MarketAnswer

    def answers(self, question: Question, instrument: Instrument, others: list[str]) -> bool:
        """Whether it holds every figure that is asked for. Figures of the sample are always current."""
        is_deep_enough = _DEPTHS.index(self.depth) >= _DEPTHS.index(question.depth)
        is_compared = question.depth is not Depth.DEEP or set(self.compared_with) == set(others)
        is_same = self.kind is instrument.kind and self.answer.quote.exchange == instrument.exchange
        return is_same and is_deep_enough and is_compared and self.answer.quote.source == "sample"


async def ask(
    question: Question,
    *,
    market: MarketService,
    sessions: SessionVerbs | None = None,
    session_id: UUID | str | None = None,
) -> Answer:
    """Answer a question; within a session, from what it holds where that suffices, and record it there.

    Two round trips to the store: one reads what the session knows, one records.

    Raises:
        InvalidInput: the symbol or another argument is not valid; nothing is recorded.
        SessionNotFound, SessionExpired, SessionArchived: the session can't take a question.
        Unavailable: the market is away. (A store that is away leaves the question unrecorded, and says so.)
    """
    instrument = await _instrument(question, market)
    if sessions is None or session_id is None:
        answer = await market.answer(instrument, question.depth)
        return Answer(market=answer, depth=question.depth, reason="no session was named")
    parsed = parse_session_id(session_id)
    try:
        session = refuse_unless_live(parsed, await sessions.get_session(parsed, recent_queries=0))
    except (Unavailable, CorruptRecord) as exc:
        answer = await market.answer(instrument, question.depth)
        return Answer(market=answer, depth=question.depth, session_id=parsed, reason=str(exc))
    return await _ask_in_session(question, instrument, market, sessions, session)


async def _ask_in_session(
    question: Question, instrument: Instrument, market: MarketService, sessions: SessionVerbs, session: Session
) -> Answer:
    elapsed_ms = clock.stopwatch()
    others = [asset for asset in session.assets if asset.upper() != instrument.symbol]
    compared = others[:MAX_COMPARED] if question.depth is Depth.DEEP else []
    held = _held(session, instrument.symbol)
    is_hit = held is not None and held.answers(question, instrument, compared)
    if held is not None and is_hit:
        found = _as_deep_as(held.answer, question.depth)
    else:
        found = await _answer(market, instrument, question.depth, compared)
    answer = Answer(
        market=found,
        depth=question.depth,
        not_compared_count=len(others) - len(compared) if question.depth is Depth.DEEP else 0,
        cache_hit=is_hit,
        session_id=session.id,
        since_last_look=None if held is None else _since(held, found),
    )
    query = QueryRecord(
        query_type=query_type(found),
        parameters=question.parameters(instrument),
        result_summary=summarize(found),
        execution_time_ms=round(elapsed_ms(), 3),
        cache_hit=is_hit,
    )
    holding = _holding(held if is_hit else None, question, instrument, found, compared)
    return await _track(answer, query, sessions, holding)


async def _track(answer: Answer, query: QueryRecord, sessions: SessionVerbs, holding: _Held) -> Answer:
    assert answer.session_id is not None  # noqa: S101 - only a question within a session is tracked
    symbol = holding.answer.quote.symbol
    try:
        totals = await sessions.record_query(
            answer.session_id,
            query,
            context={"last_symbol": symbol, "last_query_type": query.query_type},
            intermediate_results={result_key(symbol): holding.model_dump(mode="json")},
        )
    except _UNTRACKABLE as exc:
        return answer.model_copy(update={"reason": str(exc)})
    return answer.model_copy(update={"tracked": True, "total_queries": totals.total_queries})


def result_key(symbol: str) -> str:
    """Under which key of the intermediate results a session keeps its last answer on a symbol."""
    return f"answer:{symbol}"


def query_type(answer: MarketAnswer) -> str:
    """The deepest part that was answered: `price`, `fundamentals`, `technical` or `comparative`."""
    if answer.comparisons:
        return "comparative"
    if answer.technicals is not None:
        return "technical"
    return "price" if answer.fundamentals is None else "fundamentals"


def summarize(answer: MarketAnswer) -> str:
    """One line with the price, its currency, date and source, as the history shows it."""
    quote = answer.quote
    change = "" if quote.change_percent is None else f" ({quote.change_percent:+.2f}%)"
    line = f"{quote.symbol}: {quote.price_label} {quote.price:,.2f} {quote.currency}{change}, {quote.as_of}"
    compared = f"; compared with {', '.join(c.other for c in answer.comparisons)}" if answer.comparisons else ""
    return f"{line}, source {quote.source}{compared}"


async def _instrument(question: Question, market: MarketService) -> Instrument:
    if question.kind is AssetKind.COIN:
        return await market.coin(question.symbol, question.exchange, question.pair)
    return await market.equity(question.symbol, question.market)


async def _answer(market: MarketService, instrument: Instrument, depth: Depth, compared: list[str]) -> MarketAnswer:
    others = {name: await market.find(name) for name in compared}
    answer = await market.answer(instrument, depth, [other for other in others.values() if other is not None])
    unknown = {name: f"not in the {market.source} data" for name, other in others.items() if other is None}
    return answer.model_copy(update={"not_compared": {**answer.not_compared, **unknown}})


def _held(session: Session, symbol: str) -> _Held | None:
    stored = session.state.get_intermediate_result(result_key(symbol))
    if stored is None:
        return None
    try:
        return _Held.model_validate_json(json.dumps(stored))
    except ValidationError:
        # Somebody else's value, or another version's: as if the session had not looked yet.
        return None


def _holding(
    hit: _Held | None, question: Question, instrument: Instrument, found: MarketAnswer, compared: list[str]
) -> _Held:
    if hit is not None:
        return hit.model_copy(update={"looked_at": clock.now()})
    return _Held(
        kind=instrument.kind, depth=question.depth, looked_at=clock.now(), compared_with=compared, answer=found
    )


def _as_deep_as(answer: MarketAnswer, depth: Depth) -> MarketAnswer:
    if depth is Depth.DEEP:
        return answer
    without: dict[str, Any] = {"comparisons": [], "not_compared": {}}
    if depth is Depth.QUICK:
        without |= {"technicals": None, "fundamentals": None}
    return answer.model_copy(update=without)


def _since(held: _Held, now: MarketAnswer) -> SinceLastLook:
    before = held.answer.model_dump(mode="json")
    after = now.model_dump(mode="json")
    shared = [name for name in _SECTIONS if before[name] is not None and after[name] is not None]
    changed = [change for name in shared for change in _section_changes(name, before[name], after[name])]
    new = [name for name in _SECTIONS if before[name] is None and after[name] is not None]
    new += ["comparisons"] if now.comparisons and not held.answer.comparisons else []
    as_of = held.answer.quote.as_of.isoformat()
    count = f"{len(changed)} figure{'s' if len(changed) > 1 else ''} changed"
    summary = count if changed else f"no figure changed; the market date is {as_of} still"
    summary += f"; new: {', '.join(new)}" if new else ""
    return SinceLastLook(looked_at=held.looked_at, as_of_then=as_of, changed=changed, new_sections=new, summary=summary)


def _section_changes(section: str, before: dict[str, Any], now: dict[str, Any]) -> list[FigureChange]:
    names = [name for name in now if name != "missing" and before.get(name) != now[name]]
    return [FigureChange(figure=f"{section}.{name}", before=before.get(name), now=now[name]) for name in names]
