"""Full text of archived sessions in SQL: PostgreSQL's own, or SQLite's FTS5, which also covers live sessions.

The functions run in the caller's transaction. Words are removed with their session: by a foreign key on PostgreSQL, by
triggers on SQLite.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, Connection, or_, select, text, type_coerce

from fiml.core.errors import CorruptRecord
from fiml.db.dialects import if_json, is_postgresql, json_elements
from fiml.db.engines import driver
from fiml.db.tables import sessions
from fiml.sessions.backends.sql import fts5
from fiml.sessions.backends.sql.fts5 import HAVE, match, query_clause
from fiml.sessions.damage import DAMAGE
from fiml.sessions.records import SessionRecord
from fiml.sessions.searching import Condition, Wanted, words_of

_MUCH_BYTES = 256 * 1024
_PUT = text(
    "INSERT INTO session_search (session_id, words)"
    " SELECT s.id, array_to_tsvector(string_to_array(given.words, ' '))"
    " FROM unnest(CAST(:ids AS uuid[]), CAST(:versions AS bigint[]), CAST(:words AS text[]))"
    " AS given(id, version, words)"
    # The archive may already have a later version from somebody else.
    " JOIN sessions s ON s.id = given.id AND s.version = given.version"
    # Locks the row: of a session that is being resumed, the words would have no session to belong to.
    " FOR KEY SHARE OF s"
    " ON CONFLICT (session_id) DO UPDATE SET words = excluded.words"
)
_PUT_NONE = text(
    "INSERT INTO session_search (session_id, words) SELECT id, '' FROM sessions WHERE id = :id FOR KEY SHARE"
    " ON CONFLICT (session_id) DO NOTHING"
)


async def read_apart(records: Sequence[SessionRecord]) -> dict[UUID, str]:
    """The words that `put` stores, by session id; computed in a thread if the sessions are long, to not block the loop.

    A session that isn't valid JSON is left out: the database will refuse it.
    """
    size = sum(record.header.history_bytes + record.header.maps_bytes for record in records)
    return _read_all(records) if size < _MUCH_BYTES else await asyncio.to_thread(_read_all, records)


def _read_all(records: Sequence[SessionRecord]) -> dict[UUID, str]:
    texts: dict[UUID, str] = {}
    for record in records:
        with suppress(CorruptRecord):
            texts[record.header.id] = _stored(record)
    return texts


def _stored(record: SessionRecord) -> str:
    return " ".join(sorted(read(record)))


def put(connection: Connection, records: Sequence[SessionRecord], texts: Mapping[UUID, str] | None = None) -> bool:
    """Index sessions that were just archived. On SQLite, the next search does that.

    `texts` are words that were computed before. Returns `False` if a session is archived in another version, or gone:
    it is left out.

    Raises:
        CorruptRecord: a session isn't valid JSON.
    """
    if is_postgresql(connection):
        headers = [record.header for record in records]
        known = texts or {}
        found = [known[record.header.id] if record.header.id in known else _stored(record) for record in records]
        ids, versions = [header.id for header in headers], [header.version for header in headers]
        return connection.execute(_PUT, {"ids": ids, "versions": versions, "words": found}).rowcount == len(records)
    return True


def put_none(connection: Connection, session_id: UUID) -> None:
    """Index an archived session that can't be read, without words."""
    connection.execute(_PUT_NONE, {"id": session_id})


def read(record: SessionRecord) -> set[str]:
    """The words of a session.

    Raises:
        CorruptRecord: the session isn't valid JSON.
    """
    try:
        return words_of(record)
    except DAMAGE as exc:
        raise CorruptRecord(f"session {record.header.id}", str(exc)) from exc


def replace(connection: Connection, before: SessionRecord, after: SessionRecord) -> None:
    """Leave no words in the index that the new texts don't have. Encrypted texts have no words, so nothing changes."""
    found = read(after)
    if found == read(before):
        return
    if is_postgresql(connection):
        put(connection, [after])
    else:
        fts5.put(driver(connection), after.header.id, found)


def conditions(connection: Connection, wanted: Wanted) -> list[ColumnElement[bool]]:
    """The conditions of a search on a row of `sessions`."""
    found: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        found.append(sessions.c.created_at >= wanted.since)
    if wanted.until is not None:
        found.append(sessions.c.created_at < wanted.until)
    if wanted.words:
        found.append(_have(connection, wanted.words))
    if wanted.symbols:
        elements = json_elements(connection, sessions.c.assets)
        has_one = select(elements.c.value).where(elements.c.value.in_(wanted.symbols)).exists()
        is_asset = if_json(connection, sessions.c.assets, has_one, otherwise=True)
        found.append(or_(is_asset, _some_query(connection, (), wanted.symbols)))
    if wanted.conditions:
        found.append(_some_query(connection, wanted.conditions, wanted.symbols))
    return found


def _have(connection: Connection, words: Sequence[str]) -> ColumnElement[bool]:
    if is_postgresql(connection):
        lexemes = " & ".join(f"'{word.rstrip('*')}'{':*' if word.endswith('*') else ''}" for word in words)
        return _boolean(
            "EXISTS (SELECT 1 FROM session_search f WHERE f.session_id = sessions.id"
            " AND f.words @@ CAST(CAST(:lexemes AS text) AS tsquery))",
            {"lexemes": lexemes},
        )
    return _boolean(HAVE.format(table="sessions"), {"words": match(words)})


def _some_query(connection: Connection, figures: Sequence[Condition], symbols: Sequence[str]) -> ColumnElement[bool]:
    """The condition that one query in the history is about the symbol and has figures that meet all conditions."""
    if is_postgresql(connection):
        path, variables = _json_path(figures, symbols)
        return _boolean(
            "jsonb_path_exists(sessions.history_queries, CAST(CAST(:path AS text) AS jsonpath),"
            " CAST(CAST(:variables AS text) AS jsonb))",
            {"path": path, "variables": json.dumps(variables)},
        )
    clause, parameters = query_clause(figures, symbols, "q.value")
    # S608: the clause is made of our own names and of placeholders.
    some = f"EXISTS (SELECT 1 FROM json_each(sessions.history_queries) q WHERE {clause})"  # noqa: S608
    return if_json(connection, sessions.c.history_queries, _boolean(some, parameters), otherwise=False)


def _json_path(figures: Sequence[Condition], symbols: Sequence[str]) -> tuple[str, dict[str, Any]]:
    signs = {"=": "=="}
    terms: list[str] = []
    variables: dict[str, Any] = {}
    for n, each in enumerate(figures):
        figure = f'@.figures."{each.figure}"'
        terms.append(f'{figure}.type() == "number" && {figure}.double() {signs.get(each.sign, each.sign)} $n{n}')
        variables[f"n{n}"] = each.number
    if symbols:
        names = " || ".join(f"@.parameters.symbol == $symbol{n}" for n in range(len(symbols)))
        # Without the type, a comparison with a list would match any of its items.
        terms.append(f'@.parameters.symbol.type() == "string" && ({names})')
        variables |= {f"symbol{n}": symbol for n, symbol in enumerate(symbols)}
    return f"$[*] ? ({' && '.join(terms)})", variables


def _boolean(clause: str, parameters: Mapping[str, Any]) -> ColumnElement[bool]:
    return type_coerce(text(clause).bindparams(**parameters), Boolean)
