"""What replaces the texts of a session's values, as a change of keys requires, without changing the session."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from fiml.db.engines import Transact
from fiml.sessions.query_json import history_json
from fiml.sessions.records import Entries, SessionRecord

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
