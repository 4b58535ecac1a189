"""`fiml sessions quarantine`: list, show and retry what could not be archived."""

import json
from typing import Annotated

import typer

from fiml.cli.running import SessionId, plain, with_sessions

quarantine = typer.Typer(help="List, show and retry sessions that could not be archived.", no_args_is_help=True)


@quarantine.command("list")
def list_(limit: Annotated[int, typer.Option(help="how many, 1 to 200")] = 50) -> None:
    """List them, the longest there first, each with the reason."""
    found = with_sessions(lambda store: store.list_quarantine(limit))
    if not found:
        typer.echo("nothing is in quarantine")
    for session in found:
        typer.echo(f"{session.id}  since {session.quarantined_at:%Y-%m-%d %H:%M} UTC  {plain(session.user_id or '')}")
        typer.echo(f"    {plain(session.reason)}")


@quarantine.command()
def show(session_id: SessionId) -> None:
    """Show one with all that was stored of it, as JSON."""
    typer.echo(json.dumps(with_sessions(lambda store: store.get_quarantined(session_id)), indent=2))


@quarantine.command()
def retry(session_id: SessionId) -> None:
    """Try again to archive one."""
    with_sessions(lambda store: store.retry_quarantined(session_id))
    typer.echo("archived")
