"""Replaces the texts of a session's values, as a change of keys requires, without changing the session."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select, update

from fiml.db.dialects import is_postgresql
from fiml.db.engines import driver
from fiml.db.tables import sessions
from fiml.sessions.backends import archive, sqlite_rows, sqlite_words, words
from fiml.sessions.backends.keeping import Transact
from fiml.sessions.models import MAPS
from fiml.sessions.query_json import history_json
from fiml.sessions.records import Entries, SessionRecord, format_when_written

AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Texts:
    """New texts for all values of a session: every entry, and every query with its id, in order."""

    entries: Entries
    queries: list[tuple[UUID, str]]

    def of(self, record: SessionRecord) -> SessionRecord:
        """The record with these texts."""
        history = history_json(text for _, text in self.queries)
        return SessionRecord(record.header, self.entries, history, record.is_archived)


Rewriting = Callable[[SessionRecord], Texts | None]
"""Returns a session's new texts; `None` if nothing has to change."""


async def in_batches(
    transact: Transact, find: Callable[[Connection, UUID | None], list[UUID]]
) -> AsyncIterator[list[UUID]]:
    """All ids, in batches; `find` returns the ids after the last one."""
    after = None
    while ids := await transact(lambda connection, after=after: find(connection, after)):  # type: ignore[misc]
        yield ids
        after = ids[-1]


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
    _index_anew(connection, record, rewritten)
    return True


def rewrite_live(connection: Connection, session_id: UUID, rewriting: Rewriting) -> bool:
    """As `rewrite_archived`, for a live session in the embedded file."""
    raw = driver(connection)
    header = sqlite_rows.select_header(raw, session_id)
    record = None if header is None else sqlite_rows.select_record(raw, header)
    texts = None if record is None else rewriting(record)
    if record is None or texts is None:
        return False
    sqlite_rows.replace_texts(raw, record.header, texts.entries, texts.queries)
    _index_anew(connection, record, texts.of(record))
    return True


def _index_anew(connection: Connection, before: SessionRecord, after: SessionRecord) -> None:
    """Leave no words in the index that the new texts don't have. Encrypted texts have no words, so nothing changes."""
    found = words.read(after)
    if found == words.read(before):
        return
    if is_postgresql(connection):
        words.put(connection, [after])
    else:
        sqlite_words.put(driver(connection), after.header.id, found)
