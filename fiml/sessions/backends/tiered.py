"""Live sessions in Redis, ended ones in PostgreSQL: the order of the steps is what keeps them."""

from collections.abc import AsyncIterator, Collection
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core.errors import RecordRefused, Unavailable
from fiml.db.postgres import PostgresDatabase
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends import archive, at_rest, figures, indexing, redis, redis_sweep, retention
from fiml.sessions.backends.base import (
    Ended,
    Found,
    PageQuery,
    StoreFigures,
    SweepReport,
    WriteRules,
    merge_pages,
    rows_down_to,
)
from fiml.sessions.backends.keeping import Keeping
from fiml.sessions.backends.redis_index import place_of
from fiml.sessions.backends.redis_search import RedisSearch
from fiml.sessions.backends.sweep import Sweep
from fiml.sessions.changes import Change
from fiml.sessions.records import Header, SessionRecord, revived, with_all_totals

SCRIPTS = (*redis.SCRIPTS, *redis_sweep.SCRIPTS)
_TRIES = 10


class TieredBackend:
    """Keeps `Backend` over Redis and PostgreSQL."""

    def __init__(self, client: RedisClient, database: PostgresDatabase) -> None:
        self._client = client
        self._live = redis.RedisTier(client)
        self._sweeping = redis_sweep.RedisSweep(client)
        self._searching = RedisSearch(client, self._live)
        self._database = database
        self.keeping = Keeping(database.transact)
        self.session_maker = async_sessionmaker[AsyncSession](database.engine)

    async def open(self) -> None:
        try:
            await self._database.open()
            await self._client.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._client.close()
        await self._database.close()

    async def create(self, record: SessionRecord) -> None:
        await self._live.put(record)

    async def read(
        self, session_id: UUID, *, now: datetime, owner: str | None = None, recent: int | None = None
    ) -> SessionRecord | None:
        return await self._live.read(session_id, now=now, owner=owner, recent=recent)

    async def read_archived(self, session_id: UUID, *, owner: str | None = None) -> SessionRecord | None:
        return await self._database.transact(lambda connection: at_rest.fetch(connection, session_id, owner))

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
            record = with_all_totals(record)
            outcome = await self._move(record, ended)
            if outcome != "changed":
                return outcome == "removed"
        raise Unavailable(f"session {session_id}", "others write to it without a pause")

    def sweep(self, ended: Ended) -> AsyncIterator[SweepReport]:
        return Sweep(self._live, self._sweeping, self._database, ended).run()

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
            lambda connection: at_rest.find_version(connection, session_id, owner)
        )
        if live is None and archived_version is None:
            # It may have come back between the two looks.
            live = await self._live.locate(session_id, owner)
        version = live.version if live else archived_version
        if version is None:
            return False
        await self._database.transact(lambda connection: at_rest.bury(connection, session_id, version=version, now=now))
        await self._live.remove_for_good(session_id, None if live is None else live.place)
        return True

    async def figures(self, now: datetime) -> StoreFigures:
        found = StoreFigures(engines={})
        return await figures.gathered(
            found,
            ("redis", figures.look_at_sessions_in_redis(self._client, found, now)),
            ("redis", figures.look_at_redis(self._client, found)),
            ("postgresql", self._database.transact(lambda connection: figures.look_at_postgres(connection, found))),
        )

    async def page(self, query: PageQuery) -> list[tuple[Header, bool]]:
        live = await self._live.page(query)
        if not query.include_archived:
            return [(header, False) for header in live]
        ended = await self._database.transact(lambda connection: archive.page(connection, query))
        # One that was resumed between the two looks shows in a third.
        seen = {header.id for header in live}
        live += [header for header in await self._live.page(query) if header.id not in seen]
        return merge_pages(live, ended, query.limit)

    async def search(self, query: PageQuery) -> Found:
        found = await self._searching.search(query)
        if not query.include_archived:
            return found
        ended, found.not_indexed = await self._database.transact(lambda connection: _search_ended(connection, query))
        # One that was resumed between the two looks shows in a third.
        found = await self._searching.search_again(query, found)
        found.rows = merge_pages([header for header, _ in found.rows], ended, query.limit)
        if found.searched_to is not None:
            found.rows = rows_down_to(found.rows, found.searched_to)
        return found

    async def exists(self, session_id: UUID, *, owner: str | None = None) -> bool:
        for look in range(3):
            if look % 2 == 0:
                is_there = await self._live.locate(session_id, owner) is not None
            else:
                is_there = await self._database.transact(
                    lambda connection: at_rest.find_version(connection, session_id, owner) is not None
                )
            if is_there:
                return True
        return False

    async def retry(self, session_id: UUID, ended: Ended, *, owner: str | None = None) -> bool:
        return await self._database.transact(
            lambda connection: at_rest.archive_again(
                connection, session_id, ended, owner=owner, record_in=redis_sweep.record_in
            )
        )

    async def ids_of(self, user_id: str) -> set[UUID]:
        live = {place.session_id for place in await self._live.members_of(user_id)}
        return live | await self._database.transact(lambda connection: at_rest.ids_of(connection, user_id))

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        # An index may hold entries whose session is gone.
        left = [
            place
            for place in await self._live.members_of(user_id)
            if place.session_id not in held and await self._live.locate(place.session_id, None) is None
        ]
        if left:
            await self._live.forget(left)
        return []

    async def purge_tombstones(self, before: datetime, *, at_most: int) -> int:
        old = await self._database.transact(
            lambda connection: retention.old_tombstones(connection, before, at_most=at_most)
        )
        if not old:
            return 0
        # A deletion that was cut short may have left a live copy, from which the tombstone has kept us so far.
        await self._live.remove_all_for_good(old)
        return await self._database.transact(lambda connection: retention.remove_tombstones(connection, old))

    async def _move(self, record: SessionRecord, ended: Ended) -> str:
        """Archive first, then remove: a crash leaves a copy too many, never one too few."""
        session_id = record.header.id
        try:
            put = await self._database.transact(
                lambda connection: archive.put(connection, [record], ended, is_patient=True)
            )
        except RecordRefused as exc:
            raise RecordRefused(f"session {session_id}", exc.problem) from exc
        if put.buried:
            await self._live.remove_for_good(session_id, place_of(record.header))
            return "absent"
        [outcome] = await self._live.remove([record.header])
        return outcome

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


def _search_ended(connection: Connection, query: PageQuery) -> tuple[list[Header], bool]:
    is_more = indexing.index_archived(connection)
    return archive.page(connection, query), is_more


def _take_away(connection: Connection, session_id: UUID, version: int) -> bool:
    if archive.remove(connection, session_id, version):
        return False
    return archive.is_buried(connection, session_id) or archive.find_version(connection, session_id) is not None
