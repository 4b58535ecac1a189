"""The JSON that sessions hold: written so that no tier changes it, and refused if one would."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fiml.core.errors import InvalidInput, InvalidSessionId
from fiml.sessions import stored_json, values

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**200), 10**200) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers() | st.dates() | st.uuids(),
    lambda inner: st.lists(inner) | st.sets(st.integers()) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=JSON_VALUES)
@example(value=[1e23, 5e-324, -0.0, 1.7976931348623157e308, 2**64, [], {}, "", {"": {}}])
def test_json_decodes_to_the_equal_value(value: Any) -> None:
    again = json.loads(stored_json.to_json(value, "value"))

    assert again == value
    assert json.dumps(again) == json.dumps(value)


@given(value=st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers() | FLOATS | TEXTS, max_size=4))
@example(value={"n": 1e16, "m": -1e16, "o": 9.999999999999998e15, "p": 1e-4, "q": 9.9e-5, "r": -0.0})
@example(value={"n": 2**63, "m": -(2**63) - 1, "o": 10**16, "p": 1 - 10**16, "q": True})
@example(value={'"\\/\b\f\n\r\t\x01\x1f\x7f\u2028\U0001f4c8': "\x1b"})
def test_a_dict_of_plain_values_is_written_as_its_parts_are(value: dict[str, Any]) -> None:
    parts = (f"{stored_json.to_json(key, 'key')}:{stored_json.to_json(item, 'item')}" for key, item in value.items())

    assert stored_json.to_json(value, "value") == "{" + ",".join(parts) + "}"


@given(value=st.floats(allow_nan=False, allow_infinity=False))
@example(value=1e23)
@example(value=5e-324)
def test_a_float_has_a_point_and_no_exponent(value: float) -> None:
    """JSONB would turn 1e23 into another number, and 1e2 into an integer."""
    assert re.fullmatch(r"-?\d+\.\d+", stored_json.to_json(value, "value"))


@given(value=ANYTHING)
def test_anything_is_either_kept_or_refused_by_path(value: Any) -> None:
    refusal = refused(lambda: stored_json.to_json(value, "context.key"))

    if refusal is None:
        assert json.loads(stored_json.to_json(value, "context.key")) == value
    else:
        assert str(refusal).startswith("context.key")


@given(value=st.text() | st.binary() | st.integers() | st.none() | st.lists(st.text()))
@example(value="{550e8400-e29b-41d4-a716-446655440000}")
@example(value="urn:uuid:550e8400-e29b-41d4-a716-446655440000")
@example(value="\uff15" * 32)
@example(value="5" * 5000)
@example(value="550e8400\n-e29b-41d4-a716-44665544000")
def test_what_is_not_an_id_is_refused(value: object) -> None:
    with pytest.raises(InvalidSessionId) as raised:
        values.parse_session_id(value)

    assert len(str(raised.value)) < 300
    assert str(raised.value).isprintable()


def test_an_id_is_taken_in_its_usual_forms() -> None:
    session_id = uuid4()

    for form in (session_id, str(session_id), str(session_id).upper()):
        assert values.parse_session_id(form) == session_id
    assert isinstance(values.parse_session_id(str(session_id)), UUID)


@given(
    value=st.text() | st.integers() | st.none() | st.lists(st.text() | st.integers()),
    check=st.sampled_from(
        [
            values.check_assets,
            values.check_tags,
            values.check_title,
            values.check_user_id,
            values.check_limit,
            lambda value: values.check_hours(value, "hours", max_hours=5),
            lambda value: values.check_moment(value, "expires_at"),
        ]
    ),
)
def test_a_check_lets_pass_or_raises_a_typed_error(value: Any, check: Any) -> None:
    refusal = refused(lambda: check(value))

    if refusal is not None:
        assert str(refusal).isprintable()
        assert len(str(refusal)) < 300


def refused(call: Callable[[], object]) -> InvalidInput | None:
    try:
        call()
    except InvalidInput as exc:
        return exc
    return None


def test_a_path_in_a_message_is_cut() -> None:
    with pytest.raises(InvalidInput) as raised:
        stored_json.to_json({"k" * 5000: float("nan")}, "context")

    assert len(str(raised.value)) < 300


def test_names_come_in_the_order_given_each_once() -> None:
    assert values.check_assets(["B", "A", "B", "C", "A"]) == ["B", "A", "C"]
    assert values.check_tags(None) == values.check_tags([]) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_has_a_thousand_digits(sign: int) -> None:
    largest = sign * (10**1000 - 1)

    assert json.loads(stored_json.to_json(largest, "n")) == largest
    with pytest.raises(InvalidInput, match="1000 digits"):
        stored_json.to_json(largest + sign, "n")


@pytest.mark.parametrize(
    "value",
    [{"key": "\0"}, {"a\0": 1}, {"key": "\ud800"}, {"a\ud800": 1}, {"key": 10**stored_json.MAX_INTEGER_DIGITS}],
    ids=ascii,
)
def test_a_flat_dict_is_refused_what_each_part_alone_is(value: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"NUL|surrogate|integer"):
        stored_json.to_json(value, "context.key")


@pytest.mark.parametrize(
    "text", ["2024-12-24t15:30:00", "2024-12-24_15:30", "2024-12-24\xa015:30", "20241224-1530", "2024W52T15"]
)
def test_a_time_of_any_form_needs_a_zone(text: str) -> None:
    with pytest.raises(InvalidInput, match="no time"):
        values.parse_moment(text, "since")


@pytest.mark.parametrize("text", ["2024-12-24", "20241224", "2024-12-24T00:00:00Z", "2024-12-24T05:45+05:45"])
def test_a_date_is_its_midnight_in_utc(text: str) -> None:
    assert values.parse_moment(text, "since") == datetime(2024, 12, 24, tzinfo=UTC)
