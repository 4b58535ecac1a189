"""Indexes the words of changed sessions in the embedded file."""

from uuid import UUID

from sqlalchemy import Connection

from fiml.db.engines import driver
from fiml.sessions.backends.sql import archive, fts5, words
from fiml.sessions.backends.sql.indexing import index_pending
from fiml.sessions.backends.sqlite import rows


def index_file(connection: Connection) -> bool:
    """Index some of the changed sessions in the embedded file, live or archived; whether more are left.

    A session that can't be read gets no words: whoever reads it gets the error, and others are found nevertheless.
    """

    def index(session_id: UUID) -> None:
        header = rows.select_header(driver(connection), session_id)
        record = None if header is None else rows.select_record(driver(connection), header)
        record = record or archive.fetch(connection, session_id)
        if record is not None:
            fts5.put(driver(connection), session_id, words.read(record))

    def put_none(_connection: Connection, session_id: UUID) -> None:
        fts5.put(driver(connection), session_id, ())

    return index_pending(connection, index, put_none)
