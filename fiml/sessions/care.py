"""The verbs for exceptional cases: legal hold, quarantine, erasure."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fiml.core import clock
from fiml.core.errors import (
    CorruptRecord,
    InvalidInput,
    RecordRefused,
    SchemaTooNew,
    SessionNotFound,
    SessionOnHold,
    SessionQuarantined,
    Unavailable,
    echo,
)
from fiml.core.log import get_logger
from fiml.sessions import values
from fiml.sessions.rights import Right, ShareRules, take_back
from fiml.sessions.verb_base import Verbs, found_of

if TYPE_CHECKING:  # SQLAlchemy, which few calls need
    from fiml.sessions.backends.sql.quarantine import QuarantinedSession

MAX_REASON_CHARACTERS = 500
_ROUNDS = 10

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReceipt:
    """What an erasure removed, and what legal holds kept: the ids of sessions, and the reasons of the holds."""

    user_id: str
    erased_at: datetime
    erased: list[UUID]
    held: dict[UUID, str]
    metrics: int
    """Removed rows of metrics whose sessions retention had already deleted."""
    kept_copies: list[str] = field(default_factory=list)
    """Copies of the file from before an upgrade: those that were cleaned, or why one couldn't be."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "user_id": self.user_id,
            "erased_at": clock.to_iso(self.erased_at),
            "erased": [str(session_id) for session_id in self.erased],
            "held": {str(session_id): reason for session_id, reason in self.held.items()},
            "metrics": self.metrics,
            "kept_copies": list(self.kept_copies),
        }


class CareVerbs(Verbs):
    """Legal hold, quarantine and erasure, in the name of a caller."""

    async def hold(self, session_id: UUID | str, reason: str) -> None:
        """Put a session on legal hold, or change the reason: neither a caller nor retention can delete it.

        It may be live, archived or in quarantine, and can be used, ended and resumed as before.

        Raises:
            SessionNotFound: there is no such session.
            InvalidInput: the reason is empty or longer than 500 characters.
        """
        parsed = values.parse_session_id(session_id)
        text = values.check_text(reason, "reason", max_characters=MAX_REASON_CHARACTERS)
        keeping = self._backend.keeping
        # Look again after the hold: a session that is still there can no longer be deleted.
        is_there = await self._backend.exists(parsed, caller=self._caller)
        if not is_there or not await keeping.hold(parsed, reason=text, now=clock.now()):
            raise SessionNotFound(parsed)
        if not await self._backend.exists(parsed, caller=self._caller):
            await keeping.release(parsed)
            raise SessionNotFound(parsed)

    async def release(self, session_id: UUID | str) -> bool:
        """Release a session from its hold; `False` if it wasn't on hold.

        Raises:
            SessionNotFound: there is no such session.
        """
        parsed = values.parse_session_id(session_id)
        if not await self._backend.exists(parsed, caller=self._caller):
            raise SessionNotFound(parsed)
        return await self._backend.keeping.release(parsed)

    async def get_hold(self, session_id: UUID | str) -> str | None:
        """Why a session is on hold; `None` if it isn't, or doesn't exist."""
        parsed = values.parse_session_id(session_id)
        if not await self._backend.exists(parsed, needs=Right.READ, caller=self._caller):
            return None
        return await self._backend.keeping.hold_reason(parsed)

    async def list_quarantine(
        self, limit: int = 50, after: "QuarantinedSession | None" = None
    ) -> "list[QuarantinedSession]":
        """Sessions that could not be archived, the longest there first. The next page begins `after` the last one."""
        size = values.check_limit(limit)
        return await self._backend.keeping.quarantined(limit=size, owner=self._caller.user, after=after)

    async def get_quarantined(self, session_id: UUID | str) -> dict[str, Any]:
        """A session in quarantine: `id`, `user_id`, `reason`, `quarantined_at`, and `record`, all that was stored.

        Raises:
            SessionNotFound: it isn't in quarantine.
        """
        parsed = values.parse_session_id(session_id)
        session, dump = found_of(parsed, await self._backend.keeping.dump(parsed, owner=self._caller.user))
        return {
            "id": str(session.id),
            "user_id": session.user_id,
            "reason": session.reason,
            "quarantined_at": clock.to_iso(session.quarantined_at),
            "record": {"engine": dump.engine, "parts": dump.parts},
        }

    async def retry_quarantined(self, session_id: UUID | str) -> None:
        """Archive a session from the quarantine, once the cause is fixed or a newer fiml installed.

        Raises:
            SessionNotFound: it isn't in quarantine.
            SessionQuarantined: it still can't be archived, and stays where it is.
        """
        parsed = values.parse_session_id(session_id)
        try:
            is_archived = await self._backend.retry(parsed, self._ended(clock.now()), caller=self._caller)
        except RecordRefused as exc:
            raise SessionQuarantined(parsed, exc.problem) from exc
        if not is_archived:
            raise SessionNotFound(parsed)

    async def erase_user(self, user_id: str) -> ErasureReceipt:
        """Remove everything of a user: tokens, sessions (live, archived, in quarantine), metrics, rollups, kept copies.

        Sessions that others shared with the user are unshared; their audit trails still name the user.

        A held session stays, with its metrics, and is listed in the receipt. Erasing again finishes an erasure that
        was interrupted.

        Raises:
            InvalidInput: no user was named.
            Unavailable: an engine is unavailable, or the user keeps creating sessions; what was removed stays removed.
        """
        acting_as = self.acting_as(values.check_user_id(user_id))
        if acting_as is None:
            raise InvalidInput("user_id", f"is {echo(user_id)}", "name the user to erase")
        await self._backend.keeping.erase_tokens(acting_as)  # first, so that the user makes no new sessions
        erased: list[UUID] = []
        held: dict[UUID, str] = {}
        for _ in range(_ROUNDS):
            left = await self._backend.ids_of(acting_as) - held.keys()
            found = [session_id for session_id in sorted(left) if await self._erase(session_id, held)]
            erased += found
            if not found:
                break
        else:
            raise Unavailable(f"the erasure of user {echo(user_id)}", "this user keeps creating sessions")
        await self._take_back_from(acting_as)
        metrics = await self._backend.keeping.erase_metrics(acting_as)
        for day in await self._backend.keeping.days_behind():
            try:
                await self._backend.keeping.roll_up(day)
            except CorruptRecord as exc:
                # Somebody else's damaged metrics must not keep a user from being erased either.
                _log.warning("day_not_rolled_up", day=day.isoformat(), problem=str(exc))
        copies = await self._backend.erase_traces(acting_as, held)
        return ErasureReceipt(
            user_id=acting_as,
            erased_at=clock.now(),
            erased=erased,
            held=held,
            metrics=metrics,
            kept_copies=copies,
        )

    async def _take_back_from(self, user_id: str) -> None:
        rules = ShareRules(now=clock.now(), max_changes=self.settings.session_max_changes)
        for session_id in await self._backend.given_ids(user_id):
            try:
                await self._backend.share(session_id, take_back(user_id), rules)
            except (CorruptRecord, SchemaTooNew) as exc:
                # Somebody else's unreadable session must not keep a user from being erased.
                _log.warning("grant_of_erased_user_left", session_id=str(session_id), problem=str(exc))

    async def _erase(self, session_id: UUID, held: dict[UUID, str]) -> bool:
        try:
            # By id alone, without a caller: the owner of an unreadable session may be lost.
            return await self._backend.delete(session_id, now=clock.now())
        except SessionOnHold as exc:
            held[session_id] = exc.reason
            return False
