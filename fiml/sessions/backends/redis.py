"""Live sessions in Redis or Valkey.

A session is a header, its entries, its queries and their ids, under keys that share a hash tag. Around it stand
indexes: of each user's sessions, of all sessions, and of expiries; the last two in 64 parts. An index may name a
session that is gone, never miss one that is there: index first and session second on create, the reverse on removal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from fiml.core.clock import to_micros
from fiml.core.errors import CorruptRecord, InvalidInput, SessionConflict, SessionExpired, SessionFull
from fiml.db.redis_client import Argument, RedisClient, Script
from fiml.sessions import values
from fiml.sessions.backends import redis_fields as fields
from fiml.sessions.backends import redis_keys as keys
from fiml.sessions.backends.base import PageQuery, WriteRules
from fiml.sessions.changes import Change
from fiml.sessions.records import FORMAT, EncodedQuery, Header, SessionRecord, check_format

FLOOR_S = 3600
TOMBSTONE_S = 24 * 3600
_FILTERED_CHUNK = 500

READ, LOCATE, PUT, WRITE, EXTEND, GO_ON, REMOVE, REINDEX = (
    Script.load("fiml.sessions", name)
    for name in ("read", "locate", "put", "write", "extend", "go_on", "remove", "reindex")
)
_Command = tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class ExpiryEntry:
    """An entry of the expiry index: a session of which it may be time, as of when it was read."""

    member: str
    session_id: UUID
    life: int
    user_id: str | None
    score: int

    @property
    def listed_member(self) -> str:
        """The entry of the same life in the listings."""
        return self.member.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a session stands in the indexes, and at which version it was found."""

    session_id: UUID
    version: int
    user_id: str | None
    listed_member: str

    @property
    def expiry_member(self) -> str:
        """How the expiry index names it: as the listings do, and with the user whose listing it is in."""
        return f"{self.listed_member}:{self.user_id or ''}"

    @property
    def listings(self) -> list[str]:
        """The listings that it is in."""
        everybody = keys.all_key(keys.part(self.session_id))
        return [everybody] if self.user_id is None else [everybody, keys.user_key(self.user_id)]


class RedisTier:
    """The steps that a backend over Redis is made of. Each method is one round trip, `page` two."""

    def __init__(self, redis_url: str) -> None:
        self._client = RedisClient(redis_url, (READ, LOCATE, PUT, WRITE, EXTEND, GO_ON, REMOVE, REINDEX))

    async def open(self) -> None:
        """Reach the server."""
        await self._client.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def put(self, record: SessionRecord, queries: Sequence[EncodedQuery] = ()) -> str:
        """Store a session that isn't live: `stored`, or why not: `live`, `outdated`, `deleted`."""
        header = record.header
        put = PUT([*keys.session_keys(header.id), keys.floor_key(header.id)], *fields.encode_record(record, queries))
        index = _index(header)
        replies = await self._client.run([*index, put])
        return str(replies[len(index)].decode())

    async def read(
        self, session_id: UUID, *, now: datetime | None, owner: str | None = None, recent: int | None = None
    ) -> SessionRecord | None:
        """A session, whole or with its last queries; an access at `now`, where one is given."""
        [reply] = await self._client.run([_read(session_id, now, owner, recent)])
        return fields.decode_record(session_id, reply)

    async def read_many(self, session_ids: Sequence[UUID]) -> list[SessionRecord | CorruptRecord | None]:
        """Sessions whole, `None` where one isn't live, and the error of one that can't be read. No access counts."""
        replies = await self._client.run([_read(session_id, None, None, None) for session_id in session_ids])
        return [_decoded(session_id, reply) for session_id, reply in zip(session_ids, replies, strict=True)]

    async def locate(self, session_id: UUID, owner: str | None) -> Location | None:
        """What is needed to remove a session, which may be beyond reading otherwise."""
        [stored] = await self._client.run([LOCATE([keys.header_key(session_id)], owner or "")])
        if stored is None or stored[1] is None:
            return None
        user_id, version, life, created = stored
        try:
            member = fields.listed_member(fields.decode_moment(created), session_id, int(life))
        except (TypeError, ValueError, OverflowError):
            member = ""  # it has lost its place; a sweeper drops the entries that are left there
        return Location(session_id, int(version), user_id and user_id.decode(), member)

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> Header | None:
        """Apply a change, as `Backend.write` says."""
        write = WRITE(
            keys.session_keys(session_id)[:4],
            rules.owner or "",
            to_micros(rules.now),
            "" if rules.expected_version is None else rules.expected_version,
            FORMAT,
            rules.max_queries,
            values.MAX_HISTORY_BYTES,
            values.MAX_MAPS_BYTES,
            values.MAX_ASSETS,
            values.MAX_TAGS,
            *fields.encode_change(change),
        )
        [reply] = await self._client.run([write])
        if reply is None:
            return None
        _raise_refusal(session_id, rules, reply)
        return fields.decode_header(session_id, reply[1])

    async def index_expiry(self, header: Header, expires_at: datetime) -> None:
        """Let the sweeper look at a session at `expires_at`."""
        await self._client.run([_index_expiry(header, to_micros(expires_at))])

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, now: datetime, owner: str | None
    ) -> SessionRecord | None:
        """Move the expiry later, as `Backend.extend` says. The index stays: the sweeper moves its entry."""
        micros = by // timedelta(microseconds=1)
        extend = EXTEND([keys.header_key(session_id)], owner or "", to_micros(now), micros, to_micros(latest))
        outcome, reply = await self._client.run([extend, _read(session_id, None, owner, None)])
        if outcome is None:
            return None
        if outcome[0] == b"expired":
            raise SessionExpired(session_id, fields.decode_moment(outcome[1]))
        return fields.decode_record(session_id, reply)

    async def go_on(
        self, session_id: UUID, *, until: datetime, now: datetime, owner: str | None
    ) -> SessionRecord | None:
        """A live session; one that has expired lives on until `until`."""
        go_on = GO_ON([keys.header_key(session_id)], owner or "", to_micros(now), to_micros(until))
        _, reply = await self._client.run([go_on, _read(session_id, None, owner, None)])
        return fields.decode_record(session_id, reply)

    async def remove(self, headers: Sequence[Header]) -> list[str]:
        """Remove sessions at their versions: for each `removed`, `changed` or `absent`."""
        commands = [
            REMOVE([*keys.session_keys(header.id), keys.floor_key(header.id)], header.version, header.version, FLOOR_S)
            for header in headers
        ]
        outcomes = [reply.decode() for reply in await self._client.run(commands)]
        gone = [header for header, outcome in zip(headers, outcomes, strict=True) if outcome == "removed"]
        if gone:
            await self._client.run([command for header in gone for command in _unindex(locate(header))])
        return outcomes

    async def remove_for_good(self, session_id: UUID, found: Location | None) -> None:
        """Remove a session at any version, and let nothing bring it back."""
        remove = REMOVE([*keys.session_keys(session_id), keys.floor_key(session_id)], "", "deleted", TOMBSTONE_S)
        await self._client.run([remove, *(_unindex(found) if found else ())])

    async def page(self, query: PageQuery) -> list[Header]:
        """Live sessions by `created_at` descending, then id. Filters may take further round trips."""
        is_filtered = query.type is not None or query.tag is not None or query.asset is not None
        chunk = max(_FILTERED_CHUNK, query.limit) if is_filtered else query.limit
        after = "-" if query.after is None else _behind(fields.position(*query.after))
        found: list[Header] = []
        while len(found) < query.limit:
            members = await self._members(query.user_id, after, chunk)
            if members:
                found += [header for header in await self._headers(members) if query.wants(header)]
            if len(members) < chunk:
                break
            after = "(" + members[-1]
        return found[: query.limit]

    async def due(self, now: datetime, at_most: int) -> list[ExpiryEntry]:
        """Entries of the expiry index whose time has come, from all its parts."""
        each = max(1, at_most // keys.PARTS)
        ranges = [
            ("ZRANGE", keys.expiry_key(part), "-inf", to_micros(now), "BYSCORE", "LIMIT", 0, each, "WITHSCORES")
            for part in range(keys.PARTS)
        ]
        replies = await self._client.run(ranges)
        return [_expiry_entry(member, score) for reply in replies for member, score in _scored(reply)]

    async def reindex(self, entry: ExpiryEntry, at: datetime) -> None:
        """Let the sweeper look at an entry again at another time, unless somebody else moved it."""
        key = keys.expiry_key(keys.part(entry.session_id))
        await self._client.run([REINDEX([key], entry.member, entry.score, to_micros(at))])

    async def drop(self, entry: ExpiryEntry) -> None:
        """Drop the entries of a life that has ended."""
        part = keys.part(entry.session_id)
        commands: list[_Command] = [("ZREM", keys.all_key(part), entry.listed_member)]
        if entry.user_id is not None:
            commands.append(("ZREM", keys.user_key(entry.user_id), entry.listed_member))
        # The expiry last: while it is there, a sweeper can find and drop the others.
        await self._client.run([*commands, ("ZREM", keys.expiry_key(part), entry.member)])

    async def _members(self, user_id: str | None, after: str, count: int) -> list[str]:
        indexes = keys.all_keys() if user_id is None else [keys.user_key(user_id)]
        replies = await self._client.run([("ZRANGE", key, after, "+", "BYLEX", "LIMIT", 0, count) for key in indexes])
        return sorted(member.decode() for reply in replies for member in reply)[:count]

    async def _headers(self, members: Sequence[str]) -> list[Header]:
        session_ids = [fields.id_at(member) for member in members]
        replies = await self._client.run([("HGETALL", keys.header_key(session_id)) for session_id in session_ids])
        found = [
            (fields.life_at(member), fields.decode_header(session_id, reply))
            for member, session_id, reply in zip(members, session_ids, replies, strict=True)
            if reply
        ]
        return [header for life, header in found if header.life == life]


def _raise_refusal(session_id: UUID, rules: WriteRules, reply: list[Any]) -> None:
    match reply:
        case [b"format", number]:
            check_format(int(number))
        case [b"expired", expiry]:
            raise SessionExpired(session_id, fields.decode_moment(expiry))
        case [b"conflict", version]:
            raise SessionConflict(session_id, expected=rules.expected_version or 0, actual=int(version))
        case [b"queries"]:
            raise SessionFull(session_id, f"{rules.max_queries} queries")
        case [b"history"]:
            raise SessionFull(session_id, f"{values.MAX_HISTORY_BYTES} bytes of queries")
        case [(b"maps" | b"assets" | b"tags") as what, size]:
            _raise_over_limit(what.decode(), int(size))


def _raise_over_limit(what: str, size: int) -> None:
    if what == "maps":
        values.check_maps_size(size)
    if size == 0:
        raise InvalidInput(what, "would be empty", "a session has at least one")
    most = values.MAX_ASSETS if what == "assets" else values.MAX_TAGS
    raise InvalidInput(what, f"would have {size} entries", f"at most {most} are allowed")


def _read(session_id: UUID, now: datetime | None, owner: str | None, recent: int | None) -> _Command:
    return READ(
        keys.session_keys(session_id)[:3],
        owner or "",
        "" if now is None else to_micros(now),
        "" if recent is None else recent,
    )


def locate(header: Header) -> Location:
    """Where a session stands in the indexes."""
    member = fields.listed_member(header.created_at, header.id, header.life)
    return Location(header.id, header.version, header.user_id, member)


def _decoded(session_id: UUID, reply: list[Any] | None) -> SessionRecord | CorruptRecord | None:
    try:
        return fields.decode_record(session_id, reply)
    except CorruptRecord as exc:
        return exc


def _index(header: Header) -> list[_Command]:
    place = locate(header)
    listed: list[_Command] = [("ZADD", key, 0, place.listed_member) for key in place.listings]
    return [*listed, _index_expiry(header, to_micros(header.expires_at))]


def _index_expiry(header: Header, micros: int) -> _Command:
    return ("ZADD", keys.expiry_key(keys.part(header.id)), micros, locate(header).expiry_member)


def _unindex(place: Location) -> list[_Command]:
    listed: list[_Command] = [("ZREM", key, place.listed_member) for key in place.listings]
    # The expiry last: while it is there, a sweeper can find and drop the others.
    return [*listed, ("ZREM", keys.expiry_key(keys.part(place.session_id)), place.expiry_member)]


def _behind(position: str) -> str:
    """Where a range begins that leaves out every life at a position."""
    return f"({position}~"


def _expiry_entry(member: bytes, score: float) -> ExpiryEntry:
    text = member.decode()
    listed_member, _, user_id = text.partition(":")
    return ExpiryEntry(text, fields.id_at(text), fields.life_at(listed_member), user_id or None, int(score))


def _scored(reply: list[Any]) -> list[tuple[bytes, float]]:
    # RESP3 answers pairs, RESP2 one flat list.
    if reply and isinstance(reply[0], list | tuple):
        return [(member, float(score)) for member, score in reply]
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]
