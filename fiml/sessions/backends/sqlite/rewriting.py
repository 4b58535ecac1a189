"""Replaces the texts of a live session in the embedded file. The functions run in the caller's transaction."""

from uuid import UUID

from sqlalchemy import Connection

from fiml.db.engines import driver
from fiml.sessions.backends.rewriting import Rewriting
from fiml.sessions.backends.sql import words
from fiml.sessions.backends.sqlite import rows


def rewrite_live(connection: Connection, session_id: UUID, rewriting: Rewriting) -> bool:
    """Replace the texts of a live session, and its words in the search index; whether that was needed."""
    raw = driver(connection)
    header = rows.select_header(raw, session_id)
    record = None if header is None else rows.select_record(raw, header)
    texts = None if record is None else rewriting(record)
    if record is None or texts is None:
        return False
    rows.replace_texts(raw, record.header, texts.entries, texts.queries)
    words.replace(connection, record, texts.of(record))
    return True
