"""`fiml sessions share`, `unshare`, `shares` and `trail`."""

import re
from typing import Annotated
from uuid import UUID

import typer

from fiml.cli.running import AsJson, SessionId, plain, shown_json, with_sessions
from fiml.core.errors import InvalidInput, echo
from fiml.sessions.audit import AuditEntry
from fiml.sessions.rights import Share, ShareCode
from fiml.sessions.store import PrincipalStore


def share(
    session_id: SessionId,
    user: Annotated[
        str | None, typer.Argument(help="the user to share with; if left out, a code is created", metavar="USER")
    ] = None,
    role: Annotated[str, typer.Option(help="viewer or editor")] = "viewer",
    hours: Annotated[
        int | None, typer.Option(help="hours to redeem a code in; by default 24, or the maximum TTL if less")
    ] = None,
) -> None:
    """Share a session with a user, or create a code for the first person who redeems it."""
    if user is not None:
        with_sessions(lambda store: store.share_session(session_id, user, role))
        typer.echo(f"shared with {plain(user)} as {role}")
        return
    code = with_sessions(lambda store: store.create_share_code(session_id, role, hours))
    typer.echo(code.code)
    typer.echo(
        f"shown only once; redeemable once, for the role {role}, until {code.expires_at:%Y-%m-%d %H:%M} UTC", err=True
    )


def unshare(
    session_id: SessionId,
    user: Annotated[str | None, typer.Argument(help="the user to stop sharing with", metavar="USER")] = None,
    code: Annotated[str | None, typer.Option(help="the id of a code to revoke instead")] = None,
) -> None:
    """Stop sharing a session with a user, or revoke a code."""
    if (user is None) == (code is None):
        raise InvalidInput("unshare", "takes a user or a code", "name one of them")
    if user is not None:
        with_sessions(lambda store: _take_back(store, session_id, user))
        typer.echo(f"no longer shared with {plain(user)}")
    elif with_sessions(lambda store: store.revoke_share_code(session_id, str(code))):
        typer.echo("revoked")
    else:
        raise InvalidInput("--code", "is not the id of an open code", f"`fiml sessions shares {session_id}` lists them")


async def _take_back(store: PrincipalStore, session_id: str, user: str) -> None:
    if all(given.user_id != user for given in await store.list_shares(session_id)):
        raise InvalidInput(
            "the session",
            f"isn't shared with {echo(user)}",
            f"`fiml sessions shares {session_id}` lists the users with whom it is shared",
        )
    await store.unshare_session(session_id, user)


def shares(session_id: SessionId) -> None:
    """Show the users with whom a session is shared, and the open codes."""

    async def read(store: PrincipalStore) -> tuple[list[Share], list[ShareCode]]:
        return await store.list_shares(session_id), await store.list_share_codes(session_id)

    given, codes = with_sessions(read)
    for each in given:
        typer.echo(f"{plain(each.user_id)}  {each.role}")
    for code in codes:
        typer.echo(f"code {code.id}  {code.role}, until {code.expires_at:%Y-%m-%d %H:%M} UTC")
    if not given and not codes:
        typer.echo("not shared")


def trail(session_id: SessionId, as_json: AsJson = False) -> None:
    """Show a session's audit trail: who did what, oldest entry first."""
    entries = with_sessions(lambda store: store.get_audit_trail(session_id))
    if as_json:
        typer.echo(shown_json([entry.to_dict() for entry in entries]))
        return
    for entry in entries:
        typer.echo(_line(entry))


def _with_dashes(name: object) -> str:
    """An id in its usual form; any other name unchanged."""
    return str(UUID(str(name))) if re.fullmatch("[0-9a-f]{32}", str(name)) else str(name)


def _line(entry: AuditEntry) -> str:
    who = "the local user" if entry.by is None else echo(entry.by)
    detail = entry.detail or {}
    about = [str(detail[name]) for name in ("with", "role", "code") if name in detail]
    about += [", ".join(map(_with_dashes, detail[name])) for name in ("queries", "parts") if name in detail]
    return plain(f"{entry.at:%Y-%m-%d %H:%M:%S}  v{entry.version}  {who}: {entry.did} {' '.join(about)}".rstrip())
