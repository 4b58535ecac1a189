"""What changed on a session since it was read, in a form in which the changes of several writers commute."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fiml.core import clock
from fiml.core.errors import InvalidInput
from fiml.sessions import values
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.records import MAPS, EncodedQuery, Entries, Header, Written, encode_query, mark_written


@dataclass(slots=True)
class NamesChange:
    """What happened to a list of names: those removed go, then those added that are missing come at the end."""

    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def apply(self, names: list[str]) -> list[str]:
        """The list after the change."""
        kept = [name for name in names if name not in self.removed]
        return kept + [name for name in self.added if name not in kept]


@dataclass(slots=True)
class Change:
    """Queries to append, entries to set or remove, names to add or remove, scalars to set.

    `scalars` holds only what changed, of `type`, `title` and `expires_at`.
    """

    queries: list[EncodedQuery] = field(default_factory=list)
    entries_set: Entries = field(default_factory=dict)
    entries_removed: dict[str, list[str]] = field(default_factory=dict)
    assets: NamesChange = field(default_factory=NamesChange)
    tags: NamesChange = field(default_factory=NamesChange)
    scalars: dict[str, Any] = field(default_factory=dict)
    last_accessed_at: datetime | None = None


def change_of(session: Session, *, max_ttl_hours: int) -> Change:
    """Everything that differs from what the store last read or wrote of this object, checked.

    An object that never came from the store adds all that it holds.

    Raises:
        InvalidInput: a value can't be stored, or a field was changed that never changes.
    """
    before: Written | None = session._written  # noqa: SLF001  `records` put it there
    if before is not None:
        _check_fixed_fields(session, before)
    maps_set, maps_removed = _entry_changes(session, before.entries if before else {})
    return Change(
        queries=[encode_query(query) for query in _appended(session, before.queries if before else [])],
        entries_set=maps_set,
        entries_removed=maps_removed,
        assets=_names_change(before.assets if before else [], values.check_assets(session.assets)),
        tags=_names_change(before.tags if before else [], values.check_tags(session.tags)),
        scalars=_scalar_changes(session, before, max_ttl_hours),
        last_accessed_at=values.check_moment(session.last_accessed_at, "last_accessed_at"),
    )


def settle(session: Session, change: Change, header: Header, *, is_current: bool) -> None:
    """Note that `change` was written, so that writing the object again writes only what is new.

    The object takes the new version only where it holds everything that the version holds (`is_current`).
    """
    before: Written | None = session._written  # noqa: SLF001  `records` put it there
    entries = {name: dict((before.entries if before else {}).get(name, {})) for name in MAPS}
    for name in MAPS:
        entries[name].update(change.entries_set.get(name, {}))
        for key in change.entries_removed.get(name, ()):
            entries[name].pop(key, None)
    if is_current:
        session.version = header.version
    mark_written(session, entries)


def _check_fixed_fields(session: Session, before: Written) -> None:
    fixed = {
        "id": (session.id, before.session_id),
        "user_id": (session.user_id, before.user_id),
        "created_at": (session.created_at, before.created_at),
        "version": (session.version, before.version),
        "is_archived": (session.is_archived, before.is_archived),
    }
    for name, (now, then) in fixed.items():
        if now != then:
            raise InvalidInput(name, "was changed", "a session keeps it for life; read the session again")


def _appended(session: Session, known: list[QueryRecord]) -> list[QueryRecord]:
    queries = session.state.history.queries
    if queries[: len(known)] == known:
        return queries[len(known) :]
    known_ids = {query.id for query in known}
    missing = known_ids - {query.id for query in queries}
    if missing:
        raise InvalidInput(
            "history.queries", f"lacks {len(missing)} of the queries that were read", "a history only grows"
        )
    return [query for query in queries if query.id not in known_ids]


def _entry_changes(session: Session, before: Entries) -> tuple[Entries, dict[str, list[str]]]:
    changed: Entries = {}
    removed: dict[str, list[str]] = {}
    for name in MAPS:
        current = getattr(session.state, name)
        if not isinstance(current, dict):
            raise InvalidInput(name, f"is a {type(current).__name__}", "give a dict")
        known = before.get(name, {})
        texts = {key: values.check_entry(name, key, value) for key, value in current.items()}
        if different := {key: text for key, text in texts.items() if known.get(key) != text}:
            changed[name] = different
        if gone := [key for key in known if key not in texts]:
            removed[name] = gone
    return changed, removed


def _names_change(before: list[str], now: list[str]) -> NamesChange:
    added = [name for name in now if name not in before]
    kept = [name for name in before if name in now]
    if kept + added == now:
        return NamesChange(removed=[name for name in before if name not in now], added=added)
    return NamesChange(removed=before, added=now)  # reordered: all of them, anew


def _scalar_changes(session: Session, before: Written | None, max_ttl_hours: int) -> dict[str, Any]:
    now = {
        "type": SessionType.parse(session.type).value,
        "title": values.check_title(session.title),
        "expires_at": values.check_moment(session.expires_at, "expires_at"),
    }
    changed = {name: value for name, value in now.items() if before is None or value != getattr(before, name)}
    if "expires_at" in changed and session.expires_at > clock.now() + timedelta(hours=max_ttl_hours):
        raise InvalidInput("expires_at", "is too far away", f"a session lives at most {max_ttl_hours} hours from now")
    return changed
