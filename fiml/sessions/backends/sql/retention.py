"""Removal of old archived sessions and tombstones, in SQL. The functions run in the caller's transaction."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, delete, func, select, tuple_

from fiml.db.tables import sessions, tombstones
from fiml.sessions.backends.sql import archive, holds

Position = tuple[datetime, UUID]


def delete_batch(
    connection: Connection, before: datetime, *, at_most: int, after: Position | None
) -> tuple[int, Position | None]:
    """Delete some of the sessions archived before a moment; how many, and where to continue (`None` at the end).

    Sessions on hold stay, and sessions that somebody else has locked are left for the next time. Metrics stay.
    """
    place = tuple_(sessions.c.archived_at, sessions.c.id)
    statement = select(sessions.c.archived_at, sessions.c.id).where(
        sessions.c.archived_at < before, ~holds.is_held(sessions.c.id)
    )
    if after is not None:
        statement = statement.where(place > tuple_(*after))
    found = connection.execute(statement.order_by(sessions.c.archived_at, sessions.c.id).limit(at_most)).all()
    if not found:
        return 0, None
    ids = [session_id for _, session_id in found]
    mine = set(ids) - archive.try_lock(connection, ids)
    # Check again: before it was locked, a session may have been put on hold or resumed.
    old = delete(sessions).where(
        sessions.c.id.in_(mine), sessions.c.archived_at < before, ~holds.is_held(sessions.c.id)
    )
    last_at, last_id = found[-1]
    return connection.execute(old).rowcount, (last_at, last_id) if len(found) == at_most else None


def count_held(connection: Connection, before: datetime) -> int:
    """How many sessions archived before a moment are kept by a hold."""
    kept = (
        select(func.count()).select_from(sessions).where(sessions.c.archived_at < before, holds.is_held(sessions.c.id))
    )
    return connection.scalar(kept) or 0


def old_tombstones(connection: Connection, before: datetime, *, at_most: int) -> list[UUID]:
    """Sessions that were deleted before a moment."""
    old = select(tombstones.c.id).where(tombstones.c.deleted_at < before).order_by(tombstones.c.deleted_at)
    return list(connection.scalars(old.limit(at_most)))


def remove_tombstones(connection: Connection, session_ids: Sequence[UUID]) -> int:
    """Forget that sessions were deleted."""
    return connection.execute(delete(tombstones).where(tombstones.c.id.in_(session_ids))).rowcount
