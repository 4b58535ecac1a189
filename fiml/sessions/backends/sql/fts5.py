"""The search index in SQLite: the words of live and archived sessions in FTS5, and conditions on queries."""

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from fiml.sessions.searching import Condition

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
        terms.append(f"json_extract({body}, '$.parameters.symbol') IN ({marks(symbols)})")
        parameters |= {f"symbol{n}": symbol for n, symbol in enumerate(symbols)}
    # CASE guarantees that the JSON is only read after it was found valid; AND would not.
    return f"CASE WHEN json_valid({body}) THEN {' AND '.join(terms)} ELSE FALSE END", parameters


def marks(symbols: Sequence[str]) -> str:
    return ", ".join(f":symbol{n}" for n in range(len(symbols)))
