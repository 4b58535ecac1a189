"""The verbs beside a session's life: legal hold, quarantine, erasure."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

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
from fiml.sessions import values
from fiml.sessions.rights import Caller, Right, ShareRules, take_back

if TYPE_CHECKING:  # SQLAlchemy, which few calls need
    from fiml.core.config import Settings
    from fiml.sessions.backends.base import Backend, Ended
    from fiml.sessions.backends.quarantine import QuarantinedSession

MAX_REASON_CHARACTERS = 500
_ROUNDS = 10

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReceipt:
    """What an erasure removed, and what a hold kept: ids of sessions, by where they were, and the reasons."""

    user_id: str
    erased_at: datetime
    erased: list[UUID]
    held: dict[UUID, str]
    metrics: int
    """Rows of metrics that were left of sessions which retention had removed before."""
    kept_copies: list[str] = field(default_factory=list)
    """Copies of the file from before an upgrade that were cleaned too, and those that couldn't be, with the reason."""

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


class CareVerbs:
    """What can be done about sessions, in the name of a caller."""

    settings: "Settings"
    _caller: Caller

    @property
    def _backend(self) -> "Backend":
        raise NotImplementedError

    def acting_as(self, user_id: str | None) -> str | None:
        raise NotImplementedError

    def _ended(self, at: datetime) -> "Ended":
        raise NotImplementedError

    async def hold(self, session_id: UUID | str, reason: str) -> None:
        """Put a session on legal hold, or give its hold another reason: no deletion and no retention removes it.

        Whether it is live, archived or in quarantine. It can be used, ended and resumed as before.

        Raises:
            SessionNotFound: there is no such session.
            InvalidInput: the reason is empty or longer than 500 characters.
        """
        parsed = values.parse_session_id(session_id)
        text = values.check_text(reason, "reason", max_characters=MAX_REASON_CHARACTERS)
        keeping = self._backend.keeping
        # The hold first: what is there after it can't be deleted any more.
        is_there = await self._backend.exists(parsed, caller=self._caller)
        if not is_there or not await keeping.hold(parsed, reason=text, now=clock.now()):
            raise SessionNotFound(parsed)
        if not await self._backend.exists(parsed, caller=self._caller):
            await keeping.release(parsed)
            raise SessionNotFound(parsed)

    async def release(self, session_id: UUID | str) -> bool:
        """Release a session from its hold; `False` where it wasn't held.

        Raises:
            SessionNotFound: there is no such session.
        """
        parsed = values.parse_session_id(session_id)
        if not await self._backend.exists(parsed, caller=self._caller):
            raise SessionNotFound(parsed)
        return await self._backend.keeping.release(parsed)

    async def get_hold(self, session_id: UUID | str) -> str | None:
        """Why a session is on hold; `None` where it isn't, or isn't there."""
        parsed = values.parse_session_id(session_id)
        if not await self._backend.exists(parsed, needs=Right.READ, caller=self._caller):
            return None
        return await self._backend.keeping.hold_reason(parsed)

    async def list_quarantine(
        self, limit: int = 50, after: "QuarantinedSession | None" = None
    ) -> "list[QuarantinedSession]":
        """Sessions that could not be archived, the longest there first; go on `after` the last one of a page."""
        size = values.check_limit(limit)
        return await self._backend.keeping.quarantined(limit=size, owner=self._caller.user, after=after)

    async def get_quarantined(self, session_id: UUID | str) -> dict[str, Any]:
        """A session in quarantine: `id`, `user_id`, `reason`, `quarantined_at`, and `record`, all that was stored.

        Raises:
            SessionNotFound: it isn't there.
        """
        parsed = values.parse_session_id(session_id)
        found = await self._backend.keeping.dump(parsed, owner=self._caller.user)
        if found is None:
            raise SessionNotFound(parsed)
        session, dump = found
        return {
            "id": str(session.id),
            "user_id": session.user_id,
            "reason": session.reason,
            "quarantined_at": clock.to_iso(session.quarantined_at),
            "record": {"engine": dump.engine, "parts": dump.parts},
        }

    async def retry_quarantined(self, session_id: UUID | str) -> None:
        """Archive a session from the quarantine, as after its cause was mended or a newer fiml installed.

        Raises:
            SessionNotFound: it isn't there.
            SessionQuarantined: it still can't be archived; it stays as it is.
        """
        parsed = values.parse_session_id(session_id)
        try:
            is_archived = await self._backend.retry(parsed, self._ended(clock.now()), caller=self._caller)
        except RecordRefused as exc:
            raise SessionQuarantined(parsed, exc.problem) from exc
        if not is_archived:
            raise SessionNotFound(parsed)

    async def erase_user(self, user_id: str) -> ErasureReceipt:
        """Remove everything of a user: sessions live, archived and in quarantine, metrics, rollups, kept copies.

        What others shared with the user is taken back; their audit trails go on naming it.

        A hold wins: a held session stays, with its metrics, and stands in the receipt. Erasing again finishes an
        erasure that was cut short.

        Raises:
            InvalidInput: no user was named.
            Unavailable: an engine is away, or the user goes on creating sessions; what was removed stays removed.
        """
        acting_as = self.acting_as(values.check_user_id(user_id))
        if acting_as is None:
            raise InvalidInput("user_id", f"is {echo(user_id)}", "name the user who is to be erased")
        erased: list[UUID] = []
        held: dict[UUID, str] = {}
        for _ in range(_ROUNDS):
            left = await self._backend.ids_of(acting_as) - held.keys()
            found = [session_id for session_id in sorted(left) if await self._erase(session_id, held)]
            erased += found
            if not found:
                break
        else:
            raise Unavailable(f"the erasure of user {echo(user_id)}", "new sessions of this user come without a pause")
        await self._take_back_from(acting_as)
        metrics = await self._backend.keeping.erase_metrics(acting_as)
        for day in await self._backend.keeping.days_behind():
            await self._backend.keeping.roll_up(day)
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
                # A session of another's that can't be read keeps nobody from being erased.
                _log.warning("grant_of_erased_user_left", session_id=str(session_id), problem=str(exc))

    async def _erase(self, session_id: UUID, held: dict[UUID, str]) -> bool:
        try:
            # By its id alone: of a session that can't be read, the owner may be lost.
            return await self._backend.delete(session_id, now=clock.now())
        except SessionOnHold as exc:
            held[session_id] = exc.reason
            return False
