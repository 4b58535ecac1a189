"""The contract of a backend, in words. Every backend passes the conformance suite in `fiml.testing`.

A backend takes and returns records whose JSON is text; it never decodes a value. For a missing session and for another
user's, methods return `None` or `False`, with no difference between the two. A `caller` sees the sessions that it owns
or that are shared with it. A method that changes a session needs an editor, `delete` and `share` need the owner, and
they raise `NotPermitted` for less; every change is recorded in the audit trail.

All methods raise `Unavailable` when an engine that they need is away. While only the archive's engine is away, live
sessions work; asking for any other session raises `Unavailable`, and never says that it doesn't exist.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol
from uuid import UUID

from fiml.sessions.changes import Change
from fiml.sessions.models import QueryTotals
from fiml.sessions.records import Header, SessionRecord
from fiml.sessions.rights import ANYBODY, Caller, GrantChange, Grants, Right, ShareRules, right_of
from fiml.sessions.searching import Wanted

if TYPE_CHECKING:  # SQLAlchemy takes a third of a second to import, and a server starts without it
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from fiml.sessions.backends.keeping import Keeping
    from fiml.sessions.backends.rewriting import Rewriting

    SessionMaker = async_sessionmaker[AsyncSession]


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


class Backend(Protocol):
    """Live and archived sessions of one deployment. To its callers, each method is atomic.

    A session is live until it is archived, whether it has expired or not. If a crash left it both live and archived,
    the live copy counts.
    """

    @property
    def keeping(self) -> "Keeping":
        """What the database stores besides the sessions."""

    @property
    def session_maker(self) -> "SessionMaker":
        """SQLAlchemy sessions over the database of the archive and the metrics; `info` has the settings."""

    async def open(self) -> None:
        """Connect; create the schema if the database is empty.

        Raises:
            Misconfigured: the database can't be used as it is.
        """

    async def close(self) -> None:
        """Close everything that `open` opened. Closing twice is harmless."""

    async def create(self, record: SessionRecord) -> None:
        """Store a new session. One round trip on a single node."""

    async def read(
        self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY, recent: int | None = None
    ) -> SessionRecord | None:
        """A live session, whole or with its last `recent` queries, in one round trip; or an archived one, whole.

        The last access of a live one moves to `now`, unless it has expired. A session that moves between the tiers
        meanwhile is found.

        Raises:
            SessionQuarantined: it is in quarantine.
        """

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        """Apply a change to a live session and raise its version by one. One round trip, however long the history.

        A query whose id is there already is skipped. Either the whole change is written, or nothing. A damaged session
        may take a change that doesn't touch the damage; whoever reads it gets the error. A session that moves between
        the tiers meanwhile is found.

        Raises:
            SessionExpired: the session has expired.
            SessionArchived, SessionQuarantined: it isn't live.
            SessionConflict: the session doesn't have the expected version.
            SessionFull: it would have too many queries, or has had too many changes.
            InvalidInput: its maps, assets or tags would exceed their limits.
            Unavailable: others need longer than a second to archive it; nothing was written.
        """

    async def update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        """As `write`, and return the whole session. One round trip, unless the expiry is set."""

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, rules: WriteRules
    ) -> SessionRecord | None:
        """Move the expiry of a live session later, at most to `latest`, never earlier. One round trip.

        Raises:
            SessionExpired: the session has expired.
            SessionArchived, SessionQuarantined: it isn't live.
            SessionFull: it has had too many changes.
            Unavailable: others need longer than a second to archive it; nothing was written.
        """

    async def archive(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        """Move a live session to the archive, with its metrics; `False` if it isn't live.

        However many others write to it, it gets there; what was acknowledged to them goes with it. A crash at any step
        leaves at least one complete copy.
        """

    def sweep(self, ended: Ended) -> AsyncIterator[SweepReport]:
        """Move all live sessions that expired by `ended.at` to the archive, in batches. Yields a report for each.

        Memory doesn't grow with the backlog. Several sweeps at once share the work. A session that can't be archived is
        set aside in the quarantine, byte for byte, and doesn't hold up the others.
        """

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller = ANYBODY
    ) -> SessionRecord | None:
        """Make a session live. If it had expired or was archived, it gets the next version and the expiry `until`."""

    async def delete(self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY) -> bool:
        """Remove a session from both tiers and the quarantine for good: no frozen process can bring it back.

        Raises:
            SessionOnHold: it is on hold; nothing was removed.
        """

    async def share(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        """Change whom a session, live or archived, is shared with. Returns the grants afterwards.

        `None` if the caller doesn't see the session, or redeems a code that isn't valid.

        Raises:
            InvalidInput: there would be too many grants, or the owner would get one.
            SessionFull: the session has had too many changes.
        """

    async def owners_view(self, session_id: UUID, *, caller: Caller = ANYBODY) -> tuple[Grants, str] | None:
        """The grants and the audit trail of a session, live or archived. For its owner."""

    async def given_ids(self, user_id: str) -> set[UUID]:
        """Every session that is shared with a user, and perhaps some that no longer are."""

    async def exists(self, session_id: UUID, *, needs: Right = Right.OWN, caller: Caller = ANYBODY) -> bool:
        """Whether a session exists: live, archived or in quarantine. This doesn't count as an access.

        Raises:
            NotPermitted: the caller has less than the right that it `needs`.
        """

    async def retry(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        """Archive a session from the quarantine in one transaction; `False` if it isn't there.

        Raises:
            SessionQuarantined: it still can't be read.
            RecordRefused: the database still refuses it.
        """

    async def ids_of(self, user_id: str) -> set[UUID]:
        """Every session of a user, live, archived or in quarantine, readable or not."""

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        """Remove what remains of a user after deleting all sessions but the held ones; the copies that were cleaned."""

    async def purge_tombstones(self, before: datetime, *, at_most: int) -> int:
        """Finish deletions from before a moment, and forget them; how many."""

    async def figures(self, now: datetime) -> StoreFigures:
        """The state of the store. The cost doesn't grow with the archive; an engine that is away is not an error."""

    def all_ids(self) -> AsyncIterator[list[UUID]]:
        """All sessions in batches, first live, then archived ones. A session that moves meanwhile may be missed."""

    async def rewrite(self, session_id: UUID, rewriting: "Rewriting") -> bool:
        """Replace the texts of a session's values, without a new version; `False` if `rewriting` returns `None`.

        The session may be live, archived or both. What others write meanwhile is not lost. Its format rises as with any
        write (format 1 stays), so that no older fiml goes on with it. A search finds the words of the new texts only.

        Raises:
            Unavailable: the session is archived and resumed again and again.
        """

    async def scrub(self) -> list[str]:
        """Remove replaced values from the engine's files, if it can; returns the kept copies that still have them."""

    async def away(self) -> list[Part]:
        """The parts whose engine doesn't answer. Two seconds at most."""

    async def page(self, query: PageQuery) -> Page:
        """Sessions by `created_at` descending, then id, each with whether it is archived.

        Two round trips for live ones, without filters. Complete and without duplicates, even while sessions move
        between the tiers. An engine without indexes for the filters looks at about `MAX_SEARCHED` live sessions at
        most, and says how far it got.
        """

    async def search(self, query: PageQuery) -> Found:
        """Sessions that match `query.wanted`, in the order of `page`.

        An engine without full text for its live sessions reads at most `MAX_SEARCHED` of them, and says how far it got.
        """
