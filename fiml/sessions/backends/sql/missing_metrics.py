"""Writes metrics of archived sessions that have none, or that are of a format with fewer figures."""

from uuid import UUID

from sqlalchemy import Connection, or_, select

from fiml.core.errors import CorruptRecord, SchemaTooNew
from fiml.db.tables import session_metrics, sessions
from fiml.sessions.backends.sql import archive, metrics
from fiml.sessions.records import FORMAT_OF_ALL_TOTALS, Header, counted


def write_batch(connection: Connection, *, at_most: int, after: UUID | None) -> tuple[int, UUID | None]:
    """Write the metrics that some archived sessions lack; how many, and where to continue (`None` at the end).

    They are counted from the history. A session that can't be read is skipped.
    """
    has_all = session_metrics.c.format >= FORMAT_OF_ALL_TOTALS
    statement = (
        select(sessions.c.id, sessions.c.archived_at)
        .outerjoin(session_metrics, session_metrics.c.session_id == sessions.c.id)
        .where(or_(session_metrics.c.session_id.is_(None), ~has_all))
        .order_by(sessions.c.id)
        .limit(at_most)
    )
    found = connection.execute(statement if after is None else statement.where(sessions.c.id > after)).all()
    busy = archive.try_lock(connection, [session_id for session_id, _ in found]) if found else set()
    rows = []
    for session_id, archived_at in found:
        record = None if session_id in busy else _readable(connection, session_id)
        if record is not None:
            rows.append(metrics.row_of(record, archived_at))
    metrics.put(connection, rows)
    return len(rows), found[-1][0] if len(found) == at_most else None


def _readable(connection: Connection, session_id: UUID) -> Header | None:
    try:
        record = archive.fetch(connection, session_id)
        return None if record is None else counted(record).header
    except (CorruptRecord, SchemaTooNew):
        return None  # whoever reads it gets the error; here it must not keep the others from getting their metrics
