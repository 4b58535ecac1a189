"""Which lines of a session are packed, in which order, and that no room is wasted or used twice."""

import json
from typing import Any

import pytest

from fiml.core.errors import InvalidInput
from fiml.sessions.context_pack import ContextLine, ContextPack, pack_context
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.notes import Note, NoteKind, make_note
from fiml.testing import FrozenClock

BUDGETS = range(300, 1500)


def session_of(*queries: QueryRecord, **state: dict[str, Any]) -> Session:
    session = Session(type=SessionType.EQUITY, assets=["AAPL"])
    for name, entries in state.items():
        setattr(session.state, name, entries)
    session.state.history.queries.extend(queries)
    return session


def bytes_of(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def bytes_of_lines(lines: list[ContextLine]) -> int:
    return sum(bytes_of(line.to_dict()) + 1 for line in lines)


def room_in(pack: ContextPack) -> int:
    """The bytes that are certainly left; the count of what is left out may need 6 more."""
    return pack.max_tokens * 4 - bytes_of(pack.to_dict()) - 7


def test_texts_that_are_lengthened_stay_within_the_budget() -> None:
    entries = {f"key {number}": "x" * (195 + number) for number in range(25)}
    session = session_of(context=entries)

    for max_tokens in BUDGETS:
        pack = pack_context(session, max_tokens=max_tokens)
        assert bytes_of(pack.to_dict()) <= max_tokens * 4

    pack = pack_context(session, max_tokens=2000)
    assert [json.loads(line.text) for line in pack.lines[1:]] == [entries[key] for key in sorted(entries)]


LENGTHS = (700, *range(490, 0, -40))
RECORDS = session_of(*(QueryRecord("price", {}, "x" * length, figures={"price": 1.0}) for length in LENGTHS))
ENTRIES = session_of(preferences={f"{length}": "y" * length for length in range(10, 190, 5)})


@pytest.mark.parametrize("session", [RECORDS, ENTRIES], ids=["records", "entries"])
def test_nothing_is_left_out_for_which_there_is_room(session: Session) -> None:
    lines = pack_context(session, max_tokens=10_000).lines
    everything = {line.id: bytes_of({"id": line.id, "text": line.text.partition(" | ")[0]}) for line in lines}

    for max_tokens in BUDGETS:
        pack = pack_context(session, max_tokens=max_tokens)
        left_out = everything.keys() - {line.id for line in pack.lines}
        assert len(left_out) == pack.left_out
        assert all(everything[each] >= room_in(pack) for each in left_out)


@pytest.mark.parametrize("max_tokens", [1000, 2000, 4000])
def test_notes_get_two_fifths_entries_one_fifth_and_records_the_rest(max_tokens: int) -> None:
    notes = [make_note(f"{number} " + "n" * 200, NoteKind.NOTE) for number in range(100)]
    context = {note.key: note.to_dict() for note in notes} | {f"entry {number}": "e" * 150 for number in range(100)}
    session = session_of(*(QueryRecord("price", {}, f"r {number}") for number in range(300)), context=context)

    pack = pack_context(session, max_tokens=max_tokens)

    noted = [line for line in pack.lines if " note: " in line.text]
    entered = [line for line in pack.lines if line.id.startswith("context:")]
    recorded = [line for line in pack.lines if " price: " in line.text]
    budget = max_tokens * 4
    assert 0.25 < bytes_of_lines(noted) / budget <= 0.4
    assert 0.05 < bytes_of_lines(entered) / budget <= 0.2
    assert bytes_of_lines(recorded) / budget > 0.3
    assert len(noted) + len(entered) + len(recorded) == len(pack.lines) - 1


@pytest.mark.parametrize("reserved_tokens", [-1, 1001, True, "100"])
def test_a_reserve_out_of_bounds_is_refused(reserved_tokens: Any) -> None:
    with pytest.raises(InvalidInput, match="reserved_tokens"):
        pack_context(session_of(), max_tokens=1000, reserved_tokens=reserved_tokens)


def test_notes_come_newest_first_and_cited_ones_earlier(clock: FrozenClock) -> None:
    notes: list[Note] = []
    for number in range(6):
        clock.advance(minutes=1)
        notes.append(make_note(f"{number}", NoteKind.NOTE, [notes[0].id] if number > 3 else []))

    pack = pack_context(session_of(context={note.key: note.to_dict() for note in notes}), max_tokens=1000)

    assert [line.id for line in pack.lines[1:]] == [str(notes[number].id) for number in (5, 4, 0, 3, 2, 1)]


def test_a_figure_that_has_changed_is_shown_as_it_is_now() -> None:
    answers = ({"price": 61.0, "beta": 1.1}, {"price": 62.0, "beta": 1.2, "eps": 3.0}, {"price": 63.0, "beta": 1.3})
    queries = [QueryRecord("technical", {"symbol": "KO"}, "KO", figures=figures) for figures in answers]

    pack = pack_context(session_of(*queries), max_tokens=1000)

    shown = [line.text.partition(" | ")[2] for line in pack.lines[1:]]
    assert shown == ["price 63, beta 1.3", "price 62, eps 3", "price 61"]


def test_answers_about_nothing_in_particular_are_all_kept() -> None:
    queries = [QueryRecord("screen", {"sector": sector}, figures={"count": 3.0}) for sector in ("banks", "oil")]

    pack = pack_context(session_of(*queries), max_tokens=1000)

    assert {line.id for line in pack.lines[1:]} == {str(query.id) for query in queries}


def test_what_is_long_is_there_in_a_small_budget_too() -> None:
    figures = {f"{'f' * 60}_{number}": 1.0 for number in range(30)}
    queries = [QueryRecord("technical", {"symbol": "KO"}, "KO", figures=figures)]
    session = session_of(*queries, preferences={"k" * 1000: "ü"})
    session.title = "t" * 200
    session.assets = [f"{number:064}" for number in range(100)]

    pack = pack_context(session, max_tokens=350)

    assert pack.title == "t" * 99 + "…"
    assert [line.id[:12] for line in pack.lines] == ["assets", str(queries[0].id)[:12], "preferences:"]
    assert (pack.lines[2].text, pack.left_out) == ('"ü"', 0)
    assert pack_context(session, max_tokens=300, reserved_tokens=80).lines[0].id == "assets"
