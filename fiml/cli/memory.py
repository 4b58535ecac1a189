"""`fiml sessions search`, `context` and `note`."""

from typing import Annotated, Any

import typer

from fiml.cli.running import AsJson, SessionId, counted, plain, shown_json, with_sessions
from fiml.sessions.listing import SearchPage
from fiml.sessions.values import parse_moment


def search(
    text: Annotated[str | None, typer.Argument(help="words, and conditions like 'pe_ratio < 30'")] = None,
    user: Annotated[str | None, typer.Option(help="only this user's")] = None,
    symbol: Annotated[str | None, typer.Option(help="a symbol among the assets or in a question")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="only this type")] = None,
    tag: Annotated[str | None, typer.Option(help="only with this tag")] = None,
    since: Annotated[str | None, typer.Option(help="created at or after this date or time")] = None,
    until: Annotated[str | None, typer.Option(help="created before this date or time")] = None,
    live: Annotated[bool, typer.Option("--live", help="leave out archived sessions")] = False,
    limit: Annotated[int, typer.Option(help="how many, 1 to 200")] = 20,
    cursor: Annotated[str | None, typer.Option(help="where the previous page ended")] = None,
    as_json: AsJson = False,
) -> None:
    """Find sessions by their contents, newest first."""
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
    if as_json:
        typer.echo(shown_json(_found(page)))
    else:
        _show_found(page)


def context(
    session_id: SessionId,
    tokens: Annotated[int, typer.Option(help="the budget in tokens, counted as four bytes each")] = 2000,
) -> None:
    """Show what a session knows, packed into a token budget for the next conversation, as JSON."""
    pack = with_sessions(lambda store: store.pack_context(session_id, max_tokens=tokens))
    typer.echo(shown_json(pack.to_dict()))


def note(
    session_id: SessionId,
    text: Annotated[str, typer.Argument(help="what to write down")],
    conclusion: Annotated[bool, typer.Option("--conclusion", help="make it a conclusion")] = False,
    cite: Annotated[list[str] | None, typer.Option(help="id of a record that it rests on; may be repeated")] = None,
) -> None:
    """Add a note or a conclusion to a session."""
    notes, conclusions = ([], [text]) if conclusion else ([text], [])
    [written] = with_sessions(
        lambda store: store.remember(session_id, notes=notes, conclusions=conclusions, cites=cite or [])
    )
    typer.echo(str(written.id))
    typer.echo("added; the line above is its id", err=True)


def _found(page: SearchPage) -> dict[str, Any]:
    return {
        "sessions": [summary.to_dict() for summary in page],
        "next_cursor": page.next_cursor,
        "searched": page.searched,
        "truncated": page.truncated,
        "partial": page.partial,
        "not_indexed": page.not_indexed,
        "unreadable": [str(session_id) for session_id in page.unreadable],
    }


def _show_found(page: SearchPage) -> None:
    if not page:
        typer.echo("no sessions")
    for summary in page:
        about = f"{summary.title}: {', '.join(summary.assets)}" if summary.title else ", ".join(summary.assets)
        state = "archived" if summary.is_archived else "expired" if summary.is_expired else "live"
        typer.echo(f"{summary.id}  {summary.created_at:%Y-%m-%d}  {state}  {plain(about)}")
    typer.echo(f"searched: {' and '.join(page.searched)} sessions")
    if page.unreadable:
        number = counted(len(page.unreadable), "live session", "live sessions")
        typer.echo(f"{number} can't be read: {', '.join(map(str, page.unreadable))}")
    if page.not_indexed:
        typer.echo("more sessions have changed than one search can index: search again")
    if page.partial:
        typer.echo("archived sessions are missing: the archive is unavailable")
    if page.next_cursor:
        typer.echo(f"{'not all sessions were searched; ' if page.truncated else ''}more: --cursor {page.next_cursor}")
