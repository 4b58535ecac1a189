"""What a session is: plain values without I/O; the time comes from `fiml.core.clock`."""

import reprlib
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self
from uuid import UUID, uuid4

import msgspec

from fiml.core import clock
from fiml.core.config import MAX_TTL_HOURS, Settings
from fiml.core.errors import InvalidInput, echo
from fiml.sessions import values
from fiml.sessions.point_in_time import KnownContext, known_by
from fiml.sessions.queries import QueryRecord, QueryTotals, copied

__all__ = [
    "AnalysisHistory",
    "KnownContext",
    "QueryRecord",
    "QueryTotals",
    "Session",
    "SessionState",
    "SessionSummary",
    "SessionType",
]


MAPS = ("context", "preferences", "intermediate_results", "metadata")
"""The names of a session's maps."""


class SessionType(StrEnum):
    """What a session analyses."""

    EQUITY = "equity"
    CRYPTO = "crypto"
    PORTFOLIO = "portfolio"
    COMPARATIVE = "comparative"
    MACRO = "macro"

    @classmethod
    def parse(cls, value: Any) -> Self:
        """The type with this name.

        Raises:
            InvalidInput: there is no such type.
        """
        try:
            return cls(value)
        except ValueError:
            raise InvalidInput(
                "session type", f"{echo(value)} is unknown", f"valid values are {', '.join(cls)}"
            ) from None


class AnalysisHistory:
    """The queries of a session, oldest first, and their totals.

    If a session was read with its last queries only, `queries` has just those; the totals always cover all.
    """

    def __init__(self, queries: list[QueryRecord] | None = None) -> None:
        self.queries: list[QueryRecord] = [] if queries is None else queries
        self._totals = QueryTotals()
        self._counted = 0
        self._last_counted: QueryRecord | None = None
        self._is_whole = True

    @classmethod
    def stored(cls, queries: list[QueryRecord], totals: QueryTotals) -> Self:
        """A history with known totals, over `queries` and those before them."""
        history = cls(queries)
        history._totals = totals
        history._counted = len(queries)
        history._last_counted = queries[-1] if queries else None
        history._is_whole = totals.total_queries == len(queries)
        return history

    @property
    def totals(self) -> QueryTotals:
        """The totals. Only queries appended since the last call are counted; all of them, if some were removed."""
        if self._is_whole and not self._goes_on():
            self._totals, self._counted = QueryTotals(), 0
        for query in self.queries[self._counted :]:
            self._totals.add(query)
        self._counted = len(self.queries)
        self._last_counted = self.queries[-1] if self.queries else None
        return self._totals

    def _goes_on(self) -> bool:
        if len(self.queries) < self._counted:
            return False
        return self._counted == 0 or self.queries[self._counted - 1] is self._last_counted

    @property
    def total_queries(self) -> int:
        return self.totals.total_queries

    @property
    def first_query_at(self) -> datetime | None:
        return self.totals.first_query_at

    @property
    def last_query_at(self) -> datetime | None:
        return self.totals.last_query_at

    @property
    def cache_hit_rate(self) -> float:
        """The share of the queries that a cache answered, from 0 to 1."""
        return self.totals.cache_hit_rate

    def add_query(self, query: QueryRecord) -> None:
        """Append a query."""
        self.queries.append(query)

    def get_recent_queries(self, n: int = 10) -> list[QueryRecord]:
        """The last `n` queries, oldest first."""
        return self.queries[-n:] if n > 0 else []

    def get_query_types_summary(self) -> dict[str, int]:
        """How many queries there are of each type."""
        return dict(self.totals.query_types)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnalysisHistory) and self.queries == other.queries and self.totals == other.totals

    __hash__ = None  # type: ignore[assignment]  # mutable, like the lists and dicts it holds

    def __repr__(self) -> str:
        count, here = self.total_queries, len(self.queries)
        whole = f"{count} query" if count == 1 else f"{count} queries"
        return (
            f"AnalysisHistory({whole})" if here == count else f"AnalysisHistory({whole}, the last {here} of them here)"
        )


def _for_glance() -> reprlib.Repr:
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxdict, shortened.maxlist = 2, 8, 4
    shortened.maxstring = shortened.maxother = 60
    return shortened


_GLANCE = _for_glance()


@dataclass(repr=False)
class SessionState:
    """What a session knows. The four maps are plain dicts of JSON values."""

    context: dict[str, Any] = field(default_factory=dict)
    preferences: dict[str, Any] = field(default_factory=dict)
    intermediate_results: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    history: AnalysisHistory = field(default_factory=AnalysisHistory)

    def __repr__(self) -> str:
        """Shortened: a notebook shows, and keeps, the session that a cell ends with, and its maps may hold 4 MiB."""
        maps = (f"{name}={_GLANCE.repr(getattr(self, name))}" for name in MAPS)
        return f"SessionState({', '.join(maps)}, history={self.history!r})"

    def update_context(self, key: str, value: Any) -> None:
        """Set one entry of the context.

        Raises:
            InvalidInput: the value is not JSON or too large; nothing was set.
        """
        values.check_entry("context", key, value)
        self.context[key] = value

    def get_context(self, key: str, default: Any = None) -> Any:
        """One entry of the context."""
        return self.context.get(key, default)

    def store_intermediate_result(self, key: str, value: Any) -> None:
        """Set one intermediate result.

        Raises:
            InvalidInput: the value is not JSON or too large; nothing was set.
        """
        values.check_entry("intermediate_results", key, value)
        self.intermediate_results[key] = value

    def get_intermediate_result(self, key: str) -> Any:
        """One intermediate result, or `None`."""
        return self.intermediate_results.get(key)


def _default_expiry() -> datetime:
    return clock.now() + timedelta(hours=Settings().session_default_ttl_hours)


@dataclass(kw_only=True)
class Session:
    """One analysis: whose it is and what about, how long it lives, and what it knows.

    Times are aware and in UTC. `version` rises with every write to the store; only the store sets it.
    """

    id: UUID = field(default_factory=uuid4)
    user_id: str | None = None
    type: SessionType
    title: str | None = None
    assets: list[str]
    tags: list[str] = field(default_factory=list)
    created_at: datetime = field(default_factory=clock.now)
    expires_at: datetime = field(default_factory=_default_expiry)
    last_accessed_at: datetime = field(default_factory=clock.now)
    is_archived: bool = False
    version: int = 1
    state: SessionState = field(default_factory=SessionState)
    # The state in which the store last read or wrote this object, or the document it was made from; `changes.py`
    # compares the object with it.
    _written: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.type = SessionType.parse(self.type)
        self.created_at = values.check_moment(self.created_at, "created_at")
        self.expires_at = values.check_moment(self.expires_at, "expires_at")
        self.last_accessed_at = values.check_moment(self.last_accessed_at, "last_accessed_at")

    @property
    def is_expired(self) -> bool:
        return clock.now() >= self.expires_at

    @property
    def time_remaining(self) -> timedelta:
        """The time until the expiry; negative after it."""
        return self.expires_at - clock.now()

    @property
    def duration(self) -> timedelta:
        """The time from the creation to the last access."""
        return self.last_accessed_at - self.created_at

    def add_query(self, query: QueryRecord) -> None:
        """Append a query to the history, which counts as an access."""
        self.state.history.add_query(query)
        self.touch()

    def extend(self, hours: int) -> None:
        """Move the expiry of this object `hours` later; `extend_session` changes the stored session.

        Raises:
            InvalidInput: `hours` is not a whole number, or more than ten years, or ends after the year 9999.
        """
        later = timedelta(hours=values.check_hours(hours, "hours", max_hours=MAX_TTL_HOURS))
        # In UTC, since hours added to a local time don't count those by which the clocks change.
        before = values.check_moment(self.expires_at, "expires_at")
        try:
            self.expires_at = before + later
        except OverflowError:
            raise InvalidInput("hours", f"is {hours}, which is too far away", "end by the year 9999") from None

    def touch(self) -> None:
        """Record an access now."""
        self.last_accessed_at = max(self.last_accessed_at, clock.now())

    def context_as_of(self, moment: datetime) -> KnownContext:
        """Only what was known at a moment: queries, the latest figures of each symbol, notes and conclusions.

        The entries of the maps have no time and are left out. If the session was read with its last queries only, the
        earlier ones are missing here too.

        Raises:
            InvalidInput: the moment has no time zone.
        """
        at = values.check_moment(moment, "moment")
        return known_by(at, self.state.history.queries, self.state.context)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, of which the session keeps none; `Session.from_dict` is the inverse."""
        history = self.state.history
        return {
            "id": str(self.id),
            "user_id": self.user_id,
            "type": self.type.value,
            "title": self.title,
            "assets": list(self.assets),
            "tags": list(self.tags),
            "created_at": clock.to_iso(self.created_at),
            "expires_at": clock.to_iso(self.expires_at),
            "last_accessed_at": clock.to_iso(self.last_accessed_at),
            "is_archived": self.is_archived,
            "version": self.version,
            "state": {
                **{name: copied(getattr(self.state, name)) for name in MAPS},
                "history": {
                    "total_queries": history.total_queries,
                    "first_query_at": history.first_query_at and clock.to_iso(history.first_query_at),
                    "last_query_at": history.last_query_at and clock.to_iso(history.last_query_at),
                    "cache_hit_rate": history.cache_hit_rate,
                    "queries": [query.to_dict() for query in history.queries],
                },
            },
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """The session that `to_dict` wrote; later changes to the object can be written to the store.

        If the session had been read with its last queries only, its totals are those of these queries.

        Raises:
            InvalidInput: a field is missing or has the wrong type.
        """
        try:
            session = cls._from_document(msgspec.convert(document, _Document))
        except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as exc:
            problem = f"can't be read ({exc})"
            raise InvalidInput("session document", problem, "give what Session.to_dict() wrote") from exc
        session._written = deepcopy(document)  # noqa: SLF001 - its own
        return session

    @classmethod
    def _from_document(cls, document: "_Document") -> Self:
        fields = msgspec.structs.asdict(document)
        state = fields.pop("state")
        queries = [QueryRecord.from_dict(query) for query in state.history.queries]
        maps = {name: copied(getattr(state, name)) for name in MAPS}
        return cls(**fields, state=SessionState(**maps, history=AnalysisHistory(queries)))


class _HistoryDocument(msgspec.Struct):
    queries: list[dict[str, Any]]


class _StateDocument(msgspec.Struct):
    context: dict[str, Any]
    preferences: dict[str, Any]
    intermediate_results: dict[str, Any]
    metadata: dict[str, Any]
    history: _HistoryDocument


class _Document(msgspec.Struct):
    id: UUID
    user_id: str | None
    type: str
    title: str | None
    assets: list[str]
    tags: list[str]
    created_at: datetime
    expires_at: datetime
    last_accessed_at: datetime
    is_archived: bool
    version: int
    state: _StateDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSummary:
    """A session as listings show it: without its state."""

    id: UUID
    user_id: str | None
    type: SessionType
    title: str | None
    assets: list[str]
    tags: list[str]
    created_at: datetime
    expires_at: datetime
    last_accessed_at: datetime
    total_queries: int
    is_expired: bool
    is_archived: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": str(self.id),
            "user_id": self.user_id,
            "type": self.type.value,
            "title": self.title,
            "assets": list(self.assets),
            "tags": list(self.tags),
            "created_at": clock.to_iso(self.created_at),
            "expires_at": clock.to_iso(self.expires_at),
            "last_accessed_at": clock.to_iso(self.last_accessed_at),
            "total_queries": self.total_queries,
            "is_expired": self.is_expired,
            "is_archived": self.is_archived,
        }
