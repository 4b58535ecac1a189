"""Sessions that aren't live, archived or in quarantine, in SQL. The functions run in the caller's transaction."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, select, union_all

from fiml.core.errors import CorruptRecord, SessionQuarantined
from fiml.db.tables import session_quarantine, sessions
from fiml.sessions import records
from fiml.sessions.audit import Act, longer_trail
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.backends.shapes import Ended
from fiml.sessions.backends.sql import archive, holds, quarantine
from fiml.sessions.query_json import EncodedQuery
from fiml.sessions.records import SessionRecord
from fiml.sessions.rights import Caller, Right, demand, right_of

_UNKNOWN_VERSION = 0


def fetch(connection: Connection, session_id: UUID, caller: Caller) -> SessionRecord | None:
    """An archived session, whole.

    Raises:
        SessionQuarantined: it is in quarantine instead.
    """
    record = archive.fetch(connection, session_id, caller)
    if record is None:
        quarantine.refuse(connection, session_id, caller.user)
        # Outside a transaction, `archive_again` may have moved it between the two looks.
        record = archive.fetch(connection, session_id, caller)
    return record


def revived(
    ended: SessionRecord, *, until: datetime, now: datetime, caller: Caller
) -> tuple[SessionRecord, list[EncodedQuery]]:
    """An archived session as it becomes live again, and its queries one by one. Its trail says who resumed it.

    Raises:
        NotPermitted: the caller may only read it.
    """
    demand_of(ended, caller, Right.WRITE)
    record, queries = records.revived(ended, until=until, now=now)
    entry = Act("resume", caller.name, now).at_version(record.header.version)
    return replace(record, trail=longer_trail(record.trail, entry)), queries


def demand_of(record: SessionRecord, caller: Caller, needed: Right) -> None:
    """Demand a right to a session that the caller sees.

    Raises:
        NotPermitted: the caller has less than the needed right.
    """
    held = right_of(record.header.user_id, record.header.grants, caller)
    demand(record.header.id, held or Right.READ, needed)


def find(connection: Connection, session_id: UUID, caller: Caller) -> tuple[int, Right] | None:
    """The version of a session that is archived or in quarantine (there unknown: 0), and the caller's right to it."""
    found = archive.find(connection, session_id, caller)
    if found is None and quarantine.fetch(connection, session_id, caller.user) is not None:
        return _UNKNOWN_VERSION, Right.OWN
    return found or archive.find(connection, session_id, caller)  # as in `fetch`


def find_version(connection: Connection, session_id: UUID, caller: Caller, needed: Right) -> int | None:
    """The version of a session that is archived or in quarantine; `None` if the caller sees none there.

    Raises:
        NotPermitted: the caller sees it, but has less than the needed right.
    """
    found = find(connection, session_id, caller)
    if found is None:
        return None
    demand(session_id, found[1], needed)
    return found[0]


def ids_of(connection: Connection, user_id: str) -> set[UUID]:
    """Every session of a user that is archived or in quarantine."""
    both = union_all(
        *(select(table.c.id).where(table.c.user_id == user_id) for table in (sessions, session_quarantine))
    )
    return set(connection.scalars(both))


def bury(connection: Connection, session_id: UUID, *, version: int, now: datetime) -> None:
    """Delete a session for good, unless it is on hold.

    Raises:
        SessionOnHold: it is on hold; nothing was deleted.
    """
    holds.refuse(connection, session_id)
    archive.bury(connection, session_id, version=version, now=now)


def archive_again(
    connection: Connection,
    session_id: UUID,
    ended: Ended,
    *,
    caller: Caller,
    record_in: Callable[[UUID, Dump], SessionRecord],
) -> bool:
    """Archive a session from the quarantine; `False` if it isn't there.

    Raises:
        SessionQuarantined: it still can't be read.
    """
    # First, so that nobody deletes the session meanwhile, or sets aside a later state, which would be removed below.
    archive.lock(connection, [session_id])
    found = quarantine.fetch_dumped(connection, session_id, caller.user)
    if found is None:
        return False
    try:
        record = record_in(session_id, found[1])
        # While it was in quarantine, nobody could take grants back: the owner has to share it again.
        record = replace(record, header=replace(record.header, grants={}))
        archive.put(connection, [record], ended, is_patient=True)
    except CorruptRecord as exc:
        raise SessionQuarantined(session_id, exc.problem) from exc
    quarantine.remove(connection, session_id)
    return True
