"""Replaces the texts of an archived session. The functions run in the caller's transaction."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select, update

from fiml.db.tables import sessions
from fiml.sessions.backends.rewriting import AT_ONCE, Rewriting
from fiml.sessions.backends.sql import archive, words
from fiml.sessions.models import MAPS
from fiml.sessions.records import format_when_written


def archived_ids(connection: Connection, after: UUID | None) -> list[UUID]:
    """Archived sessions after an id, in order of their ids."""
    statement = select(sessions.c.id).order_by(sessions.c.id).limit(AT_ONCE)
    return list(connection.scalars(statement if after is None else statement.where(sessions.c.id > after)))


def rewrite_archived(connection: Connection, session_id: UUID, rewriting: Rewriting) -> bool:
    """Replace the texts of an archived session, and its words in the search index; whether that was needed."""
    archive.lock(connection, [session_id])
    record = archive.fetch(connection, session_id)
    texts = None if record is None else rewriting(record)
    if record is None or texts is None:
        return False
    row = (sessions.c.id == session_id) & (sessions.c.version == record.header.version)
    columns: dict[str, Any] = {name: archive.json_object(texts.entries.get(name, {})) for name in MAPS}
    rewritten = texts.of(record)
    new = columns | {"history_queries": rewritten.history, "format": format_when_written(record.header.format)}
    connection.execute(update(sessions).where(row).values(new))
    words.replace(connection, record, rewritten)
    return True
