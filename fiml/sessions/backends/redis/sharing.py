"""Whom live sessions in Redis are shared with."""

from datetime import datetime
from typing import Any
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.core.errors import Unavailable
from fiml.db.redis_client import RedisClient
from fiml.db.redis_commands import Command, Script
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.backends.redis.index import Place, enter_given, leave_given, place_of
from fiml.sessions.backends.redis.tier import RedisTier, refuse_changes
from fiml.sessions.records import FORMAT, Header, unreadable
from fiml.sessions.rights import (
    MAX_CODES,
    MAX_SHARES,
    GrantChange,
    Grants,
    Right,
    ShareRules,
    act_of,
    demand,
    refuse_codes,
    refuse_owner,
    refuse_users,
    user_given,
)

_TRIES = 10
SHARE = Script.load("fiml.sessions", "access", "share")
SCRIPTS = (SHARE,)


class RedisSharing:
    """Changes whom a session is shared with, and the listings of these users."""

    def __init__(self, client: RedisClient, live: RedisTier) -> None:
        self._client = client
        self._live = live

    async def share(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        """As `Backend.share`, for a live session. Three round trips at most, one more on a Cluster."""
        user_id = rules.caller.user if change.what == "redeem" else user_given(change)
        if change.what == "redeem" or (change.what == "set" and user_id is not None):
            return await self._give(session_id, user_id, change, rules)
        [reply] = await self._live.telling_damage(session_id, self._client.write([_share(session_id, change, rules)]))
        header = _header(session_id, reply, rules)
        if header is None:
            return None
        if change.what == "drop" and user_id is not None:
            await self._leave(header, user_id)
        return header.grants

    async def given_ids(self, user_id: str) -> set[UUID]:
        """Every live session that is shared with a user, and perhaps some that no longer are."""
        [members] = await self._client.run([("ZRANGE", keys.given_key(user_id), 0, -1)])
        return {fields.id_at(member.decode()) for member in members}

    async def _give(
        self, session_id: UUID, user_id: str | None, change: GrantChange, rules: ShareRules
    ) -> Grants | None:
        for _ in range(_TRIES):
            entry = await self._entry_for(session_id, user_id, change, rules)
            if entry is None:
                return None
            place, expires_at = entry
            # The index first, so that every session a user has is in the user's listing.
            guest = None if user_id == place.user_id else user_id
            index = [] if guest is None else enter_given(place, guest, expires_at)
            share = _share(session_id, change, rules, life=fields.life_at(place.listed_member))
            *_, reply = await self._live.telling_damage(session_id, self._client.write(index, [share]))
            if reply != [b"life"]:
                header = _header(session_id, reply, rules)
                if header is None:
                    return None
                if guest is not None:
                    # Again, since somebody who stopped sharing meanwhile may have removed the entry.
                    await self._enter(header, guest)
                return header.grants
        raise Unavailable(f"session {session_id}", "it keeps being archived and resumed")

    async def _entry_for(
        self, session_id: UUID, user_id: str | None, change: GrantChange, rules: ShareRules
    ) -> tuple[Place, datetime] | None:
        """The session's entry in a user's listing, and its expiry; `None` if the caller doesn't see the session."""
        if change.what == "redeem":
            # Looked at first, so that a code that isn't valid enters nothing.
            look = _share(session_id, change, rules, step="look")
            [reply] = await self._live.telling_damage(session_id, self._client.run([look]))
            header = _header(session_id, reply, rules)
            return None if header is None else (place_of(header), header.expires_at)
        found = await self._live.locate(session_id, rules.caller)
        if found is None:
            return None
        demand(session_id, found.right, Right.OWN)
        if found.place is None or found.expires_at is None:
            raise unreadable(f"live session {session_id}", found.format, "its creation, life or expiry is missing")
        if user_id is not None and found.place.user_id == user_id:
            refuse_owner(user_id)
        return found.place, found.expires_at

    async def _enter(self, header: Header, user_id: str) -> None:
        await self._client.write(enter_given(place_of(header), user_id, header.expires_at))

    async def _leave(self, header: Header, user_id: str) -> None:
        await self._client.write(*leave_given(place_of(header), user_id))
        # Somebody may have shared it again meanwhile.
        found = await self._live.locate(header.id)
        if found is not None and found.place is not None and user_id in found.place.given_to:
            await self._client.write(enter_given(found.place, user_id, header.expires_at))


def _share(
    session_id: UUID, change: GrantChange, rules: ShareRules, *, step: str = "", life: int | None = None
) -> Command:
    return SHARE(
        [keys.header_key(session_id), keys.trail_key(session_id)],
        rules.caller.user or "",
        to_micros(rules.now),
        act_of(change, rules.caller, rules.now).opened,
        step or change.what,
        change.field,
        change.value,
        MAX_SHARES,
        MAX_CODES,
        rules.max_changes,
        FORMAT,
        "" if life is None else life,
    )


def _header(session_id: UUID, reply: list[Any] | None, rules: ShareRules) -> Header | None:
    if reply is None:
        return None
    refuse_changes(session_id, reply, rules.max_changes, needed=Right.OWN)
    match reply:
        case [b"users", count]:
            refuse_users(int(count))
        case [b"codes"]:
            refuse_codes()
    return fields.decode_header(session_id, reply[1])
