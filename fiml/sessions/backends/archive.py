"""Ended sessions in SQL, the same on PostgreSQL and SQLite. The functions run in the caller's transaction."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from json.encoder import encode_basestring
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, Table, and_, delete, func, or_, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.selectable import TableValuedAlias

from fiml.core.errors import CorruptRecord, InvalidInput
from fiml.db.tables import session_metrics, sessions, tombstones
from fiml.sessions import values
from fiml.sessions.backends.base import Ended, PageQuery
from fiml.sessions.models import QueryTotals
from fiml.sessions.records import MAPS, Header, SessionRecord

# Two locks of the same id exclude each other: the archiving and the deletion of one session.
_LOCK_SESSIONS = text(
    "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(CAST(:ids AS text[])) AS id ORDER BY id"
)
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
)


def put(connection: Connection, records: Sequence[SessionRecord], ended: Ended) -> set[UUID]:
    """Copy sessions and their metrics into the archive, over older versions only; the ids that are deleted for good.

    One transaction with what surrounds it: a session's row and its metrics come together or not at all.
    """
    _lock(connection, [record.header.id for record in records])
    buried = _buried(connection, [record.header.id for record in records])
    alive = [record for record in records if record.header.id not in buried]
    if alive:
        connection.execute(_upsert_session(connection), [_session_row(record, ended) for record in alive])
        if ended.write_metrics:
            rows = [metrics_row(record.header, ended.at) for record in alive]
            connection.execute(_upsert_metrics(connection), rows)
    return buried


def put_metrics(connection: Connection, header: Header, ended_at: datetime | None) -> None:
    """Write the metrics of one session, over an older version only."""
    connection.execute(_upsert_metrics(connection), [metrics_row(header, ended_at)])


def fetch(connection: Connection, session_id: UUID, owner: str | None = None) -> SessionRecord | None:
    """An ended session, whole."""
    query = select(sessions).where(sessions.c.id == session_id)
    if owner is not None:
        query = query.where(sessions.c.user_id == owner)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def find_version(connection: Connection, session_id: UUID, owner: str | None = None) -> int | None:
    """The version at which an ended session is in the archive."""
    query = select(sessions.c.version).where(sessions.c.id == session_id)
    if owner is not None:
        query = query.where(sessions.c.user_id == owner)
    version: int | None = connection.scalar(query)
    return version


def remove(connection: Connection, session_id: UUID, version: int) -> bool:
    """Take a session out of the archive, with its metrics, if it is there at this version."""
    row = and_(sessions.c.id == session_id, sessions.c.version == version)
    if connection.execute(delete(sessions).where(row)).rowcount == 0:
        return False
    connection.execute(delete(session_metrics).where(session_metrics.c.session_id == session_id))
    return True


def bury(connection: Connection, session_id: UUID, *, version: int, now: datetime) -> None:
    """Delete a session for good and leave a tombstone, which the archive never overwrites."""
    _lock(connection, [session_id])
    tombstone = {"id": session_id, "version": version, "deleted_at": now}
    insert = _insert(connection)(tombstones).values(tombstone)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))
    connection.execute(delete(sessions).where(sessions.c.id == session_id))
    connection.execute(delete(session_metrics).where(session_metrics.c.session_id == session_id))


def is_buried(connection: Connection, session_id: UUID) -> bool:
    """Whether a session was deleted for good."""
    return bool(_buried(connection, [session_id]))


def page(connection: Connection, query: PageQuery) -> list[Header]:
    """Ended sessions by `created_at` descending, then id."""
    return [_header(row) for row in connection.execute(_page_statement(connection, query)).mappings()]


def metrics_row(header: Header, ended_at: datetime | None) -> dict[str, Any]:
    """What `session_metrics` keeps of a session; `ended_at` is `None` where it goes on."""
    totals = header.totals
    return {
        "session_id": header.id,
        "user_id": header.user_id,
        "session_type": header.type,
        "created_at": header.created_at,
        "duration_seconds": max(0, int((header.last_accessed_at - header.created_at).total_seconds())),
        "total_queries": totals.total_queries,
        "cache_hit_rate": totals.cache_hit_rate,
        "ended_at": ended_at,
        "avg_query_time_ms": totals.total_time_ms / totals.timed_queries if totals.timed_queries else None,
        "assets_analyzed": json.dumps(header.assets),
        "query_type_summary": json.dumps(totals.query_types),
        "completed_normally": ended_at is not None and ended_at < header.expires_at,
        "abandoned": ended_at is not None and is_abandoned(header, ended_at),
        "version": header.version,
    }


def is_abandoned(header: Header, at: datetime) -> bool:
    """Whether a session ended by expiry with fewer than two queries."""
    return at >= header.expires_at and header.totals.total_queries < 2


def json_elements(connection: Connection, column: ColumnElement[Any]) -> TableValuedAlias:
    """The texts of a JSON array, as rows of one column `value`."""
    each = func.jsonb_array_elements_text if connection.dialect.name == "postgresql" else func.json_each
    return each(column).table_valued("value", joins_implicitly=True)


def json_members(connection: Connection, column: ColumnElement[Any]) -> TableValuedAlias:
    """The members of a JSON object, as rows of `key` and `value`, both text."""
    each = func.jsonb_each_text if connection.dialect.name == "postgresql" else func.json_each
    return each(column).table_valued("key", "value", joins_implicitly=True)


def _has(connection: Connection, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    elements = json_elements(connection, column)
    return select(elements.c.value).where(elements.c.value == name).exists()


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
        created_at, session_id = query.after
        same_moment = and_(sessions.c.created_at == created_at, sessions.c.id > session_id)
        statement = statement.where(or_(sessions.c.created_at < created_at, same_moment))
    return statement


def _lock(connection: Connection, session_ids: Sequence[UUID]) -> None:
    # SQLite's transactions that write exclude each other as a whole.
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_SESSIONS, {"ids": sorted(str(session_id) for session_id in session_ids)})


def _buried(connection: Connection, session_ids: Sequence[UUID]) -> set[UUID]:
    return set(connection.scalars(select(tombstones.c.id).where(tombstones.c.id.in_(session_ids))))


def _insert(connection: Connection) -> Any:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


def _upsert_session(connection: Connection) -> Any:
    insert = _insert(connection)(sessions)
    return insert.on_conflict_do_update(
        index_elements=["id"], set_=_new_values(sessions, insert), where=sessions.c.version < insert.excluded.version
    )


def _upsert_metrics(connection: Connection) -> Any:
    insert = _insert(connection)(session_metrics)
    old, new = session_metrics.c, insert.excluded
    # Ending raises no version: figures of the end replace those taken while the session lived.
    has_ended = and_(old.version == new.version, old.ended_at.is_(None), new.ended_at.is_not(None))
    return insert.on_conflict_do_update(
        index_elements=["session_id"],
        set_=_new_values(session_metrics, insert),
        where=or_(old.version < new.version, has_ended),
    )


def _new_values(table: Table, insert: Any) -> dict[str, Any]:
    return {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}


def _session_row(record: SessionRecord, ended: Ended) -> dict[str, Any]:
    header = record.header
    return {
        "id": header.id,
        "user_id": header.user_id,
        "type": header.type,
        "title": header.title,
        "assets": json.dumps(header.assets),
        "created_at": header.created_at,
        "expires_at": header.expires_at,
        "last_accessed_at": header.last_accessed_at,
        "archived_at": ended.at,
        "is_archived": True,
        "tags": json.dumps(header.tags),
        **{name: _object(record.entries.get(name, {})) for name in MAPS},
        "history_queries": record.history,
        "total_queries": header.totals.total_queries,
        "first_query_at": header.totals.first_query_at,
        "last_query_at": header.totals.last_query_at,
        "cache_hit_rate": header.totals.cache_hit_rate,
        "version": header.version,
        "format": header.format,
    }


def _object(entries: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{encode_basestring(key)}:{value}" for key, value in entries.items()) + "}"


def _record(row: RowMapping) -> SessionRecord:
    with _corruption_of(row):
        entries = {
            name: {key: values.check_entry(name, key, value) for key, value in json.loads(row[name]).items()}
            for name in MAPS
        }
    return SessionRecord(_header(row), entries, row["history_queries"], is_archived=True)


@contextmanager
def _corruption_of(row: RowMapping) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError, InvalidInput) as exc:
        raise CorruptRecord(f"archived session {row['id']}", str(exc)) from exc


def _header(row: RowMapping) -> Header:
    with _corruption_of(row):
        assets, tags = json.loads(row["assets"]), json.loads(row["tags"])
    return Header(
        id=row["id"],
        user_id=row["user_id"],
        type=row["type"],
        title=row["title"],
        assets=assets,
        tags=tags,
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_accessed_at=row["last_accessed_at"],
        version=row["version"],
        totals=QueryTotals(total_queries=row["total_queries"]),
        format=row["format"],
    )
