"""Indexes the words of archived sessions that changed. The functions run in the caller's transaction."""

from collections.abc import Callable, Sequence
from uuid import UUID

from sqlalchemy import Connection, delete, select

from fiml.core.errors import CorruptRecord, SchemaTooNew
from fiml.db.tables import search_pending
from fiml.sessions.backends.sql import archive, words
from fiml.sessions.damage import DAMAGE

AT_ONCE = 500


def is_behind(connection: Connection) -> bool:
    """Whether there are sessions that changed since they were indexed."""
    return connection.scalar(select(search_pending.c.session_id).limit(1)) is not None


def index_archived(connection: Connection) -> bool:
    """Index some of the sessions on PostgreSQL that a version without a search archived; whether more are left.

    A session that can't be read gets no words: whoever reads it gets the error, and others are found nevertheless.
    """

    def index(session_id: UUID) -> None:
        is_indexed = False
        while not is_indexed:  # somebody may share it meanwhile, which makes another version
            record = archive.fetch(connection, session_id)
            is_indexed = record is None or words.put(connection, [record])

    return index_pending(connection, index, words.put_none)


def index_pending(
    connection: Connection, index: Callable[[UUID], None], put_none: Callable[[Connection, UUID], None]
) -> bool:
    """Index some of the changed sessions with `index`, damaged ones with `put_none`; whether more are left."""
    pending = connection.scalars(select(search_pending.c.session_id).limit(AT_ONCE)).all()
    busy = archive.try_lock(connection, pending) if pending else set()
    chosen = [session_id for session_id in pending if session_id not in busy]
    for session_id in chosen:
        try:
            index(session_id)
        except (CorruptRecord, SchemaTooNew, *DAMAGE):
            # Whoever reads the damaged session gets the error; here it must not make the search fail.
            put_none(connection, session_id)
    _remove(connection, chosen)
    return len(pending) == AT_ONCE or bool(busy)


def _remove(connection: Connection, session_ids: Sequence[UUID]) -> None:
    if session_ids:
        connection.execute(delete(search_pending).where(search_pending.c.session_id.in_(session_ids)))
