"""Both tiers in one SQLite file: each call is one hop to its thread, each move between the tiers one transaction."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core.config import Synchronous
from fiml.core.errors import (
    CorruptRecord,
    SchemaTooNew,
    SessionArchived,
    SessionConflict,
    SessionExpired,
    Unavailable,
)
from fiml.db.engines import async_sqlite_engine, dispose, driver
from fiml.db.sqlite_file import Note, SqliteFile
from fiml.sessions.audit import Act, refuse_more_changes
from fiml.sessions.backends import figures
from fiml.sessions.backends.keeping import Keeping
from fiml.sessions.backends.pages import merge_pages
from fiml.sessions.backends.rewriting import AT_ONCE, Rewriting, in_batches
from fiml.sessions.backends.shapes import (
    Ended,
    Found,
    Page,
    PageQuery,
    Part,
    StoreFigures,
    SweepReport,
    Updated,
    WriteResult,
    WriteRules,
)
from fiml.sessions.backends.sql import archive, archived_grants, at_rest, indexing, retention
from fiml.sessions.backends.sql.rewriting import archived_ids, rewrite_archived
from fiml.sessions.backends.sqlite import rows, sweep
from fiml.sessions.backends.sqlite.indexing import index_file
from fiml.sessions.backends.sqlite.rewriting import rewrite_live
from fiml.sessions.changes import Change
from fiml.sessions.records import Header, SessionRecord, check_format
from fiml.sessions.rights import ANYBODY, Caller, GrantChange, Grants, Right, ShareRules, act_of, changed

Result = TypeVar("Result")


class SqliteBackend:
    """Implements `Backend` with one file."""

    def __init__(self, file: SqliteFile, synchronous: Synchronous) -> None:
        self._file = file
        self._engine = async_sqlite_engine(file.path, synchronous)
        self.keeping = Keeping(transact=file.transact, view=file.view, maintain=file.maintain)
        self.session_maker = async_sessionmaker[AsyncSession](self._engine)

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        try:
            await dispose(self._engine)
        finally:
            await self._file.close()

    async def create(self, record: SessionRecord) -> None:
        await self._file.write(lambda connection: rows.insert(connection, record, []))

    async def read(
        self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY, recent: int | None = None
    ) -> SessionRecord | None:
        def read_live(connection: sqlite3.Connection) -> SessionRecord | None:
            header = rows.select_header(connection, session_id, caller)
            if header is None:
                return None
            is_access = now < header.expires_at
            if is_access:
                header.last_accessed_at = max(header.last_accessed_at, now)
            record = rows.select_record(connection, header, recent)
            if is_access:
                note = partial(_note_access, session_id=session_id, version=header.version, now=now)
                self._file.note(session_id, Note(now, note))
            return record

        def read(connection: Connection) -> SessionRecord | None:
            live = read_live(driver(connection))
            return at_rest.fetch(connection, session_id, caller) if live is None else live

        live = await self._file.read_single(read_live)
        return await self._file.view(read) if live is None else live

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        def write(connection: sqlite3.Connection) -> WriteResult | None:
            written = _write(connection, session_id, change, rules)
            return None if written is None else written[1]

        return await self._on_live(session_id, write, rules.caller)

    async def update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        def update(connection: sqlite3.Connection) -> Updated | None:
            written = _write(connection, session_id, change, rules)
            if written is None:
                return None
            header, result = written
            return Updated(result, rows.select_record(connection, header))

        return await self._on_live(session_id, update, rules.caller)

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, rules: WriteRules
    ) -> SessionRecord | None:
        caller, now = rules.caller, rules.now

        def extend(connection: sqlite3.Connection) -> SessionRecord | None:
            header = rows.select_header(connection, session_id, caller, Right.WRITE)
            if header is None:
                return None
            if now >= header.expires_at:
                raise SessionExpired(session_id, header.expires_at)
            later = max(header.expires_at, min(header.expires_at + by, latest))
            if later == header.expires_at:
                rows.touch(connection, header, now)
                return rows.select_record(connection, header)
            if header.version >= rules.max_changes:
                refuse_more_changes(session_id, rules.max_changes)
            header.expires_at = later
            rows.new_version(connection, header, now)
            rows.add_to_trail(connection, header, Act("extend", caller.name, now))
            return rows.select_record(connection, header)

        return await self._on_live(session_id, extend, caller)

    async def archive(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        def move(connection: Connection) -> bool:
            header = rows.select_header(driver(connection), session_id, caller, Right.WRITE)
            if header is None:
                return False
            rows.add_to_trail(driver(connection), header, Act("archive", caller.name, ended.at))
            sweep.move(connection, [header], ended)
            return True

        return await self._file.transact(move)

    async def sweep(self, ended: Ended) -> AsyncIterator[SweepReport]:
        while True:
            report = await self._file.transact(lambda connection: sweep.sweep_batch(self._file, connection, ended))
            yield report
            if not report.archived and not report.quarantined:
                return

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller = ANYBODY
    ) -> SessionRecord | None:
        def resume(connection: Connection) -> SessionRecord | None:
            live = rows.select_header(driver(connection), session_id, caller, Right.WRITE)
            if live is not None:
                return _go_on(driver(connection), live, until=until, now=now, caller=caller)
            ended = at_rest.fetch(connection, session_id, caller)
            return None if ended is None else _move_back(connection, ended, until=until, now=now, caller=caller)

        return await self._file.transact(resume)

    async def delete(self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY) -> bool:
        def remove(connection: Connection) -> bool:
            version = rows.select_version(driver(connection), session_id, caller, Right.OWN)
            if version is None:
                version = at_rest.find_version(connection, session_id, caller, Right.OWN)
            if version is None:
                return False
            rows.delete(driver(connection), [session_id])
            at_rest.bury(connection, session_id, version=version, now=now)
            return True

        return await self._file.transact(remove)

    async def share(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        def share(connection: Connection) -> Grants | None:
            try:
                live = rows.select_header(driver(connection), session_id)
            except (CorruptRecord, SchemaTooNew):
                if rows.select_version(driver(connection), session_id, rules.caller) is None:
                    return None  # nobody may learn that somebody else's session exists
                raise
            if live is None:
                ended = archived_grants.find(connection, session_id, change, rules.caller)
                return None if ended is None else archived_grants.share(connection, ended, change, rules)
            after = changed(session_id, live.user_id, live.grants, live.version, change, rules)
            if after is not None and after != live.grants:
                live.grants = after
                rows.new_version(driver(connection), live, live.last_accessed_at)
                rows.add_to_trail(driver(connection), live, act_of(change, rules.caller, rules.now))
            return after

        return await self._file.transact(share)

    async def owners_view(self, session_id: UUID, *, caller: Caller = ANYBODY) -> tuple[Grants, str] | None:
        def view(connection: Connection) -> tuple[Grants, str] | None:
            live = rows.select_header(driver(connection), session_id, caller, Right.OWN)
            if live is not None:
                return live.grants, rows.select_trail(driver(connection), session_id)
            ended = at_rest.fetch(connection, session_id, caller)
            if ended is None:
                return None
            at_rest.demand_of(ended, caller, Right.OWN)
            return ended.header.grants, ended.trail

        return await self._file.view(view)

    async def given_ids(self, user_id: str) -> set[UUID]:
        def given(connection: Connection) -> set[UUID]:
            live = rows.select_given_ids(driver(connection), user_id)
            return live | archived_grants.given_ids(connection, user_id)

        return await self._file.view(given)

    async def exists(self, session_id: UUID, *, needs: Right = Right.OWN, caller: Caller = ANYBODY) -> bool:
        def find(connection: Connection) -> bool:
            is_live = rows.select_version(driver(connection), session_id, caller, needs) is not None
            return is_live or at_rest.find_version(connection, session_id, caller, needs) is not None

        return await self._file.view(find)

    async def retry(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        return await self._file.transact(
            lambda connection: at_rest.archive_again(
                connection, session_id, ended, caller=caller, record_in=sweep.record_in
            )
        )

    async def ids_of(self, user_id: str) -> set[UUID]:
        return await self._file.view(
            lambda connection: rows.select_ids(driver(connection), user_id) | at_rest.ids_of(connection, user_id)
        )

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        return await self._file.erase_traces(user_id, held)

    async def purge_tombstones(self, before: datetime, *, at_most: int) -> int:
        def purge(connection: Connection) -> int:
            return retention.remove_tombstones(
                connection, retention.old_tombstones(connection, before, at_most=at_most)
            )

        return await self._file.transact(purge)

    async def figures(self, now: datetime) -> StoreFigures:
        found = StoreFigures(engines={})
        look = self._file.view(lambda connection: figures.look_at_file(connection, found, now))
        return await figures.gathered(found, ("sqlite", look))

    async def all_ids(self) -> AsyncIterator[list[UUID]]:
        def live(connection: Connection, after: UUID | None) -> list[UUID]:
            return rows.select_ids_after(driver(connection), after, AT_ONCE)

        for find in (live, archived_ids):
            async for ids in in_batches(self._file.view, find):
                yield ids

    async def rewrite(self, session_id: UUID, rewrite: Rewriting) -> bool:
        def both(connection: Connection) -> bool:
            is_changed = rewrite_live(connection, session_id, rewrite)
            return rewrite_archived(connection, session_id, rewrite) or is_changed

        return await self._file.transact(both)

    async def scrub(self) -> list[str]:
        return await self._file.scrub()

    async def away(self) -> list[Part]:
        try:
            await self._file.read(lambda connection: connection.execute("SELECT 1").fetchone())
        except Unavailable:
            return ["live", "archive"]
        return []

    async def page(self, query: PageQuery) -> Page:
        def both(connection: Connection) -> Page:
            live = rows.select_page(driver(connection), query)
            return Page(merge_pages(live, archive.page(connection, query), query.limit))

        if query.include_archived:
            return await self._file.view(both)
        live = await self._file.read(lambda connection: rows.select_page(connection, query))
        return Page([(header, False) for header in live])

    async def search(self, query: PageQuery) -> Found:
        def find(connection: Connection, *, not_indexed: bool) -> Found:
            found = Found([], not_indexed=not_indexed)
            live = rows.select_page(driver(connection), query, found.unreadable)
            ended = archive.page(connection, query) if query.include_archived else []
            found.rows = merge_pages(live, ended, query.limit)
            return found

        def find_indexed(connection: Connection) -> Found | None:
            return None if indexing.is_behind(connection) else find(connection, not_indexed=False)

        # Indexing has to wait for other writers; a search with nothing to index doesn't.
        def index_and_find(connection: Connection) -> Found:
            return find(connection, not_indexed=index_file(connection))

        found = await self._file.view(find_indexed)
        return await self._file.transact(index_and_find) if found is None else found

    async def _on_live(
        self, session_id: UUID, function: Callable[[sqlite3.Connection], Result | None], caller: Caller
    ) -> Result | None:
        """Run a function that changes a live session, or returns `None` if there is none.

        Then it is run again, in a transaction that also looks at the archive: a session can't move in between.

        Raises:
            SessionArchived: the session is archived.
        """

        def change_or_refuse(connection: Connection) -> Result | None:
            result = function(driver(connection))
            if result is None and at_rest.fetch(connection, session_id, caller) is not None:
                raise SessionArchived(session_id)
            return result

        result = await self._file.write(function)
        return await self._file.transact(change_or_refuse) if result is None else result


def _note_access(connection: Connection, *, session_id: UUID, version: int, now: datetime) -> None:
    """Move the last access to `now`, also if another store has archived the session since it was read."""
    if not rows.note_access(driver(connection), session_id, now):
        archive.note_access(connection, session_id, version, now)


def _write(
    connection: sqlite3.Connection, session_id: UUID, change: Change, rules: WriteRules
) -> tuple[Header, WriteResult] | None:
    """Apply a change. Returns the header after it, and the result; `None` if the caller sees no such live session."""
    header = rows.select_header(connection, session_id, rules.caller, Right.WRITE)
    if header is None:
        return None
    check_format(header.format)
    _refuse_if_stale(header, rules)
    is_new = rows.append_queries(connection, header, change.queries, max_queries=rules.max_queries)
    if not is_new and change.has_only_queries:
        rows.touch(connection, header, rules.now)
        return header, _result(header, is_new_version=False)
    if header.version >= rules.max_changes:
        refuse_more_changes(session_id, rules.max_changes)
    rows.change_entries(connection, header, change)
    rows.change_header(header, change, rules.now)
    is_counted = not (change.scalars or change.assets or change.tags)
    rows.update_header(connection, header, only_counted=is_counted)
    rows.add_to_trail(connection, header, change.act(rules.caller, rules.now))
    return header, _result(header, is_new_version=True)


def _result(header: Header, *, is_new_version: bool) -> WriteResult:
    return WriteResult(header.version, header.life, header.expires_at, header.totals, is_new_version)


def _refuse_if_stale(header: Header, rules: WriteRules) -> None:
    if rules.now >= header.expires_at:
        raise SessionExpired(header.id, header.expires_at)
    if rules.expected_version is not None and rules.expected_version != header.version:
        raise SessionConflict(header.id, expected=rules.expected_version, actual=header.version)


def _go_on(
    connection: sqlite3.Connection, live: Header, *, until: datetime, now: datetime, caller: Caller
) -> SessionRecord:
    if now >= live.expires_at:
        live.expires_at = until
        rows.new_version(connection, live, now)
        rows.add_to_trail(connection, live, Act("resume", caller.name, now))
    else:
        rows.touch(connection, live, now)
    return rows.select_record(connection, live)


def _move_back(
    connection: Connection, ended: SessionRecord, *, until: datetime, now: datetime, caller: Caller
) -> SessionRecord:
    record, queries = at_rest.revived(ended, until=until, now=now, caller=caller)
    rows.insert(driver(connection), record, queries)
    archive.remove(connection, record.header.id, ended.header.version)
    return record
