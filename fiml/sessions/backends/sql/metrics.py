"""What remains of a session when it is gone: its row of metrics. Also marks the days whose rollups are outdated."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, or_, select, update

from fiml.db.dialects import upsert
from fiml.db.tables import rollup_marks, session_holds, session_metrics, session_rollups
from fiml.sessions import stored_json
from fiml.sessions.records import FORMAT, Header


def row_of(header: Header, ended_at: datetime | None) -> dict[str, Any]:
    """A session's row in `session_metrics`; `ended_at` is `None` if the session hasn't ended."""
    totals = header.totals
    return {
        "session_id": header.id,
        "user_id": header.user_id,
        "session_type": header.type,
        "created_at": header.created_at,
        "duration_seconds": duration_s(header.created_at, header.last_accessed_at),
        "total_queries": totals.total_queries,
        "cache_hit_rate": totals.cache_hit_rate,
        "ended_at": ended_at,
        "avg_query_time_ms": totals.total_time_ms / totals.timed_queries if totals.timed_queries else None,
        "assets_analyzed": stored_json.json_of(header.assets),
        "query_type_summary": stored_json.json_of(totals.query_types),
        "completed_normally": ended_at is not None and ended_at < header.expires_at,
        "abandoned": ended_at is not None and is_abandoned(header, ended_at),
        "version": header.version,
        "tags": stored_json.json_of(header.tags),
        "cache_hits": totals.cache_hits,
        "time_histogram": stored_json.json_of(totals.time_histogram),
        "queries_by_day": stored_json.json_of(totals.queries_by_day),
        "format": FORMAT,
    }


def is_abandoned(header: Header, at: datetime) -> bool:
    """Whether a session ended by expiry with fewer than two queries."""
    return at >= header.expires_at and header.totals.total_queries < 2


def put(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write metrics, replacing older versions only, and mark their days."""
    _put(connection, rows, _is_newer)


def put_archived(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """As `put`, for sessions that are being archived: within a version, the later end counts."""
    _put(connection, rows, _is_newer_or_ended_later)


def _put(connection: Connection, rows: Sequence[dict[str, Any]], where: Callable[[Any], ColumnElement[bool]]) -> None:
    if rows:
        upsert(connection, session_metrics, rows, key="session_id", where=where)
        mark(connection, (day_of(row["created_at"]) for row in rows))


def _is_newer(new: Any) -> ColumnElement[bool]:
    old = session_metrics.c
    # Ending a session doesn't raise its version: its final metrics replace those of the same version.
    has_ended = and_(old.version == new.version, old.ended_at.is_(None), new.ended_at.is_not(None))
    knows_more = and_(old.version == new.version, old.format < new.format)
    return or_(old.version < new.version, has_ended, knows_more)


def _is_newer_or_ended_later(new: Any) -> ColumnElement[bool]:
    old = session_metrics.c
    return or_(_is_newer(new), and_(old.version == new.version, old.ended_at < new.ended_at))


def note_access(connection: Connection, session_id: UUID, version: int, now: datetime) -> None:
    """Let a session's metrics of this version last to an access at `now`, and mark their day."""
    columns = session_metrics.c
    which = and_(columns.session_id == session_id, columns.version == version)
    created_at = connection.scalar(select(columns.created_at).where(which))
    if created_at is not None:
        lasts = duration_s(created_at, now)
        longer = update(session_metrics).where(which, columns.duration_seconds < lasts).values(duration_seconds=lasts)
        connection.execute(longer)
        mark(connection, [day_of(created_at)])


def remove(connection: Connection, session_id: UUID) -> None:
    """Remove the metrics of a session, and mark their day."""
    _remove(connection, session_metrics.c.session_id == session_id)


def erase(connection: Connection, user_id: str) -> int:
    """Remove a user's metrics and the rollups of its days, except the metrics of held sessions; how many metrics."""
    days = set(connection.scalars(select(session_rollups.c.day).where(session_rollups.c.user_id == user_id)))
    # Of these days all rollups, since those over all users have this one's too; marked days are read from the metrics.
    connection.execute(delete(session_rollups).where(session_rollups.c.day.in_(days)))
    mark(connection, days)
    is_held = exists().where(session_holds.c.id == session_metrics.c.session_id)
    return _remove(connection, and_(session_metrics.c.user_id == user_id, ~is_held))


def _remove(connection: Connection, which: ColumnElement[bool]) -> int:
    gone = delete(session_metrics).where(which)
    moments = list(connection.scalars(gone.returning(session_metrics.c.created_at)))
    mark(connection, map(day_of, moments))
    return len(moments)


def mark(connection: Connection, days: Iterable[date]) -> None:
    """Mark days as having outdated rollups."""
    marks = [{"day": day} for day in sorted(set(days))]
    if marks:
        connection.execute(insert(rollup_marks), marks)


def duration_s(created_at: datetime, last_accessed_at: datetime) -> int:
    """How long a session lasted, in whole seconds; zero if the clock was set back meanwhile."""
    return max(0, int((last_accessed_at - created_at).total_seconds()))


def day_of(moment: datetime) -> date:
    """The day in UTC."""
    return moment.astimezone(UTC).date()
