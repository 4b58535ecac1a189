"""A query's record: what it takes to be one, and that JSON brings it back as it was."""

import gc
import json
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import pytest

from fiml.sessions.models import QueryRecord
from fiml.sessions.queries import DecodedHistory, decode_queries

FULL = QueryRecord(
    "price",
    {"symbol": "AAPL", "n": 10**999, "nested": [{"x": None}, 1.5, True]},
    "AAPL: close 175.43 USD",
    12,
    cache_hit=True,
    timestamp=datetime(2024, 12, 24, 15, 30, 0, 1, tzinfo=UTC),
    provider="yahoo",
    as_of=datetime(2024, 12, 23, 21, 0, tzinfo=UTC),
    known_at=datetime(2024, 12, 24, 15, 29, tzinfo=UTC),
    currency="USD",
    adjustment="splits",
    layer="l1",
    error="stale",
    figures={"price": 175.43, "volume": 2**60 + 1},
)
NEEDED = ("id", "query_type", "parameters", "result_summary", "execution_time_ms", "cache_hit", "timestamp")


@pytest.mark.parametrize(
    "query",
    [FULL, QueryRecord("price"), QueryRecord("price", as_of=date(2024, 12, 23), error="not_found")],
    ids=["full", "bare", "failed"],
)
def test_it_comes_back_as_it_was(query: QueryRecord) -> None:
    document = json.loads(json.dumps(query.to_dict()))

    [decoded] = decode_queries(json.dumps([document]))

    assert decoded == query
    assert QueryRecord.from_dict(document) == query
    # 12 and 12.0 are equal, but not the same text, and what goes on living is written again.
    assert json.dumps(decoded.to_dict()) == json.dumps(document)


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_missing_is_named_and_never_made_up(name: str) -> None:
    document = FULL.to_dict()
    del document[name]

    for read in (lambda: decode_queries(json.dumps([document])), lambda: QueryRecord.from_dict(document)):
        with pytest.raises(ValueError, match=f"missing required field `{name}`"):
            read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "one"),
        ("query_type", 1),
        ("parameters", []),
        ("execution_time_ms", "fast"),
        ("cache_hit", 1),
        ("timestamp", "yesterday"),
        ("as_of", "2024-13-01"),
        ("figures", {"price": "high"}),
        ("figures", {"price": True}),
    ],
)
def test_what_is_of_another_type_is_refused(name: str, value: object) -> None:
    document: dict[str, Any] = FULL.to_dict() | {name: value}

    for read in (lambda: decode_queries(json.dumps([document])), lambda: QueryRecord.from_dict(document)):
        with pytest.raises(ValueError, match=r"."):
            read()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[{}", '[{"id": "\x01"}]'])
def test_what_is_not_an_array_of_records_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_queries(text)


ONE, TWO, THREE = (json.dumps(FULL.to_dict() | {"id": str(uuid4())}) for _ in range(3))


@pytest.mark.parametrize("read", ["[]", f"[{ONE}]", f"[{ONE},{TWO}]", f"[{TWO}]"])
@pytest.mark.parametrize("text", ["[]", f"[{ONE}]", f"[{ONE},{TWO}]", f"[{ONE},{TWO},{THREE}]", f"[{ONE}, {TWO}]"])
def test_a_history_goes_on_as_if_it_were_decoded_anew(read: str, text: str) -> None:
    history = DecodedHistory.of(read)

    assert history.go_on(text) == decode_queries(text)


def test_what_was_decoded_once_is_taken() -> None:
    history = DecodedHistory.of(f"[{ONE}]")

    assert history.go_on(f"[{ONE},{TWO}]")[0] is history.queries[0]


@pytest.mark.parametrize("further", ["", ",", ",]", f"{TWO}]", f" {TWO}]", f",{TWO}", f",{TWO},]", "]]", f"],{TWO}]"])
def test_a_history_that_does_not_continue_as_an_array_is_refused(further: str) -> None:
    history = DecodedHistory.of(f"[{ONE}]")

    with pytest.raises(ValueError, match=r"."):
        history.go_on(f"[{ONE}{further}")


def test_the_garbage_collector_has_no_work_with_a_long_history() -> None:
    history = decode_queries(json.dumps([FULL.to_dict()] * 10))

    assert not any(gc.is_tracked(query) for query in history)


def test_it_never_changes() -> None:
    with pytest.raises(AttributeError):
        FULL.id = uuid4()  # type: ignore[misc]  # what is refused
