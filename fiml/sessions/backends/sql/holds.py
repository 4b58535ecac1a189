"""Legal holds, in SQL. The functions run in the caller's transaction.

A hold is stored apart from the session, which may be live, archived or in quarantine: no move of it loses the hold.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Exists, delete, exists, select

from fiml.core.errors import SessionOnHold
from fiml.db.dialects import upsert
from fiml.db.tables import session_holds
from fiml.sessions.backends.sql import archive


def put(connection: Connection, session_id: UUID, *, reason: str, now: datetime) -> bool:
    """Put a session on hold, or change the reason; `False` if it was deleted for good."""
    archive.lock(connection, [session_id])
    if archive.is_buried(connection, session_id):
        return False
    upsert(connection, session_holds, [{"id": session_id, "reason": reason, "held_at": now}], key="id")
    return True


def remove(connection: Connection, session_id: UUID) -> bool:
    """Release a session; `False` if it wasn't on hold."""
    return connection.execute(delete(session_holds).where(session_holds.c.id == session_id)).rowcount > 0


def reason_of(connection: Connection, session_id: UUID) -> str | None:
    """Why a session is on hold; `None` if it isn't."""
    reason: str | None = connection.scalar(select(session_holds.c.reason).where(session_holds.c.id == session_id))
    return reason


def refuse(connection: Connection, session_id: UUID) -> None:
    """Refuse to remove a session that is on hold. Nobody can put it on hold until the transaction ends.

    Raises:
        SessionOnHold: it is on hold.
    """
    archive.lock(connection, [session_id])
    reason = reason_of(connection, session_id)
    if reason is not None:
        raise SessionOnHold(session_id, reason)


def is_held(session_id: ColumnElement[UUID]) -> Exists:
    """The condition that a session is on hold."""
    return exists().where(session_holds.c.id == session_id)
