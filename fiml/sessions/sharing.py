"""The verbs of sharing a session with other users, and its audit trail."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from fiml.core import clock
from fiml.core.errors import InvalidInput
from fiml.sessions import values
from fiml.sessions.audit import AuditEntry, decode_trail
from fiml.sessions.rights import (
    GrantChange,
    Grants,
    Role,
    Share,
    ShareCode,
    ShareRules,
    codes_in,
    give,
    new_code,
    redeem,
    role_in,
    shares_in,
    take_back,
    take_back_code,
)
from fiml.sessions.verb_base import Verbs, found_of

MAX_CODE_CHARACTERS: Final = 100
DEFAULT_CODE_HOURS: Final = 24


class SharingVerbs(Verbs):
    """Sharing, in the name of a caller. Only the owner may share a session, live or archived.

    Raises:
        SessionNotFound: from every verb, if the caller sees no such session.
        NotPermitted: from every verb, if the caller doesn't have the right that the verb needs.
    """

    async def share_session(self, session_id: UUID | str, user_id: str, role: Role | str = Role.VIEWER) -> None:
        """Share a session with a user. A viewer reads it; an editor also writes to, extends, resumes and closes it.

        Raises:
            InvalidInput: the user is missing or the owner, the role is unknown, or more than 100 users would have it.
        """
        parsed = values.parse_session_id(session_id)
        user = _named(user_id)
        await self._share(parsed, give(user, Role.parse(role)))

    async def unshare_session(self, session_id: UUID | str, user_id: str) -> None:
        """Stop sharing a session with a user. A user may also give up its own role this way."""
        await self._share(values.parse_session_id(session_id), take_back(_named(user_id)))

    async def create_share_code(
        self, session_id: UUID | str, role: Role | str = Role.VIEWER, hours: int | None = None
    ) -> ShareCode:
        """A code that gives a role to the first user who redeems it within `hours`. It can't be shown again.

        `hours` defaults to 24, or to the maximum TTL if that is less.

        Raises:
            InvalidInput: the role is unknown, the hours are out of bounds, or 20 codes are open already.
        """
        parsed = values.parse_session_id(session_id)
        max_hours = self.settings.session_max_ttl_hours
        given = min(DEFAULT_CODE_HOURS, max_hours) if hours is None else hours
        lasting = values.check_hours(given, "hours", max_hours=max_hours)
        change, code = new_code(Role.parse(role), clock.now() + timedelta(hours=lasting))
        await self._share(parsed, change)
        return code

    async def revoke_share_code(self, session_id: UUID | str, code_id: str) -> bool:
        """Revoke a code by its id; `False` if no open code has this id."""
        parsed = values.parse_session_id(session_id)
        for code in await self.list_share_codes(parsed):
            if code.id == code_id:
                await self._share(parsed, take_back_code(code))
                return True
        return False

    async def redeem_share_code(self, session_id: UUID | str, code: str) -> Role | None:
        """Take the role that a code gives, and use the code up. Returns the role; `None` for the owner, who needs none.

        A role is never lowered. A code that gives no more than the caller already has is not used up.

        Raises:
            SessionNotFound: there is no such session, or the code is not valid and the caller has no role.
        """
        parsed = values.parse_session_id(session_id)
        values.check_text(code, "share code", max_characters=MAX_CODE_CHARACTERS)
        return role_in(await self._share(parsed, redeem(code)), self._caller)

    async def list_shares(self, session_id: UUID | str) -> list[Share]:
        """The users with whom a session is shared, sorted by name. For its owner."""
        grants, _ = await self._owners_view(values.parse_session_id(session_id))
        return shares_in(grants)

    async def list_share_codes(self, session_id: UUID | str) -> list[ShareCode]:
        """The codes that can still be redeemed, without their text, the first to expire first. For the owner."""
        grants, _ = await self._owners_view(values.parse_session_id(session_id))
        return codes_in(grants, clock.now())

    async def get_audit_trail(self, session_id: UUID | str) -> list[AuditEntry]:
        """Who did what with a session, oldest first. For its owner.

        The trail has every change since the session was created. Reading is not a change, and expiry nobody's action.
        """
        parsed = values.parse_session_id(session_id)
        _, trail = await self._owners_view(parsed)
        return decode_trail(f"session {parsed}", trail)

    async def _share(self, session_id: UUID, change: GrantChange) -> Grants:
        rules = ShareRules(now=clock.now(), max_changes=self.settings.session_max_changes, caller=self._caller)
        return found_of(session_id, await self._backend.share(session_id, change, rules))

    async def _owners_view(self, session_id: UUID) -> tuple[Grants, str]:
        return found_of(session_id, await self._backend.owners_view(session_id, caller=self._caller))


def _named(user_id: object) -> str:
    user = values.check_user_id(user_id)
    if user is None:
        raise InvalidInput("user_id", "is missing", "name the user")
    return user
