"""Asks a session's questions again: which figures have changed, and which conclusions rest on them."""

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from fiml.analysis import Question, resolve
from fiml.core import clock
from fiml.core.errors import FimlError, InvalidInput, echo
from fiml.market.models import AssetKind, Depth, MarketAnswer
from fiml.market.service import NOT_NOW, MarketService
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.notes import Note, NoteKind, notes_in

DEFAULT_TOLERANCE = 0.01
MAX_TOLERANCE = 10.0
_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A figure that changed by more than the tolerance.

    `change` is relative to the size of the old figure, so that it is positive if the figure rose; `None` if it can't be
    computed.
    """

    figure: str
    then: float
    now: float | None
    change: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedQuery:
    """A record and today's answer; `problem` says why there is no answer, or why figures can't be compared."""

    record_id: UUID
    symbol: str | None
    asked_at: str
    source_then: str | None
    source_now: str | None
    as_of_then: str | None
    as_of_now: str | None
    compared: int
    drifts: list[Drift]
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "record_id": str(self.record_id)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShakenConclusion:
    """A conclusion that cites records with changed figures, directly or through other notes."""

    note: Note
    records: list[UUID]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": str(self.note.id),
            "text": self.note.text,
            "records": [str(record_id) for record_id in self.records],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What became of a session's figures, in the order of the queries."""

    session_id: UUID
    tolerance: float
    queries: list[ReplayedQuery]
    conclusions: list[ShakenConclusion]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "session_id": str(self.session_id),
            "tolerance": self.tolerance,
            "queries": [query.to_dict() for query in self.queries],
            "conclusions": [conclusion.to_dict() for conclusion in self.conclusions],
        }


async def replay(session: Session, *, market: MarketService, tolerance: float = DEFAULT_TOLERANCE) -> Replay:
    """Ask the questions of a session again, and compare figure by figure. Nothing is written.

    The session must have been read whole. A question with several records is asked once. `tolerance` is relative: 0.01
    allows a figure to change by one per cent.

    Raises:
        InvalidInput: the tolerance is not a number from 0 to 10.
    """
    if not _is_number(tolerance) or not 0 <= tolerance <= MAX_TOLERANCE:
        raise InvalidInput("tolerance", f"is {echo(tolerance)}", "give a fraction from 0 to 10, such as 0.01")
    questions = {query.id: _question(query) for query in session.state.history.queries}
    wanted = [question for question in dict.fromkeys(questions.values()) if question is not None]
    answers = dict(zip(wanted, await _ask_all(wanted, market), strict=True))
    replayed = [
        _compare(query, None if (question := questions[query.id]) is None else answers[question], tolerance)
        for query in session.state.history.queries
    ]
    return Replay(
        session_id=session.id,
        tolerance=float(tolerance),
        queries=replayed,
        conclusions=_shaken(notes_in(session.state.context), replayed),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that can be asked again, and the symbols with which its answer was compared."""

    question: Question
    others: tuple[str, ...]


def _question(query: QueryRecord) -> _Asked | None:
    given = query.parameters
    symbol, depth = query.symbol, given.get("depth")
    if symbol is None or not isinstance(depth, str) or depth not in list(Depth) or not query.figures:
        return None
    others = tuple(dict.fromkeys(other for name in query.figures if (other := name.partition(":")[2])))
    if isinstance(given.get("pair"), str):
        exchange = given.get("exchange")
        named = exchange if isinstance(exchange, str) else None
        question = Question(symbol=symbol, kind=AssetKind.COIN, depth=Depth(depth), exchange=named, pair=given["pair"])
    else:
        question = Question(symbol=symbol, depth=Depth(depth), market=str(given.get("market", "US")))
    return _Asked(question, others)


async def _ask_all(wanted: Sequence[_Asked], market: MarketService) -> list[MarketAnswer | FimlError]:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def ask(asked: _Asked) -> MarketAnswer | FimlError:
        async with slots:
            try:
                return await _answer(asked, market)
            except FimlError as exc:
                return exc

    return await asyncio.gather(*map(ask, wanted))


async def _answer(asked: _Asked, market: MarketService) -> MarketAnswer:
    instrument = await resolve(asked.question, market)
    return await market.answer(instrument, asked.question.depth, asked.others)


def _compare(query: QueryRecord, answer: MarketAnswer | FimlError | None, tolerance: float) -> ReplayedQuery:
    drifts: list[Drift] = []
    compared, problem = 0, None
    if answer is None:
        problem = f"it failed then: {query.error}" if query.error else "it holds no figures that can be asked for again"
    elif isinstance(answer, FimlError):
        problem = str(answer)
    elif query.currency is not None and query.currency != answer.quote.currency:
        problem = f"the currency was {query.currency} and is {answer.quote.currency}: nothing is compared"
    else:
        now = answer.figures
        away = [other for other, reason in answer.not_compared.items() if reason.startswith(NOT_NOW)]
        figures = {name: then for name, then in query.figures.items() if name.partition(":")[2] not in away}
        compared = len(figures)
        drifts = [drift for name, then in figures.items() if (drift := _drift(name, then, now.get(name), tolerance))]
        problem = "; ".join(_doubts(query, answer, away)) or None
    answered = answer if isinstance(answer, MarketAnswer) else None
    return ReplayedQuery(
        record_id=query.id,
        symbol=query.symbol,
        asked_at=clock.to_iso(query.timestamp),
        source_then=query.provider,
        source_now=None if answered is None else answered.quote.source,
        as_of_then=None if query.as_of is None else str(query.origin()["as_of"]),
        as_of_now=None if answered is None else answered.quote.as_of.isoformat(),
        compared=compared,
        drifts=drifts,
        problem=problem,
    )


def _doubts(query: QueryRecord, answer: MarketAnswer, away: list[str]) -> Iterator[str]:
    if query.adjustment is not None and query.adjustment != answer.quote.adjustment:
        yield f"past prices were adjusted for {query.adjustment}, now for {answer.quote.adjustment}"
    if away:
        yield f"can't be compared now with {', '.join(away)}"
    if stale := [part.known_at for part in answer.delivery.values() if part.is_stale]:
        yield f"the market doesn't answer: stale figures, known {clock.to_iso(min(stale))}"


def _drift(figure: str, then: float, now: float | None, tolerance: float) -> Drift | None:
    if now is None:
        return Drift(figure=figure, then=then, now=None, change=None)
    if math.isclose(now, then, rel_tol=0, abs_tol=tolerance * abs(then)):
        return None
    change = None if then == 0 else (now - then) / abs(then)
    return Drift(figure=figure, then=then, now=now, change=change if change is None or math.isfinite(change) else None)


def _shaken(notes: Iterable[Note], replayed: Iterable[ReplayedQuery]) -> list[ShakenConclusion]:
    moved = {query.record_id for query in replayed if query.drifts}
    by_id = {note.id: note for note in notes}
    found = []
    for note in by_id.values():
        records = sorted(_records_under(note, by_id) & moved)
        if note.kind is NoteKind.CONCLUSION and records:
            found.append(ShakenConclusion(note=note, records=records))
    return found


def _records_under(note: Note, by_id: dict[UUID, Note]) -> set[UUID]:
    """All records that a note cites, directly or through other notes."""
    seen: set[UUID] = set()
    left = list(note.cites)
    while left:
        cited = left.pop()
        if cited not in seen:
            seen.add(cited)
            left += by_id[cited].cites if cited in by_id else ()
    return seen
