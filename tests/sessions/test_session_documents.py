"""A session as JSON: documents that can be written anywhere and read again."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiml.core.errors import InvalidInput
from fiml.sessions.models import AnalysisHistory, QueryRecord, Session, SessionState, SessionSummary, SessionType
from fiml.testing import FrozenClock, make_query, make_session

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
MOMENTS = st.datetimes(timezones=st.just(UTC))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MAPS = st.dictionaries(TEXTS, JSON_VALUES, max_size=3)
QUERIES = st.builds(
    QueryRecord,
    TEXTS,
    MAPS,
    st.none() | TEXTS,
    st.none() | st.floats(0, 1e9),
    st.booleans(),
    MOMENTS,
)
SESSIONS = st.builds(
    Session,
    user_id=st.none() | TEXTS,
    type=st.sampled_from(SessionType),
    title=st.none() | TEXTS,
    assets=st.lists(TEXTS, min_size=1, max_size=3),
    tags=st.lists(TEXTS, max_size=3),
    created_at=MOMENTS,
    expires_at=MOMENTS,
    last_accessed_at=MOMENTS,
    is_archived=st.booleans(),
    version=st.integers(1, 10**9),
    state=st.builds(
        SessionState,
        context=MAPS,
        preferences=MAPS,
        intermediate_results=MAPS,
        metadata=MAPS,
        history=st.builds(AnalysisHistory, st.lists(QUERIES, max_size=3)),
    ),
)


def test_a_document_has_times_in_utc(clock: FrozenClock) -> None:
    clock.set(datetime(2024, 12, 24, 15, 30, tzinfo=UTC))
    session = make_session()
    session.add_query(make_query())
    clock.advance(microseconds=1500)
    session.touch()

    document = session.to_dict()

    assert document["created_at"] == "2024-12-24T15:30:00Z"
    assert document["last_accessed_at"] == "2024-12-24T15:30:00.001500Z"
    assert document["state"]["history"]["first_query_at"] == "2024-12-24T15:30:00Z"
    assert document["state"]["history"]["queries"][0]["timestamp"] == "2024-12-24T15:30:00Z"


@given(session=SESSIONS)
def test_a_document_is_json_and_gives_the_session_again(session: Session) -> None:
    document = json.loads(json.dumps(session.to_dict(), allow_nan=False))

    again = Session.from_dict(document)

    assert again == session
    assert again.to_dict() == session.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"id": None},
        {"type": "bonds"},
        {"state": None},
        {"state": {}},
        {"expires_at": "tomorrow"},
        {"expires_at": "2024-12-24T15:30:00"},
        {"assets": None},
        {"assets": "AAPL"},
        {"tags": ["a", 5]},
        {"version": "1"},
        {"version": 1.5},
        {"is_archived": "no"},
        {"title": 7},
        {"user_id": 5},
    ],
    ids=repr,
)
def test_another_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Session.from_dict(make_session().to_dict() | change)


@pytest.mark.parametrize("field", make_session().to_dict())
def test_a_document_without_a_field_is_refused(field: str) -> None:
    document = make_session().to_dict()
    del document[field]

    with pytest.raises(InvalidInput, match=field):
        Session.from_dict(document)


def test_a_summary_is_json(clock: FrozenClock) -> None:
    summary = SessionSummary(
        id=UUID("550e8400-e29b-41d4-a716-446655440000"),
        user_id="ann",
        type=SessionType.EQUITY,
        title=None,
        assets=["AAPL"],
        tags=[],
        created_at=clock.now(),
        expires_at=clock.now(),
        last_accessed_at=clock.now(),
        total_queries=3,
        is_expired=True,
        is_archived=False,
    )

    document = json.loads(json.dumps(summary.to_dict()))

    assert (document["id"], document["type"]) == ("550e8400-e29b-41d4-a716-446655440000", "equity")
    assert document["created_at"] == "2024-12-23T15:30:00Z"
    assert document.keys() == set(SessionSummary.__slots__)
