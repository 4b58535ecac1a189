"""What the methods of a backend take and return, besides records and changes."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from fiml.sessions.models import QueryTotals
from fiml.sessions.records import Header, SessionRecord
from fiml.sessions.rights import ANYBODY, Caller, right_of
from fiml.sessions.searching import Wanted

MAX_SEARCHED = 1000
Part = Literal["live", "archive"]
COUNTED_EXACTLY = 100_000


@dataclass(slots=True, kw_only=True)
class WriteRules:
    """What a write must respect, checked in the same step as the write."""

    now: datetime
    max_queries: int
    max_changes: int
    """The most entries in the audit trail; each change adds one, and raises the version by one."""
    expected_version: int | None = None
    caller: Caller = ANYBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """Which sessions a listing wants, newest first; a page begins `after` a position (`created_at`, `id`)."""

    limit: int
    include_archived: bool = False
    user_id: str | None = None
    type: str | None = None
    tag: str | None = None
    asset: str | None = None
    after: tuple[datetime, UUID] | None = None
    wanted: Wanted | None = None
    given_to: str | None = None
    """The user whose sessions are listed: those that are shared with this user count too."""

    def wants(self, header: Header) -> bool:
        """Whether a session passes the filters."""
        return (
            (self.type is None or header.type == self.type)
            and (self.tag is None or self.tag in header.tags)
            and (self.asset is None or self.asset in header.assets)
            and (self.wanted is None or self.wanted.lets_pass(header))
            # An index may still list a session that is no longer shared.
            and (self.given_to is None or right_of(header.user_id, header.grants, Caller(self.given_to)) is not None)
        )


@dataclass(slots=True)
class Page:
    """Sessions, newest first, each with whether it is archived. A partial page lacks archived ones.

    `searched_to` is the position where the look through the live sessions stopped early, so that the page isn't full;
    it is complete down to there. `None` if it is full, or if all were looked at.
    """

    rows: list[tuple[Header, bool]]
    is_partial: bool = False
    searched_to: tuple[datetime, UUID] | None = None


@dataclass(slots=True)
class Found:
    """The result of a search: sessions, newest first, each with whether it is archived.

    `searched_to` is the position where the search through the live sessions stopped early, and down to which the result
    is complete; `None` if all were searched. `unreadable` are live sessions that can't be read, `not_indexed` says
    whether there are sessions that aren't indexed yet, `is_partial` whether archived ones are missing because their
    engine is away.
    """

    rows: list[tuple[Header, bool]]
    searched_to: tuple[datetime, UUID] | None = None
    unreadable: list[UUID] = field(default_factory=list)
    not_indexed: bool = False
    is_partial: bool = False
    looked_at: set[str] = field(default_factory=set)
    """The positions in the listing that were looked at."""


@dataclass(frozen=True, slots=True)
class Ended:
    """When sessions end, and whether their metrics are written."""

    at: datetime
    write_metrics: bool


@dataclass(slots=True)
class SweepReport:
    """What a sweep did, in sessions.

    `archived`; `quarantined`, since they can't be archived; `postponed`, since a later fiml wrote them; `dropped` are
    index entries without a session.
    """

    archived: int = 0
    quarantined: int = 0
    postponed: int = 0
    dropped: int = 0

    def add(self, other: "SweepReport") -> None:
        """Add another report's numbers."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True, kw_only=True)
class StoreFigures:
    """The state of a store, for monitoring: counts and times, nothing of a user's. `None` is unknown.

    `engines` says which engines answer; nothing is known about one that is away.
    """

    engines: dict[str, bool]
    live: int | None = None
    waiting: int | None = None
    """At most this many sessions wait to be archived: in Redis, an extended one counts until a sweep looks at it."""
    oldest_waiting: datetime | None = None
    """When the oldest of them expired."""
    archived: int | None = None
    """Exact up to `COUNTED_EXACTLY`; above that, PostgreSQL's own estimate."""
    quarantined: int | None = None
    jobs_done: dict[str, datetime] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    replica_lag_s: dict[str, float] = field(default_factory=dict)
    redis: "RedisState | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisState:
    """What Redis tells about itself; `max_bytes` is 0 if its memory isn't limited."""

    evicted_keys: int
    may_evict: bool
    is_append_only: bool
    used_bytes: int
    max_bytes: int


@dataclass(slots=True)
class WriteResult:
    """The state of a session after a write.

    `is_new_version` is `False` if there was nothing to change, or all queries were there already: this is an access,
    and makes no new version.
    """

    version: int
    life: int
    expires_at: datetime
    totals: QueryTotals
    is_new_version: bool


@dataclass(frozen=True, slots=True)
class Updated:
    """The result of an update, and the session after it.

    Others may have changed the session again; `record` is `None` if they moved or deleted it.
    """

    result: WriteResult
    record: SessionRecord | None
