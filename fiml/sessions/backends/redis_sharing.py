"""Whom live sessions in Redis are given to."""

from datetime import datetime
from typing import Any
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.db.redis_client import RedisClient, Script
from fiml.sessions.backends import redis_fields as fields
from fiml.sessions.backends import redis_keys as keys
from fiml.sessions.backends.redis import read
from fiml.sessions.backends.redis_index import enter_given, leave_given
from fiml.sessions.records import Header
from fiml.sessions.rights import (
    MAX_CODES,
    MAX_SHARES,
    Caller,
    GrantChange,
    Grants,
    Right,
    act_of,
    demand,
    refuse_code,
    refuse_codes,
    refuse_users,
    right_of,
    user_given,
)

SHARE = Script.load("fiml.sessions", "access", "share")
SCRIPTS = (SHARE,)


class RedisSharing:
    """Changes whom a session is given to, and the listings of those."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def share(self, session_id: UUID, change: GrantChange, *, now: datetime, caller: Caller) -> Grants | None:
        """As `Backend.share`, for a live session. Two round trips."""
        user_id = user_given(change)
        if change.what == "set" and user_id is not None:
            # The index first: nobody has what its listing lacks.
            [reply] = await self._client.run([read(session_id, caller=caller, recent=0)])
            record = fields.decode_record(session_id, reply)
            if record is None:
                return None
            # Who may not share enters nobody in an index.
            held = right_of(record.header.user_id, record.header.grants, caller)
            demand(session_id, held or Right.READ, Right.OWN)
            await self._client.run(enter_given(record.header, user_id))
        header = await self._change(session_id, change, now=now, caller=caller)
        if header is None:
            return None
        if change.what == "drop" and user_id is not None:
            await self._client.run(leave_given(header, user_id))
        elif change.what == "redeem" and caller.user is not None and caller.user != header.user_id:
            # Where it stands in the listings isn't told to one who has no right yet. Redeeming again enters it again.
            await self._client.run(enter_given(header, caller.user))
        return header.grants

    async def given_ids(self, user_id: str) -> set[UUID]:
        """Every live session that is given to a user, and maybe some that no longer are."""
        [members] = await self._client.run([("ZRANGE", keys.given_key(user_id), 0, -1)])
        return {fields.id_at(member.decode()) for member in members}

    async def _change(self, session_id: UUID, change: GrantChange, *, now: datetime, caller: Caller) -> Header | None:
        share = SHARE(
            [keys.header_key(session_id), keys.trail_key(session_id)],
            caller.user or "",
            to_micros(now),
            act_of(change, caller, now).opened,
            change.what,
            change.field,
            change.value,
            MAX_SHARES,
            MAX_CODES,
        )
        [reply] = await self._client.run([share])
        if reply is None:
            return None
        _raise_refusal(session_id, reply)
        return fields.decode_header(session_id, reply[1])


def _raise_refusal(session_id: UUID, reply: list[Any]) -> None:
    match reply:
        case [b"viewer"]:
            demand(session_id, Right.READ, Right.OWN)
        case [b"code"]:
            refuse_code()
        case [b"users", count]:
            refuse_users(int(count))
        case [b"codes"]:
            refuse_codes()
