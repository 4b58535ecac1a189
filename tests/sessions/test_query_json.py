"""Queries as JSON: what comes back is what was written, of whatever subclass its parts were."""

from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiml.core.clock import to_iso
from fiml.sessions.queries import QueryRecord, decode_queries
from fiml.sessions.query_json import encode_query, history_json

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
NAMES = TEXTS.filter(str.strip)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20)
ZONES = st.sampled_from([UTC, timezone(timedelta(0)), timezone(timedelta(hours=5, minutes=30)), timezone.max])
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES)  # noqa: DTZ001 - it wants them so
QUERIES = st.builds(
    QueryRecord,
    query_type=NAMES,
    parameters=st.dictionaries(TEXTS, TEXTS | NUMBERS | st.none() | st.lists(TEXTS), max_size=3),
    result_summary=st.none() | TEXTS,
    execution_time_ms=st.none() | st.floats(0, 1e12) | st.integers(0, 10**12),
    cache_hit=st.booleans(),
    timestamp=MOMENTS,
    provider=st.none() | NAMES,
    as_of=st.none() | st.dates() | MOMENTS,
    known_at=st.none() | MOMENTS,
    error=st.none() | NAMES,
    figures=st.dictionaries(TEXTS, NUMBERS, max_size=3),
)


class Kind(StrEnum):
    QUOTE = "quote"


class Text(str):
    __slots__ = ()


class Moment(datetime):
    pass


class Day(date):
    pass


class Number(float):
    pass


class Whole(int):
    pass


@given(query=QUERIES)
def test_a_query_comes_back_as_it_was(query: QueryRecord) -> None:
    text = encode_query(query).text

    assert decode_queries(history_json([text])) == [query]
    assert f'"timestamp":"{to_iso(query.timestamp)}"' in text


@pytest.mark.parametrize(
    "part",
    [
        {"query_type": Kind.QUOTE},
        {"query_type": Text("quote")},
        {"provider": Text("sample"), "error": Kind.QUOTE},
        {"timestamp": Moment(2024, 12, 24, 15, 30, tzinfo=timezone(timedelta(hours=1)))},
        {"as_of": Day(2024, 12, 24)},
        {"as_of": Moment(2024, 12, 24, 15, 30, 0, 250, tzinfo=UTC)},
        {"execution_time_ms": Number(12.5)},
        {"execution_time_ms": Whole(12)},
        {"parameters": {Text("symbol"): Text("AAPL"), "weight": Number(0.5), "days": Whole(5)}},
        {"figures": {"price": Number(175.43)}},
    ],
    ids=str,
)
def test_parts_may_be_of_subclasses(part: dict[str, Any]) -> None:
    query = QueryRecord(**{"query_type": "quote", **part})

    assert decode_queries(history_json([encode_query(query).text])) == [query]
