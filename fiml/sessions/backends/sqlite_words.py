"""Full text of sessions in SQLite, part by part, so that a query more costs one row more."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.sessions.changes import Change
from fiml.sessions.records import Header
from fiml.sessions.searching import (
    Condition,
    Wanted,
    entry_part,
    query_part,
    words_of_entry,
    words_of_names,
    words_of_query,
)

_PUT = (
    "INSERT INTO session_words (session_id, part, words) VALUES (?, ?, ?)"
    " ON CONFLICT (session_id, part) DO UPDATE SET words = excluded.words"
)
MATCH = (
    "SELECT w.session_id FROM session_fts JOIN session_words w ON w.id = session_fts.rowid"
    " WHERE session_fts MATCH :{name}"
)


def put_parts(connection: sqlite3.Connection, session_id: UUID, parts: Mapping[str, set[str]]) -> None:
    """Set the words of parts of a session."""
    connection.executemany(
        _PUT, [(session_id.hex, part, " ".join(sorted(words))) for part, words in parts.items() if words]
    )


def put_change(connection: sqlite3.Connection, header: Header, change: Change) -> None:
    """Set the words of what a change brought, and drop those of what it removed; `header` is as it is after it."""
    parts = {}
    if change.scalars or change.assets.added or change.assets.removed or change.tags.added or change.tags.removed:
        parts["names"] = words_of_names(header)
    for name, entries in change.entries_set.items():
        parts |= {entry_part(name, key): words_of_entry(key, text) for key, text in entries.items()}
    for query in change.queries:
        parts[query_part(str(query.id))] = words_of_query(query.query.to_dict())
    put_parts(connection, header.id, parts)
    removed = [entry_part(name, key) for name, keys in change.entries_removed.items() for key in keys]
    removed += [part for part, words in parts.items() if not words]
    connection.executemany(
        "DELETE FROM session_words WHERE session_id = ? AND part = ?", [(header.id.hex, part) for part in removed]
    )


def live_clauses(wanted: Wanted) -> tuple[list[str], dict[str, Any]]:
    """What a search asks of a row of `active_sessions`, and its parameters."""
    clauses: list[str] = []
    parameters: dict[str, Any] = {}
    if wanted.since is not None:
        clauses.append("created_at >= :since")
        parameters["since"] = to_micros(wanted.since)
    if wanted.until is not None:
        clauses.append("created_at < :until")
        parameters["until"] = to_micros(wanted.until)
    for n, word in enumerate(wanted.words):
        clauses.append(f"active_sessions.id IN ({MATCH.format(name=f'word_{n}')})")
        parameters[f"word_{n}"] = fts_word(word)
    if wanted.symbol is not None:
        about, found = query_clause((), wanted.symbol, "q.body")
        is_asset = "EXISTS (SELECT 1 FROM json_each(assets) WHERE value = :about)"
        clauses.append(f"({is_asset} OR {_some_query(about)})")
        parameters |= found
    if wanted.conditions:
        holds, found = query_clause(wanted.conditions, wanted.symbol, "q.body")
        clauses.append(_some_query(holds))
        parameters |= found
    return clauses, parameters


def fts_word(word: str) -> str:
    """A word as FTS5's query language quotes it."""
    return f'"{word.rstrip("*")}"{"*" if word.endswith("*") else ""}'


def query_clause(conditions: Sequence[Condition], symbol: str | None, body: str) -> tuple[str, dict[str, Any]]:
    """What a search asks of one query, whose JSON the column `body` has, and its parameters."""
    terms: list[str] = []
    parameters: dict[str, Any] = {}
    for n, each in enumerate(conditions):
        figure = f"{body}, '$.figures.{each.figure}'"
        terms.append(f"json_type({figure}) IN ('integer', 'real') AND json_extract({figure}) {each.sign} :n{n}")
        parameters[f"n{n}"] = each.number
    if symbol is not None:
        terms.append(f"json_extract({body}, '$.parameters.symbol') = :about")
        parameters["about"] = symbol
    return " AND ".join(terms), parameters


def _some_query(clause: str) -> str:
    # S608: the clause is made of names of our own and of marks.
    return f"EXISTS (SELECT 1 FROM active_queries q WHERE q.session_id = active_sessions.id AND {clause})"  # noqa: S608
