"""What changed on a session since it was read, in a form in which changes of several writers commute."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from fiml.core import clock
from fiml.core.errors import InvalidInput
from fiml.sessions import values
from fiml.sessions.audit import Act
from fiml.sessions.models import MAPS, AnalysisHistory, QueryRecord, Session, SessionState, SessionType
from fiml.sessions.query_json import EncodedQuery, encode_again, encode_query, history_json, longer_history
from fiml.sessions.records import Entries, Written, written_of
from fiml.sessions.rights import Caller


@dataclass(slots=True)
class NamesChange:
    """A change to a list of names: first the removed ones are taken out, then the added ones appended if missing."""

    removed: list[str]
    added: list[str]

    def apply(self, names: list[str]) -> list[str]:
        """The list after the change."""
        kept = [name for name in names if name not in self.removed]
        return kept + [name for name in self.added if name not in kept]


@dataclass(slots=True)
class Change:
    """Queries to append, entries to set or remove, names to add or remove, scalars to set.

    `scalars` holds those of `type`, `title` and `expires_at` that changed.
    """

    queries: list[EncodedQuery] = field(default_factory=list)
    entries_set: Entries = field(default_factory=dict)
    entries_removed: dict[str, list[str]] = field(default_factory=dict)
    assets: NamesChange | None = None
    tags: NamesChange | None = None
    scalars: dict[str, Any] = field(default_factory=dict)

    @property
    def has_only_queries(self) -> bool:
        """Whether the change does nothing but append queries, perhaps none."""
        return not (self.scalars or self.entries_set or self.entries_removed or self.assets or self.tags)

    def act(self, caller: Caller, now: datetime) -> Act:
        """The change as an entry of the audit trail: queries were recorded, or parts updated."""
        detail: dict[str, Any] = {}
        if self.queries:
            detail["queries"] = [query.id.hex for query in self.queries]
        if not self.has_only_queries:
            detail["parts"] = [*self.scalars, *{**self.entries_set, **self.entries_removed}]
            detail["parts"] += [name for name in ("assets", "tags") if getattr(self, name)]
        return Act("record" if self.queries else "update", caller.name, now, detail)


def baseline_of(session: Session) -> Written | None:
    """The state in which the store last read or wrote this object; `None` if it never came from a store."""
    kept: Written | dict[str, Any] | None = session._written  # noqa: SLF001 - the session carries this for us
    if not isinstance(kept, dict):
        return kept
    document = Session.from_dict(kept)
    return written_of(document, _entries(document), history_json(_texts(document.state.history.queries)))


def change_of(
    session: Session, before: Written, known: list[QueryRecord], *, max_ttl_hours: int
) -> tuple[Change, Written]:
    """What differs from the baseline `before`, checked, and the next baseline, for after it is written.

    `known` are the queries of the baseline.

    Raises:
        InvalidInput: a value can't be stored, or a field that must not change was changed.
    """
    _check_fixed_fields(session, before)
    check_state(session)
    entries = _entries(session)
    seen = [before, *before.attempts]
    appended = [encode_query(query) for query in _appended(session.state.history.queries, known)]
    change = Change(
        queries=appended,
        entries_set=_entries_set(entries, [each.entries for each in seen]),
        entries_removed=_entries_removed(entries, [each.entries for each in seen]),
        assets=_names_change([each.assets for each in seen], values.check_assets(session.assets)),
        tags=_names_change([each.tags for each in seen], values.check_tags(session.tags)),
        scalars=_scalar_changes(session, seen, max_ttl_hours),
    )
    return change, written_of(session, entries, longer_history(before.history, appended))


def settle(session: Session, after: Written, version: int, expires_at: datetime, *, is_current: bool) -> None:
    """Record that a change was written, so that the next update of the object writes only what is new.

    The object gets the new version only if it holds everything in that version (`is_current`).
    """
    if is_current:
        session.version = version
        if session.expires_at == after.expires_at:  # otherwise the caller has changed it again meanwhile
            session.expires_at = after.expires_at = expires_at
    after.version = session.version  # which another call with this object may have set meanwhile
    session._written = after  # noqa: SLF001 - the session carries this for us


def note_attempt(session: Session, before: Written, after: Written) -> None:
    """Record that a change may or may not have been written, so that the next update overwrites it in either case."""
    kept: Written | dict[str, Any] | None = session._written  # noqa: SLF001 - the session carries this for us
    baseline = kept if isinstance(kept, Written) else before  # another call may have replaced it
    attempt = replace(after, history="", attempts=[])  # writing a query twice is harmless
    if attempt not in baseline.attempts:
        baseline.attempts.append(attempt)
    session._written = baseline  # noqa: SLF001


def check_state(session: Session) -> None:
    """Refuse an object whose state, history or tags aren't what they should be, and so can't be looked into."""
    state: object = session.state
    if not isinstance(state, SessionState):
        raise InvalidInput("state", f"is a {type(state).__name__}", "give a SessionState")
    history: object = state.history
    queries: object = history.queries if isinstance(history, AnalysisHistory) else None
    if not isinstance(queries, list):
        raise InvalidInput(
            "state.history", "is not a history of queries", "keep the one that was read, and add queries to it"
        )
    tags: object = session.tags
    if tags is None:  # accepted for an empty list when a session is created, but not here
        raise InvalidInput("tags", "is None", "give a list of strings")


def _check_fixed_fields(session: Session, before: Written) -> None:
    for_life = "it can't be changed; read the session again"
    the_stores = "only the store sets it; read the session again"
    fixed = {
        "id": (session.id, before.session_id, for_life),
        "user_id": (session.user_id, before.user_id, for_life),
        "created_at": (session.created_at, before.created_at, for_life),
        "version": (session.version, before.version, the_stores),
        "is_archived": (session.is_archived, before.is_archived, the_stores),
    }
    for name, (now, then, valid) in fixed.items():
        if now != then:
            raise InvalidInput(name, "was changed", valid)


def _appended(queries: list[QueryRecord], known: list[QueryRecord]) -> list[QueryRecord]:
    if queries[: len(known)] == known:
        return queries[len(known) :]
    # Compared as they are stored: a time in the hour when the clocks change equals none in another zone.
    by_id = {encoded.id: encoded.text for encoded in map(encode_query, queries)}
    for query in known:
        if query.id not in by_id:
            raise InvalidInput(
                "history.queries", f"lacks the query {query.id} that was read", "queries can only be added"
            )
        if by_id[query.id] != encode_again(query).text:
            raise InvalidInput(
                "history.queries", f"has a changed query {query.id}", "a recorded query can't be changed"
            )
    known_ids = {query.id for query in known}
    return [query for query in queries if query.id not in known_ids]


def _texts(queries: list[QueryRecord]) -> list[str]:
    return [encode_query(query).text for query in queries]


def _entries(session: Session) -> Entries:
    return {name: values.check_entries(name, getattr(session.state, name)) for name in MAPS}


def _entries_set(now: Entries, seen: list[Entries]) -> Entries:
    changed = {
        name: {
            key: text
            for key, text in now[name].items()
            if any(entries.get(name, {}).get(key) != text for entries in seen)
        }
        for name in MAPS
    }
    return {name: texts for name, texts in changed.items() if texts}


def _entries_removed(now: Entries, seen: list[Entries]) -> dict[str, list[str]]:
    known = {name: dict.fromkeys(key for entries in seen for key in entries.get(name, {})) for name in MAPS}
    removed = {name: [key for key in known[name] if key not in now[name]] for name in MAPS}
    return {name: keys for name, keys in removed.items() if keys}


def _names_change(seen: list[list[str]], now: list[str]) -> NamesChange | None:
    if all(names == now for names in seen):
        return None
    added = [name for name in now if any(name not in names for names in seen)]
    kept = [name for name in seen[0] if name in now and name not in added]
    known = list(dict.fromkeys(name for names in seen for name in names))
    if kept + added == now:
        return NamesChange(removed=[name for name in known if name not in now], added=added)
    return NamesChange(removed=known, added=now)  # reordered: remove all and add them again


def _scalar_changes(session: Session, seen: list[Written], max_ttl_hours: int) -> dict[str, Any]:
    now = {
        "type": SessionType.parse(session.type).value,
        "title": values.check_title(session.title),
        "expires_at": values.check_moment(session.expires_at, "expires_at"),
    }
    changed = {name: value for name, value in now.items() if any(value != getattr(each, name) for each in seen)}
    latest = clock.now() + timedelta(hours=max_ttl_hours)
    if "expires_at" in changed and session.expires_at > latest:
        raise InvalidInput("expires_at", "is too far away", f"a session lives at most {max_ttl_hours} hours from now")
    accessed = values.check_moment(session.last_accessed_at, "last_accessed_at")
    if accessed != seen[0].last_accessed_at and accessed > clock.now():
        raise InvalidInput("last_accessed_at", "lies in the future", "don't set it: writing counts as an access")
    return changed
