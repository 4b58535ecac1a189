"""Listings of live sessions in Redis: a range of an index, then the headers of its sessions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from fiml.core.errors import CorruptRecord, SchemaTooNew
from fiml.core.log import get_logger
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.backends.shapes import MAX_SEARCHED, Page, PageQuery
from fiml.sessions.records import Header

_FILTERED_CHUNK = 500
_OTHER_LIVES = 2  # entries of lives that have ended, which a crash leaves for a sweep, are few

_log = get_logger()


class RedisListing:
    """Lists a user's live sessions, or everybody's, newest first."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def page(self, query: PageQuery) -> Page:
        """Live sessions, as `Backend.page` says, in two round trips. Filters may take further ones."""
        is_filtered = query.type is not None or query.tag is not None or query.asset is not None
        chunk = _FILTERED_CHUNK if is_filtered else query.limit
        after, looked_at, is_end = query.after, 0, False
        found: list[Header] = []
        while not is_end and len(found) < query.limit and looked_at < MAX_SEARCHED:
            members = await self.members(query, after, chunk)
            if members:
                found += [header for header in await self._headers(members, query.given_to) if query.wants(header)]
                after = fields.position_at(members[-1])
            looked_at += len(members)
            is_end = len(members) < chunk
        rows = [(header, False) for header in found[: query.limit]]
        return Page(rows, searched_to=None if is_end or len(rows) == query.limit else after)

    async def members(self, query: PageQuery, after: tuple[datetime, UUID] | None, count: int) -> list[str]:
        """The next `count` entries in the listings that a query is about, after a session.

        Fewer only at the end; more if the last session has entries of several lives, so that none of them is missed.
        """
        indexes = keys.all_keys() if query.user_id is None else [keys.user_key(query.user_id)]
        if query.given_to is not None:
            indexes.append(keys.given_key(query.given_to))
        start, most = _start(after), count + _OTHER_LIVES
        replies = await self._client.run([("ZRANGE", key, start, "+", "BYLEX", "LIMIT", 0, most) for key in indexes])
        found = sorted(member.decode() for reply in replies for member in reply)
        others = (member for member in found[count:] if fields.id_at(member) == fields.id_at(found[count - 1]))
        return [*found[:count], *others]

    async def _headers(self, members: Sequence[str], given_to: str | None) -> list[Header]:
        session_ids = [fields.id_at(member) for member in members]
        replies = await self._client.run_each([("HGETALL", keys.header_key(session_id)) for session_id in session_ids])
        found = [
            (fields.life_at(member), _header_in_page(session_id, reply, given_to))
            for member, session_id, reply in zip(members, session_ids, replies, strict=True)
            if reply
        ]
        return [header for life, header in found if header is not None and header.life == life]


def _header_in_page(session_id: UUID, reply: Any, given_to: str | None) -> Header | None:
    # A key with another type gets an error as its reply, and is treated as a header without fields: it is nobody's.
    stored = {} if isinstance(reply, Exception) else reply
    try:
        return fields.decode_header(session_id, stored)
    except SchemaTooNew as exc:
        _log.warning("session_not_listed", session_id=str(session_id), problem=str(exc))
        return None
    except CorruptRecord as exc:
        if given_to is None or stored.get(b"user") == given_to.encode():
            raise
        # A damaged session of somebody else must not hide one's own.
        _log.warning("session_given_unreadable", session_id=str(session_id), problem=exc.problem)
        return None


def _start(after: tuple[datetime, UUID] | None) -> str:
    """Where a range begins that comes after every life of the session at a position."""
    return "-" if after is None else f"({fields.position(*after)}~"
