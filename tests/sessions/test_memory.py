"""What a session remembers for the next conversation: its context within a budget, notes and conclusions."""

import asyncio
import json
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import pytest

from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, SessionArchived, SessionExpired, SessionNotFound
from fiml.sessions.context_pack import ContextPack, pack_context
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.notes import NoteKind, make_note, notes_in
from fiml.sessions.store import SessionStore
from fiml.sessions.values import ANSWER_PREFIX
from fiml.testing import FrozenClock
from fiml.testing.conformance.suite import OpenStore, existing


def looked_up(symbol: str, price: float) -> QueryRecord:
    summary = f"{symbol}: close {price} USD, 2024-12-23, source yahoo"
    return QueryRecord("price", {"symbol": symbol}, summary, figures={"price": price}, provider="yahoo")


def session_of(*queries: QueryRecord, **state: dict[str, Any]) -> Session:
    session = Session(type="equity", assets=["AAPL", "KO"], title="Soft drinks")  # type: ignore[arg-type]
    for name, entries in state.items():
        setattr(session.state, name, entries)
    session.state.history.queries.extend(queries)
    return session


def size_of(pack: ContextPack) -> float:
    """In tokens of four bytes of compact JSON."""
    return len(json.dumps(pack.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()) / 4


def ids(pack: ContextPack) -> list[str]:
    return [line.id for line in pack.lines]


def big_session(clock: FrozenClock) -> Session:
    queries = []
    for number in range(1000):
        clock.advance(minutes=1)
        queries.append(looked_up(f"S{number % 70}", 100 + number / 7))
    context = {f"key {number}": "ü" * 300 for number in range(50)}
    return session_of(*queries, context=context)


@pytest.mark.parametrize("max_tokens", [300, 301, 500, 2000, 50_000])
def test_a_pack_stays_within_its_budget(clock: FrozenClock, max_tokens: int) -> None:
    session = big_session(clock)

    pack = pack_context(session, max_tokens=max_tokens)

    assert size_of(pack) <= max_tokens
    assert len(pack.lines) + pack.left_out == 1 + 50 + 1000


def test_a_pack_is_the_same_each_time(clock: FrozenClock) -> None:
    session = big_session(clock)

    assert pack_context(session, max_tokens=2000) == pack_context(session, max_tokens=2000)


@pytest.mark.parametrize("max_tokens", [0, -1, 299, 50_001, 10**9, True, 1.5, "2000"])
def test_a_budget_out_of_bounds_is_refused(max_tokens: Any) -> None:
    with pytest.raises(InvalidInput, match="max_tokens"):
        pack_context(session_of(), max_tokens=max_tokens)


def test_the_newest_come_first_and_every_line_has_the_id_of_its_record(clock: FrozenClock) -> None:
    old, new = looked_up("AAPL", 230.0), looked_up("KO", 62.0)

    pack = pack_context(session_of(old, new), max_tokens=1000)

    assert ids(pack) == ["assets", str(new.id), str(old.id)]
    assert "62" in pack.lines[1].text


def test_what_is_cited_comes_before_what_is_a_little_newer(clock: FrozenClock) -> None:
    queries = [looked_up(f"S{number}", number) for number in range(10)]
    cited = queries[4]
    note = {
        "id": str(uuid4()),
        "kind": "conclusion",
        "text": "rests on S4",
        "cites": [str(cited.id)],
        "written_at": "2024-12-24T12:00:00Z",
    }

    pack = pack_context(session_of(*queries, context={f"note:{note['id']}": note}), max_tokens=5000)

    shown = ids(pack)
    assert shown[1] == note["id"]
    assert shown.index(str(cited.id)) < shown.index(str(queries[6].id))
    assert str(cited.id) in pack.lines[1].text


def test_the_same_answer_again_is_one_line_that_moves_up(clock: FrozenClock) -> None:
    repeated = [looked_up("AAPL", 230.0) for _ in range(5)]
    others = [looked_up(f"S{number}", number) for number in range(3)]

    pack = pack_context(session_of(*repeated, *others), max_tokens=5000)

    assert ids(pack) == ["assets", str(others[2].id), str(repeated[-1].id), str(others[1].id), str(others[0].id)]


def test_a_cited_record_is_shown_though_the_same_was_answered_again(clock: FrozenClock) -> None:
    first, again = looked_up("AAPL", 230.0), looked_up("AAPL", 230.0)
    note = {
        "id": str(uuid4()),
        "kind": "conclusion",
        "text": "rests on the first",
        "cites": [str(first.id)],
        "written_at": "2024-12-24T12:00:00Z",
    }

    pack = pack_context(session_of(first, again, context={f"note:{note['id']}": note}), max_tokens=5000)

    assert {str(first.id), str(again.id)} <= set(ids(pack))


def test_of_more_figures_than_fit_a_line_each_is_whole_or_left_out(clock: FrozenClock) -> None:
    figures = {f"correlation:S{number}": 1_000_000_001.0 + number for number in range(100)}
    for length in range(1, 40):  # so that the end falls on every place in a figure
        query = QueryRecord("comparative", {"symbol": "AAPL"}, "A" * length, figures=figures, known_at=clock.now())

        line = pack_context(session_of(query), max_tokens=2000).lines[1].text

        *shown, left_out = line.split(" | ")[1].split(", ")
        assert 0 < len(shown) < 100
        assert set(shown) < {f"{name} {value:.10g}" for name, value in figures.items()}
        assert left_out == "…"
        assert line.endswith(" | known 2024-12-23T15:30:00Z")


def test_a_figure_that_newer_records_lack_is_shown_where_it_was_last_answered(clock: FrozenClock) -> None:
    """A quick look at the price comes after the technicals."""
    technicals = {"price": 62.0, "rsi_14": 56.8, "return_1y": 0.1116}
    first, again = (QueryRecord("technical", {"symbol": "KO"}, "KO", figures=technicals) for _ in range(2))
    comparison = QueryRecord("comparative", {"symbol": "KO"}, "KO", figures={"price": 62.0, "correlation:PEP": 0.7})
    quick = looked_up("KO", 63.0)

    pack = pack_context(session_of(first, comparison, again, quick), max_tokens=1000)

    texts = {line.id: line.text for line in pack.lines}
    assert "return_1y 0.1116" in texts[str(again.id)]
    assert "correlation:PEP 0.7" in texts[str(comparison.id)]
    assert [line.text.count("return_1y") for line in pack.lines if line.id != "assets"] == [0, 1, 0]


def test_figures_are_shown_with_the_key_figures_first_and_the_others_by_name(clock: FrozenClock) -> None:
    figures = {"zeta": 1.0, "rsi_14": 2.0, "gamma": 3.0, "beta": 4.0, "price": 5.0, "alpha": 6.0}
    query = QueryRecord("technical", {"symbol": "AAPL"}, "AAPL", figures=figures)

    line = pack_context(session_of(query), max_tokens=1000).lines[1].text

    assert line.endswith(" | price 5, rsi_14 2, alpha 6, beta 4, gamma 3, zeta 1")


def test_a_record_without_a_summary_is_shown_with_the_origin_of_its_figures(clock: FrozenClock) -> None:
    query = QueryRecord(
        "fundamentals",
        {"symbol": "BAC"},
        figures={"eps": 3.08},
        provider="annual report",
        as_of=date(2023, 12, 31),
        currency="USD",
    )

    line = pack_context(session_of(query), max_tokens=1000).lines[1].text

    assert line == (
        '2024-12-23T15:30:00Z fundamentals: {"symbol":"BAC"}, USD, 2023-12-31, source annual report | eps 3.08'
    )


def test_answers_that_differ_are_both_kept(clock: FrozenClock) -> None:
    first, second = looked_up("AAPL", 230.0), looked_up("AAPL", 231.0)

    assert ids(pack_context(session_of(first, second), max_tokens=1000)) == ["assets", str(second.id), str(first.id)]


@pytest.mark.parametrize("origin", [{"provider": "stooq"}, {"as_of": date(2024, 12, 20)}])
def test_equal_figures_of_another_source_or_day_are_both_kept(origin: dict[str, Any]) -> None:
    first = QueryRecord("price", {"symbol": "AAPL"}, figures={"price": 230.0}, provider="yahoo")
    second = QueryRecord("price", {"symbol": "AAPL"}, figures={"price": 230.0}, **{"provider": "yahoo", **origin})

    assert ids(pack_context(session_of(first, second), max_tokens=1000)) == ["assets", str(second.id), str(first.id)]


def test_large_entries_and_many_notes_leave_room_for_records(clock: FrozenClock) -> None:
    context: dict[str, Any] = {f"blob {number}": "x" * 100_000 for number in range(20)}
    for number in range(100):
        note_id = str(uuid4())
        context[f"note:{note_id}"] = {
            "id": note_id,
            "kind": "note",
            "text": f"{number} " + "y" * 500,
            "cites": [],
            "written_at": "2024-12-24T12:00:00Z",
        }
    query = looked_up("AAPL", 230.0)

    pack = pack_context(session_of(query, context=context), max_tokens=2000)

    assert str(query.id) in ids(pack)
    assert size_of(pack) <= 2000


def test_long_texts_are_whole_where_there_is_room_for_them_beside_everything_else() -> None:
    note = make_note("y" * 2000, NoteKind.CONCLUSION)
    table = {f"row {number}": [number, number / 7] for number in range(30)}
    queries = [looked_up(f"S{number}", number) for number in range(10)]
    session = session_of(*queries, context={note.key: note.to_dict()}, intermediate_results={"table": table})
    session.assets = [f"ASSET{number}" for number in range(100)]

    roomy, tight = (pack_context(session, max_tokens=most) for most in (5000, 1000))

    texts = {line.id: line.text for line in roomy.lines}
    assert texts["assets"] == ", ".join(session.assets)
    assert note.text in texts[str(note.id)]
    assert json.loads(texts["intermediate_results:table"]) == table
    assert ids(tight) == ids(roomy)
    assert size_of(tight) <= 1000
    assert f"{note.text[:599]}…" in {line.id: line.text for line in tight.lines}[str(note.id)]


LIKE_A_NOTE: list[Any] = [
    "hello",
    {"written_at": "2024-12-24T00:00:00"},
    {"written_at": "0001-01-01T00:00:00+14:00"},
    {"written_at": "yesterday"},
    {"text": 5},
    {"cites": ["first"]},
    {"kind": "remark"},
]


@pytest.mark.parametrize("value", LIKE_A_NOTE)
def test_an_entry_that_only_looks_like_a_note_is_shown_as_an_entry(value: Any) -> None:
    note, other = make_note("a note", NoteKind.NOTE), make_note("looks like one", NoteKind.NOTE)
    entry = other.to_dict() | value if isinstance(value, dict) else value

    pack = pack_context(session_of(context={note.key: note.to_dict(), other.key: entry}), max_tokens=1000)

    assert set(ids(pack)) == {"assets", str(note.id), f"context:{other.key}"}


def test_entries_come_by_map_and_key_without_the_answers_that_records_have() -> None:
    results = {"ratio": 1.5, f"{ANSWER_PREFIX}AAPL": {"price": 230.5}}
    session = session_of(preferences={"b": 1, "a": 2}, context={"c": 3}, intermediate_results=results)

    pack = pack_context(session, max_tokens=1000)

    assert ids(pack) == ["assets", "preferences:a", "preferences:b", "context:c", "intermediate_results:ratio"]


def test_a_note_names_those_of_its_citations_that_the_session_has() -> None:
    query = looked_up("AAPL", 230.5)
    first = make_note("it is dear", NoteKind.NOTE, [query.id])
    second = make_note("wait", NoteKind.CONCLUSION, [first.id, query.id, uuid4()])
    context = {note.key: note.to_dict() for note in (first, second)}

    pack = pack_context(session_of(query, context=context), max_tokens=1000)

    texts = {line.id: line.text for line in pack.lines}
    assert texts[str(second.id)].endswith(f"conclusion: wait [cites {first.id}, {query.id}]")


async def test_a_conversation_carries_on_from_the_pack_alone(open_store: OpenStore, clock: FrozenClock) -> None:
    """Tomorrow's conversation has the ids and the figures of today's, also when the session was archived meanwhile."""
    async with open_store() as store:
        session = await store.create_session(["AAPL", "KO"], "comparative", title="Drinks or phones")
        prices = [looked_up("AAPL", 230.5), looked_up("KO", 62.25)]
        for query in prices:
            await store.record_query(session.id, query)
        [conclusion] = await store.remember(
            session.id, conclusions=["KO is the calmer one"], cites=[prices[1].id], preferences={"currency": "USD"}
        )
        await store.archive_session(session.id)

        pack = await store.pack_context(session.id, max_tokens=800)

    by_id = {line.id: line.text for line in pack.lines}
    assert "230.5" in by_id[str(prices[0].id)]
    assert "62.25" in by_id[str(prices[1].id)]
    assert "calmer" in by_id[str(conclusion.id)]
    assert str(prices[1].id) in by_id[str(conclusion.id)]
    assert by_id["preferences:currency"] == '"USD"'


@pytest.mark.parametrize("part", ["id", "kind", "text", "cites", "written_at"])
def test_an_entry_that_lacks_a_part_of_a_note_is_an_ordinary_entry(clock: FrozenClock, part: str) -> None:
    note = make_note("Buy", kind=NoteKind.NOTE, cites=[])
    entry = {name: value for name, value in note.to_dict().items() if name != part}

    assert notes_in({note.key: entry}) == []
    assert notes_in({note.key: note.to_dict()}) == [note]


async def test_all_that_is_remembered_at_once_is_written_in_one_step(open_store: OpenStore) -> None:
    async with open_store() as store:
        session = await store.create_session(["AAPL"], "equity")
        before = await store.remember(session.id, context={"a": 1, "b": 2}, notes=["first"])

        after = await store.remember(
            session.id,
            context={"c": 3},
            preferences={"currency": "EUR"},
            intermediate_results={"ratio": 1.5},
            conclusions=["second"],
            cites=[before[0].id],
            remove={"context": ["a"]},
        )

        found = await existing(store, session.id)
    state = found.state
    assert {key: state.context[key] for key in ("b", "c")} == {"b": 2, "c": 3}
    assert "a" not in state.context
    assert (state.preferences, state.intermediate_results) == ({"currency": "EUR"}, {"ratio": 1.5})
    assert notes_in(state.context) == sorted([*before, *after], key=lambda note: (note.written_at, note.id))
    assert [note.kind for note in after] == [NoteKind.CONCLUSION]
    assert found.version == 3


async def test_notes_of_several_writers_are_all_kept(open_store: OpenStore) -> None:
    async with open_store() as store:
        session = await store.create_session(["AAPL"], "equity")

        await asyncio.gather(*(store.remember(session.id, notes=[f"note {number}"]) for number in range(20)))

        notes = notes_in((await existing(store, session.id)).state.context)
    assert {note.text for note in notes} == {f"note {number}" for number in range(20)}


async def test_a_citation_of_no_record_is_refused_and_nothing_written(open_store: OpenStore) -> None:
    async with open_store() as store:
        other = await store.create_session(["KO"], "equity")
        query = looked_up("KO", 62.0)
        await store.record_query(other.id, query)
        session = await store.create_session(["AAPL"], "equity")

        for cited in (uuid4(), query.id):
            with pytest.raises(InvalidInput, match=f"{cited}, which is not a record"):
                await store.remember(session.id, context={"a": 1}, conclusions=["wrong"], cites=[cited])

        assert (await existing(store, session.id)).state.context == {}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "is empty"),
        ({"notes": [""]}, "note"),
        ({"notes": ["x" * 2001]}, "2000"),
        ({"notes": [7]}, "note"),
        ({"conclusions": ["x"], "cites": ["seven"]}, "not the id of a record"),
        ({"conclusions": ["x"], "cites": [UUID(int=n) for n in range(51)]}, "at most 50"),
        ({"context": {"a": 1}, "cites": [UUID(int=1)]}, "is given alone"),
        ({"context": {"a": float("nan")}}, "context"),
        ({"context": [1]}, "context"),
        ({"remove": {"drawer": ["a"]}}, "map"),
        ({"remove": {"context": "abc"}}, "list of keys"),
        ({"remove": {"context": ["\ud800"]}}, "remove.context"),
        ({"remove": ["context"]}, "remove"),
        ({"notes": "hey"}, "notes"),
        ({"notes": None}, "notes"),
    ],
)
async def test_what_cannot_be_remembered_is_refused(
    sqlite_settings: Settings, given: dict[str, Any], problem: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], "equity")

        with pytest.raises(InvalidInput, match=problem):
            await store.remember(session.id, **given)

        assert (await existing(store, session.id)).version == 1


async def test_only_a_live_session_takes_notes_and_any_gives_its_context(
    open_store: OpenStore, clock: FrozenClock
) -> None:
    async with open_store() as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=1, user_id="ann")
        clock.advance(hours=2)
        with pytest.raises(SessionExpired):
            await store.remember(session.id, notes=["late"])
        await store.archive_session(session.id)
        with pytest.raises(SessionArchived):
            await store.remember(session.id, notes=["late"])
        for stranger in (store.as_principal("bob"),):
            with pytest.raises(SessionNotFound):
                await stranger.remember(session.id, notes=["mine"])
            with pytest.raises(SessionNotFound):
                await stranger.pack_context(session.id)

        assert (await store.pack_context(session.id)).is_archived
