"""Live sessions in Redis, ended ones in PostgreSQL: the order of the steps is what keeps them."""

from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core.errors import CorruptRecord, Unavailable
from fiml.db.postgres import PostgresDatabase
from fiml.sessions.backends import archive
from fiml.sessions.backends.base import Ended, PageQuery, WriteRules, merge_pages
from fiml.sessions.backends.redis import ExpiryEntry, RedisTier, locate
from fiml.sessions.changes import Change
from fiml.sessions.records import Header, SessionRecord, revived

_TRIES = 10
_SET_ASIDE_FOR = timedelta(days=1)

_log = structlog.get_logger()


class TieredBackend:
    """Keeps `Backend` over Redis and PostgreSQL."""

    def __init__(self, live: RedisTier, database: PostgresDatabase) -> None:
        self._live = live
        self._database = database
        self.session_maker = async_sessionmaker[AsyncSession](database.engine)

    async def open(self) -> None:
        try:
            await self._database.open()
            await self._live.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._live.close()
        await self._database.close()

    async def create(self, record: SessionRecord) -> None:
        await self._live.put(record)

    async def read(
        self, session_id: UUID, *, now: datetime, owner: str | None = None, recent: int | None = None
    ) -> SessionRecord | None:
        return await self._live.read(session_id, now=now, owner=owner, recent=recent)

    async def read_archived(self, session_id: UUID, *, owner: str | None = None) -> SessionRecord | None:
        return await self._database.transact(lambda connection: archive.fetch(connection, session_id, owner))

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> Header | None:
        expires_at = change.scalars.get("expires_at")
        if expires_at is None:
            return await self._live.write(session_id, change, rules)
        # The index first, so that no session is missing from it; and once more behind the session, since a sweeper
        # that came in between moved the entry back.
        before = await self._live.read(session_id, now=None, owner=rules.owner, recent=0)
        if before is None:
            return None
        is_earlier = expires_at < before.header.expires_at
        if is_earlier:
            await self._live.index_expiry(before.header, expires_at)
        header = await self._live.write(session_id, change, rules)
        if header is not None and (is_earlier or header.life != before.header.life):
            await self._live.index_expiry(header, expires_at)
        return header

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, now: datetime, owner: str | None = None
    ) -> SessionRecord | None:
        return await self._live.extend(session_id, by=by, latest=latest, now=now, owner=owner)

    async def archive(self, session_id: UUID, ended: Ended, *, owner: str | None = None) -> bool:
        for _ in range(_TRIES):
            record = await self._live.read(session_id, now=None, owner=owner)
            if record is None:
                return False
            outcome = await self._move(record, ended)
            if outcome != "changed":
                return outcome == "removed"
        raise Unavailable(f"session {session_id}", "others write to it without a pause")

    async def archive_expired(self, ended: Ended, *, at_most: int) -> tuple[int, bool]:
        entries = await self._live.due(ended.at, at_most)
        records = await self._live.read_many([entry.session_id for entry in entries])
        expired = []
        for entry, record in zip(entries, records, strict=True):
            if isinstance(record, CorruptRecord):
                await self._set_aside(entry, record, ended)
            elif record is None or record.header.life != entry.life:
                await self._live.drop(entry)
            elif ended.at >= record.header.expires_at:
                expired.append(record)
            else:
                await self._live.reindex(entry, record.header.expires_at)
        return await self._move_all(expired, ended), not entries

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, owner: str | None = None
    ) -> SessionRecord | None:
        for _ in range(_TRIES):
            live = await self._live.go_on(session_id, until=until, now=now, owner=owner)
            if live is not None:
                return live
            ended = await self.read_archived(session_id, owner=owner)
            if ended is None:
                # It may have come back between the two looks.
                return await self._live.go_on(session_id, until=until, now=now, owner=owner)
            record, queries = revived(ended, until=until, now=now)
            if await self._live.put(record, queries) == "stored":
                return await self._confirm(record, ended.header.version)
        return None

    async def delete(self, session_id: UUID, *, now: datetime, owner: str | None = None) -> bool:
        live = await self._live.locate(session_id, owner)
        archived_version = await self._database.transact(
            lambda connection: archive.find_version(connection, session_id, owner)
        )
        if live is None and archived_version is None:
            # It may have come back between the two looks.
            live = await self._live.locate(session_id, owner)
        version = live.version if live else archived_version
        if version is None:
            return False
        await self._database.transact(lambda connection: archive.bury(connection, session_id, version=version, now=now))
        await self._live.remove_for_good(session_id, live)
        return True

    async def page(self, query: PageQuery) -> list[tuple[Header, bool]]:
        live = await self._live.page(query)
        if not query.include_archived:
            return [(header, False) for header in live]
        ended = await self._database.transact(lambda connection: archive.page(connection, query))
        # One that was resumed between the two looks shows in a third.
        seen = {header.id for header in live}
        live += [header for header in await self._live.page(query) if header.id not in seen]
        return merge_pages(live, ended, query.limit)

    async def _move(self, record: SessionRecord, ended: Ended) -> str:
        """Archive first, then remove: a crash leaves a copy too many, never one too few."""
        buried = await self._database.transact(lambda connection: archive.put(connection, [record], ended))
        if buried:
            await self._live.remove_for_good(record.header.id, locate(record.header))
            return "absent"
        [outcome] = await self._live.remove([record.header])
        return outcome

    async def _move_all(self, records: list[SessionRecord], ended: Ended) -> int:
        if not records:
            return 0
        buried = await self._database.transact(lambda connection: archive.put(connection, records, ended))
        for record in records:
            if record.header.id in buried:
                await self._live.remove_for_good(record.header.id, locate(record.header))
        moved = [record.header for record in records if record.header.id not in buried]
        outcomes = await self._live.remove(moved)
        for header, outcome in zip(moved, outcomes, strict=True):
            if outcome == "changed":
                await self._take_back(header)
        return outcomes.count("removed")

    async def _take_back(self, header: Header) -> None:
        """A session went on living while it was copied: its copy goes."""
        await self._database.transact(lambda connection: archive.remove(connection, header.id, header.version))

    async def _set_aside(self, entry: ExpiryEntry, problem: CorruptRecord, ended: Ended) -> None:
        """Leave a session that can't be read as it is, and the others their turn."""
        _log.error("session_set_aside", session_id=str(entry.session_id), problem=str(problem))
        await self._live.reindex(entry, ended.at + _SET_ASIDE_FOR)

    async def _confirm(self, record: SessionRecord, archived_version: int) -> SessionRecord | None:
        """Take the archived copy away. Where a newer one is there, or a tombstone, that counts instead of ours."""
        session_id = record.header.id
        was_overtaken = await self._database.transact(
            lambda connection: _take_away(connection, session_id, archived_version)
        )
        if was_overtaken:
            await self._live.remove([record.header])
            return await self.resume(session_id, until=record.header.expires_at, now=record.header.last_accessed_at)
        return record


def _take_away(connection: Connection, session_id: UUID, version: int) -> bool:
    if archive.remove(connection, session_id, version):
        return False
    return archive.is_buried(connection, session_id) or archive.find_version(connection, session_id) is not None
