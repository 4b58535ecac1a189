"""Sessions in use live on: the rule, and its one write.

A session that is written to within the last quarter of the default TTL before its expiry gets half the default TTL from
now on, unless that very write sets an expiry. The default TTL is never above the maximum, and so the new
expiry stays within it. What was done stands in the metadata, under `fiml.smart_ttl`.
"""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, FimlError, NotPermitted, SessionConflict, SessionExpired, Unconfirmed
from fiml.sessions.backends.base import Backend, WriteResult, WriteRules
from fiml.sessions.changes import Change
from fiml.sessions.damage import DAMAGE
from fiml.sessions.rights import Caller
from fiml.sessions.values import check_entries

METADATA_KEY = "fiml.smart_ttl"

_log = structlog.get_logger()


def later_expiry(expires_at: datetime, now: datetime, *, default_ttl_hours: int) -> datetime | None:
    """The new expiry of a session that is in use now; `None` where it isn't near its end."""
    default = timedelta(hours=default_ttl_hours)
    return now + default / 2 if now < expires_at < now + default / 4 else None


async def live_on(
    backend: Backend, settings: Settings, session_id: UUID, result: WriteResult, *, caller: Caller
) -> WriteResult:
    """Extend a session that was just written to, if it is near its end; how it stands then.

    What it was written for is done: whatever fails here is logged, and the session lives as long as it would have.
    """
    now = clock.now()
    expires_at = later_expiry(result.expires_at, now, default_ttl_hours=settings.session_default_ttl_hours)
    if expires_at is None:
        return result
    try:
        return await _extend(backend, settings, session_id, result, expires_at, caller) or result
    except (SessionConflict, SessionExpired, NotPermitted):
        return result  # somebody else wrote to it in between, and extends it, has ended it, or has taken it back
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
    if record is None:
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
        raise CorruptRecord(f"session {session_id}", f"{METADATA_KEY} is no JSON: {exc}") from exc
    count = found.get("extensions") if isinstance(found, dict) else None
    return count if isinstance(count, int) else 0
