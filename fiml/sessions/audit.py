"""The audit trail of a session: who did what, when and at which version. It only grows, and moves with the session."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NoReturn
from uuid import UUID

from fiml.core import clock
from fiml.core.errors import CorruptRecord, SessionFull
from fiml.sessions import stored_json
from fiml.sessions.damage import DAMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What was done: `create`, `record`, `update`, `extend`, `resume`, `archive`, `share`, `revoke` or `redeem`.

    `by` is the principal, `None` for the local user and for code that uses the store directly. `version` is the
    session's version afterwards. `detail` has the ids of the recorded queries, the updated parts, or with whom and in
    which role the session was shared.
    """

    at: datetime
    by: str | None
    did: str
    version: int
    detail: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "at": clock.to_iso(self.at)}


@dataclass(slots=True)
class Act:
    """Something that is being done. In the trail, it is a JSON array: microseconds, who, what, detail, version."""

    did: str
    by: str | None
    at: datetime
    detail: Mapping[str, Any] | None = None

    @property
    def opened(self) -> str:
        """Its JSON without the version and the end, for the engine to add: only the engine knows the version."""
        entry = [clock.to_micros(self.at), self.by, self.did, self.detail]
        return stored_json.ENCODER.encode(entry).decode()[:-1] + ","

    def at_version(self, version: int) -> str:
        """Its whole JSON."""
        return f"{self.opened}{version}]"


def refuse_more_changes(session_id: UUID, max_changes: int) -> NoReturn:
    """Refuse a change of a session whose trail is as long as it may be.

    Raises:
        SessionFull: always.
    """
    raise SessionFull(session_id, f"{max_changes} changes", setting="FIML_SESSION_MAX_CHANGES")


def trail_json(entries: Iterable[str]) -> str:
    """The JSON array of a trail."""
    return "[" + ",".join(entries) + "]"


def longer_trail(trail: str, entry: str) -> str:
    """The JSON array of a trail with one more entry."""
    return trail_json([trail[1:-1], entry] if len(trail) > len("[]") else [entry])


def trail_entries(record: str, trail: str) -> list[str]:
    """The entries of a trail, each as JSON.

    Raises:
        CorruptRecord: the trail is not a JSON array.
    """
    try:
        return [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in json.loads(trail)]
    except DAMAGE as exc:
        raise CorruptRecord(record, f"its audit trail can't be read: {exc}") from exc


def decode_trail(record: str, trail: str) -> list[AuditEntry]:
    """The entries of a trail, oldest first.

    Raises:
        CorruptRecord: the trail can't be decoded.
    """
    try:
        return [
            AuditEntry(at=clock.from_micros(micros), by=by, did=did, version=version, detail=detail)
            for micros, by, did, detail, version in json.loads(trail)
        ]
    except DAMAGE as exc:
        raise CorruptRecord(record, f"its audit trail can't be read: {exc}") from exc
