"""Both tiers in one SQLite file: a call is one hop to its thread, a move between the tiers one transaction."""

import sqlite3
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core.config import Synchronous
from fiml.core.errors import SessionConflict, SessionExpired
from fiml.db.engines import async_sqlite_engine
from fiml.db.sqlite_file import SqliteFile, driver
from fiml.sessions.backends import archive
from fiml.sessions.backends import sqlite_rows as rows
from fiml.sessions.backends.base import Ended, PageQuery, WriteRules, merge_pages
from fiml.sessions.changes import Change
from fiml.sessions.records import Header, SessionRecord, check_format, revived


class SqliteBackend:
    """Keeps `Backend` on one file."""

    def __init__(self, file: SqliteFile, synchronous: Synchronous) -> None:
        self._file = file
        self._engine = async_sqlite_engine(file.path, synchronous)
        self.session_maker = async_sessionmaker[AsyncSession](self._engine)

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._engine.dispose()
        await self._file.close()

    async def create(self, record: SessionRecord) -> None:
        await self._file.write(lambda connection: rows.insert(connection, record.header, {}, []))

    async def read(
        self, session_id: UUID, *, now: datetime, owner: str | None = None, recent: int | None = None
    ) -> SessionRecord | None:
        def read(connection: sqlite3.Connection) -> SessionRecord | None:
            header = rows.select_header(connection, session_id, owner)
            if header is None:
                return None
            if now < header.expires_at:
                rows.touch(connection, header, now)
            return rows.select_record(connection, header, recent)

        return await self._file.write(read)

    async def read_archived(self, session_id: UUID, *, owner: str | None = None) -> SessionRecord | None:
        return await self._file.transact(lambda connection: archive.fetch(connection, session_id, owner))

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> Header | None:
        def write(connection: sqlite3.Connection) -> Header | None:
            header = rows.select_header(connection, session_id, rules.owner)
            if header is None:
                return None
            check_format(header.format)
            _refuse_if_stale(header, rules)
            rows.append_queries(connection, header, change.queries, max_queries=rules.max_queries)
            rows.change_entries(connection, header, change)
            rows.change_header(header, change, rules.now)
            rows.update_header(connection, header)
            return header

        return await self._file.write(write)

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, now: datetime, owner: str | None = None
    ) -> SessionRecord | None:
        def extend(connection: sqlite3.Connection) -> SessionRecord | None:
            header = rows.select_header(connection, session_id, owner)
            if header is None:
                return None
            if now >= header.expires_at:
                raise SessionExpired(session_id, header.expires_at)
            header.expires_at = max(header.expires_at, min(header.expires_at + by, latest))
            rows.new_version(connection, header, now)
            return rows.select_record(connection, header)

        return await self._file.write(extend)

    async def archive(self, session_id: UUID, ended: Ended, *, owner: str | None = None) -> bool:
        def move(connection: Connection) -> bool:
            header = rows.select_header(driver(connection), session_id, owner)
            return header is not None and _move(connection, [header], ended) == 1

        return await self._file.transact(move)

    async def archive_expired(self, ended: Ended, *, at_most: int) -> tuple[int, bool]:
        moved = await self._file.transact(
            lambda connection: _move(connection, rows.select_expired(driver(connection), ended.at, at_most), ended)
        )
        return moved, moved < at_most

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, owner: str | None = None
    ) -> SessionRecord | None:
        def resume(connection: Connection) -> SessionRecord | None:
            live = rows.select_header(driver(connection), session_id, owner)
            if live is not None:
                return _go_on(driver(connection), live, until=until, now=now)
            ended = archive.fetch(connection, session_id, owner)
            return None if ended is None else _move_back(connection, ended, until=until, now=now)

        return await self._file.transact(resume)

    async def delete(self, session_id: UUID, *, now: datetime, owner: str | None = None) -> bool:
        def remove(connection: Connection) -> bool:
            version = rows.select_version(driver(connection), session_id, owner)
            if version is None:
                version = archive.find_version(connection, session_id, owner)
            if version is None:
                return False
            rows.delete(driver(connection), [session_id])
            archive.bury(connection, session_id, version=version, now=now)
            return True

        return await self._file.transact(remove)

    async def page(self, query: PageQuery) -> list[tuple[Header, bool]]:
        def both(connection: Connection) -> list[tuple[Header, bool]]:
            live = rows.select_page(driver(connection), query)
            return merge_pages(live, archive.page(connection, query), query.limit)

        if query.include_archived:
            return await self._file.transact(both)
        live = await self._file.read(lambda connection: rows.select_page(connection, query))
        return [(header, False) for header in live]


def _refuse_if_stale(header: Header, rules: WriteRules) -> None:
    if rules.now >= header.expires_at:
        raise SessionExpired(header.id, header.expires_at)
    if rules.expected_version is not None and rules.expected_version != header.version:
        raise SessionConflict(header.id, expected=rules.expected_version, actual=header.version)


def _move(connection: Connection, headers: list[Header], ended: Ended) -> int:
    records = [rows.select_record(driver(connection), header) for header in headers]
    if records:
        archive.put(connection, records, ended)
        rows.delete(driver(connection), [header.id for header in headers])
    return len(records)


def _go_on(connection: sqlite3.Connection, live: Header, *, until: datetime, now: datetime) -> SessionRecord:
    if now >= live.expires_at:
        live.expires_at = until
        rows.new_version(connection, live, now)
    else:
        rows.touch(connection, live, now)
    return rows.select_record(connection, live)


def _move_back(connection: Connection, ended: SessionRecord, *, until: datetime, now: datetime) -> SessionRecord:
    record, queries = revived(ended, until=until, now=now)
    rows.insert(driver(connection), record.header, record.entries, queries)
    archive.remove(connection, record.header.id, ended.header.version)
    return record
