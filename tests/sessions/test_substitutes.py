"""A value that can't be stored is refused with what to store in its place, and that can be stored."""

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import numpy
import pandas
import polars
import pytest

from fiml.core.errors import InvalidInput
from fiml.sessions import stored_json, values
from fiml.sessions.models import QueryRecord
from fiml.sessions.query_json import encode_query
from fiml.testing import make_query, make_session

DAY = pandas.Timestamp("2024-12-24", tz="UTC")


@pytest.mark.parametrize(
    "value",
    [
        numpy.int64(3),
        numpy.float32(1.5),
        numpy.bool_(True),
        numpy.array([[1.5, 2.5]]),
        pandas.Series([1, 2]),
        pandas.Index(["AAPL"]),
        pandas.DataFrame({"day": [DAY], "close": [float("nan")], "volume": [3]}),
        pandas.Timedelta(days=1),
        pandas.NaT,
        pandas.NA,
        DAY,
        polars.Series([1, 2]),
        polars.DataFrame({"close": [1.5]}),
        Decimal("1.5"),
        date(2024, 12, 24),
        datetime(2024, 12, 24, tzinfo=UTC),
        timedelta(hours=1),
        (1, 2),
        {"AAPL"},
        {"AAPL": 1}.keys(),
        uuid4(),
        make_query(),
        make_session(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_message_names_can_be_stored(value: Any) -> None:
    refusal = refused(lambda: stored_json.to_json(value, "context.found"))

    named = re.fullmatch(r"context\.found is an? .*; store (.+) instead", refusal)

    assert named is not None
    for code in named[1].split(" or "):
        stored_json.to_json(eval(code, {"value": value, "json": json}), "context.found")  # noqa: S307 - the message's code


def test_a_value_that_answers_to_any_name_gets_no_advice() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    assert refused(lambda: stored_json.to_json(Proxy(), "context.found")).endswith("dict with string keys")


@pytest.mark.parametrize("value", [float("nan"), numpy.float64("inf"), numpy.int64(3), None])
def test_a_figure_that_is_no_number_is_to_be_left_out(value: Any) -> None:
    """None, which other values that are NaN can be replaced with, is no figure either."""
    refusal = refused(lambda: encode_query(QueryRecord("price", figures={"price": value})))

    assert refusal.startswith("query.figures['price'] is ")
    assert refusal.endswith("leave the figure out")


def test_a_number_of_another_library_is_refused_with_its_type() -> None:
    """On older versions of numpy, it looks like an `int` in the message."""
    three: Any = numpy.int64(3)

    assert "numpy.int64" in refused(lambda: values.check_limit(three))
    assert "numpy.int64" in refused(lambda: encode_query(QueryRecord("price", figures={"price": three})))
    assert "numpy.int64" in refused(lambda: encode_query(QueryRecord("price", execution_time_ms=three)))
    assert "numpy.bool" in refused(lambda: values.check_flag(numpy.bool_(True), "include_archived"))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as raised:
        call()
    return str(raised.value)
