"""All that is stored of a live session, byte for byte, and what is wrong with it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from fiml.core.errors import CorruptRecord
from fiml.db.redis_commands import Command, Script
from fiml.sessions import values
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.backends.redis import fields, keys
from fiml.sessions.records import SessionRecord, check_whole, decoding, with_all_totals

_DUMP = Script.load("fiml.sessions", "dump")
SCRIPTS = (_DUMP,)
_PARTS = ("header", "entries", "queries", "ids", "trail")
_KINDS = ("hash", "hash", "list", "set", "list")
_ABSENT: tuple[str, list[str]] = ("none", [])


def read_dump(session_id: UUID) -> Command:
    """The command that reads everything that is stored of a session."""
    return _DUMP(keys.session_keys(session_id))


def decode_dump(reply: list[Any]) -> Dump:
    """What `dump.lua` returns."""
    return Dump("redis", {name: _dumped(*part) for name, part in zip(_PARTS, reply, strict=True)})


def is_empty(dump: Dump) -> bool:
    """Whether nothing was left of the session when it was dumped."""
    return all(kind == "none" for kind, _ in dump.parts.values())


def number_of(dump: Dump) -> int | None:
    """The version in a dump as a number; `None` if it isn't one."""
    return version_number(version_in(dump))


def version_number(text: str) -> int | None:
    """A version from its text; `None` if it isn't one, or is larger than a version gets."""
    is_short = text.isdecimal() and len(text) <= len(str(values.MAX_VERSION))
    return int(text) if is_short and int(text) <= values.MAX_VERSION else None


def version_in(dump: Dump) -> str:
    """The version in a dump; empty if it has none."""
    return _header_in(dump).get("version", "")


def has_other_life(dump: Dump, life: int) -> bool:
    """Whether the session in a dump has begun another life since `life`."""
    found = version_number(_header_in(dump).get("life", ""))
    return found is not None and found != life


def user_in(dump: Dump) -> str | None:
    """The user in a dump; `None` if it has none or can't be read."""
    return _header_in(dump).get("user")


def _header_in(dump: Dump) -> dict[str, str]:
    kind, held = dump.parts["header"]
    return dict(zip(held[::2], held[1::2], strict=False)) if kind == "hash" else {}


def record_in(session_id: UUID, dump: Dump) -> SessionRecord:
    """The session in a dump.

    Raises:
        CorruptRecord: it still can't be read.
        SchemaTooNew: a later fiml wrote it.
    """
    with decoding(f"live session {session_id}", _header_in(dump).get("format")):
        return _record_in(session_id, dump)


def _record_in(session_id: UUID, dump: Dump) -> SessionRecord:
    for name, kind in zip(_PARTS, _KINDS, strict=True):
        found = dump.parts.get(name, _ABSENT)[0]  # dumps of older versions have no trail
        if found not in (kind, "none"):
            raise CorruptRecord(f"live session {session_id}", f"its {name} is a {found}, not a {kind}")
    header, entries, queries, _, trail = (
        [text.encode("utf-8", "surrogateescape") for text in dump.parts.get(name, _ABSENT)[1]] for name in _PARTS
    )
    record = fields.decode_record(session_id, [header, entries, queries, trail])
    assert record is not None  # noqa: S101 - `None` is returned for a missing reply only
    return checked(record, queries, trail)


def checked(record: SessionRecord, queries: Sequence[bytes], trail: Sequence[bytes]) -> SessionRecord:
    """A record, if all of its parts are there, with all totals.

    Raises:
        CorruptRecord: a part is missing, or has another form.
    """
    if [body for body in queries if not body.startswith(b"{")]:
        raise CorruptRecord(f"live session {record.header.id}", "a query of its history is not a JSON object")
    if [entry for entry in trail if not entry.startswith(b"[")]:
        raise CorruptRecord(f"live session {record.header.id}", "an entry of its audit trail is not a JSON array")
    return with_all_totals(check_whole(record, len(queries)))


def _dumped(kind: bytes, held: list[bytes]) -> tuple[str, list[str]]:
    return kind.decode(), [item.decode("utf-8", "surrogateescape") for item in held]
