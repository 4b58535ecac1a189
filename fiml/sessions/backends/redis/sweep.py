"""What the sweeper does in Redis. Each method is one round trip, for any number of sessions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from redis.exceptions import ResponseError

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import CorruptRecord, SchemaTooNew
from fiml.db.redis_client import RedisClient
from fiml.db.redis_commands import Script
from fiml.db.redis_replies import scored
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.backends.redis.dump import checked, decode_dump, read_dump, version_in
from fiml.sessions.backends.redis.index import ExpiryEntry, expiry_entry, leave
from fiml.sessions.backends.redis.tier import FLOOR_S, read
from fiml.sessions.damage import DAMAGE
from fiml.sessions.records import SessionRecord, unreadable

REINDEX, TAKE_OUT = SCRIPTS = tuple(Script.load("fiml.sessions", name) for name in ("reindex", "take_out"))


@dataclass(frozen=True, slots=True)
class Look:
    """As much of a live session as is needed to decide what to do with it."""

    life: int
    expires_at: datetime
    size: int
    format: int


class RedisSweep:
    """The steps of a sweep over the live sessions."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def due(self, now: datetime, parts: Iterable[int], each: int) -> list[ExpiryEntry]:
        """Entries of the expiry index that are due, at most `each` from a part."""
        ranges = [
            ("ZRANGE", keys.expiry_key(part), "-inf", to_micros(now), "BYSCORE", "LIMIT", 0, each, "WITHSCORES")
            for part in parts
        ]
        replies = await self._client.run(ranges)
        return [expiry_entry(member, score) for reply in replies for member, score in scored(reply)]

    async def look(self, entries: Sequence[ExpiryEntry]) -> list[Look | CorruptRecord | SchemaTooNew | None]:
        """The sessions that entries refer to; `None` if there is no session, an error if it can't be read."""
        names = ("life", "expires", "maps_bytes", "history_bytes", "format")
        ids = [entry.session_id for entry in entries]
        replies = await self._client.run_each([("HMGET", keys.header_key(session_id), *names) for session_id in ids])
        return [_look(session_id, reply) for session_id, reply in zip(ids, replies, strict=True)]

    async def without_header(self, entries: Sequence[ExpiryEntry]) -> list[ExpiryEntry]:
        """Those entries whose session has no header any more, but other parts."""
        parts = [(entry, key) for entry in entries for key in keys.session_keys(entry.session_id)[1:]]
        replies = await self._client.run([("EXISTS", key) for _, key in parts])
        return list(dict.fromkeys(entry for (entry, _), is_there in zip(parts, replies, strict=True) if is_there))

    async def read(self, session_ids: Sequence[UUID]) -> list[SessionRecord | CorruptRecord | None]:
        """Sessions, whole: `None` for one that isn't live, the error for one that can't be read. Not an access."""
        replies = await self._client.run_each([read(session_id, has_trail=True) for session_id in session_ids])
        return [_record(session_id, reply) for session_id, reply in zip(session_ids, replies, strict=True)]

    async def reindex(self, moves: Sequence[tuple[ExpiryEntry, datetime]]) -> None:
        """Move entries to other times, unless somebody else has moved them."""
        await self._client.run(
            [REINDEX([entry.place.expiry_key], entry.member, entry.score, to_micros(at)) for entry, at in moves]
        )

    async def drop(self, entries: Sequence[ExpiryEntry]) -> None:
        """Drop the entries of lives that have ended."""
        await self._client.run_in_order(*leave(entry.place for entry in entries))

    async def dump(self, session_id: UUID) -> Dump:
        """All that is stored of a session, readable or not."""
        [reply] = await self._client.run([read_dump(session_id)])
        return decode_dump(reply)

    async def take_out(self, session_id: UUID, dump: Dump) -> str:
        """Remove a session that was dumped: `removed`, `changed` if it was written to since, or `absent`."""
        command = TAKE_OUT([*keys.session_keys(session_id), keys.floor_key(session_id)], version_in(dump), FLOOR_S)
        [outcome] = await self._client.run([command])
        return str(outcome.decode())


def _look(session_id: UUID, reply: Any) -> Look | CorruptRecord | SchemaTooNew | None:
    if isinstance(reply, ResponseError):
        return CorruptRecord(f"live session {session_id}", str(reply))
    if all(value is None for value in reply):
        return None
    try:
        life, expires, maps_bytes, history_bytes, format_number = map(int, reply)
        return Look(life, from_micros(expires), maps_bytes + history_bytes, format_number)
    except DAMAGE as exc:
        return unreadable(f"live session {session_id}", reply[-1], f"{type(exc).__name__}: {exc}")


def _record(session_id: UUID, reply: Any) -> SessionRecord | CorruptRecord | None:
    if isinstance(reply, ResponseError):
        return CorruptRecord(f"live session {session_id}", str(reply))
    try:
        record = fields.decode_record(session_id, reply)
        return record and checked(record, reply[2], reply[3])
    except SchemaTooNew:
        return None  # a later fiml has written it since the look: the next sweep postpones it
    except CorruptRecord as exc:
        return exc
