"""Live sessions as rows of SQLite. The functions run in the caller's transaction."""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.core.errors import CorruptRecord, SchemaTooNew, SessionFull
from fiml.core.log import get_logger
from fiml.sessions import values
from fiml.sessions.audit import Act, trail_entries, trail_json
from fiml.sessions.backends.pages import newest_first, readable
from fiml.sessions.backends.shapes import PageQuery
from fiml.sessions.backends.sqlite import headers
from fiml.sessions.backends.sqlite.search import has_one, live_clauses
from fiml.sessions.changes import Change
from fiml.sessions.query_json import EncodedQuery, history_json
from fiml.sessions.records import Entries, Header, SessionRecord, decoding, entry_size, format_when_written
from fiml.sessions.rights import ANYBODY, Caller, Right, demand, right_in, right_of

_log = get_logger()
_OF_PAGE = ("user_id", "type", "tag", "asset", "limit")
# S608: built from constants, not from input.
_SELECT = f"SELECT {', '.join(headers.COLUMNS)} FROM active_sessions"  # noqa: S608
_INSERT = (
    f"INSERT INTO active_sessions ({', '.join(headers.COLUMNS)})"  # noqa: S608
    f" VALUES ({', '.join(':' + name for name in headers.COLUMNS)})"
)
_UPDATE, _UPDATE_COUNTED = (
    f"UPDATE active_sessions SET {', '.join(f'{name} = :{name}' for name in names)} WHERE id = :id"  # noqa: S608
    for names in (headers.NAMED + headers.COUNTED, headers.COUNTED)
)
_SET_ENTRY = (
    "INSERT INTO active_entries (session_id, map, key, value) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (session_id, map, key) DO UPDATE SET value = excluded.value"
)
_APPEND_QUERY = "INSERT INTO active_queries (session_id, id, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_ADD_TO_TRAIL = "INSERT INTO active_trail (session_id, entry) VALUES (?, ?)"
# The first term matches a partial index, of sessions with any grants. CASE, since a damaged value isn't JSON.
_GIVEN = (
    "(grants <> '{}' AND CASE WHEN json_valid(grants)"
    " THEN EXISTS (SELECT 1 FROM json_each(grants) WHERE key = 's:' || :user) ELSE FALSE END)"
)
_OWN = "user_id = :user_id"
_SEEN = f"(:user IS NULL OR user_id = :user OR {_GIVEN})"
_DELETE = (
    "DELETE FROM active_trail WHERE session_id = ?",
    "DELETE FROM active_queries WHERE session_id = ?",
    "DELETE FROM active_entries WHERE session_id = ?",
    "DELETE FROM active_sessions WHERE id = ?",
)


def select_header(
    connection: sqlite3.Connection, session_id: UUID, caller: Caller = ANYBODY, needed: Right = Right.READ
) -> Header | None:
    """The header of a live session; `None` if it isn't live, or the caller doesn't see it.

    Raises:
        NotPermitted: the caller has less than the needed right.
    """
    found = {"id": session_id.hex, "user": caller.user}
    row = connection.execute(f"{_SELECT} WHERE id = :id AND {_SEEN}", found).fetchone()
    if row is None:
        return None
    header = headers.decode(row)
    demand(session_id, right_of(header.user_id, header.grants, caller) or Right.READ, needed)
    return header


def select_version(
    connection: sqlite3.Connection, session_id: UUID, caller: Caller = ANYBODY, needed: Right = Right.READ
) -> int | None:
    """The version of a live session, even if the session is otherwise unreadable.

    Raises:
        NotPermitted: the caller has less than the needed right.
    """
    row = connection.execute(
        f"SELECT version, user_id, grants, format FROM active_sessions WHERE id = :id AND {_SEEN}",  # noqa: S608 - as above
        {"id": session_id.hex, "user": caller.user},
    ).fetchone()
    if row is None:
        return None
    version, user_id, grants, format_number = row
    record = f"live session {session_id}"
    with decoding(record, format_number):
        right = right_in(record, user_id, grants, caller)
    demand(session_id, right or Right.READ, needed)
    return version if isinstance(version, int) else 0


def select_any_header(connection: sqlite3.Connection, stored_id: str) -> Header:
    """The header of a live session, which must exist."""
    return headers.decode(connection.execute(f"{_SELECT} WHERE id = ?", (stored_id,)).fetchone())


def select_ids(connection: sqlite3.Connection, user_id: str) -> set[UUID]:
    """Every live session of a user."""
    found = connection.execute("SELECT id FROM active_sessions WHERE user_id = ?", (user_id,))
    return {headers.decode_id(stored_id) for (stored_id,) in found}


def select_given_ids(connection: sqlite3.Connection, user_id: str) -> set[UUID]:
    """Every live session that is shared with a user."""
    found = connection.execute(f"SELECT id FROM active_sessions WHERE {_GIVEN}", {"user": user_id})  # noqa: S608 - a constant
    return {headers.decode_id(stored_id) for (stored_id,) in found}


def select_ids_after(connection: sqlite3.Connection, after: UUID | None, at_most: int) -> list[UUID]:
    """Live sessions after an id, in order of their ids."""
    found = connection.execute(
        "SELECT id FROM active_sessions WHERE id > ? ORDER BY id LIMIT ?", ("" if after is None else after.hex, at_most)
    )
    return [headers.decode_id(stored_id) for (stored_id,) in found]


def select_page(connection: sqlite3.Connection, query: PageQuery, left_out: list[UUID] | None = None) -> list[Header]:
    """Live sessions by `created_at` descending, then id; `left_out` gets those that only a later fiml can read."""
    ids = [] if left_out is None else left_out
    whose = "TRUE" if query.user_id is None else _OWN
    own = readable(lambda seen: _rows(connection, query, whose, len(seen)), lambda row: _decode(row, ids), query.limit)
    if query.given_to is None:
        return own
    # A query of their own: the user's own sessions come from an index, in order.
    given = readable(lambda seen: _rows(connection, query, _GIVEN, len(seen)), _decode_anothers, query.limit)
    return newest_first([*own, *given])[: query.limit]


def _rows(connection: sqlite3.Connection, query: PageQuery, whose: str, seen: int = 0) -> list[Sequence[Any]]:
    conditions = [whose]
    if query.type is not None:
        conditions.append("type = :type")
    if query.tag is not None:
        conditions.append(has_one("tags", ":tag"))
    if query.asset is not None:
        conditions.append(has_one("assets", ":asset"))
    parameters: dict[str, Any] = {name: getattr(query, name) for name in _OF_PAGE} | {"user": query.given_to}
    if query.after is not None:
        conditions.append("(created_at < :after OR created_at = :after AND id > :after_id)")
        parameters |= {"after": to_micros(query.after[0]), "after_id": query.after[1].hex}
    if query.wanted is not None:
        clauses, found = live_clauses(query.wanted)
        conditions += clauses
        parameters |= found
    return connection.execute(
        f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY created_at DESC, id LIMIT :limit OFFSET :seen",
        parameters | {"seen": seen},
    ).fetchall()


def select_record(connection: sqlite3.Connection, header: Header, recent: int | None = None) -> SessionRecord:
    """A session whole, or with its last `recent` queries."""
    entries: Entries = {}
    for name, key, text in connection.execute(
        "SELECT map, key, value FROM active_entries WHERE session_id = ?", (header.id.hex,)
    ):
        entries.setdefault(name, {})[key] = text
    bodies = connection.execute(
        "SELECT body FROM active_queries WHERE session_id = ? ORDER BY n DESC LIMIT ?",
        (header.id.hex, -1 if recent is None else recent),
    ).fetchall()
    with decoding(f"live session {header.id}", header.format):
        return SessionRecord(header, entries, history_json(body for (body,) in reversed(bodies)))


def select_trail(connection: sqlite3.Connection, session_id: UUID) -> str:
    """The audit trail of a live session."""
    rows = connection.execute("SELECT entry FROM active_trail WHERE session_id = ? ORDER BY n", (session_id.hex,))
    with decoding(f"live session {session_id}", None):
        return trail_json(entry for (entry,) in rows)


def add_to_trail(connection: sqlite3.Connection, header: Header, act: Act) -> None:
    """Append what was done to the audit trail, at the header's version."""
    connection.execute(_ADD_TO_TRAIL, (header.id.hex, act.at_version(header.version)))


def insert(connection: sqlite3.Connection, record: SessionRecord, queries: Iterable[EncodedQuery]) -> None:
    """Store a session that isn't live."""
    header, entries = record.header, record.entries
    connection.execute(_INSERT, headers.encode(header))
    trail = trail_entries(f"session {header.id}", record.trail)
    connection.executemany(_ADD_TO_TRAIL, [(header.id.hex, entry) for entry in trail])
    connection.executemany(
        _SET_ENTRY, [(header.id.hex, name, key, text) for name, texts in entries.items() for key, text in texts.items()]
    )
    connection.executemany(_APPEND_QUERY, [(header.id.hex, query.id.hex, query.text) for query in queries])


def update_header(connection: sqlite3.Connection, header: Header, *, only_counted: bool = False) -> None:
    """Write a header: all of its changeable columns, or only times, version, sizes and totals."""
    if only_counted:
        connection.execute(_UPDATE_COUNTED, {"id": header.id.hex, **headers.encode_counted(header)})
    else:
        connection.execute(_UPDATE, headers.encode(header))


def new_version(connection: sqlite3.Connection, header: Header, now: datetime) -> None:
    """Write a header as the next version, accessed at `now`."""
    _raise_version(header, now)
    update_header(connection, header)


def touch(connection: sqlite3.Connection, header: Header, now: datetime) -> None:
    """Move the last access to `now`, without a new version: for writers, nothing has changed."""
    if now > header.last_accessed_at:
        header.last_accessed_at = now
        connection.execute(
            "UPDATE active_sessions SET last_accessed_at = ? WHERE id = ?", (to_micros(now), header.id.hex)
        )


def note_access(connection: sqlite3.Connection, session_id: UUID, now: datetime) -> bool:
    """Move the last access of a live session to `now`, unless it expired before that or was accessed later.

    Returns whether it is live.
    """
    moved = connection.execute(
        "UPDATE active_sessions SET last_accessed_at = :now WHERE id = :id AND :now BETWEEN last_accessed_at + 1"
        " AND expires_at - 1",
        {"id": session_id.hex, "now": to_micros(now)},
    )
    if moved.rowcount:
        return True
    return connection.execute("SELECT 1 FROM active_sessions WHERE id = ?", (session_id.hex,)).fetchone() is not None


def delete(connection: sqlite3.Connection, session_ids: Sequence[UUID]) -> None:
    """Remove live sessions."""
    for statement in _DELETE:
        connection.executemany(statement, [(session_id.hex,) for session_id in session_ids])


def replace_texts(
    connection: sqlite3.Connection, header: Header, entries: Entries, queries: Sequence[tuple[UUID, str]]
) -> None:
    """Replace the texts of existing entries and queries, without a new version; the format rises."""
    connection.executemany(
        "UPDATE active_entries SET value = ? WHERE session_id = ? AND map = ? AND key = ?",
        [(text, header.id.hex, name, key) for name, texts in entries.items() for key, text in texts.items()],
    )
    connection.executemany(
        "UPDATE active_queries SET body = ? WHERE session_id = ? AND id = ?",
        [(text, header.id.hex, query_id.hex) for query_id, text in queries],
    )
    header.history_bytes = sum(len(text.encode()) for _, text in queries)
    header.format = format_when_written(header.format)
    update_header(connection, header)


def append_queries(
    connection: sqlite3.Connection, header: Header, queries: Sequence[EncodedQuery], *, max_queries: int
) -> bool:
    """Append the queries that aren't there yet, and count them in the header; whether there were any.

    Raises:
        SessionFull: there would be too many; the caller rolls back.
    """
    is_new = False
    for query in queries:
        if connection.execute(_APPEND_QUERY, (header.id.hex, query.id.hex, query.text)).rowcount:
            is_new = True
            header.totals.add(query.query)
            header.history_bytes += query.size
            if header.totals.total_queries > max_queries:
                raise SessionFull(header.id, f"{max_queries} queries")
            if header.history_bytes > values.MAX_HISTORY_BYTES:
                raise SessionFull(header.id, f"{values.MAX_HISTORY_BYTES} bytes of queries", setting=None)
    return is_new


def change_entries(connection: sqlite3.Connection, header: Header, change: Change) -> None:
    """Remove and set entries, and update their size in the header.

    Raises:
        InvalidInput: the maps would be too large; the caller rolls back.
    """
    for name, keys in change.entries_removed.items():
        for key in keys:
            header.maps_bytes -= _stored_size(connection, header.id, name, key)
            connection.execute(
                "DELETE FROM active_entries WHERE session_id = ? AND map = ? AND key = ?", (header.id.hex, name, key)
            )
    for name, entries in change.entries_set.items():
        for key, text in entries.items():
            header.maps_bytes += entry_size(key, text) - _stored_size(connection, header.id, name, key)
            connection.execute(_SET_ENTRY, (header.id.hex, name, key, text))
    values.check_maps_size(header.maps_bytes)


def change_header(header: Header, change: Change, now: datetime) -> None:
    """Apply the changes to names and scalars, and raise the version.

    Raises:
        InvalidInput: there would be too many assets or tags, or no asset.
    """
    if change.assets:
        header.assets = values.check_assets(change.assets.apply(header.assets))
    if change.tags:
        header.tags = values.check_tags(change.tags.apply(header.tags))
    for name, value in change.scalars.items():
        setattr(header, name, value)
    _raise_version(header, now)


def _raise_version(header: Header, now: datetime) -> None:
    header.last_accessed_at = max(header.last_accessed_at, now)
    header.version += 1
    header.format = format_when_written(header.format)


def _stored_size(connection: sqlite3.Connection, session_id: UUID, name: str, key: str) -> int:
    row = connection.execute(
        "SELECT value FROM active_entries WHERE session_id = ? AND map = ? AND key = ?", (session_id.hex, name, key)
    ).fetchone()
    return 0 if row is None else entry_size(key, row[0])


def _decode(row: Sequence[Any], left_out: list[UUID]) -> Header | None:
    try:
        return headers.decode(row)
    except SchemaTooNew as exc:
        left_out.append(headers.decode_id(row[0]))
        _log.warning("session_not_listed", session_id=str(left_out[-1]), problem=str(exc))
        return None


def _decode_anothers(row: Sequence[Any]) -> Header | None:
    """The header of another user's session; `None` if it is damaged, so that one's own are still listed."""
    try:
        return headers.decode(row)
    except (CorruptRecord, SchemaTooNew) as exc:
        _log.warning("session_given_unreadable", problem=str(exc))
        return None
