"""The command line: each command parses, calls one verb and shows what came back."""

import signal
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from fiml import __version__
from fiml.cli.analytics import analytics
from fiml.cli.doctor import doctor
from fiml.cli.install import install
from fiml.cli.keys import keys
from fiml.cli.sessions import sessions
from fiml.cli.tokens import token
from fiml.core.errors import FimlError
from fiml.core.log import configure_logging

app = typer.Typer(
    name="fiml",
    help="Keep a financial analysis alive: sessions that remember what was asked, answered and concluded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="Upgrade the database.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")
app.add_typer(analytics, name="analytics")
app.add_typer(db, name="db")
app.add_typer(token, name="token")
app.add_typer(keys, name="keys")
app.command()(install)
app.command()(doctor)


def main() -> None:
    """Run the command line; an error is one line on standard error and the exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in case the terminal or pipe isn't UTF-8
    _configure_logging()
    try:
        app(prog_name="fiml")
    except (FimlError, OSError) as exc:
        print(f"fiml: {exc}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        sys.exit(1)


def _configure_logging() -> None:
    from fiml.core.config import Settings  # noqa: PLC0415 - not needed to define the commands

    try:
        settings = Settings()
    except FimlError:  # the command reports the error itself
        configure_logging()
    else:
        configure_logging(settings.log_level, settings.log_format)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"fiml {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def serve(
    http: Annotated[
        str | None,
        typer.Option(
            help="serve HTTP on this address instead; without token authentication only a loopback address",
            metavar="HOST:PORT",
        ),
    ] = None,
) -> None:
    """Serve an MCP client on standard input and output, or clients on HTTP."""
    import asyncio  # noqa: PLC0415 - here and below, what only this command needs

    from fiml.core.config import Settings  # noqa: PLC0415
    from fiml.core.tracing import tracing  # noqa: PLC0415

    settings = Settings()
    with tracing():
        if http is None:
            from fiml.mcp.server import serve_stdio  # noqa: PLC0415 - the MCP library takes a second

            # End at once, as at SIGTERM. To end in order, Python would wait for the thread that reads standard input.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            asyncio.run(serve_stdio(settings))
        else:
            from fiml.mcp.http import serve_http  # noqa: PLC0415 - as above, and a web server

            asyncio.run(serve_http(settings, http))


@app.command()
def worker(
    concurrency: Annotated[int, typer.Option(help="how many tasks to run at once", min=1)] = 2,
    no_beat: Annotated[bool, typer.Option("--no-beat", help="don't schedule the tasks; another worker does")] = False,
) -> None:
    """Run a Celery worker that does the maintenance, with beat, which schedules it, until stopped."""
    from fiml.core.config import Settings  # noqa: PLC0415 - here and below, what only this command needs
    from fiml.core.errors import MissingExtra  # noqa: PLC0415

    try:
        from fiml.worker import run_worker  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise MissingExtra("`fiml worker`", "server") from exc
    run_worker(Settings(), concurrency=concurrency, has_beat=not no_beat)


@app.command()
def demo(
    session: Annotated[str | None, typer.Option(hidden=True, help="continue a session, as a second process")] = None,
) -> None:
    """Show an analysis that remembers, on sample data, in a temporary folder."""
    from fiml.cli.demo import carry_on, tell  # noqa: PLC0415 - what only this command needs

    if session is None:
        tell()
    else:
        carry_on(session)


@db.command()
def upgrade() -> None:
    """Upgrade the database to the schema of this version. In an empty database, create the schema."""
    import asyncio  # noqa: PLC0415 - here and below, what only this command needs

    from fiml.core.config import Settings  # noqa: PLC0415
    from fiml.sessions.backends import upgrade_schema  # noqa: PLC0415

    revision = asyncio.run(upgrade_schema(Settings()))
    typer.echo(f"the database is at schema {revision}")
