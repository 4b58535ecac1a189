"""A search over live sessions in the embedded file: the conditions on their rows."""

from typing import Any

from fiml.core.clock import to_micros
from fiml.sessions.backends.sql.fts5 import HAVE, marks, match, query_clause
from fiml.sessions.searching import Wanted


def live_clauses(wanted: Wanted) -> tuple[list[str], dict[str, Any]]:
    """The conditions of a search on a row of `active_sessions`, and their parameters."""
    clauses: list[str] = []
    parameters: dict[str, Any] = {}
    if wanted.since is not None:
        clauses.append("created_at >= :since")
        parameters["since"] = to_micros(wanted.since)
    if wanted.until is not None:
        clauses.append("created_at < :until")
        parameters["until"] = to_micros(wanted.until)
    if wanted.words:
        clauses.append(HAVE.format(table="active_sessions"))
        parameters["words"] = match(wanted.words)
    if wanted.symbols:
        about, found = query_clause((), wanted.symbols, "q.body")
        is_asset = has_one("assets", marks(wanted.symbols))
        clauses.append(f"({is_asset} OR {_some_query(about)})")
        parameters |= found
    if wanted.conditions:
        holds, found = query_clause(wanted.conditions, wanted.symbols, "q.body")
        clauses.append(_some_query(holds))
        parameters |= found
    return clauses, parameters


def has_one(column: str, names: str) -> str:
    """The condition that a JSON array has one of some names; also met where a damaged column isn't JSON."""
    # Reading the row then says which session is damaged.
    some = f"EXISTS (SELECT 1 FROM json_each({column}) WHERE value IN ({names}))"  # noqa: S608 - no values
    return f"CASE WHEN json_valid({column}) THEN {some} ELSE TRUE END"


def _some_query(clause: str) -> str:
    # S608: the clause is made of our own names and of placeholders.
    return f"EXISTS (SELECT 1 FROM active_queries q WHERE q.session_id = active_sessions.id AND {clause})"  # noqa: S608
