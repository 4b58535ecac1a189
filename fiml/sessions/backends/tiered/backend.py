"""Live sessions in Redis, archived ones in PostgreSQL. The order of the steps ensures that none is lost."""

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core.errors import SessionConflict, Unavailable
from fiml.core.log import get_logger
from fiml.db.postgres import PostgresDatabase
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends import figures
from fiml.sessions.backends.keeping import Keeping
from fiml.sessions.backends.redis import dump, fields, sharing, sweep, tier
from fiml.sessions.backends.redis.listing import RedisListing
from fiml.sessions.backends.redis.sharing import RedisSharing
from fiml.sessions.backends.redis.tier import Location
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
from fiml.sessions.backends.sql import archived_grants, at_rest, retention
from fiml.sessions.backends.sql.rewriting import archived_ids, rewrite_archived
from fiml.sessions.backends.tiered.looks import TieredLooks
from fiml.sessions.backends.tiered.moves import TieredMoves
from fiml.sessions.backends.tiered.sweep import Sweep
from fiml.sessions.changes import Change
from fiml.sessions.records import SessionRecord
from fiml.sessions.rights import ANYBODY, Caller, GrantChange, Grants, Right, ShareRules, demand

SCRIPTS = (*tier.SCRIPTS, *dump.SCRIPTS, *sharing.SCRIPTS, *sweep.SCRIPTS)
_TRIES = 10
EVERYBODYS = PageQuery(limit=AT_ONCE)

_log = get_logger()


class TieredBackend:
    """Implements `Backend` with Redis and PostgreSQL."""

    def __init__(self, client: RedisClient, database: PostgresDatabase) -> None:
        self._client = client
        self._live = tier.RedisTier(client)
        self._live_for_maintenance = tier.RedisTier(client.patient())
        self._sweeping = sweep.RedisSweep(client.patient())
        self._listing = RedisListing(client)
        self._looks = TieredLooks(client, self._live, self._listing, database)
        self._moves = TieredMoves(self._live, self._looks, database)
        self._sharing = RedisSharing(client, self._live)
        self._database = database
        self.keeping = Keeping(transact=database.transact, view=database.view, maintain=database.maintain)
        self.session_maker = async_sessionmaker[AsyncSession](database.engine)

    async def open(self) -> None:
        try:
            await self._open_archive()
            await self._client.open()
        except BaseException:
            await self.close()
            raise

    async def _open_archive(self) -> None:
        try:
            await self._database.open()
        except Unavailable as exc:
            # Live sessions work without it; its schema is checked when it is back.
            _log.warning("archive_is_away", problem=str(exc))

    async def close(self) -> None:
        await self._client.close()
        await self._database.close()

    async def create(self, record: SessionRecord) -> None:
        await self._live.put(record)

    async def read(
        self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY, recent: int | None = None
    ) -> SessionRecord | None:
        return await self._looks.find(
            lambda: self._live.read(session_id, now=now, caller=caller, recent=recent),
            lambda: self._looks.read_archived(session_id, caller),
        )

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        return await self._looks.on_live(session_id, rules.caller, lambda: self._write(session_id, change, rules))

    async def _write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        expires_at = change.scalars.get("expires_at")
        if expires_at is None:
            return await self._live.write(session_id, change, rules)
        # The index first, so that no session is missing from it; and again after the session, since a sweeper that
        # looks in between moves the entry back.
        before = await self._live.read(session_id, now=None, caller=rules.caller, recent=0)
        if before is None:
            return None
        is_earlier = expires_at < before.header.expires_at
        if is_earlier:
            await self._live.index_expiry(before.header, expires_at)
        result = await self._live.write(session_id, change, rules)
        if result is not None and (is_earlier or result.life != before.header.life):
            await self._live.index_expiry(replace(before.header, life=result.life), expires_at)
        return result

    async def update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        return await self._looks.on_live(session_id, rules.caller, lambda: self._update(session_id, change, rules))

    async def _update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        if "expires_at" not in change.scalars:
            return await self._live.update(session_id, change, rules)
        result = await self._write(session_id, change, rules)
        if result is None:
            return None
        return Updated(result, await self._live.read(session_id, now=None, caller=rules.caller))

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, rules: WriteRules
    ) -> SessionRecord | None:
        return await self._looks.on_live(
            session_id, rules.caller, lambda: self._live.extend(session_id, by=by, latest=latest, rules=rules)
        )

    async def archive(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        return await self._moves.archive(session_id, ended, caller)

    def sweep(self, ended: Ended) -> AsyncIterator[SweepReport]:
        return Sweep(self._live_for_maintenance, self._sweeping, self._database, ended).run()

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller = ANYBODY
    ) -> SessionRecord | None:
        return await self._moves.resume(session_id, until=until, now=now, caller=caller)

    async def delete(self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY) -> bool:
        live = await self._locate(session_id, caller, Right.OWN)
        archived_version = await self._find_at_rest(session_id, caller, Right.OWN)
        if live is None and archived_version is None:
            # It may have been resumed between the two looks.
            live = await self._locate(session_id, caller, Right.OWN)
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

    async def all_ids(self) -> AsyncIterator[list[UUID]]:
        after = None
        while members := await self._listing.members(EVERYBODYS, after, AT_ONCE):
            yield [fields.id_at(member) for member in members]
            after = fields.position_at(members[-1])
        async for ids in in_batches(self._database.maintain, archived_ids):
            yield ids

    async def rewrite(self, session_id: UUID, rewrite: Rewriting) -> bool:
        is_changed = await self._rewrite_live(session_id, rewrite)
        is_archived_changed = await self._database.maintain(
            lambda connection: rewrite_archived(connection, session_id, rewrite)
        )
        return is_changed or is_archived_changed

    async def scrub(self) -> list[str]:
        return []  # the servers themselves decide what remains of old rows in their files

    async def _rewrite_live(self, session_id: UUID, rewrite: Rewriting) -> bool:
        for _ in range(_TRIES):
            record = await self._live.read(session_id, now=None)
            texts = None if record is None else rewrite(record)
            if record is None or texts is None:
                return False
            if await self._live.rewrite(record, texts) == "rewritten":
                return True
        raise Unavailable(f"session {session_id}", "it keeps being archived and resumed")

    async def away(self) -> list[Part]:
        return await self._looks.away()

    async def page(self, query: PageQuery) -> Page:
        return await self._looks.page(query)

    async def search(self, query: PageQuery) -> Found:
        return await self._looks.search(query)

    async def share(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        for _ in range(_TRIES):
            grants = await self._sharing.share(session_id, change, rules)
            if grants is not None:
                return grants
            try:
                grants = await self._share_at_rest(session_id, change, rules)
            except SessionConflict:
                continue
            # It may have been resumed between the two looks.
            return grants if grants is not None else await self._sharing.share(session_id, change, rules)
        raise Unavailable(f"session {session_id}", "others keep writing to it")

    async def _share_at_rest(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        """Change whom an archived session is shared with; `None` if it is live, since then the live copy counts.

        Somebody who is resuming the session may have read the row before. The fence keeps this older copy from becoming
        live; if it is live already, it is changed too.
        """
        ended = await self._database.view(
            lambda connection: archived_grants.find(connection, session_id, change, rules.caller)
        )
        if ended is None or await self._live.are_live([session_id]):
            return None
        grants = await self._database.transact(
            lambda connection: archived_grants.share(connection, ended, change, rules)
        )
        if grants is None or grants == ended.grants:
            return grants  # the row is unchanged: a fence above its version would keep the session from being resumed
        if not await self._live.fence(session_id, ended.version + 1):
            grants = await self._sharing.share(session_id, change, rules) or grants
        return grants

    async def _find_at_rest(self, session_id: UUID, caller: Caller, needs: Right) -> int | None:
        found = await self._database.view(lambda connection: at_rest.find(connection, session_id, caller))
        if found is None or await self._looks.is_overruled(session_id, found[1]):
            return None
        demand(session_id, found[1], needs)
        return found[0]

    async def owners_view(self, session_id: UUID, *, caller: Caller = ANYBODY) -> tuple[Grants, str] | None:
        async def of_live() -> tuple[Grants, str] | None:
            found = await self._live.read_whole(session_id, caller=caller, recent=0)
            if found is None:
                return None
            demand(session_id, found[1], Right.OWN)
            return found[0].header.grants, found[0].trail

        async def of_archived() -> tuple[Grants, str] | None:
            ended = await self._looks.read_archived(session_id, caller)
            if ended is None:
                return None
            at_rest.demand_of(ended, caller, Right.OWN)
            return ended.header.grants, ended.trail

        return await self._looks.find(of_live, of_archived)

    async def given_ids(self, user_id: str) -> set[UUID]:
        live = await self._sharing.given_ids(user_id)
        return live | await self._database.view(lambda connection: archived_grants.given_ids(connection, user_id))

    async def exists(self, session_id: UUID, *, needs: Right = Right.OWN, caller: Caller = ANYBODY) -> bool:
        found = await self._looks.find(
            lambda: self._locate(session_id, caller, needs), lambda: self._find_at_rest(session_id, caller, needs)
        )
        return found is not None

    async def retry(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        return await self._database.transact(
            lambda connection: at_rest.archive_again(
                connection, session_id, ended, caller=caller, record_in=dump.record_in
            )
        )

    async def ids_of(self, user_id: str) -> set[UUID]:
        live = {place.session_id for place in await self._live.members_of(user_id)}
        # For a user with hundreds of thousands, PostgreSQL takes about as long as a call may.
        return live | await self._looks.look_long(lambda connection: at_rest.ids_of(connection, user_id))

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        # An index may hold entries whose session is gone.
        left = [
            place
            for place in await self._live.members_of(user_id)
            if place.session_id not in held and await self._live.locate(place.session_id) is None
        ]
        if left:
            # Of a session that has lost its header, the other parts may still be there.
            await self._live.remove_all_for_good([place.session_id for place in left])
            await self._live.forget(left)
        return []

    async def purge_tombstones(self, before: datetime, *, at_most: int) -> int:
        old = await self._database.maintain(
            lambda connection: retention.old_tombstones(connection, before, at_most=at_most)
        )
        if not old:
            return 0
        # An interrupted deletion may have left a live copy, which only the tombstone has kept from being archived.
        await self._live.remove_all_for_good(old)
        return await self._database.maintain(lambda connection: retention.remove_tombstones(connection, old))

    async def _locate(self, session_id: UUID, caller: Caller, needs: Right) -> Location | None:
        found = await self._live.locate(session_id, caller)
        if found is not None:
            demand(session_id, found.right, needs)
        return found
