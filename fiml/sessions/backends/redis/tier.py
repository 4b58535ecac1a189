"""Live sessions in Redis or Valkey.

A session is a header, its entries, its queries and their ids, and its audit trail, under keys that share a hash tag.
There are indexes of each user's sessions, of all sessions, and of expiries, the last two in 64 parts each. An index may
list a session that is gone, but never lacks one that exists: create writes the index first and the session second, and
removal does the reverse.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from redis.exceptions import ResponseError

from fiml.core.clock import to_micros
from fiml.core.errors import FimlError, InvalidInput, SessionConflict, SessionExpired, SessionFull, Unavailable
from fiml.db.redis_client import RedisClient
from fiml.db.redis_commands import Command, Script
from fiml.sessions import values
from fiml.sessions.audit import Act, refuse_more_changes
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.backends.redis.dump import decode_dump, is_empty, read_dump, record_in, version_number
from fiml.sessions.backends.redis.index import Place, enter, expire_by, leave, place_of
from fiml.sessions.backends.rewriting import Texts
from fiml.sessions.backends.shapes import Updated, WriteResult, WriteRules
from fiml.sessions.changes import Change
from fiml.sessions.damage import DAMAGE
from fiml.sessions.query_json import EncodedQuery
from fiml.sessions.records import FORMAT, Header, SessionRecord, check_format
from fiml.sessions.rights import ANYBODY, Caller, Right, demand, right_of

FLOOR_S = 3600
TOMBSTONE_S = 24 * 3600
# A writer waits a second for a session that is being archived; that usually takes some milliseconds.
_CLOSING_WAITS_S = [0.05] * 20
_DONE = (b"written", b"known")

LOCATE, EXTEND, GO_ON, CLOSE, READ = _OF_CALLERS = tuple(
    Script.load("fiml.sessions", "access", name) for name in ("locate", "extend", "go_on", "close", "read")
)
WRITE = Script.load("fiml.sessions", "access", "totals", "write")
PUT, REMOVE, REWRITE, FENCE = _OF_OURS = tuple(
    Script.load("fiml.sessions", name) for name in ("put", "remove", "rewrite", "fence")
)
# Loaded in this order, READ last: a call that changes a session and reads it must not find a server that knows only how
# to read, since another process is just loading the scripts. The change would then be repeated, after the read.
SCRIPTS = (*_OF_OURS, WRITE, *_OF_CALLERS)


@dataclass(frozen=True, slots=True)
class Location:
    """A session's place in the indexes, its version, and the caller's right to it."""

    place: Place | None
    """`None` if the header has lost what the place is made of; a sweeper drops the index entries that remain."""

    version: int
    right: Right
    expires_at: datetime | None
    """`None` if it can't be read."""

    format: bytes | None
    """The record format, as it is stored."""


class RedisTier:
    """The steps of a backend over Redis. Each method takes one round trip; `remove` takes two or three.

    A call that fails because a session is damaged takes one more, to find that out; a change of a session that is being
    archived is tried again until that is done. On a Cluster, each stage of a write is a round trip, to all masters
    concerned at once.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def put(self, record: SessionRecord, queries: Sequence[EncodedQuery] = ()) -> str:
        """Store a session that isn't live: `stored`, or why not: `live`, `outdated`, `deleted`."""
        header = record.header
        put = PUT([*keys.session_keys(header.id), keys.floor_key(header.id)], *fields.encode_record(record, queries))
        *_, outcome = await self._client.write(enter(header), [put])
        return str(outcome.decode())

    async def read(
        self, session_id: UUID, *, now: datetime | None, caller: Caller = ANYBODY, recent: int | None = None
    ) -> SessionRecord | None:
        """A session, whole or with its last queries. If `now` is given, it counts as an access."""
        reading = self._client.run([read(session_id, now=now, caller=caller, recent=recent)])
        [reply] = await self.telling_damage(session_id, reading)
        return fields.decode_record(session_id, reply)

    async def read_whole(
        self,
        session_id: UUID,
        *,
        caller: Caller = ANYBODY,
        recent: int | None = None,
        closed_until: datetime | None = None,
    ) -> tuple[SessionRecord, Right] | None:
        """A live session with its audit trail, and the caller's right to it. This doesn't count as an access.

        If `closed_until` is given, nobody can write to the session or extend it from this read until that moment.
        """
        commands = [read(session_id, caller=caller, recent=recent, has_trail=True)]
        if closed_until is not None:
            commands.insert(0, CLOSE([keys.header_key(session_id)], caller.user or "", to_micros(closed_until)))
        *_, reply = await self.telling_damage(session_id, self._client.run(commands))
        record = fields.decode_record(session_id, reply)
        right = None if record is None else right_of(record.header.user_id, record.header.grants, caller)
        return None if record is None or right is None else (record, right)

    async def reopen(self, session_id: UUID) -> None:
        """Let others write again to a session that is not being archived any more, if Redis can be reached."""
        with suppress(FimlError):
            await self._client.run([CLOSE([keys.header_key(session_id)], "", 0)])

    async def locate(self, session_id: UUID, caller: Caller = ANYBODY) -> Location | None:
        """What is needed to remove a session, which may be damaged and otherwise unreadable."""
        [stored] = await self._client.run([LOCATE([keys.header_key(session_id)], caller.user or "")])
        if stored is None:
            return None
        right, user_id, version, life, created, expires, format_number, *grants = stored
        number = version_number((version or b"").decode("utf-8", "replace")) or 0
        place, expires_at = None, None
        with suppress(*DAMAGE):
            member = fields.listed_member(fields.decode_moment(created), session_id, int(life))
            given_to = tuple(field.decode()[2:] for field in grants)
            place = Place(session_id, user_id and user_id.decode(), member, given_to)
            expires_at = fields.decode_moment(expires)
        return Location(place, number, Right(right), expires_at, format_number)

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        """Apply a change, as `Backend.write` says."""
        [reply] = await self._change(session_id, [_write(session_id, change, rules)])
        return _written(session_id, rules, reply)

    async def update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        """Apply a change and read the session, as `Backend.update` says."""
        commands = [_write(session_id, change, rules), read(session_id, caller=rules.caller)]
        written, found = await self._change(session_id, commands)
        result = _written(session_id, rules, written)
        return None if result is None else Updated(result, fields.decode_record(session_id, found))

    async def _change(self, session_id: UUID, commands: Sequence[Command]) -> list[Any]:
        """The replies of commands of which the first one changes a session, unless it is being archived.

        Raises:
            Unavailable: it was being archived all the time; nothing was written.
        """
        for wait_s in _CLOSING_WAITS_S:
            writing = self._client.write(commands, was_done=_was_done)
            replies = await self.telling_damage(session_id, writing)
            if replies[0] is None or replies[0][0] != b"closing":
                return replies
            await asyncio.sleep(wait_s)
        raise Unavailable(f"session {session_id}", "it is being archived")

    async def telling_damage(self, session_id: UUID, call: Awaitable[list[Any]]) -> list[Any]:
        """The replies of a call about a session.

        Raises:
            CorruptRecord: the call's script failed because the session is damaged; it wrote nothing.
            SchemaTooNew: the script failed because a later fiml wrote the session, in another layout.
        """
        try:
            return await call
        except Unavailable as exc:
            if isinstance(exc.__cause__, ResponseError):
                [reply] = await self._client.run([read_dump(session_id)])
                dump = decode_dump(reply)
                if not is_empty(dump):
                    record_in(session_id, dump)
            raise

    async def index_expiry(self, header: Header, expires_at: datetime) -> None:
        """Let the sweeper look at a session at `expires_at` or earlier."""
        await self._client.write(expire_by(header, expires_at))

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, rules: WriteRules
    ) -> SessionRecord | None:
        """Move the expiry later, as `Backend.extend` says. The index is not changed: the sweeper moves the entry."""
        micros = by // timedelta(microseconds=1)
        caller, now = rules.caller, to_micros(rules.now)
        entry = Act("extend", caller.name, rules.now).opened
        extend = EXTEND(
            *(_keys(session_id), caller.user or "", now, micros, to_micros(latest), entry, rules.max_changes, FORMAT)
        )
        outcome, reply = await self._change(session_id, [extend, read(session_id, caller=caller)])
        if outcome is None:
            return None
        refuse_changes(session_id, outcome, rules.max_changes)
        if outcome[0] == b"expired":
            raise SessionExpired(session_id, fields.decode_moment(outcome[1]))
        return fields.decode_record(session_id, reply)

    async def go_on(self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller) -> SessionRecord | None:
        """A live session. If it has expired, it is resumed, with the expiry `until`."""
        entry = Act("resume", caller.name, now).opened
        go_on = GO_ON(_keys(session_id), caller.user or "", to_micros(now), to_micros(until), entry, FORMAT)
        writing = self._client.write([go_on, read(session_id, caller=caller)])
        outcome, reply = await self.telling_damage(session_id, writing)
        if outcome is not None:
            refuse_changes(session_id, outcome)
        return fields.decode_record(session_id, reply)

    async def remove(self, headers: Sequence[Header]) -> list[str]:
        """Remove sessions that still have these versions: for each `removed`, `changed` or `absent`.

        Two round trips, or three. The sessions are archived already, and a failover could only bring back a copy too
        many: so this doesn't wait for replicas.
        """
        commands = [
            REMOVE([*keys.session_keys(header.id), keys.floor_key(header.id)], header.version, header.version, FLOOR_S)
            for header in headers
        ]
        outcomes = [reply.decode() for reply in await self._client.run(commands)]
        gone = [place_of(header) for header, outcome in zip(headers, outcomes, strict=True) if outcome == "removed"]
        if gone:
            await self._client.run_in_order(*leave(gone))
        return outcomes

    async def remove_all_for_good(self, session_ids: Sequence[UUID]) -> None:
        """Remove what may be left of deleted sessions; the sweeper drops their index entries."""
        await self._client.write([_remove_for_good(session_id) for session_id in session_ids])

    async def members_of(self, user_id: str) -> list[Place]:
        """Every entry in a user's listing, including those whose session is gone or can't be read."""
        [members] = await self._client.run([("ZRANGE", keys.user_key(user_id), 0, -1)])
        listed = [member.decode() for member in members]
        return [Place(fields.id_at(member), user_id, member) for member in listed]

    async def forget(self, places: Sequence[Place]) -> None:
        """Remove entries whose session is gone from the indexes."""
        await self._client.run_in_order(*leave(places))

    async def remove_for_good(self, session_id: UUID, found: Place | None) -> None:
        """Remove a session, whatever its version, and keep it from coming back."""
        remove = _remove_for_good(session_id)
        await self._client.write([remove])
        if found is not None:
            # Not in the same round trip: a server that has lost the scripts would run these commands first.
            await self._client.run_in_order(*leave([found]))

    async def rewrite(self, record: SessionRecord, texts: Texts) -> str:
        """Replace the texts that were read by others: `rewritten`, `changed` or `absent`.

        What others have written since then is left as it is. The format rises, the version doesn't.
        """
        header = record.header
        groups = fields.encode_texts(record.entries, texts)
        command = REWRITE(keys.session_keys(header.id)[:3], header.life, FORMAT, *groups)
        [outcome] = await self._client.write([command])
        return str(outcome.decode())

    async def fence(self, session_id: UUID, version: int) -> bool:
        """Keep archived copies up to this version from becoming live; `False` if the session is live already."""
        [is_fenced] = await self._client.write(
            [FENCE([keys.header_key(session_id), keys.floor_key(session_id)], version, FLOOR_S)]
        )
        return bool(is_fenced)

    async def are_live(self, session_ids: Sequence[UUID]) -> set[UUID]:
        """Those of the sessions that are live, whoever may see them."""
        if not session_ids:
            return set()
        replies = await self._client.run([("EXISTS", keys.header_key(session_id)) for session_id in session_ids])
        return {session_id for session_id, is_there in zip(session_ids, replies, strict=True) if is_there}


def _was_done(replies: list[Any]) -> bool:
    """Whether the first of some commands changed a session, or found it changed."""
    return replies[0] is not None and replies[0][0] in (*_DONE, b"extended")


def _remove_for_good(session_id: UUID) -> Command:
    return REMOVE([*keys.session_keys(session_id), keys.floor_key(session_id)], "", "deleted", TOMBSTONE_S)


def _write(session_id: UUID, change: Change, rules: WriteRules) -> Command:
    return WRITE(keys.session_keys(session_id), rules.caller.user or "", *fields.encode_change(change, rules))


def _written(session_id: UUID, rules: WriteRules, reply: list[Any] | None) -> WriteResult | None:
    if reply is None:
        return None
    if reply[0] not in _DONE:
        _refuse(session_id, rules, reply)
    return fields.decode_result(session_id, reply)


def _refuse(session_id: UUID, rules: WriteRules, reply: list[Any]) -> NoReturn:
    refuse_changes(session_id, reply, rules.max_changes)
    match reply:
        case [b"expired", expiry]:
            raise SessionExpired(session_id, fields.decode_moment(expiry))
        case [b"conflict", version]:
            raise SessionConflict(session_id, expected=rules.expected_version or 0, actual=int(version))
        case [b"queries"]:
            raise SessionFull(session_id, f"{rules.max_queries} queries")
        case [b"history"]:
            raise SessionFull(session_id, f"{values.MAX_HISTORY_BYTES} bytes of queries", setting=None)
        case [(b"maps" | b"assets" | b"tags") as what, size]:
            _raise_over_limit(what.decode(), int(size))
    raise AssertionError(f"write.lua refused with {reply}")


def _raise_over_limit(what: str, size: int) -> NoReturn:
    if what == "maps":
        values.check_maps_size(size)
    if size == 0:
        raise InvalidInput(what, "would be empty", "a session has at least one")
    most = values.MAX_ASSETS if what == "assets" else values.MAX_TAGS
    raise InvalidInput(what, f"would have {size} entries", f"at most {most} are allowed")


def refuse_changes(session_id: UUID, reply: list[Any], max_changes: int = 0, *, needed: Right = Right.WRITE) -> None:
    """Raise the reason that a script gives for refusing a change: the caller's right, too many changes, the format."""
    match reply:
        case [b"viewer"]:
            demand(session_id, Right.READ, needed)
        case [b"changes"]:
            refuse_more_changes(session_id, max_changes)
        case [b"format", number]:
            check_format(int(number))


def _keys(session_id: UUID) -> list[str]:
    """The keys of a session's header and audit trail."""
    return [keys.header_key(session_id), keys.trail_key(session_id)]


def read(
    session_id: UUID,
    *,
    now: datetime | None = None,
    caller: Caller = ANYBODY,
    recent: int | None = None,
    has_trail: bool = False,
) -> Command:
    """The command that reads a session. If it is told the time, it counts as an access."""
    header, entries, queries, ids, trail = keys.session_keys(session_id)
    return READ(
        [header, entries, queries, trail, ids],
        caller.user or "",
        "" if now is None else to_micros(now),
        "" if recent is None else recent,
        int(has_trail),
    )
