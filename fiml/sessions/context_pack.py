"""What a session knows, packed into a budget: lines that name the record they come from.

The order is fixed: assets; conclusions and notes; entries of preferences, context and intermediate results; records.
Notes and records are each ranked by age (0 for the newest) divided by one plus the number of references: citations by
notes, and repetitions of a question with the same figures. Notes get at most two fifths of the budget and entries one
fifth; the records then fill what is left, and whatever room remains after them goes to the notes and entries that were
left out. A record that doesn't fit with all its figures is shown with fewer. Long texts are cut; if there still is room
at the end, they are shown whole.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from fiml.core import clock
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.notes import Note, is_note, notes_in
from fiml.sessions.queries import market_moment_to_iso
from fiml.sessions.values import ANSWER_PREFIX, check_whole

BYTES_PER_TOKEN = 4
MIN_TOKENS = 300
MAX_TOKENS = 50_000
_MAX_TITLE_CHARACTERS = 100
_MAX_VALUE_CHARACTERS = 200
_MAX_TEXT_CHARACTERS = 600
_BRIEF_CHARACTERS = 200
_NOTES_SHARE = 0.4
_ENTRIES_SHARE = 0.2
_SHORTEST_LINE = len('{"id":"","text":""},')
_SHORTEST_RECORD = _SHORTEST_LINE + len("01234567-89ab-cdef-0123-456789abcdef2024-12-24T15:30:00Z p: ")
_KEY_FIGURES = ("price", "pe_ratio", "market_cap", "rsi_14")


@dataclass(frozen=True, slots=True)
class ContextLine:
    """One thing that a session knows; `id` is a query's or note's, `<map>:<key>` for an entry, or `assets`."""

    id: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        return {"id": self.id, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPack:
    """The packed context of a session; `left_out` counts the lines that the budget had no room for."""

    session_id: str
    title: str | None
    type: str
    is_archived: bool
    expires_at: str
    total_queries: int
    max_tokens: int
    lines: list[ContextLine]
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; as compact JSON, they are within the budget."""
        return {
            "session_id": self.session_id,
            "title": self.title,
            "type": self.type,
            "is_archived": self.is_archived,
            "expires_at": self.expires_at,
            "total_queries": self.total_queries,
            "max_tokens": self.max_tokens,
            "lines": [line.to_dict() for line in self.lines],
            "left_out": self.left_out,
        }


class Offer(NamedTuple):
    """A line that may be taken: `forms` makes its versions, longest first; none has fewer than `at_least` bytes.

    `whole` makes it without anything cut, for where there is room in the end.
    """

    forms: Callable[[], Iterable[ContextLine]]
    at_least: int = _SHORTEST_LINE
    whole: Callable[[], ContextLine] | None = None


class _Room:
    """Collects lines while there is room, in bytes. A line is only built if it may fit, since most don't."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lines: list[ContextLine] = []
        self._cut: list[tuple[int, int, Callable[[], ContextLine]]] = []

    def take(self, offers: Sequence[Offer], *, share: float = 1.0) -> list[Offer]:
        """Take the lines that fit into this share of the room; returns those that didn't fit."""
        left = self.size * share
        rest: list[Offer] = []
        for place, offer in enumerate(offers):
            if left < _SHORTEST_LINE:
                return [*rest, *offers[place:]]
            forms = offer.forms() if offer.at_least <= left else ()
            sized = ((line, _size(line.to_dict()) + 1) for line in forms)
            line, cost = next(((line, cost) for line, cost in sized if cost <= left), (None, 0))
            if line is None:
                rest.append(offer)
                continue
            if offer.whole is not None:
                self._cut.append((len(self.lines), cost, offer.whole))
            self.lines.append(line)
            self.size -= cost
            left -= cost
        return rest

    def lengthen(self) -> None:
        """Show lines whole that were cut, as many as there is room for, in the order in which they were taken."""
        for place, cost, whole in self._cut:
            if self.size <= 0:
                return
            line = whole()
            longer = _size(line.to_dict()) + 1 - cost
            if longer <= self.size:
                self.lines[place] = line
                self.size -= longer


def pack_context(session: Session, *, max_tokens: int, reserved_tokens: int = 0) -> ContextPack:
    """The context of a session, which must have been read whole, in at most `max_tokens` of four bytes each.

    Raises:
        InvalidInput: the budget is out of bounds.
    """
    check_whole(max_tokens, "max_tokens", at_least=MIN_TOKENS, at_most=MAX_TOKENS)
    check_whole(reserved_tokens, "reserved_tokens", at_least=0, at_most=max_tokens)
    notes = notes_in(session.state.context)
    room = _Room(
        (max_tokens - reserved_tokens) * BYTES_PER_TOKEN - _size(_pack(session, max_tokens, [], 10**6).to_dict())
    )
    rest = [*room.take(_asset_lines(session))]
    late = room.take(_note_lines(notes, session.state.history.queries), share=_NOTES_SHARE)
    late += room.take(_entry_lines(session), share=_ENTRIES_SHARE)
    rest += room.take(_record_lines(session.state.history.queries, notes))
    rest += room.take(late)
    room.lengthen()
    return _pack(session, max_tokens, room.lines, len(rest))


def _pack(session: Session, max_tokens: int, lines: list[ContextLine], left_out: int) -> ContextPack:
    return ContextPack(
        session_id=str(session.id),
        title=None if session.title is None else _cut(session.title, _MAX_TITLE_CHARACTERS),
        type=session.type.value,
        is_archived=session.is_archived,
        expires_at=_second(session.expires_at),
        total_queries=session.state.history.total_queries,
        max_tokens=max_tokens,
        lines=lines,
        left_out=left_out,
    )


def _asset_lines(session: Session) -> list[Offer]:
    listed = ", ".join(session.assets)
    lengths = (_MAX_TEXT_CHARACTERS, _BRIEF_CHARACTERS)
    return [
        Offer(
            lambda: (ContextLine("assets", _cut(listed, most)) for most in lengths),
            whole=lambda: ContextLine("assets", listed),
        )
    ]


def _note_lines(notes: Sequence[Note], queries: Sequence[QueryRecord]) -> list[Offer]:
    cited = Counter(chain.from_iterable(note.cites for note in notes))
    known = {query.id for query in queries} | {note.id for note in notes}
    newest_first = list(reversed(notes))
    ranked = sorted(range(len(newest_first)), key=lambda age: (age / (1 + cited[newest_first[age].id]), age))
    return [_note_offer(newest_first[age], known) for age in ranked]


def _note_offer(note: Note, known: set[Any]) -> Offer:
    def line(text: str) -> ContextLine:
        cites = f" [cites {', '.join(str(cited) for cited in note.cites if cited in known)}]" if note.cites else ""
        return ContextLine(str(note.id), f"{_second(note.written_at)} {note.kind}: {text}{cites}")

    if len(note.text) <= _MAX_TEXT_CHARACTERS:
        return Offer(lambda: [line(note.text)])
    return Offer(lambda: [line(_cut(note.text, _MAX_TEXT_CHARACTERS))], whole=lambda: line(note.text))


def _entry_lines(session: Session) -> list[Offer]:
    state = session.state
    maps = {
        "preferences": state.preferences,
        "context": {key: value for key, value in state.context.items() if not is_note(key, value)},
        "intermediate_results": {
            key: value for key, value in state.intermediate_results.items() if not key.startswith(ANSWER_PREFIX)
        },
    }
    return [
        _entry_offer(f"{name}:{key}", value) for name, entries in maps.items() for key, value in sorted(entries.items())
    ]


def _entry_offer(entry_id: str, value: Any) -> Offer:
    text = cache(partial(_json, value))

    def cut() -> Iterator[ContextLine]:
        yield ContextLine(_cut(entry_id, _MAX_VALUE_CHARACTERS), _cut(text(), _MAX_VALUE_CHARACTERS))

    return Offer(cut, whole=lambda: ContextLine(entry_id, text()))


def _record_lines(queries: Sequence[QueryRecord], notes: Sequence[Note]) -> list[Offer]:
    cited = Counter(chain.from_iterable(note.cites for note in notes))
    kept: list[QueryRecord] = []
    references: Counter[int] = Counter()
    places: dict[tuple[Any, ...], int] = {}
    for query in reversed(queries):
        place = places.setdefault(_sameness(query, cited), len(kept))
        if place == len(kept):
            kept.append(query)
        else:
            references[place] += 1
        references[place] += cited[query.id]
    ranked = sorted(range(len(kept)), key=lambda age: (age / (1 + references[age]), age))
    newest = _newest_figures(kept)
    return [_record_offer(kept[age], newest[age]) for age in ranked]


def _sameness(query: QueryRecord, cited: Container[UUID]) -> tuple[Any, ...]:
    """A key that is equal for records that say the same. Cited records and those without figures equal no other."""
    subject = query.subject
    if not query.figures or subject is None or query.id in cited:
        return (query.id,)
    return (subject, query.provider, query.as_of, frozenset(query.figures.items()))  # PostgreSQL keeps no order of keys


def _newest_figures(newest_first: Iterable[QueryRecord]) -> list[Sequence[str]]:
    """For each record, the names of its figures that no newer record of the same subject has."""
    seen: defaultdict[str | None, set[str]] = defaultdict(set)
    found: list[Sequence[str]] = []
    for query in newest_first:
        names = seen[query.subject]
        # Most records have the same figures as a newer one.
        is_new = query.subject is not None and not query.figures.keys() <= names
        found.append([name for name in query.figures if name not in names] if is_new else ())
        names.update(found[-1])
    return found


def _record_offer(query: QueryRecord, newest: Sequence[str]) -> Offer:
    said = 0 if query.result_summary is None else min(len(query.result_summary), _MAX_TEXT_CHARACTERS)
    return Offer(partial(_record_forms, query, newest), _SHORTEST_RECORD + said)


def _record_forms(query: QueryRecord, newest: Sequence[str]) -> Iterator[ContextLine]:
    """The record with the newest figures of its subject and the key figures, with the key figures, and with none."""
    if newest:
        yield _record_line(query, {*newest, *_KEY_FIGURES})
    for shown in (_KEY_FIGURES, ()):
        yield _record_line(query, shown)


def _record_line(query: QueryRecord, shown: Container[str]) -> ContextLine:
    text = f"{_second(query.timestamp)} {query.query_type}: {_said(query)}"
    known = "" if query.known_at is None else f" | known {_second(query.known_at)}"
    figures = ", ".join(f"{name} {query.figures[name]:.10g}" for name in _in_order(query.figures) if name in shown)
    if figures:
        text += _cut_between(f" | {figures}", 3 * _MAX_TEXT_CHARACTERS - len(text) - len(known))
    return ContextLine(str(query.id), _cut(text + known, 3 * _MAX_TEXT_CHARACTERS))


def _said(query: QueryRecord) -> str:
    """The summary, or without one the parameters and the origin, which a summary tells itself."""
    if query.result_summary is not None:
        return _cut(query.result_summary, _MAX_TEXT_CHARACTERS)
    as_of = None if query.as_of is None else market_moment_to_iso(query.as_of)
    source = None if query.provider is None else f"source {query.provider}"
    said = _cut(_json(query.parameters), _MAX_TEXT_CHARACTERS)
    return ", ".join((said, *(told for told in (query.currency, as_of, source) if told is not None)))


def _cut_between(figures: str, most: int) -> str:
    """The figures that fit, each whole: the beginning of a number is another number."""
    if len(figures) <= most:
        return figures
    left_out = ", …"
    return figures[: max(0, most - len(left_out))].rpartition(", ")[0] + left_out


def _in_order(figures: Iterable[str]) -> list[str]:
    """The names of figures: key figures first, as they are listed, then the others by name."""
    return [*(name for name in _KEY_FIGURES if name in figures), *sorted(set(figures).difference(_KEY_FIGURES))]


def _second(moment: datetime) -> str:
    return clock.to_iso(moment.replace(microsecond=0))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _size(value: Any) -> int:
    return len(_json(value).encode())
