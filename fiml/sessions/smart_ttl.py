"""Smart TTL: sessions in use near their end live longer.

If a session is written to when less than a quarter of the default TTL is left, its expiry moves to half the default TTL
from now, unless the write itself sets an expiry. The default TTL never exceeds the maximum, and so neither does the new
expiry. Extensions are recorded in the metadata, under `fiml.smart_ttl`.
"""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import (
    CorruptRecord,
    FimlError,
    NotPermitted,
    SessionArchived,
    SessionConflict,
    SessionExpired,
    Unconfirmed,
)
from fiml.core.log import get_logger
from fiml.sessions.backends.base import Backend
from fiml.sessions.backends.shapes import WriteResult, WriteRules
from fiml.sessions.changes import Change
from fiml.sessions.damage import DAMAGE
from fiml.sessions.rights import Caller
from fiml.sessions.values import check_entries

METADATA_KEY = "fiml.smart_ttl"

_log = get_logger()


def later_expiry(expires_at: datetime, now: datetime, *, default_ttl_hours: int) -> datetime | None:
    """The new expiry of a session that is in use now; `None` if it isn't near its end."""
    default = timedelta(hours=default_ttl_hours)
    return now + default / 2 if now < expires_at < now + default / 4 else None


async def live_on(
    backend: Backend, settings: Settings, session_id: UUID, result: WriteResult, *, caller: Caller
) -> WriteResult:
    """Extend a session that was just written to, if it is near its end. Returns its state after that.

    The write itself is done: if extending fails, that is only logged, and the session keeps its expiry.
    """
    now = clock.now()
    expires_at = later_expiry(result.expires_at, now, default_ttl_hours=settings.session_default_ttl_hours)
    if expires_at is None:
        return result
    try:
        return await _extend(backend, settings, session_id, result, expires_at, caller) or result
    except (SessionConflict, SessionExpired, SessionArchived, NotPermitted):
        return result  # somebody else wrote to it meanwhile (and extends it), ended it, or stopped sharing it
    except Unconfirmed as exc:
        _log.warning("session_extension_unconfirmed", session_id=str(session_id), problem=str(exc))
        return replace(result, version=result.version + 1, expires_at=expires_at)
    except FimlError as exc:
        _log.warning("session_not_extended", session_id=str(session_id), problem=str(exc))
        return result


async def _extend(
    backend: Backend, settings: Settings, session_id: UUID, result: WriteResult, expires_at: datetime, caller: Caller
) -> WriteResult | None:
    now = clock.now()
    record = await backend.read(session_id, now=now, caller=caller, recent=0)
    if record is None or record.is_archived:
        return None
    stored = record.entries.get("metadata", {}).get(METADATA_KEY)
    said = {
        "extensions": _extensions(session_id, stored) + 1,
        "at": clock.to_iso(now),
        "from": clock.to_iso(result.expires_at),
        "to": clock.to_iso(expires_at),
    }
    change = Change(
        scalars={"expires_at": expires_at},
        entries_set={"metadata": check_entries("metadata", {METADATA_KEY: said})},
    )
    rules = WriteRules(
        now=now,
        max_queries=settings.session_max_queries_per_session,
        max_changes=settings.session_max_changes,
        expected_version=result.version,
        caller=caller,
    )
    return await backend.write(session_id, change, rules)


def _extensions(session_id: UUID, stored: str | None) -> int:
    try:
        found = None if stored is None else json.loads(stored)
    except DAMAGE as exc:
        raise CorruptRecord(f"session {session_id}", f"{METADATA_KEY} is not JSON: {exc}") from exc
    count = found.get("extensions") if isinstance(found, dict) else None
    return count if isinstance(count, int) else 0
