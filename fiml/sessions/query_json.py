"""Queries on their way to an engine: checked, and written as JSON, one by one or as a history."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NoReturn
from uuid import UUID

import msgspec

from fiml.core.errors import InvalidInput, echo
from fiml.sessions import sealed, stored_json, values
from fiml.sessions.queries import QueryRecord, StoredQuery, market_moment_to_iso
from fiml.sessions.substitutes import shown


@dataclass(slots=True)
class EncodedQuery:
    """A query on its way to an engine: its JSON, and what the totals need of it."""

    query: QueryRecord
    text: str

    @property
    def id(self) -> UUID:
        return self.query.id

    @property
    def size(self) -> int:
        """Bytes of the JSON."""
        return len(self.text.encode())


def encode_query(query: QueryRecord) -> EncodedQuery:
    """Check a query and write its JSON.

    Raises:
        InvalidInput: a part can't be stored; the message names it.
    """
    if type(query) is not QueryRecord:  # further fields of a subclass would be lost
        raise InvalidInput("query", f"is a {type(query).__name__}", "give a QueryRecord")
    if not isinstance(query.id, UUID):
        raise InvalidInput("query.id", f"is a {type(query.id).__name__}", "leave it out, or give a UUID")
    values.check_text(query.query_type, "query_type", max_characters=values.MAX_NAME_CHARACTERS)
    if not isinstance(query.parameters, dict):
        raise InvalidInput("query.parameters", f"is a {type(query.parameters).__name__}", "give a dict")
    if sealed.text_in(query.parameters) is not None:
        values.refuse_sealed(f"query.parameters.{sealed.MEMBER}")
    if query.result_summary is not None and not isinstance(query.result_summary, str):
        raise InvalidInput("query.result_summary", f"is a {type(query.result_summary).__name__}", "give text or None")
    values.check_flag(query.cache_hit, "query.cache_hit")
    _check_duration(query.execution_time_ms)
    values.check_moment(query.timestamp, "query.timestamp")
    _check_origin(query)
    text = query_text(
        query,
        parameters=stored_json.to_json(query.parameters, "query.parameters"),
        result_summary=stored_json.to_json(query.result_summary, "query.result_summary"),
        figures=stored_json.to_json(query.figures, "query.figures") if query.figures else None,
    )
    return EncodedQuery(query, text)


def query_text(query: QueryRecord, *, parameters: str, result_summary: str, figures: str | None) -> str:
    """The JSON of a checked query, with three of its parts given as JSON already."""
    raw: Any = msgspec.Raw  # typed as Any, to be accepted for any field
    stored = StoredQuery(
        query.query_type,
        raw(parameters),
        raw(result_summary),
        raw(stored_json.to_json(query.execution_time_ms, "query.execution_time_ms")),
        query.cache_hit,
        query.timestamp.astimezone(UTC),
        query.id,
        query.provider,
        None if query.as_of is None else market_moment_to_iso(query.as_of),
        None if query.known_at is None else query.known_at.astimezone(UTC),
        query.currency,
        query.adjustment,
        query.layer,
        query.error,
        {} if figures is None else raw(figures),
    )
    return stored_json.ENCODER.encode(stored).decode()


def encode_again(query: QueryRecord) -> EncodedQuery:
    """Encode a query that was read from a store, where it may be encrypted."""
    text = sealed.text_in(query.parameters)
    if text is None:
        return encode_query(query)
    return encode_sealed(query, text)


def encode_sealed(query: QueryRecord, text: str) -> EncodedQuery:
    """A query whose parameters, summary and figures are encrypted as one value."""
    parameters = sealed.sealed_parameters(text)
    return EncodedQuery(query, query_text(query, parameters=parameters, result_summary="null", figures=None))


def _check_origin(query: QueryRecord) -> None:
    """Refuse an origin of the answer that can't be stored."""
    for name in ("provider", "currency", "adjustment", "layer", "error"):
        if (text := getattr(query, name)) is not None:
            values.check_text(text, f"query.{name}", max_characters=values.MAX_NAME_CHARACTERS)
    if query.as_of is not None and not isinstance(query.as_of, date):
        raise InvalidInput("query.as_of", f"is a {type(query.as_of).__name__}", "give a date or an aware datetime")
    for name in ("as_of", "known_at"):
        if isinstance(moment := getattr(query, name), datetime) or (name == "known_at" and moment is not None):
            values.check_moment(moment, f"query.{name}")
    _check_figures(query.figures)


def _check_figures(figures: object) -> None:
    if not isinstance(figures, dict):
        raise InvalidInput("query.figures", f"is a {type(figures).__name__}", "give a dict of numbers")
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse_figure(name, f"is {shown(value)}", "give an int or a float, or leave the figure out")
        try:
            is_finite = math.isfinite(value)
        except OverflowError:
            _refuse_figure(name, "is too large", "give a number up to 1.7e308")
        if not is_finite:
            _refuse_figure(name, f"is {float(value)}", "JSON has no NaN and no infinities; leave the figure out")


def _refuse_figure(name: object, problem: str, valid: str) -> NoReturn:
    raise InvalidInput(f"query.figures[{echo(name)}]", problem, valid) from None


def _check_duration(duration_ms: object) -> None:
    if duration_ms is None:
        return
    if isinstance(duration_ms, bool) or not isinstance(duration_ms, int | float):
        raise InvalidInput("query.execution_time_ms", f"is {shown(duration_ms)}", "give an int or a float, or None")
    if not 0 <= duration_ms <= values.MAX_DURATION_MS:
        raise InvalidInput(
            "query.execution_time_ms", f"is {echo(duration_ms)}", f"give a number from 0 to {values.MAX_DURATION_MS}"
        )


def longer_history(history: str, queries: Sequence[EncodedQuery]) -> str:
    """The JSON array of a history with more queries at its end."""
    parts = [history[1:-1]] if len(history) > len("[]") else []
    return history_json([*parts, *(query.text for query in queries)])


def history_json(texts: Iterable[str]) -> str:
    """The JSON array of a history."""
    return "[" + ",".join(texts) + "]"
