"""A search over live sessions in Redis: candidates are read whole, in bounded pipelines, and matched in Python."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from fiml.core.errors import CorruptRecord, SchemaTooNew
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.pages import first_position
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.backends.redis.listing import RedisListing
from fiml.sessions.backends.redis.tier import read
from fiml.sessions.backends.shapes import MAX_SEARCHED, Found, PageQuery
from fiml.sessions.damage import DAMAGE
from fiml.sessions.records import Header, SessionRecord, check_format
from fiml.sessions.rights import Caller

_HEADERS_AT_ONCE = 200
_SESSIONS_AT_ONCE = 25


class RedisSearch:
    """Searches a user's live sessions, or everybody's, newest first."""

    def __init__(self, client: RedisClient, listing: RedisListing) -> None:
        self._client = client
        self._listing = listing

    async def search(self, query: PageQuery) -> Found:
        """The first `query.limit` sessions that match, of at most `MAX_SEARCHED` that are looked at."""
        return await self._search(query, set())

    async def search_again(self, query: PageQuery, before: Found) -> Found:
        """The result `before`, and matches that have become live since. Sessions seen before are not read again."""
        again = await self._search(query, before.looked_at)
        again.rows = sorted([*before.rows, *again.rows], key=lambda row: fields.position(row[0].created_at, row[0].id))
        again.unreadable = [*before.unreadable, *again.unreadable]
        again.not_indexed = before.not_indexed
        again.searched_to = first_position(before.searched_to, again.searched_to)
        return again

    async def _search(self, query: PageQuery, known: set[str]) -> Found:
        found = Found([])
        after, looked_at = query.after, 0
        while looked_at < MAX_SEARCHED and len(found.rows) < query.limit:
            members = await self._listing.members(query, after, _HEADERS_AT_ONCE)
            looked_at += len(members)
            await self._look([member for member in members if member not in known], query, found)
            found.looked_at.update(members)
            if len(members) < _HEADERS_AT_ONCE:
                return found
            after = fields.position_at(members[-1])
        found.searched_to = after
        return found

    async def _look(self, members: Sequence[str], query: PageQuery, found: Found) -> None:
        chosen = await self._candidates(members, query, found)
        for start in range(0, len(chosen), _SESSIONS_AT_ONCE):
            for record in await self._read(chosen[start : start + _SESSIONS_AT_ONCE], query, found):
                if query.wanted is None or _meets(record, query, found):
                    found.rows.append((record.header, False))

    async def _candidates(self, members: Sequence[str], query: PageQuery, found: Found) -> list[UUID]:
        """The sessions that their headers don't rule out."""
        session_ids = [fields.id_at(member) for member in members]
        replies = await self._client.run_each([("HGETALL", keys.header_key(each)) for each in session_ids])
        candidates = []
        for member, session_id, reply in zip(members, session_ids, replies, strict=True):
            header = _header(session_id, reply, query, found)
            if header is not None and header.life == fields.life_at(member) and query.wants(header):
                candidates.append(session_id)
        return candidates

    async def _read(self, session_ids: Sequence[UUID], query: PageQuery, found: Found) -> list[SessionRecord]:
        """The sessions, but for those no longer shared with the caller since the look at their headers."""
        caller = Caller(query.given_to)
        replies = await self._client.run_each([read(session_id, caller=caller) for session_id in session_ids])
        records = []
        for session_id, reply in zip(session_ids, replies, strict=True):
            record = _record(session_id, reply, found)
            if record is not None:
                records.append(record)
        return records


def _record(session_id: UUID, reply: Any, found: Found) -> SessionRecord | None:
    if isinstance(reply, Exception):
        found.unreadable.append(session_id)
        return None
    try:
        record = fields.decode_record(session_id, reply)
        if record is not None:
            check_format(record.header.format)
    except (CorruptRecord, SchemaTooNew):
        found.unreadable.append(session_id)
        return None
    return record


def _header(session_id: UUID, reply: Any, query: PageQuery, found: Found) -> Header | None:
    if not reply or _is_anothers(reply, query.given_to):
        return None
    try:
        # A key with another type gets an error as its reply, and is treated as a header without fields.
        return fields.decode_header(session_id, {} if isinstance(reply, Exception) else reply)
    except (CorruptRecord, SchemaTooNew):
        found.unreadable.append(session_id)
        return None


def _is_anothers(reply: Any, user_id: str | None) -> bool:
    """Whether a session in a user's listings is neither the user's own nor shared with the user any more."""
    if user_id is None:
        return False
    if isinstance(reply, Exception):
        return True  # what isn't a hash is nobody's, as in access.lua
    return reply.get(b"user") != user_id.encode() and f"s:{user_id}".encode() not in reply


def _meets(record: SessionRecord, query: PageQuery, found: Found) -> bool:
    try:
        return query.wanted is None or query.wanted.is_met_by(record)
    except DAMAGE:  # a part is not JSON
        found.unreadable.append(record.header.id)
        return False
