"""How a session moves between Redis and PostgreSQL, which have no transaction in common."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from fiml.core import clock
from fiml.core.errors import FimlError, RecordRefused, Unavailable
from fiml.db.postgres import PostgresDatabase
from fiml.sessions.audit import Act, longer_trail
from fiml.sessions.backends.redis.index import place_of
from fiml.sessions.backends.redis.tier import RedisTier
from fiml.sessions.backends.shapes import Ended
from fiml.sessions.backends.sql import archive, at_rest, words
from fiml.sessions.backends.tiered.looks import TieredLooks
from fiml.sessions.records import SessionRecord, with_all_totals
from fiml.sessions.rights import Caller, Right, demand

_TRIES = 10
# Longer than moving the longest session takes. If the process dies meanwhile, writers wait this long.
_CLOSED = timedelta(seconds=30)
# PostgreSQL stores about 30 MiB of JSON a second: a longer history may take more than the two seconds of a call.
_LONG_BYTES = 16 * 1024 * 1024


class TieredMoves:
    """Archives and resumes single sessions. The sweep archives many at once."""

    def __init__(self, live: RedisTier, looks: TieredLooks, database: PostgresDatabase) -> None:
        self._live = live
        self._looks = looks
        self._database = database

    async def archive(self, session_id: UUID, ended: Ended, caller: Caller) -> bool:
        """As `Backend.archive`."""
        outcome = await self._archive(session_id, ended, caller)
        if outcome == "changed":
            outcome = await self._archive_closed(session_id, ended, caller)
        return outcome == "removed"

    async def _archive_closed(self, session_id: UUID, ended: Ended, caller: Caller) -> str:
        """Archive a session to which others write faster than it moves: they wait meanwhile."""
        try:
            for _ in range(_TRIES - 1):
                outcome = await self._archive(session_id, ended, caller, closed_until=clock.now() + _CLOSED)
                if outcome != "changed":
                    return outcome
            raise Unavailable(f"session {session_id}", "others keep writing to it")
        except (FimlError, asyncio.CancelledError):
            await self._live.reopen(session_id)
            raise

    async def _archive(
        self, session_id: UUID, ended: Ended, caller: Caller, *, closed_until: datetime | None = None
    ) -> str:
        """What became of the session: `removed` from the live ones, `changed` by others meanwhile, or `absent`."""
        found = await self._live.read_whole(session_id, caller=caller, closed_until=closed_until)
        if found is None:
            return "absent"
        record, right = found
        demand(session_id, right, Right.WRITE)
        entry = Act("archive", caller.name, ended.at).at_version(record.header.version)
        record = with_all_totals(replace(record, trail=longer_trail(record.trail, entry)))
        return await self._move(record, ended)

    async def resume(self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller) -> SessionRecord | None:
        """As `Backend.resume`."""
        for _ in range(_TRIES):
            live = await self._live.go_on(session_id, until=until, now=now, caller=caller)
            if live is not None:
                return live
            ended = await self._looks.read_archived(session_id, caller)
            if ended is None:
                # It may have been resumed between the two looks.
                return await self._live.go_on(session_id, until=until, now=now, caller=caller)
            record, queries = at_rest.revived(ended, until=until, now=now, caller=caller)
            outcome = await self._live.put(record, queries)
            if outcome == "stored":
                return await self._confirm(record, ended.header.version, caller)
            if outcome == "deleted":
                return None
        raise Unavailable(
            f"session {session_id}", "a later version than the archived one was live within the last hour"
        )

    async def _move(self, record: SessionRecord, ended: Ended) -> str:
        """Archive first, then remove: a crash leaves a copy too many, never one too few."""
        session_id = record.header.id
        texts = await words.read_apart([record])
        transact = self._database.transact
        if record.header.history_bytes > _LONG_BYTES:
            await self._looks.look_at_archive()
            transact = self._database.maintain
        try:
            put = await transact(
                lambda connection: archive.put(connection, [record], ended, texts=texts, is_patient=True)
            )
        except RecordRefused as exc:
            raise RecordRefused(f"session {session_id}", exc.problem) from exc
        if put.buried:
            await self._live.remove_for_good(session_id, place_of(record.header))
            return "absent"
        [outcome] = await self._live.remove([record.header])
        return outcome

    async def _confirm(self, record: SessionRecord, archived_version: int, caller: Caller) -> SessionRecord | None:
        """Remove the archived copy. If there is a newer one or a tombstone, it counts instead of what was resumed."""
        session_id = record.header.id
        was_overtaken = await self._database.transact(
            lambda connection: _take_away(connection, session_id, archived_version)
        )
        if was_overtaken:
            await self._live.remove([record.header])
            return await self.resume(
                session_id, until=record.header.expires_at, now=record.header.last_accessed_at, caller=caller
            )
        return record


def _take_away(connection: Connection, session_id: UUID, version: int) -> bool:
    if archive.remove(connection, session_id, version):
        return False
    return archive.is_buried(connection, session_id) or archive.find(connection, session_id) is not None
