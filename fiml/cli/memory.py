"""`fiml sessions search`, `context` and `note`."""

import json
from typing import Annotated

import typer

from fiml.cli.running import SessionId, plain, with_sessions
from fiml.sessions.listing import SearchPage
from fiml.sessions.values import parse_moment


def search(
    text: Annotated[str | None, typer.Argument(help="words, and conditions such as 'pe_ratio < 30'")] = None,
    user: Annotated[str | None, typer.Option(help="only this user's")] = None,
    symbol: Annotated[str | None, typer.Option(help="among the assets, or asked about")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="only this type")] = None,
    tag: Annotated[str | None, typer.Option(help="only with this tag")] = None,
    since: Annotated[str | None, typer.Option(help="created from this date or time on")] = None,
    until: Annotated[str | None, typer.Option(help="created before this date or time")] = None,
    live: Annotated[bool, typer.Option("--live", help="without archived ones")] = False,
    limit: Annotated[int, typer.Option(help="how many, 1 to 200")] = 20,
    cursor: Annotated[str | None, typer.Option(help="where the page before ended")] = None,
) -> None:
    """Find sessions by what is in them, newest first."""
    page = with_sessions(
        lambda store: store.search_sessions(
            user,
            text,
            symbol=symbol,
            type=type_,
            tag=tag,
            since=None if since is None else parse_moment(since, "--since"),
            until=None if until is None else parse_moment(until, "--until"),
            include_archived=not live,
            limit=limit,
            cursor=cursor,
        )
    )
    _show_found(page)


def context(
    session_id: SessionId, tokens: Annotated[int, typer.Option(help="budget, of four bytes each")] = 2000
) -> None:
    """Show what a session knows, packed into a budget, as JSON: for the next conversation."""
    pack = with_sessions(lambda store: store.pack_context(session_id, max_tokens=tokens))
    typer.echo(json.dumps(pack.to_dict(), indent=2, ensure_ascii=False))


def note(
    session_id: SessionId,
    text: Annotated[str, typer.Argument(help="what to write down")],
    conclusion: Annotated[bool, typer.Option("--conclusion", help="it is a conclusion")] = False,
    cite: Annotated[list[str] | None, typer.Option(help="id of a record that it rests on; may be repeated")] = None,
) -> None:
    """Write down a note or a conclusion in a session."""
    notes, conclusions = ([], [text]) if conclusion else ([text], [])
    [written] = with_sessions(
        lambda store: store.remember(session_id, notes=notes, conclusions=conclusions, cites=cite or [])
    )
    typer.echo(str(written.id))
    typer.echo("written; this is its id", err=True)


def _show_found(page: SearchPage) -> None:
    if not page:
        typer.echo("no sessions")
    for summary in page:
        about = f"{summary.title}: {', '.join(summary.assets)}" if summary.title else ", ".join(summary.assets)
        state = "archived" if summary.is_archived else "live"
        typer.echo(f"{summary.id}  {summary.created_at:%Y-%m-%d}  {state}  {plain(about)}")
    typer.echo(f"searched: {' and '.join(page.searched)} sessions")
    if page.unreadable:
        typer.echo(f"{len(page.unreadable)} live sessions can't be read: {', '.join(map(str, page.unreadable))}")
    if page.not_indexed:
        typer.echo("more sessions changed than one search indexes: search again")
    if page.partial:
        typer.echo("archived sessions are missing: the archive is unavailable")
    if page.next_cursor:
        typer.echo(f"{'not all looked through; ' if page.truncated else ''}more: --cursor {page.next_cursor}")
