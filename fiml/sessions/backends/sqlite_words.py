"""A search over sessions in SQLite: the conditions on live rows, and the words of sessions in FTS5."""

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.sessions.searching import Condition, Wanted

HAVE = (
    "{table}.id IN (SELECT w.session_id FROM session_fts JOIN session_words w ON w.id = session_fts.rowid"
    " WHERE session_fts MATCH :words)"
)


def put(connection: sqlite3.Connection, session_id: UUID, words: Collection[str]) -> None:
    """Set the words of a session."""
    # Not an upsert: that would fire triggers of UPDATE, and only those of DELETE and INSERT maintain the index.
    connection.execute("DELETE FROM session_words WHERE session_id = ?", (session_id.hex,))
    connection.execute(
        "INSERT INTO session_words (session_id, words) VALUES (?, ?)", (session_id.hex, " ".join(sorted(words)))
    )


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
        is_asset = has_one("assets", _marks(wanted.symbols))
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


def match(words: Sequence[str]) -> str:
    """A query in FTS5's language for words that must all be there."""
    return " AND ".join(f'"{word.rstrip("*")}"{"*" if word.endswith("*") else ""}' for word in words)


def query_clause(conditions: Sequence[Condition], symbols: Sequence[str], body: str) -> tuple[str, dict[str, Any]]:
    """The condition of a search on one query, whose JSON is in the column `body`, and its parameters."""
    terms: list[str] = []
    parameters: dict[str, Any] = {}
    for n, each in enumerate(conditions):
        figure = f"{body}, '$.figures.\"{each.figure}\"'"
        terms.append(f"json_type({figure}) IN ('integer', 'real')")
        terms.append(f"CAST(json_extract({figure}) AS REAL) {each.sign} :n{n}")
        parameters[f"n{n}"] = each.number
    if symbols:
        terms.append(f"json_type({body}, '$.parameters.symbol') = 'text'")
        terms.append(f"json_extract({body}, '$.parameters.symbol') IN ({_marks(symbols)})")
        parameters |= {f"symbol{n}": symbol for n, symbol in enumerate(symbols)}
    # CASE guarantees that the JSON is only read after it was found valid; AND would not.
    return f"CASE WHEN json_valid({body}) THEN {' AND '.join(terms)} ELSE FALSE END", parameters


def _marks(symbols: Sequence[str]) -> str:
    return ", ".join(f":symbol{n}" for n in range(len(symbols)))


def _some_query(clause: str) -> str:
    # S608: the clause is made of our own names and of placeholders.
    return f"EXISTS (SELECT 1 FROM active_queries q WHERE q.session_id = active_sessions.id AND {clause})"  # noqa: S608
