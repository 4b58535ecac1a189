"""Sessions that could not be archived, in SQL. The functions run in the caller's transaction."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, select, tuple_

from fiml.core.errors import InvalidInput, SessionQuarantined
from fiml.db.dialects import upsert
from fiml.db.tables import session_quarantine
from fiml.sessions import values
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.backends.sql import archive

_columns = session_quarantine.c


@dataclass(frozen=True, slots=True)
class QuarantinedSession:
    """A session that was set aside: since when, and why."""

    id: UUID
    user_id: str | None
    reason: str
    quarantined_at: datetime


def put(
    connection: Connection,
    session_id: UUID,
    *,
    user_id: object,
    reason: str,
    dump: Dump,
    now: datetime,
    version: int | None = None,
) -> str:
    """Set a session aside that can't be archived: `kept`, or why not: `deleted` (for good) or `busy` (locked).

    A copy older than `version`, from before the session was resumed, is removed from the archive: it would hide this
    one.
    """
    if archive.try_lock(connection, [session_id]):
        return "busy"
    if archive.is_buried(connection, session_id):
        return "deleted"
    row = {
        "id": session_id,
        "user_id": _readable_user(user_id),
        "reason": "".join(character if character.isprintable() else " " for character in reason),
        "quarantined_at": now,
        "record": dump.to_bytes(),
    }
    upsert(connection, session_quarantine, [row], key="id")
    if version is not None:
        archive.remove_older(connection, session_id, version)
    return "kept"


def fetch(connection: Connection, session_id: UUID, owner: str | None) -> QuarantinedSession | None:
    """When and why a session was set aside."""
    row = connection.execute(_statement(owner).where(_columns.id == session_id)).one_or_none()
    return None if row is None else QuarantinedSession(*row)


def fetch_dumped(connection: Connection, session_id: UUID, owner: str | None) -> tuple[QuarantinedSession, Dump] | None:
    """As `fetch`, with what was set aside."""
    statement = _statement(owner).add_columns(_columns.record).where(_columns.id == session_id)
    row = connection.execute(statement).one_or_none()
    return None if row is None else (QuarantinedSession(*row[:-1]), Dump.from_bytes(row.record))


def refuse(connection: Connection, session_id: UUID, owner: str | None) -> None:
    """Raise if a session is in quarantine, so that it isn't taken for one that doesn't exist.

    Raises:
        SessionQuarantined: it is in quarantine.
    """
    found = fetch(connection, session_id, owner)
    if found is not None:
        raise SessionQuarantined(session_id, found.reason)


def page(
    connection: Connection, *, limit: int, owner: str | None, after: QuarantinedSession | None
) -> list[QuarantinedSession]:
    """The sessions in quarantine, the longest there first."""
    statement = _statement(owner).order_by(_columns.quarantined_at, _columns.id).limit(limit)
    if after is not None:
        statement = statement.where(
            tuple_(_columns.quarantined_at, _columns.id) > tuple_(after.quarantined_at, after.id)
        )
    return [QuarantinedSession(*row) for row in connection.execute(statement)]


def remove(connection: Connection, session_id: UUID) -> None:
    """Take a session out of the quarantine."""
    connection.execute(delete(session_quarantine).where(_columns.id == session_id))


def take_back(connection: Connection, session_id: UUID, dump: Dump) -> None:
    """Remove the dump of a session that turned out to be still in use, unless somebody has set aside another dump."""
    kept = (_columns.id == session_id) & (_columns.record == dump.to_bytes())
    connection.execute(delete(session_quarantine).where(kept))


def _readable_user(user_id: object) -> str | None:
    """The user of a damaged session, if that part can be read."""
    try:
        return values.check_user_id(user_id)
    except InvalidInput:
        return None


def _statement(owner: str | None) -> Any:
    is_seen: list[ColumnElement[bool]] = [] if owner is None else [_columns.user_id == owner]
    return select(_columns.id, _columns.user_id, _columns.reason, _columns.quarantined_at).where(*is_seen)
