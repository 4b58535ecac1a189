"""Sessions that aren't live, archived or in quarantine, in SQL. The functions run in the caller's transaction."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, select, union_all

from fiml.core.errors import CorruptRecord, SessionQuarantined
from fiml.db.tables import session_quarantine, sessions
from fiml.sessions.backends import archive, holds, quarantine
from fiml.sessions.backends.base import Ended
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.records import SessionRecord

_UNKNOWN_VERSION = 0


def fetch(connection: Connection, session_id: UUID, owner: str | None) -> SessionRecord | None:
    """An archived session, whole.

    Raises:
        SessionQuarantined: it is in quarantine instead.
    """
    record = archive.fetch(connection, session_id, owner)
    if record is None:
        quarantine.refuse(connection, session_id, owner)
    return record


def find_version(connection: Connection, session_id: UUID, owner: str | None) -> int | None:
    """At which version a session is archived or in quarantine, where it may have none that can be read."""
    version = archive.find_version(connection, session_id, owner)
    if version is None and quarantine.fetch(connection, session_id, owner) is not None:
        return _UNKNOWN_VERSION
    return version


def ids_of(connection: Connection, user_id: str) -> set[UUID]:
    """Every session of a user that is archived or in quarantine."""
    both = union_all(
        *(select(table.c.id).where(table.c.user_id == user_id) for table in (sessions, session_quarantine))
    )
    return set(connection.scalars(both))


def bury(connection: Connection, session_id: UUID, *, version: int, now: datetime) -> None:
    """Delete a session for good, unless it is held.

    Raises:
        SessionOnHold: it is; nothing was deleted.
    """
    holds.refuse(connection, session_id)
    archive.bury(connection, session_id, version=version, now=now)


def archive_again(
    connection: Connection,
    session_id: UUID,
    ended: Ended,
    *,
    owner: str | None,
    record_in: Callable[[UUID, Dump], SessionRecord],
) -> bool:
    """Archive a session from the quarantine; `False` where it isn't there.

    Raises:
        SessionQuarantined: it still can't be read.
    """
    if quarantine.fetch(connection, session_id, owner) is None:
        return False
    dump = quarantine.fetch_dump(connection, session_id)
    assert dump is not None  # noqa: S101 - found above, in the same transaction
    try:
        record = record_in(session_id, dump)
        archive.put(connection, [record], ended, is_patient=True)
    except CorruptRecord as exc:
        raise SessionQuarantined(session_id, exc.problem) from exc
    quarantine.remove(connection, session_id)
    return True
