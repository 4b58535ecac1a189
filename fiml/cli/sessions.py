"""`fiml sessions`: find, read, end, resume, delete and export sessions."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from fiml.cli.memory import context, note, search
from fiml.cli.quarantine import quarantine
from fiml.cli.replay import replay
from fiml.cli.running import AsJson, SessionId, counted, hit_of, plain, shown_json, with_sessions
from fiml.cli.sharing import share, shares, trail, unshare
from fiml.core.errors import CorruptRecord, InvalidInput, MissingKey, SchemaTooNew, SessionNotFound
from fiml.runtime import open_runtime
from fiml.sessions.backends.shapes import SweepReport
from fiml.sessions.listing import SummaryPage
from fiml.sessions.models import Session, SessionSummary
from fiml.sessions.notes import is_note, notes_in
from fiml.sessions.store import PrincipalStore
from fiml.sessions.values import parse_session_id

sessions = typer.Typer(help="Find, read, share, end, resume, export and delete sessions.", no_args_is_help=True)
sessions.add_typer(quarantine, name="quarantine")


@sessions.command("list")
def list_(
    user: Annotated[str | None, typer.Option(help="only this user's")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="also sessions in the archive")] = False,
    limit: Annotated[int, typer.Option(help="how many, 1 to 200")] = 20,
    cursor: Annotated[str | None, typer.Option(help="where the previous page ended")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="only this type")] = None,
    tag: Annotated[str | None, typer.Option(help="only with this tag")] = None,
    asset: Annotated[str | None, typer.Option(help="only about this asset")] = None,
    as_json: AsJson = False,
) -> None:
    """List sessions, newest first."""
    page = with_sessions(lambda store: store.list_user_sessions(user, archived, limit, cursor, type_, tag, asset))
    if as_json:
        summaries = [summary.to_dict() for summary in page]
        listed = {"sessions": summaries, "next_cursor": page.next_cursor, "partial": page.partial}
        typer.echo(shown_json(listed))
    else:
        _show_page(page, limit)


@sessions.command()
def show(
    session_id: SessionId,
    queries: Annotated[int, typer.Option(help="how many of the last queries to show", min=0)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show a session: what it is about, what it knows, what was asked last."""
    session = with_sessions(lambda store: _get(store, session_id, None if as_json else queries))
    if as_json:
        typer.echo(shown_json(session.to_dict()))
    else:
        _show_session(session)


# After those that are needed first: the help has the order in which commands are added.
for _command in (search, context, note, replay, share, unshare, shares, trail):
    sessions.command()(_command)


@sessions.command()
def archive(session_id: SessionId) -> None:
    """End a session and move it to the archive."""
    is_moved = with_sessions(lambda store: store.archive_session(session_id))
    if not is_moved:
        session = with_sessions(lambda store: _get(store, session_id, 0))
        typer.echo(f"session {session.id} is already archived")
        return
    typer.echo(f"archived; to continue it: fiml sessions resume {session_id}")


@sessions.command()
def resume(
    session_id: SessionId,
    hours: Annotated[int | None, typer.Option(help="hours until it expires; by default the default TTL")] = None,
) -> None:
    """Bring an expired or archived session back, with its whole history."""
    session = with_sessions(lambda store: store.resume_session(session_id, hours))
    typer.echo(f"live until {session.expires_at:%Y-%m-%d %H:%M} UTC, {_count(session.state.history.total_queries)}")


@sessions.command()
def delete(
    session_id: SessionId, yes: Annotated[bool, typer.Option("--yes", help="don't ask for confirmation")] = False
) -> None:
    """Delete a session for good, from everywhere."""
    named = with_sessions(lambda store: _named(store, session_id))
    if not yes:
        typer.confirm(f"Delete {named}?", abort=True)
    with_sessions(lambda store: store.delete_session(session_id))
    typer.echo("deleted")


@sessions.command()
def export(
    session_id: SessionId, output: Annotated[Path | None, typer.Option(help="a new file instead of the screen")] = None
) -> None:
    """Write a session with its whole history as JSON."""
    session = with_sessions(lambda store: _get(store, session_id, None))
    if output is None:
        typer.echo(shown_json(session.to_dict()))
        return
    _write_new(output, json.dumps(session.to_dict(), indent=2, ensure_ascii=False) + "\n")
    typer.echo(f"{_count(session.state.history.total_queries)} written to {output}")


@sessions.command()
def sweep() -> None:
    """Move every expired session to the archive."""

    async def sweep_all() -> SweepReport:
        async with open_runtime() as runtime:
            return await (await runtime.store()).sweep()

    report = asyncio.run(sweep_all())
    typer.echo(f"{counted(report.archived, 'session', 'sessions')} moved to the archive")
    if report.quarantined:
        typer.echo(f"{report.quarantined} moved to quarantine: fiml sessions quarantine list")
    if report.postponed:
        typer.echo(f"{report.postponed} left alone: a newer fiml wrote them")


@sessions.command()
def hold(session_id: SessionId, reason: Annotated[str, typer.Option(help="why", prompt=True)]) -> None:
    """Put a session on legal hold, so that neither a deletion nor the retention period removes it."""
    with_sessions(lambda store: store.hold(session_id, reason))
    typer.echo(f"on hold; to release it: fiml sessions release {session_id}")


@sessions.command()
def release(session_id: SessionId) -> None:
    """Release a session from its hold."""
    is_released = with_sessions(lambda store: store.release(session_id))
    typer.echo("released" if is_released else "it wasn't on hold")


@sessions.command()
def erase(
    user: Annotated[str, typer.Argument(help="whose sessions and metrics", metavar="USER")],
    yes: Annotated[bool, typer.Option("--yes", help="don't ask for confirmation")] = False,
) -> None:
    """Remove all of a user's data for good, except what is on hold, and print the receipt as JSON."""
    if not yes:
        typer.confirm(f"Erase all data of {plain(user)}?", abort=True)
    receipt = with_sessions(lambda store: store.erase_user(user))
    typer.echo(shown_json(receipt.to_dict()))


async def _get(store: PrincipalStore, session_id: str, recent: int | None) -> Session:
    parsed = parse_session_id(session_id)
    session = await store.get_session(parsed, recent_queries=recent)
    if session is None:
        raise SessionNotFound(parsed)
    return session


async def _named(store: PrincipalStore, session_id: str) -> str:
    """What a session is about; if it can't be read, its id and the reason."""
    try:
        session = await _get(store, session_id, 0)
    except CorruptRecord as exc:
        return f"session {session_id}, which can't be read ({plain(exc.problem)})"
    except MissingKey as exc:
        return f"session {session_id}, which can't be read (its key {plain(exc.key_id)} is missing)"
    except SchemaTooNew:
        return f"session {session_id}, which can't be read (a newer fiml wrote it)"
    return f"{_title(session)} with {_count(session.state.history.total_queries)}"


def _write_new(path: Path, text: str) -> None:
    """Write a new file, as a whole or not at all."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise InvalidInput("--output", f"{path} already exists", "name a new file, or remove that one") from None
    except OSError as exc:
        raise _not_written(path, exc) from exc
    try:
        with file:
            file.write(text)
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise _not_written(path, exc) from exc


def _not_written(path: Path, exc: OSError) -> InvalidInput:
    return InvalidInput("--output", f"{path} can't be written ({exc.strerror})", "name another file")


def _show_page(page: SummaryPage, limit: int) -> None:
    if not page:
        typer.echo("no sessions")
    for summary in page:
        typer.echo(f"{summary.id}  {summary.type}  {_count(summary.total_queries)}  {_state(summary)}")
        typer.echo(f"    {_title(summary)}")
    if page.partial:
        typer.echo("archived sessions are missing: the archive is unavailable")
    if page.next_cursor:
        typer.echo(f"{'not all were looked at; ' if len(page) < limit else ''}more: --cursor {page.next_cursor}")


def _show_session(session: Session) -> None:
    history = session.state.history
    typer.echo(f"{session.id}  version {session.version}  {_state(session)}")
    typer.echo(f"  about    {_title(session)} ({session.type})")
    typer.echo(f"  user     {plain(session.user_id or 'none')}")
    typer.echo(
        f"  created  {session.created_at:%Y-%m-%d %H:%M} UTC, last used {session.last_accessed_at:%Y-%m-%d %H:%M}"
    )
    typer.echo(f"  queries  {history.total_queries}, {history.cache_hit_rate:.0%} from the session or a cache")
    for name in ("context", "preferences", "intermediate_results", "metadata"):
        if keys := [key for key, value in getattr(session.state, name).items() if not is_note(key, value)]:
            typer.echo(f"  {name}: {plain(', '.join(keys))}")
    for written in notes_in(session.state.context):
        typer.echo(f"  {written.written_at:%m-%d %H:%M}  {written.kind}: {plain(written.text)}  [{written.id}]")
    for query in history.queries:
        result = plain(str(query.result_summary or query.parameters))
        typer.echo(f"  {query.timestamp:%m-%d %H:%M}  {plain(query.query_type)}{hit_of(query)}: {result}  [{query.id}]")


def _title(session: Session | SessionSummary) -> str:
    about = ", ".join(session.assets)
    tags = f"  [{', '.join(session.tags)}]" if session.tags else ""
    return plain((f"{session.title}: {about}" if session.title else about) + tags)


def _count(queries: int) -> str:
    return counted(queries, "query", "queries")


def _state(session: Session | SessionSummary) -> str:
    if session.is_archived:
        return "archived"
    moment = f"{session.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"expired {moment}" if session.is_expired else f"live until {moment}"
