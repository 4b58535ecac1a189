"""Archived sessions in SQL, on PostgreSQL and SQLite alike. The functions run in the caller's transaction."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from json.encoder import encode_basestring
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, case, delete, or_, select, text, update

from fiml.core.errors import CorruptRecord, SchemaTooNew
from fiml.core.log import get_logger
from fiml.db.dialects import if_json, insert_into, is_postgresql, json_elements, upsert
from fiml.db.tables import search_pending, session_quarantine, sessions, tombstones
from fiml.sessions import stored_json, values
from fiml.sessions.backends.pages import newest_first, readable
from fiml.sessions.backends.shapes import Ended, PageQuery
from fiml.sessions.backends.sql import archived_grants, metrics, words
from fiml.sessions.models import MAPS, QueryTotals
from fiml.sessions.records import Header, SessionRecord, check_format, decoding
from fiml.sessions.rights import ANYBODY, Caller, Right, decode_grants, right_in

# A process that hangs within a transaction loses its locks after a minute; others wait for a lock five seconds at most.
_BOUNDS = "set_config('idle_in_transaction_session_timeout', '60s', true), set_config('lock_timeout', '5s', true)"
# Locks by a session's id: archiving, deleting and holding the same session exclude each other.
_LOCK = text(
    f"SELECT {_BOUNDS}, pg_advisory_xact_lock(hashtextextended(id, 0))"  # noqa: S608 - a constant
    " FROM unnest(CAST(:ids AS text[])) AS id ORDER BY id"
)
_TRY_LOCK = text(
    f"SELECT {_BOUNDS}, id, pg_try_advisory_xact_lock(hashtextextended(id, 0))"  # noqa: S608 - a constant
    " FROM unnest(CAST(:ids AS text[])) AS id"
)
_log = get_logger()
_SUMMARY = (
    sessions.c.id,
    sessions.c.user_id,
    sessions.c.type,
    sessions.c.title,
    sessions.c.assets,
    sessions.c.tags,
    sessions.c.created_at,
    sessions.c.expires_at,
    sessions.c.last_accessed_at,
    sessions.c.version,
    sessions.c.total_queries,
    sessions.c.format,
    sessions.c.grants,
)

_NAMES = msgspec.json.Decoder(list[str])


class _Checked(msgspec.Struct):
    """Columns of `sessions` in which SQLite would store any type."""

    type: str
    title: str | None
    version: int
    total_queries: int
    format: int


@dataclass(frozen=True, slots=True)
class Put:
    """Which sessions were not archived: `buried` ones are deleted for good, `busy` ones are locked by somebody else."""

    buried: set[UUID]
    busy: set[UUID]

    def has(self, session_id: UUID) -> bool:
        """Whether a session was archived."""
        return session_id not in self.buried and session_id not in self.busy


def put(
    connection: Connection,
    records: Sequence[SessionRecord],
    ended: Ended,
    *,
    texts: Mapping[UUID, str] | None = None,
    is_patient: bool = False,
) -> Put:
    """Copy sessions and their metrics into the archive, replacing older versions only; within a version, earlier times.

    A session's row and its metrics are written together or not at all. Sessions that somebody else is archiving or
    deleting are left out, unless the call `is_patient` and waits for them. `texts` are words of sessions that were
    computed before.

    Raises:
        SchemaTooNew: a later fiml wrote a session; its row would lack what only that fiml knows.
    """
    for record in records:
        check_format(record.header.format)
    ids = [record.header.id for record in records]
    busy = set() if is_patient else try_lock(connection, ids)
    if is_patient:
        lock(connection, ids)
    buried = _buried(connection, ids)
    put_here = Put(buried, busy)
    chosen = [record for record in records if put_here.has(record.header.id)]
    if chosen:
        rows = [_session_row(record, ended) for record in chosen]
        upsert(connection, sessions, rows, key="id", where=_is_newer, value=_value)
        if ended.write_metrics:
            metrics.put_archived(connection, [metrics.row_of(record.header, ended.at) for record in chosen])
        words.put(connection, chosen, texts)
    return put_here


def _is_newer(new: Any) -> ColumnElement[bool]:
    # An archiving that died may have left a copy of a session that lived on. Its version is the same if nobody wrote.
    has_lived_on = and_(sessions.c.version == new.version, sessions.c.archived_at < new.archived_at)
    return or_(sessions.c.version < new.version, has_lived_on)


def _value(new: Any, name: str) -> ColumnElement[Any]:
    """The value of a column after an archiving. Only times differ within a version."""
    is_newer = sessions.c.version < new.version
    if name in ("archived_at", "last_accessed_at"):
        is_newer = or_(is_newer, sessions.c[name] < new[name])
    return case((is_newer, new[name]), else_=sessions.c[name])


def fetch(connection: Connection, session_id: UUID, caller: Caller = ANYBODY) -> SessionRecord | None:
    """An archived session, whole."""
    query = select(sessions).where(sessions.c.id == session_id, archived_grants.seen_by(connection, caller))
    try:
        row = connection.execute(query).mappings().one_or_none()
    except CorruptRecord as exc:
        raise CorruptRecord(f"archived session {session_id}", exc.problem) from exc
    return None if row is None else _record(row)


def find(connection: Connection, session_id: UUID, caller: Caller = ANYBODY) -> tuple[int, Right] | None:
    """The version of an archived session, and what the caller may do with it."""
    columns = (sessions.c.version, sessions.c.user_id, sessions.c.grants, sessions.c.format)
    seen = select(*columns).where(sessions.c.id == session_id, archived_grants.seen_by(connection, caller))
    row = connection.execute(seen).one_or_none()
    if row is None:
        return None
    record = f"archived session {session_id}"
    with decoding(record, row.format):
        right = right_in(record, row.user_id, row.grants, caller)
        return None if right is None else (msgspec.convert(row.version, int), right)


def note_access(connection: Connection, session_id: UUID, version: int, now: datetime) -> None:
    """Move the last access of an archived session to `now`, also in its metrics.

    Nothing happens if it was accessed later, or has another version: then it was written or resumed since.
    """
    is_earlier = and_(sessions.c.version == version, sessions.c.last_accessed_at < now)
    moved = update(sessions).where(sessions.c.id == session_id, is_earlier).values(last_accessed_at=now)
    if connection.execute(moved).rowcount:
        metrics.note_access(connection, session_id, version, now)


def remove(connection: Connection, session_id: UUID, version: int) -> bool:
    """Take a session out of the archive, with its metrics, if it has this version there."""
    return _remove(connection, session_id, sessions.c.version == version)


def remove_older(connection: Connection, session_id: UUID, version: int) -> bool:
    """Take a session out of the archive, with its metrics, if it has an older version there."""
    return _remove(connection, session_id, sessions.c.version < version)


def _remove(connection: Connection, session_id: UUID, at_version: ColumnElement[bool]) -> bool:
    if connection.execute(delete(sessions).where(sessions.c.id == session_id, at_version)).rowcount == 0:
        return False
    metrics.remove(connection, session_id)
    return True


def remove_all(connection: Connection, headers: Sequence[Header]) -> None:
    """Take those sessions out of the archive, with their metrics, that have the same version there."""
    for header in headers:
        remove(connection, header.id, header.version)


def bury(connection: Connection, session_id: UUID, *, version: int, now: datetime) -> None:
    """Delete a session for good, and leave a tombstone that keeps it from being archived again."""
    tombstone = {"id": session_id, "version": version, "deleted_at": now}
    insert = insert_into(connection, tombstones).values(tombstone)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))
    for table in (sessions, session_quarantine):
        connection.execute(delete(table).where(table.c.id == session_id))
    connection.execute(delete(search_pending).where(search_pending.c.session_id == session_id))
    metrics.remove(connection, session_id)


def is_buried(connection: Connection, session_id: UUID) -> bool:
    """Whether a session was deleted for good."""
    return bool(_buried(connection, [session_id]))


def page(connection: Connection, query: PageQuery) -> list[Header]:
    """Archived sessions by `created_at` descending, then id."""
    statement = _page_statement(connection, query)
    own = readable(lambda seen: _rows(connection, statement, seen), _header_of_own, query.limit)
    if query.given_to is None:
        return own
    # A query of their own: the user's own sessions come from an index, in order.
    everybodys = _page_statement(connection, replace(query, user_id=None))
    given = archived_grants.among_given(connection, everybodys, query.given_to)
    found = readable(lambda seen: _rows(connection, given, seen), _header_of_another, query.limit)
    return newest_first([*own, *found])[: query.limit]


def _rows(connection: Connection, statement: Select[Any], seen: Sequence[RowMapping]) -> Sequence[RowMapping]:
    # By position: by number, one would be passed over for each that is resumed between the two looks.
    rest = _after(seen[-1]["created_at"], seen[-1]["id"]) if seen else ()
    return connection.execute(statement.where(*rest)).mappings().all()


def _after(created_at: datetime, session_id: UUID) -> tuple[ColumnElement[bool], ...]:
    """The conditions that a session comes after a position in a listing."""
    # The first condition alone is one for the index: without it, a page would read all pages before it.
    at_most = sessions.c.created_at <= created_at
    return at_most, or_(sessions.c.created_at < created_at, sessions.c.id > session_id)


def _has(connection: Connection, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    elements = json_elements(connection, column)
    has_it = select(elements.c.value).where(elements.c.value == name).exists()
    return if_json(connection, column, has_it, otherwise=True)  # reading the row says which session is damaged


def _page_statement(connection: Connection, query: PageQuery) -> Select[Any]:
    statement = select(*_SUMMARY).order_by(sessions.c.created_at.desc(), sessions.c.id).limit(query.limit)
    if query.user_id is not None:
        statement = statement.where(sessions.c.user_id == query.user_id)
    if query.type is not None:
        statement = statement.where(sessions.c.type == query.type)
    if query.tag is not None:
        statement = statement.where(_has(connection, sessions.c.tags, query.tag))
    if query.asset is not None:
        statement = statement.where(_has(connection, sessions.c.assets, query.asset))
    if query.after is not None:
        statement = statement.where(*_after(*query.after))
    if query.wanted is not None:
        statement = statement.where(*words.conditions(connection, query.wanted))
    return statement


def lock(connection: Connection, session_ids: Sequence[UUID]) -> None:
    """Wait until nobody else is archiving, deleting or holding one of the sessions."""
    # On SQLite, writing transactions exclude each other anyway.
    if is_postgresql(connection):
        connection.execute(_LOCK, {"ids": sorted(str(session_id) for session_id in session_ids)})


def try_lock(connection: Connection, session_ids: Sequence[UUID]) -> set[UUID]:
    """Lock the sessions that nobody else has locked. Returns those that could not be locked."""
    if not is_postgresql(connection):
        return set()
    found = connection.execute(_TRY_LOCK, {"ids": [str(session_id) for session_id in session_ids]})
    return {UUID(session_id) for *_, session_id, is_locked in found if not is_locked}


def _buried(connection: Connection, session_ids: Sequence[UUID]) -> set[UUID]:
    return set(connection.scalars(select(tombstones.c.id).where(tombstones.c.id.in_(session_ids))))


def _session_row(record: SessionRecord, ended: Ended) -> dict[str, Any]:
    header = record.header
    return {
        "id": header.id,
        "user_id": header.user_id,
        "type": header.type,
        "title": header.title,
        "assets": stored_json.json_of(header.assets),
        "created_at": header.created_at,
        "expires_at": header.expires_at,
        "last_accessed_at": header.last_accessed_at,
        "archived_at": ended.at,
        "is_archived": True,
        "tags": stored_json.json_of(header.tags),
        **{name: json_object(record.entries.get(name, {})) for name in MAPS},
        "history_queries": record.history,
        "total_queries": header.totals.total_queries,
        "first_query_at": header.totals.first_query_at,
        "last_query_at": header.totals.last_query_at,
        "cache_hit_rate": header.totals.cache_hit_rate,
        "version": header.version,
        "format": header.format,
        "grants": stored_json.json_of(header.grants),
        "trail": record.trail,
    }


def json_object(entries: Mapping[str, str]) -> str:
    """A map as a JSON object, from the JSON of its values."""
    return "{" + ",".join(f"{encode_basestring(key)}:{value}" for key, value in entries.items()) + "}"


def _record(row: RowMapping) -> SessionRecord:
    with decoding(_name(row), row["format"]):
        entries = {
            name: {key: values.encode_entry(name, key, value) for key, value in json.loads(row[name]).items()}
            for name in MAPS
        }
    return SessionRecord(_header(row), entries, row["history_queries"], is_archived=True, trail=row["trail"])


def _name(row: RowMapping) -> str:
    return f"archived session {row['id']}"


def _header_of_own(row: RowMapping) -> Header | None:
    try:
        return _header(row)
    except SchemaTooNew as exc:
        _log.warning("session_not_listed", session_id=str(row["id"]), problem=str(exc))
        return None


def _header_of_another(row: RowMapping) -> Header | None:
    """The header of another user's session; `None` if it is damaged, so that one's own are still listed."""
    try:
        return _header(row)
    except (CorruptRecord, SchemaTooNew) as exc:
        _log.warning("session_given_unreadable", problem=str(exc))
        return None


def _header(row: RowMapping) -> Header:
    with decoding(_name(row), row["format"]):
        checked = msgspec.convert({name: row[name] for name in _Checked.__struct_fields__}, _Checked)
        return Header(
            id=row["id"],
            user_id=row["user_id"],
            type=checked.type,
            title=checked.title,
            assets=_NAMES.decode(row["assets"]),
            tags=_NAMES.decode(row["tags"]),
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            last_accessed_at=row["last_accessed_at"],
            version=checked.version,
            totals=QueryTotals(total_queries=checked.total_queries),
            format=checked.format,
            grants=decode_grants(_name(row), row["grants"]),
        )
