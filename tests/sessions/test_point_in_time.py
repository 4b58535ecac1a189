"""What a session knew at a moment: records keep the source of their figures and when they were learnt."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from fiml.core.errors import InvalidInput
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.notes import NoteKind, make_note
from fiml.sessions.point_in_time import known_by
from fiml.testing import FrozenClock
from fiml.testing.conformance.suite import OpenStore, existing

NOON = datetime(2024, 12, 24, 12, tzinfo=UTC)


def price(value: float, asked_at: datetime, **origin: Any) -> QueryRecord:
    known = {"provider": "yahoo", "as_of": date(2024, 12, 23), "currency": "USD", "adjustment": "splits"}
    return QueryRecord(
        "price",
        {"symbol": "AAPL"},
        timestamp=asked_at,
        figures={"price": value},
        **{**known, "known_at": asked_at, **origin},
    )


def session_with(*queries: QueryRecord) -> Session:
    session = Session(type="equity", assets=["AAPL"])  # type: ignore[arg-type]  # the name is taken too
    for query in queries:
        session.add_query(query)
    return session


async def test_a_record_keeps_its_origin_and_figures_through_every_tier(
    open_store: OpenStore, clock: FrozenClock
) -> None:
    query = price(230.5, clock.now(), as_of=clock.now(), layer="l2")
    async with open_store() as store:
        session = await store.create_session(["AAPL"], "equity")
        await store.record_query(session.id, query)

        live = await existing(store, session.id)
        await store.archive_session(session.id)
        archived = await existing(store, session.id)
        await store.resume_session(session.id)
        resumed = await existing(store, session.id)

    assert [each.state.history.queries for each in (live, archived, resumed)] == [[query]] * 3


def test_a_record_without_an_origin_is_written_as_before() -> None:
    assert set(QueryRecord("price").to_dict()) == {
        "id",
        "query_type",
        "parameters",
        "result_summary",
        "execution_time_ms",
        "cache_hit",
        "timestamp",
    }


@pytest.mark.parametrize("as_of", [date(2024, 12, 23), datetime(2024, 12, 23, 21, 0, tzinfo=UTC)])
def test_a_day_stays_a_day_and_a_moment_a_moment(as_of: date) -> None:
    query = price(1.0, NOON, as_of=as_of)

    assert QueryRecord.from_dict(query.to_dict()) == query


def test_what_was_learnt_later_is_not_in_the_context_of_then() -> None:
    session = session_with(price(230.0, NOON), price(235.0, NOON + timedelta(hours=2)))

    then = session.context_as_of(NOON + timedelta(hours=1))

    assert then.figures["AAPL"]["price"].value == 230.0
    assert [query.figures["price"] for query in then.queries] == [230.0]


def test_a_record_without_figures_has_none_among_the_figures_of_then() -> None:
    failed = QueryRecord("price", {"symbol": "AAPL"}, timestamp=NOON, error="unavailable")

    known = session_with(failed).context_as_of(NOON)

    assert (known.queries, known.figures) == ([failed], {})


def test_the_figure_that_was_learnt_last_counts_though_an_older_one_was_asked_for_later() -> None:
    fresh = price(235.0, NOON)
    stale = price(230.0, NOON + timedelta(hours=1), known_at=NOON - timedelta(hours=1))

    figure = session_with(fresh, stale).context_as_of(NOON + timedelta(hours=2)).figures["AAPL"]["price"]

    assert (figure.value, figure.record_id) == (235.0, fresh.id)


def test_a_record_whose_answer_was_learnt_after_the_moment_is_left_out() -> None:
    session = session_with(price(230.0, NOON, known_at=NOON + timedelta(hours=1)))

    assert session.context_as_of(NOON).queries == []
    assert session.context_as_of(NOON + timedelta(hours=1)).queries != []


def test_a_note_is_known_from_the_moment_at_which_it_was_written(clock: FrozenClock) -> None:
    session = session_with()
    note = make_note("the margin falls", NoteKind.NOTE)
    session.state.update_context(note.key, note.to_dict())

    assert session.context_as_of(clock.now() - timedelta(microseconds=1)).notes == []
    assert session.context_as_of(clock.now()).notes == [note]


def test_a_figure_names_its_source_and_its_record() -> None:
    query = price(230.0, NOON, known_at=NOON - timedelta(hours=1))

    known = session_with(query).context_as_of(NOON).to_dict()

    assert known["figures"]["AAPL"]["price"] == {
        "value": 230.0,
        "as_of": "2024-12-23",
        "known_at": "2024-12-24T11:00:00Z",
        "provider": "yahoo",
        "currency": "USD",
        "adjustment": "splits",
        "record_id": str(query.id),
    }


def test_a_coin_in_another_currency_or_elsewhere_is_another_subject() -> None:
    places = [{"pair": "USD", "exchange": "kraken"}, {"pair": "EUR", "exchange": "kraken"}, {"pair": "USD"}]
    queries = [
        QueryRecord("price", {"symbol": "BTC", **place}, timestamp=NOON, figures={"price": float(number)})
        for number, place in enumerate(places)
    ]

    known = session_with(*queries).context_as_of(NOON)

    assert {subject: figures["price"].value for subject, figures in known.figures.items()} == {
        "BTC/USD@kraken": 0.0,
        "BTC/EUR@kraken": 1.0,
        "BTC/USD": 2.0,
    }


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="time zone"):
        session_with().context_as_of(datetime(2024, 12, 24))  # noqa: DTZ001  the point


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provider", 7),
        ("provider", "x" * 65),
        ("as_of", "2024-12-23"),
        ("known_at", datetime(2024, 12, 24)),  # noqa: DTZ001  the point
        ("known_at", date(2024, 12, 24)),
        ("figures", {"price": "230"}),
        ("figures", {"price": True}),
        ("figures", {"price": float("nan")}),
        ("figures", {"price": 10**400}),
        ("figures", [1.0]),
    ],
)
async def test_an_invalid_origin_is_refused_and_nothing_written(open_store: OpenStore, field: str, value: Any) -> None:
    async with open_store() as store:
        session = await store.create_session(["AAPL"], "equity")

        with pytest.raises(InvalidInput, match=field):
            await store.record_query(session.id, QueryRecord("price", id=uuid4(), **{field: value}))

        assert (await existing(store, session.id)).state.history.queries == []


def test_a_later_answer_leaves_the_figures_that_it_lacks() -> None:
    before = QueryRecord("price", {"symbol": "AAPL"}, timestamp=NOON, figures={"price": 1.0, "pe_ratio": 30.0})
    after = price(2.0, NOON + timedelta(hours=1))

    known = known_by(NOON + timedelta(hours=2), [before, after], {})

    figures = known.figures["AAPL"]
    assert {name: figure.value for name, figure in figures.items()} == {"price": 2.0, "pe_ratio": 30.0}
    assert [figures[name].record_id for name in ("price", "pe_ratio")] == [after.id, before.id]
