"""The sweep of the embedded deployment: each batch is one transaction in one file."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from fiml.core.clock import to_micros
from fiml.core.errors import CorruptRecord, RecordRefused
from fiml.core.log import get_logger
from fiml.db.engines import driver
from fiml.db.sqlite_file import SqliteFile, translated
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.backends.shapes import Ended, SweepReport
from fiml.sessions.backends.sql import archive, quarantine
from fiml.sessions.backends.sqlite import rows
from fiml.sessions.records import FORMAT, Header, SessionRecord, check_format, check_whole, with_all_totals

_BATCH = 500
_BATCH_BYTES = 8 * 1024 * 1024
_PARTS = {
    "header": ("active_sessions", "id"),
    "entries": ("active_entries", "session_id"),
    "queries": ("active_queries", "session_id"),
    "trail": ("active_trail", "session_id"),
}
# Changes to tables since older versions, from which a dump may come.
_SINCE = (
    "CREATE TABLE IF NOT EXISTS active_trail (n INTEGER PRIMARY KEY, session_id TEXT, entry TEXT)",
    "ALTER TABLE active_sessions ADD COLUMN grants TEXT NOT NULL DEFAULT '{}'",
)

_log = get_logger()


def sweep_batch(file: SqliteFile, connection: Connection, ended: Ended) -> SweepReport:
    """Archive some of the sessions that expired by `ended.at`; those that can't be archived go into the quarantine."""
    report = SweepReport()
    expired = _select_expired(driver(connection), ended.at)
    if not expired:
        report.postponed = _count_newer(driver(connection), ended.at)
    _archive(file, connection, expired, ended, report)
    return report


def move(connection: Connection, headers: Sequence[Header], ended: Ended) -> None:
    """Move live sessions to the archive.

    Raises:
        CorruptRecord: one of them is damaged.
        SchemaTooNew: a later fiml wrote one of them.
    """
    records = [with_all_totals(_select_whole(driver(connection), header)) for header in headers]
    archive.put(connection, records, ended)
    rows.delete(driver(connection), [header.id for header in headers])


def record_in(session_id: UUID, dump: Dump) -> SessionRecord:
    """The session in a dump.

    Raises:
        CorruptRecord: it still can't be read.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(";".join(dump.parts["tables"]))
        if "trail" not in dump.parts:
            connection.executescript(";".join(_SINCE))
        for part, (table, _) in _PARTS.items():
            for row in dump.parts.get(part, ()):
                marks = ", ".join("?" * len(row))
                insert = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"  # noqa: S608 - our own columns
                connection.execute(insert, [_as_stored(value) for value in row.values()])
        header = rows.select_header(connection, session_id)
        if header is None:
            raise CorruptRecord(f"live session {session_id}", "its header is missing")
        return with_all_totals(_select_whole(connection, header))


def _archive(
    file: SqliteFile, connection: Connection, session_ids: Sequence[str], ended: Ended, report: SweepReport
) -> None:
    if not session_ids:
        return
    try:
        # In a savepoint, so that a refused batch leaves nothing behind.
        with translated(file.path), connection.begin_nested():
            move(connection, [rows.select_any_header(driver(connection), each) for each in session_ids], ended)
    except (CorruptRecord, RecordRefused) as exc:
        if exc.record.startswith("the file"):
            raise  # the file is damaged, not a session
        if len(session_ids) == 1:
            _set_aside(connection, session_ids[0], exc.problem, ended, report)
            return
        middle = len(session_ids) // 2
        for half in (session_ids[:middle], session_ids[middle:]):
            _archive(file, connection, half, ended, report)
    else:
        report.archived += len(session_ids)


def _set_aside(connection: Connection, stored_id: str, problem: str, ended: Ended, report: SweepReport) -> None:
    session_id = UUID(stored_id)
    dump = _dump(driver(connection), session_id)
    user_id = dump.parts["header"][0]["user_id"]
    quarantine.put(connection, session_id, user_id=user_id, reason=problem, dump=dump, now=ended.at)
    rows.delete(driver(connection), [session_id])
    report.quarantined += 1
    _log.error("session_quarantined", session_id=str(session_id), problem=problem)


def _select_expired(connection: sqlite3.Connection, by: datetime) -> list[str]:
    """The ids of expired sessions, the longest expired first, as many as fit into one batch."""
    found = connection.execute(
        "SELECT id, maps_bytes + history_bytes FROM active_sessions"
        # A damaged row whose id is none has no session that could be moved: a listing tells of it.
        " WHERE expires_at <= ? AND format <= ? AND typeof(id) = 'text' AND length(id) = 32"
        " AND id NOT GLOB '*[^0-9a-f]*' ORDER BY expires_at, id LIMIT ?",
        (to_micros(by), FORMAT, _BATCH),
    )
    chosen: list[str] = []
    size = 0
    for session_id, bytes_ in found:
        size += bytes_ if isinstance(bytes_, int) else 0
        if chosen and size > _BATCH_BYTES:
            break
        chosen.append(session_id)
    return chosen


def _count_newer(connection: sqlite3.Connection, by: datetime) -> int:
    [count] = connection.execute(
        "SELECT count(*) FROM active_sessions WHERE expires_at <= ? AND format > ?", (to_micros(by), FORMAT)
    ).fetchone()
    return int(count)


def _select_whole(connection: sqlite3.Connection, header: Header) -> SessionRecord:
    """A session, whole, after checking that its JSON is valid: the archive stores it as text and wouldn't notice."""
    check_format(header.format)
    is_json = {
        "active_entries": "json_valid(value)",
        "active_queries": "json_valid(body) AND json_type(body) = 'object'",
        "active_trail": "json_valid(entry)",
    }
    for table, condition in is_json.items():
        broken = connection.execute(
            f"SELECT count(*) FROM {table} WHERE session_id = ? AND NOT ({condition})",  # noqa: S608 - constants
            (header.id.hex,),
        ).fetchone()
        if broken[0]:
            raise CorruptRecord(
                f"live session {header.id}", f"{broken[0]} of its {table} hold invalid JSON, or not what they should"
            )
    [count] = connection.execute(
        "SELECT count(*) FROM active_queries WHERE session_id = ?", (header.id.hex,)
    ).fetchone()
    record = rows.select_record(connection, header)
    return check_whole(replace(record, trail=rows.select_trail(connection, header.id)), count)


def _dump(connection: sqlite3.Connection, session_id: UUID) -> Dump:
    connection.text_factory = bytes  # as it is stored, UTF-8 or not
    try:
        return _dump_bytes(connection, session_id)
    finally:
        connection.text_factory = str


def _dump_bytes(connection: sqlite3.Connection, session_id: UUID) -> Dump:
    tables = [table for table, _ in _PARTS.values()]
    schema = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name IN (?, ?, ?, ?) ORDER BY name", tables
    )
    parts: dict[str, Any] = {"tables": [sql.decode() for (sql,) in schema]}
    for part, (table, column) in _PARTS.items():
        found = connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (session_id.hex,))  # noqa: S608 - constants
        columns = [description[0] for description in found.description]
        parts[part] = [dict(zip(columns, map(_as_text, row), strict=True)) for row in found]
    return Dump("sqlite", parts)


def _as_stored(value: object) -> object:
    is_blob = isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)
    return value.encode("utf-8", "surrogateescape") if is_blob else value  # type: ignore[attr-defined]  # a str


def _as_text(value: object) -> object:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
