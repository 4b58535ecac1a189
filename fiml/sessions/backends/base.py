"""The contract of a backend, in words. Every backend passes the conformance suite in `fiml.testing`.

A backend takes and returns records whose JSON is text; it never decodes a value. For a missing session and for another
user's, methods return `None` or `False`, with no difference between the two. A `caller` sees the sessions that it owns
or that are shared with it. A method that changes a session needs an editor, `delete` and `share` need the owner, and
they raise `NotPermitted` for less; every change is recorded in the audit trail.

All methods raise `Unavailable` when an engine that they need is away. While only the archive's engine is away, live
sessions work; asking for any other session raises `Unavailable`, and never says that it doesn't exist.
"""

from collections.abc import AsyncIterator, Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from fiml.sessions.backends.shapes import (
    Ended,
    Found,
    Page,
    PageQuery,
    Part,
    StoreFigures,
    SweepReport,
    Updated,
    WriteResult,
    WriteRules,
)
from fiml.sessions.changes import Change
from fiml.sessions.records import SessionRecord
from fiml.sessions.rights import ANYBODY, Caller, GrantChange, Grants, Right, ShareRules

if TYPE_CHECKING:  # SQLAlchemy takes a third of a second to import, and a server starts without it
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from fiml.sessions.backends.keeping import Keeping
    from fiml.sessions.backends.rewriting import Rewriting

    SessionMaker = async_sessionmaker[AsyncSession]


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
