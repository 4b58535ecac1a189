"""`fiml sessions quarantine`: list, show and retry what could not be archived."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from fiml.cli.running import Result, SessionId, plain, with_sessions
from fiml.core.errors import InvalidInput, SessionNotFound
from fiml.sessions.store import PrincipalStore
from fiml.sessions.values import MAX_PAGE

if TYPE_CHECKING:  # loads SQLAlchemy, which a server starts without
    from fiml.sessions.backends.sql.quarantine import QuarantinedSession

quarantine = typer.Typer(help="List, show and retry sessions that could not be archived.", no_args_is_help=True)


@quarantine.command("list")
def list_(limit: Annotated[int, typer.Option(help="how many", min=1)] = 50) -> None:
    """List the quarantined sessions, oldest first, each with the reason."""
    found = with_sessions(lambda store: _first(store, limit + 1))
    if not found:
        typer.echo("nothing is in quarantine")
    for session in found[:limit]:
        typer.echo(f"{session.id}  since {session.quarantined_at:%Y-%m-%d %H:%M} UTC  {plain(session.user_id or '')}")
        typer.echo(f"    {plain(session.reason)}")
    if len(found) > limit:
        typer.echo("there are more: give a larger --limit")


async def _first(store: PrincipalStore, count: int) -> "list[QuarantinedSession]":
    found: list[QuarantinedSession] = []
    while len(found) < count:
        size = min(count - len(found), MAX_PAGE)
        page = await store.list_quarantine(size, after=found[-1] if found else None)
        found += page
        if len(page) < size:
            break
    return found


@quarantine.command()
def show(session_id: SessionId) -> None:
    """Show a quarantined session with all its stored data, as JSON."""
    typer.echo(json.dumps(_with_quarantined(lambda store: store.get_quarantined(session_id)), indent=2))


@quarantine.command()
def retry(session_id: SessionId) -> None:
    """Try again to archive a quarantined session."""
    _with_quarantined(lambda store: store.retry_quarantined(session_id))
    typer.echo("archived")


def _with_quarantined(work: Callable[[PrincipalStore], Awaitable[Result]]) -> Result:
    try:
        return with_sessions(work)
    except SessionNotFound as exc:  # the session may exist, but it isn't in quarantine
        problem = f"{exc.session_id} isn't in quarantine"
        raise InvalidInput("session", problem, "`fiml sessions quarantine list` shows what is") from None
