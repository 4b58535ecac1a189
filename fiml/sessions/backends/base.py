"""What a backend must keep, in words. Every backend passes the conformance suite in `fiml.testing`.

A backend takes and gives records whose JSON is text; it never decodes a value. Absence, and another owner's session,
are `None` or `False`, alike in every respect. `caller` sees what it owns or was given. A method that changes a session
needs an editor, `delete` and `share` the owner, and raises `NotPermitted` for less; the change enters the audit trail.

All methods raise `Unavailable` when an engine that they need is away. While only the archive's is, live sessions work;
a session that isn't among them is `Unavailable`, never absent.
"""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar
from uuid import UUID

from fiml.sessions.changes import Change
from fiml.sessions.models import QueryTotals
from fiml.sessions.records import Header, SessionRecord
from fiml.sessions.rights import ANYBODY, Caller, GrantChange, Grants, Right, ShareRules, right_of
from fiml.sessions.searching import Wanted

if TYPE_CHECKING:  # SQLAlchemy takes a third of a second to import, and a server's start waits for nothing of it
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from fiml.sessions.backends.keeping import Keeping
    from fiml.sessions.backends.rewriting import Rewriting

    SessionMaker = async_sessionmaker[AsyncSession]


Row = TypeVar("Row")

MAX_SEARCHED = 1000
Part = Literal["live", "archive"]
# A session may move between the parts while it is looked for, but hardly twice within one call.
LOOKS: tuple[Part, ...] = ("live", "archive", "live")
COUNTED_EXACTLY = 100_000


@dataclass(slots=True, kw_only=True)
class WriteRules:
    """What a write must respect, checked in the same step as the write."""

    now: datetime
    max_queries: int
    max_changes: int
    """As many entries has its audit trail: each change raises the version by one."""
    expected_version: int | None = None
    caller: Caller = ANYBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """Which sessions a listing wants, and from where on: after (`created_at`, `id`), newest first."""

    limit: int
    include_archived: bool = False
    user_id: str | None = None
    type: str | None = None
    tag: str | None = None
    asset: str | None = None
    after: tuple[datetime, UUID] | None = None
    wanted: Wanted | None = None
    given_to: str | None = None
    """A user whose own sessions these are: those that were given to it count too."""

    def wants(self, header: Header) -> bool:
        """Whether the filters let a session pass."""
        return (
            (self.type is None or header.type == self.type)
            and (self.tag is None or self.tag in header.tags)
            and (self.asset is None or self.asset in header.assets)
            and (self.wanted is None or self.wanted.lets_pass(header))
            # An index may name what was taken back.
            and (self.given_to is None or right_of(header.user_id, header.grants, Caller(self.given_to)) is not None)
        )


@dataclass(slots=True)
class Page:
    """Sessions with whether each is archived, newest first. A partial page lacks ended ones, whose engine is away."""

    rows: list[tuple[Header, bool]]
    is_partial: bool = False


@dataclass(slots=True)
class Found:
    """What a search came to: sessions with whether each is archived, newest first, complete down to `searched_to`.

    `searched_to` is where the look through the live sessions stopped short, `None` where it didn't. `unreadable` are
    live sessions that can't be read, `not_indexed` whether sessions are left whose words aren't known yet,
    `is_partial` whether ended ones are missing, since their engine is away.
    """

    rows: list[tuple[Header, bool]]
    searched_to: tuple[datetime, UUID] | None = None
    unreadable: list[UUID] = field(default_factory=list)
    not_indexed: bool = False
    is_partial: bool = False
    looked_at: set[str] = field(default_factory=set)
    """The places in the listing that were looked at."""


@dataclass(frozen=True, slots=True)
class Ended:
    """When sessions end, and whether their metrics are written."""

    at: datetime
    write_metrics: bool


@dataclass(slots=True)
class SweepReport:
    """What a sweep came to, in sessions.

    `archived`; `quarantined`, which can't be archived; `postponed`, which a later fiml wrote; `dropped`, index entries
    without a session.
    """

    archived: int = 0
    quarantined: int = 0
    postponed: int = 0
    dropped: int = 0

    def add(self, other: "SweepReport") -> None:
        """Count another one too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True, kw_only=True)
class StoreFigures:
    """How a store stands, for who watches over it: counts and times, nothing of a user's. `None` is what isn't known.

    Of an engine that is away nothing is known; `engines` says which answer.
    """

    engines: dict[str, bool]
    live: int | None = None
    waiting: int | None = None
    """Sessions whose expiry may have passed: in Redis an extended one counts until a sweep has looked at it."""
    oldest_waiting: datetime | None = None
    """When the oldest of them expired."""
    archived: int | None = None
    """Exact up to `COUNTED_EXACTLY`, beyond that PostgreSQL's own estimate."""
    quarantined: int | None = None
    jobs_done: dict[str, datetime] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    replica_lag_s: dict[str, float] = field(default_factory=dict)
    redis: "RedisState | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisState:
    """What Redis tells about itself; `max_bytes` is 0 where it may take all memory."""

    evicted_keys: int
    may_evict: bool
    is_append_only: bool
    used_bytes: int
    max_bytes: int


@dataclass(slots=True)
class WriteResult:
    """How a session stands behind a write.

    `is_new_version` tells whether the write made its version: queries that are there already make none.
    """

    version: int
    life: int
    expires_at: datetime
    totals: QueryTotals
    is_new_version: bool


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update came to, and the session behind it.

    Others may have changed the session again; `record` is `None` where they moved or deleted it.
    """

    result: WriteResult
    record: SessionRecord | None


class Backend(Protocol):
    """Live and ended sessions of one deployment. Each method is atomic for those who call it.

    A session is live until it is archived, whether it has expired or not. Where a crash left it both live and
    archived, the live copy counts.
    """

    keeping: "Keeping"
    """What the database keeps about sessions apart from them."""

    session_maker: "SessionMaker"
    """Sessions of SQLAlchemy over the database of the archive and the metrics, with the settings as their `info`."""

    async def open(self) -> None:
        """Connect; create the schema where the database is empty.

        Raises:
            Misconfigured: the database can't be used as it is.
        """

    async def close(self) -> None:
        """Let go of everything that `open` took. Closing twice is harmless."""

    async def create(self, record: SessionRecord) -> None:
        """Store a new session. One round trip on a single node."""

    async def read(
        self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY, recent: int | None = None
    ) -> SessionRecord | None:
        """A live session, whole or with its last `recent` queries. One round trip.

        Its last access moves to `now` unless it has expired.
        """

    async def read_archived(self, session_id: UUID, *, caller: Caller = ANYBODY) -> SessionRecord | None:
        """An archived session, whole.

        Raises:
            SessionQuarantined: it is in quarantine instead.
        """

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        """Apply a change to a live session and raise its version by one. One round trip, whatever the history.

        A query whose id is there already is skipped. Either all of the change is written or nothing. A session that is
        damaged elsewhere may take the change: who reads it learns of the damage.

        Raises:
            SessionExpired: it ended at its expiry.
            SessionConflict: it isn't at the expected version.
            SessionFull: it would hold too many queries, or has had too many changes.
            InvalidInput: its maps, assets or tags would exceed their limits.
        """

    async def update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        """As `write`, and the whole session behind it. One round trip, but where the expiry is set."""

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, rules: WriteRules
    ) -> SessionRecord | None:
        """Move the expiry of a live session later, at most to `latest`, never earlier. One round trip.

        Raises:
            SessionExpired: it ended at its expiry.
            SessionFull: it has had too many changes.
        """

    async def archive(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        """Move a live session to the archive, with its metrics; `False` where it isn't live.

        A crash at any step leaves at least one complete copy.
        """

    def sweep(self, ended: Ended) -> AsyncIterator[SweepReport]:
        """Move all live sessions that expired by `ended.at` to the archive, in batches; what each came to.

        Memory doesn't grow with the backlog. Several sweeps share the work. A session that can't be archived is set
        aside in the quarantine, byte for byte, and the others go on.
        """

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller = ANYBODY
    ) -> SessionRecord | None:
        """The session, live. Where it had expired or was archived, with the next version and the expiry `until`."""

    async def delete(self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY) -> bool:
        """Remove a session from both tiers and the quarantine for good: no frozen process can bring it back.

        Raises:
            SessionOnHold: it is held; nothing was removed.
        """

    async def share(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        """Change whom a session is given to, live or archived; whom it is given to then.

        `None` where the session isn't there for this caller, or a code that it redeems gives nothing.

        Raises:
            InvalidInput: there would be too many, or it is given to its owner.
            SessionFull: it has had too many changes.
        """

    async def owners_view(self, session_id: UUID, *, caller: Caller = ANYBODY) -> tuple[Grants, str] | None:
        """Whom a session, live or archived, is given to, and its audit trail. For its owner."""

    async def given_ids(self, user_id: str) -> set[UUID]:
        """Every session that is given to a user."""

    async def exists(self, session_id: UUID, *, needs: Right = Right.OWN, caller: Caller = ANYBODY) -> bool:
        """Whether a session is anywhere: live, archived or in quarantine. No access counts.

        Raises:
            NotPermitted: the caller has less than the right that it `needs`.
        """

    async def retry(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        """Archive a session from the quarantine in one transaction; `False` where it isn't there.

        Raises:
            SessionQuarantined: it still can't be read.
            RecordRefused: the database still refuses it.
        """

    async def ids_of(self, user_id: str) -> set[UUID]:
        """Every session of a user, live, archived or in quarantine, readable or not."""

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        """Remove what is left of a user when the sessions are gone, but the held ones; the copies that were cleaned."""

    async def purge_tombstones(self, before: datetime, *, at_most: int) -> int:
        """Finish deletions from before a moment for good, and forget them; how many."""

    async def figures(self, now: datetime) -> StoreFigures:
        """How the store stands. Its cost doesn't grow with what is archived; an engine that is away is no error."""

    def all_ids(self) -> AsyncIterator[list[UUID]]:
        """Every session, the live ones first, then the archived ones, in batches; one that moves may be missed."""

    async def rewrite(self, session_id: UUID, rewriting: "Rewriting") -> bool:
        """Give a session's values other texts, at an unchanged version; `False` where `rewriting` wants none.

        Whether it is live, archived or both. What others write meanwhile is not lost. The words that a search finds
        are those of the new texts.

        Raises:
            Unavailable: it is archived and resumed without a pause.
        """

    async def scrub(self) -> list[str]:
        """Leave nothing of what was replaced in the engine's files, where it can; the kept copies, which hold it."""

    async def away(self) -> list[Part]:
        """The parts whose engine doesn't answer. Two seconds at most."""

    async def page(self, query: PageQuery) -> Page:
        """Sessions by `created_at` descending, then id, with whether each is archived.

        Two round trips for live ones. Complete and without doubles while sessions move between the tiers.
        """

    async def search(self, query: PageQuery) -> Found:
        """Sessions that hold what `query.wanted` asks for, in the order of `page`.

        An engine without full text for its live sessions reads at most `MAX_SEARCHED` of them, and says how far.
        """


def readable(
    select: Callable[[int], Sequence[Row]], decode: Callable[[Row], Header | None], limit: int
) -> list[Header]:
    """The first `limit` headers that can be read, of rows of which `select` gives as many behind some."""
    found: list[Header] = []
    seen = 0
    while True:
        rows = select(seen)
        found += [header for header in map(decode, rows) if header is not None]
        seen += len(rows)
        if len(rows) < limit or len(found) >= limit:
            return found[:limit]


def newest_first(headers: Sequence[Header]) -> list[Header]:
    """In the order of a listing."""
    by_id = sorted(headers, key=lambda header: header.id.hex)
    return sorted(by_id, key=lambda header: header.created_at, reverse=True)


def merge_pages(live: Sequence[Header], archived: Sequence[Header], limit: int) -> list[tuple[Header, bool]]:
    """One page of two, newest first, then by id; a session in both counts as live."""
    live_ids = {header.id for header in live}
    rows = [(header, False) for header in live]
    rows += [(header, True) for header in archived if header.id not in live_ids]
    rows.sort(key=lambda row: row[0].id.hex)
    rows.sort(key=lambda row: row[0].created_at, reverse=True)
    return rows[:limit]


def rows_down_to(rows: Sequence[tuple[Header, bool]], position: tuple[datetime, UUID]) -> list[tuple[Header, bool]]:
    """The rows of a page that don't come after the session at a position."""
    created_at, session_id = position
    return [
        (header, is_archived)
        for header, is_archived in rows
        if header.created_at > created_at or (header.created_at == created_at and header.id.hex <= session_id.hex)
    ]
