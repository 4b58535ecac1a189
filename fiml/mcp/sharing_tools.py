"""The tool for sharing a session."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from fiml.core.errors import InvalidInput
from fiml.core.model import Model
from fiml.mcp import arguments as args
from fiml.mcp.results import Result
from fiml.mcp.tooling import make_tool, sessions_of
from fiml.runtime import Runtime
from fiml.sessions.rights import ShareCode, digest_of
from fiml.sessions.sharing import DEFAULT_CODE_HOURS
from fiml.sessions.values import parse_session_id
from fiml.sessions.verbs import SessionVerbs


class SharedWith(Model):
    """A user with whom it is shared."""

    user_id: str
    role: Literal["viewer", "editor"]


class OpenCode(Model):
    """A code that can be redeemed."""

    id: str
    role: Literal["viewer", "editor"]
    expires_at: datetime


class SharedSession(Result):
    """Who has a session."""

    session_id: UUID
    your_role: Literal["owner", "viewer", "editor", "none"]
    share_code: str | None = Field(None, description="new code, shown only now: for one user, with the session_id")
    shares: list[SharedWith] = Field(description="for the owner")
    open_codes: list[OpenCode] = Field(description="for the owner")


class SharingTools:
    """The sharing tool over one runtime; each call is in the name of its principal."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def share_session(
        self,
        sessionId: args.SessionId,
        withUser: args.WithUser = None,
        role: args.ShareRole = "viewer",
        codeHours: args.CodeHours = DEFAULT_CODE_HOURS,
        revokeCode: args.RevokeCode = None,
        redeemCode: args.RedeemCode = None,
    ) -> SharedSession:
        parsed = parse_session_id(sessionId)
        if sum(value is not None for value in (withUser, revokeCode, redeemCode)) > 1:
            raise InvalidInput("share-session", "does one thing at a time", "give withUser, revokeCode or redeemCode")
        sessions = await sessions_of(self._runtime)
        if redeemCode is not None:
            return await _redeem(sessions, parsed, redeemCode)
        if revokeCode is not None:
            if not await sessions.revoke_share_code(parsed, revokeCode):
                raise InvalidInput("revokeCode", "is not the id of an open code", "give one of open_codes")
            return await _as_owner(sessions, parsed)
        if withUser is None:
            if role == "none":
                raise InvalidInput("role", "is none, but no user is named", "give withUser, or revokeCode")
            return await _as_owner(sessions, parsed, await sessions.create_share_code(parsed, role, codeHours))
        return await _give(sessions, parsed, withUser, role)


async def _give(sessions: SessionVerbs, session_id: UUID, user_id: str, role: str) -> SharedSession:
    if role != "none":
        await sessions.share_session(session_id, user_id, role)
        return await _as_owner(sessions, session_id)
    await sessions.unshare_session(session_id, user_id)
    if user_id == sessions.user_id and await sessions.get_session(session_id, recent_queries=0) is None:
        return _as_guest(session_id, "none")  # a caller that gave up its own role no longer sees the session
    return await _as_owner(sessions, session_id)


async def _redeem(sessions: SessionVerbs, session_id: UUID, code: str) -> SharedSession:
    taken = await sessions.redeem_share_code(session_id, code)
    if taken is not None:
        return _as_guest(session_id, taken.value)
    own = await _as_owner(sessions, session_id)
    if all(open_code.id != digest_of(code) for open_code in own.open_codes):
        raise InvalidInput("redeemCode", "is not an open code", "leave it out: the session is already yours")
    return own


def _as_guest(session_id: UUID, role: Literal["viewer", "editor", "none"]) -> SharedSession:
    return SharedSession(session_id=session_id, your_role=role, shares=[], open_codes=[])


async def _as_owner(sessions: SessionVerbs, session_id: UUID, code: ShareCode | None = None) -> SharedSession:
    shares, codes = await sessions.list_shares(session_id), await sessions.list_share_codes(session_id)
    return SharedSession(
        session_id=session_id,
        your_role="owner",
        share_code=None if code is None else code.code,
        shares=[SharedWith(user_id=share.user_id, role=share.role.value) for share in shares],
        open_codes=[OpenCode(id=each.id, role=each.role.value, expires_at=each.expires_at) for each in codes],
    )


def sharing_tools(runtime: Runtime) -> list[Tool]:
    """The sharing tool."""
    tools = SharingTools(runtime)
    max_hours = runtime.settings.session_max_ttl_hours
    code_hours = min(DEFAULT_CODE_HOURS, max_hours)
    return [
        make_tool(
            tools.share_session,
            "Share session",
            _share_text(max_hours),
            kind="adds",
            is_destructive=True,
            defaults={"codeHours": code_hours},
            called={"user_id": "withUser", "hours": "codeHours", "share_code": "redeemCode"},
        )
    ]


def _share_text(max_hours: int) -> str:
    return (
        "Share a session with another user by name (withUser, role), or create a code for the first user who redeems it"
        f" within codeHours, at most {max_hours}. Also stops sharing with a user (role none), revokes a code, or"
        " redeems one that you were given (redeemCode). Only the owner can share. Use it when the user asks for it,"
        " never on your own. Shared sessions appear in the other user's list-sessions and search."
    )
