"""How a session is written into the fields of Redis hashes, and read back."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec

from fiml.core.clock import from_micros, to_micros
from fiml.db.redis_commands import Argument
from fiml.sessions import stored_json, values
from fiml.sessions.audit import trail_entries
from fiml.sessions.backends.redis.totals import decode_totals, encode_totals, totals_in
from fiml.sessions.backends.rewriting import Texts
from fiml.sessions.backends.shapes import WriteResult, WriteRules
from fiml.sessions.changes import Change
from fiml.sessions.damage import DAMAGE, corrupt
from fiml.sessions.histogram import time_bucket
from fiml.sessions.models import MAPS
from fiml.sessions.queries import QueryRecord
from fiml.sessions.query_json import EncodedQuery
from fiml.sessions.records import FORMAT, Entries, Header, SessionRecord, unreadable
from fiml.sessions.rights import GRANT_LETTERS

POSITION_CHARACTERS = 48
_LATEST_MICROS = (1 << 63) - 1
_MAP_LETTERS = {name: name[0] for name in MAPS}
_MAPS_BY_LETTER = {letter: name for name, letter in _MAP_LETTERS.items()}
_ENCODER = msgspec.msgpack.Encoder(enc_hook=stored_json.plain)
_GRANTED = frozenset(f"{letter}:".encode() for letter in GRANT_LETTERS)


def position(created_at: datetime, session_id: UUID) -> str:
    """A session's position in a listing: a text that sorts newest first, then by id."""
    return f"{_LATEST_MICROS - to_micros(created_at):016x}{session_id.hex}"


def id_at(text: str) -> UUID:
    """The id in a position."""
    return UUID(text[16:POSITION_CHARACTERS])


def position_at(text: str) -> tuple[datetime, UUID]:
    """When the session at a position was created, and its id."""
    return from_micros(_LATEST_MICROS - int(text[:16], 16)), id_at(text)


def listed_member(created_at: datetime, session_id: UUID, life: int) -> str:
    """A session's entry in a listing: its position and its life.

    A session that comes back from the archive begins a new life, with index entries of its own. Removing the entries of
    the old life, which may happen late, thus never affects the new one.
    """
    return f"{position(created_at, session_id)}{life:x}"


def life_at(member: str) -> int:
    """The life in a listing's entry."""
    return int(member[POSITION_CHARACTERS:], 16)


def encode_record(record: SessionRecord, queries: Sequence[EncodedQuery]) -> list[Argument]:
    """The arguments of `put.lua`."""
    header = encode_header(record.header)
    entries = [(_entry_field(name, key), text) for name, texts in record.entries.items() for key, text in texts.items()]
    bodies = [(query.id.bytes, query.text) for query in queries]
    trail = trail_entries(f"session {record.header.id}", record.trail)
    return [record.header.version, *_group(header), *_group(entries), *_group(bodies), *trail]


def encode_header(header: Header) -> list[tuple[str, Argument]]:
    """The fields of a header; a value that is `None` has no field."""
    fields: dict[str, Argument | None] = {
        "user": header.user_id,
        "type": header.type,
        "title": header.title,
        "created": to_micros(header.created_at),
        "expires": to_micros(header.expires_at),
        "accessed": to_micros(header.last_accessed_at),
        "version": header.version,
        "maps_bytes": header.maps_bytes,
        "history_bytes": header.history_bytes,
        "life": header.life,
        "format": header.format,
        "order": len(header.assets) + len(header.tags),
    }
    names = [f"a:{name}" for name in header.assets] + [f"t:{name}" for name in header.tags]
    ordered = [(name, order) for order, name in enumerate(names, 1)]
    plain = [(name, value) for name, value in fields.items() if value is not None]
    return [*plain, *ordered, *encode_totals(header.totals), *header.grants.items()]


def encode_change(change: Change, rules: WriteRules) -> list[Argument]:
    """The arguments of `write.lua` after the caller."""
    written = (
        str(to_micros(rules.now)),
        change.act(rules.caller, rules.now).opened,
        False if rules.expected_version is None else rules.expected_version,
        FORMAT,
        rules.max_queries,
        values.MAX_HISTORY_BYTES,
        values.MAX_MAPS_BYTES,
        values.MAX_ASSETS,
        values.MAX_TAGS,
        rules.max_changes,
        [_counted(encoded.query) for encoded in change.queries],
        False if change.has_only_queries else _other_parts(change),
    )
    texts = [text for encoded in change.queries for text in (encoded.id.bytes, encoded.text)]
    return [_ENCODER.encode(written), *texts]


def _other_parts(change: Change) -> tuple[object, ...]:
    names = [(letter, each) for letter, each in (("a:", change.assets), ("t:", change.tags)) if each is not None]
    return (
        dict(map(_scalar, change.scalars.items())),
        [letter + name for letter, each in names for name in each.removed],
        [letter + name for letter, each in names for name in each.added],
        [_entry_field(name, key) for name, keys in change.entries_removed.items() for key in keys],
        [(_entry_field(name, key), text) for name, texts in change.entries_set.items() for key, text in texts.items()],
    )


def encode_texts(before: Entries, texts: Texts) -> list[Argument]:
    """The arguments of `rewrite.lua` after the life."""
    entries = [
        (_entry_field(name, key), _digest(before[name][key]), text)
        for name, each in texts.entries.items()
        for key, text in each.items()
    ]
    return [*_group(entries), *_listed([text for _, text in texts.queries])]


def decode_record(session_id: UUID, reply: list[Any] | None) -> SessionRecord | None:
    """The record in a reply of `read.lua`."""
    if reply is None:
        return None
    stored_header, entries, queries, trail = reply
    header = decode_header(session_id, stored_header)
    maps: Entries = {}
    try:
        for field, text in _pairs(entries).items():
            letter, _, key = field.decode().partition(":")
            maps.setdefault(_MAPS_BY_LETTER[letter], {})[key] = text.decode()
        history, entered = ("[" + b",".join(texts).decode() + "]" for texts in (queries, trail))
    except DAMAGE as exc:
        problem = f"{type(exc).__name__}: {exc}"
        raise unreadable(f"live session {session_id}", header.format, problem) from exc
    return SessionRecord(header, maps, history, trail=entered)


def decode_header(session_id: UUID, reply: list[bytes] | dict[bytes, bytes]) -> Header:
    """A header from a reply to HGETALL: a dict, or a flat list if a script returned it.

    Raises:
        CorruptRecord: a part is missing, or can't be decoded.
        SchemaTooNew: the same, in a header that a later fiml wrote.
    """
    stored: dict[bytes, bytes] = {}
    try:
        stored = reply if isinstance(reply, dict) else _pairs(reply)
        assets, tags, grants = _named(stored)
        return Header(
            id=session_id,
            user_id=_text(stored.get(b"user")),
            type=stored[b"type"].decode(),
            title=_text(stored.get(b"title")),
            assets=sorted(assets, key=assets.__getitem__),
            tags=sorted(tags, key=tags.__getitem__),
            created_at=decode_moment(stored[b"created"]),
            expires_at=decode_moment(stored[b"expires"]),
            last_accessed_at=decode_moment(stored[b"accessed"]),
            version=int(stored[b"version"]),
            totals=totals_in(stored),
            maps_bytes=int(stored[b"maps_bytes"]),
            history_bytes=int(stored[b"history_bytes"]),
            life=int(stored[b"life"]),
            format=int(stored[b"format"]),
            grants=grants,
        )
    except DAMAGE as exc:
        problem = f"{type(exc).__name__}: {exc}"
        raise unreadable(f"live session {session_id}", stored.get(b"format"), problem) from exc


def decode_result(session_id: UUID, reply: list[bytes]) -> WriteResult:
    """The result in a reply of `write.lua` that isn't a refusal."""
    outcome, version, life, expires, *totals = reply
    try:
        return WriteResult(
            version=int(version),
            life=int(life),
            expires_at=decode_moment(expires),
            totals=decode_totals(*totals),
            is_new_version=outcome == b"written",
        )
    except DAMAGE as exc:
        raise corrupt(f"live session {session_id}", exc) from exc


def decode_moment(micros: bytes | str) -> datetime:
    """A time from its microseconds."""
    return from_micros(int(micros))


def _named(stored: dict[bytes, bytes]) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """The fields with a letter and a colon before the name: the order of each asset and tag, and the grants."""
    assets: dict[str, int] = {}
    tags: dict[str, int] = {}
    grants: dict[str, int] = {}
    for field, value in stored.items():
        if field[1:2] == b":":
            match field[:2]:
                case b"a:":
                    assets[field[2:].decode()] = int(value)
                case b"t:":
                    tags[field[2:].decode()] = int(value)
                case letter if letter in _GRANTED:
                    grants[field.decode()] = int(value)
    return assets, tags, grants


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    members = iter(flat)
    return dict(zip(members, members, strict=True))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _scalar(item: tuple[str, Any]) -> tuple[str, str]:
    name, value = item
    if isinstance(value, datetime):
        return name.removesuffix("_at"), str(to_micros(value))
    return name, "" if value is None else value


def _counted(query: QueryRecord) -> tuple[object, ...]:
    took_ms = query.execution_time_ms
    return (
        query.query_type,
        query.cache_hit,
        str(to_micros(query.timestamp)),
        False if took_ms is None else took_ms,
        False if took_ms is None else str(time_bucket(took_ms)),
        query.day,
    )


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()  # what Redis' scripts can compute


def _entry_field(name: str, key: str) -> str:
    return f"{_MAP_LETTERS[name]}:{key}"


def _group(items: Sequence[tuple[Argument, ...]]) -> list[Argument]:
    return [len(items), *chain.from_iterable(items)]


def _listed(items: Sequence[Argument]) -> list[Argument]:
    return [len(items), *items]
