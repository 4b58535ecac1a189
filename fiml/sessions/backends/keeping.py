"""What the database stores besides the sessions: holds, the quarantine, metrics, jobs, tokens; and removal by age."""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete

from fiml.db.engines import Transact
from fiml.db.tables import access_tokens
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.backends.sql import holds, jobs, metrics, missing_metrics, quarantine, retention, rollups
from fiml.sessions.backends.sql.quarantine import QuarantinedSession
from fiml.sessions.backends.sql.retention import Position


class Keeping:
    """Each method is one transaction, on PostgreSQL and SQLite alike.

    Raises:
        Unavailable: from every method, when the database is away.
    """

    def __init__(self, *, transact: Transact, view: Transact, maintain: Transact) -> None:
        self._transact = transact
        self._view = view
        self._maintain = maintain

    async def hold(self, session_id: UUID, *, reason: str, now: datetime) -> bool:
        """Put a session on hold; `False` if it was deleted for good."""
        return await self._transact(lambda connection: holds.put(connection, session_id, reason=reason, now=now))

    async def release(self, session_id: UUID) -> bool:
        """Release a session; `False` if it wasn't on hold."""
        return await self._transact(lambda connection: holds.remove(connection, session_id))

    async def hold_reason(self, session_id: UUID) -> str | None:
        """Why a session is on hold; `None` if it isn't."""
        return await self._view(lambda connection: holds.reason_of(connection, session_id))

    async def quarantined(
        self, *, limit: int, owner: str | None, after: QuarantinedSession | None
    ) -> list[QuarantinedSession]:
        """A page of the sessions in quarantine, the longest there first."""
        return await self._view(lambda connection: quarantine.page(connection, limit=limit, owner=owner, after=after))

    async def dump(self, session_id: UUID, *, owner: str | None) -> tuple[QuarantinedSession, Dump] | None:
        """A session in quarantine, with its bytes."""
        return await self._view(lambda connection: quarantine.fetch_dumped(connection, session_id, owner))

    async def delete_old(
        self, before: datetime, *, at_most: int, after: Position | None
    ) -> tuple[int, Position | None]:
        """Delete some of the sessions archived before a moment; how many, and where to continue."""
        return await self._maintain(
            lambda connection: retention.delete_batch(connection, before, at_most=at_most, after=after)
        )

    async def count_held(self, before: datetime) -> int:
        """How many sessions archived before a moment are kept by a hold."""
        return await self._maintain(lambda connection: retention.count_held(connection, before))

    async def write_missing_metrics(self, *, at_most: int, after: UUID | None) -> tuple[int, UUID | None]:
        """Write the metrics that some archived sessions lack; how many, and where to continue."""
        return await self._maintain(
            lambda connection: missing_metrics.write_batch(connection, at_most=at_most, after=after)
        )

    async def erase_metrics(self, user_id: str) -> int:
        """Remove a user's metrics and rollups, except the metrics of held sessions; how many metrics."""
        return await self._maintain(lambda connection: metrics.erase(connection, user_id))

    async def erase_tokens(self, user_id: str) -> None:
        """Remove the tokens that identify a user, valid or not; servers refuse them within half a minute."""
        theirs = delete(access_tokens).where(access_tokens.c.user_id == user_id)
        await self._maintain(lambda connection: connection.execute(theirs))

    async def days_behind(self) -> list[date]:
        """The days whose metrics changed since their rollups were computed."""
        return await self._maintain(rollups.days_behind)

    async def roll_up(self, day: date) -> None:
        """Recompute the rollups of a day."""
        await self._maintain(lambda connection: rollups.recompute(connection, day))

    async def claim_job(
        self, name: str, *, holder: str, now: datetime, done_before: datetime, hold_for: timedelta
    ) -> bool:
        """Take a job, if it is due and nobody holds it; whether it was taken."""
        return await self._maintain(
            lambda connection: jobs.claim(
                connection, name, holder=holder, now=now, done_before=done_before, hold_for=hold_for
            )
        )

    async def keep_job(self, name: str, *, holder: str, until: datetime) -> bool:
        """Keep holding a job; `False` if another process has taken it."""
        return await self._maintain(lambda connection: jobs.keep(connection, name, holder=holder, until=until))

    async def finish_job(self, name: str, *, now: datetime, result: Mapping[str, Any]) -> None:
        """Record that a job is done."""
        await self._maintain(lambda connection: jobs.finish(connection, name, now=now, result=result))

    async def let_go_of_job(self, name: str, *, holder: str) -> None:
        """Release a job that is not done, so that the next process can take it."""
        await self._maintain(lambda connection: jobs.let_go(connection, name, holder=holder))
