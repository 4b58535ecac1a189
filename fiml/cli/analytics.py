"""`fiml analytics`: statistics over sessions, and the rows behind them."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fiml.cli.running import counted, shown_json
from fiml.runtime import open_runtime

if TYPE_CHECKING:  # SQLAlchemy, which not every command needs
    from fiml.sessions.analytics import SessionAnalytics

analytics = typer.Typer(help="Show statistics over sessions, and export the rows behind them.", no_args_is_help=True)

User = Annotated[str | None, typer.Option(help="only this user's")]
Type = Annotated[str | None, typer.Option("--type", help="only this type")]
Days = Annotated[int, typer.Option(help="only sessions created within this many days", metavar="DAYS")]


@analytics.command()
def show(user: User = None, type_: Type = None, days: Days = 30) -> None:
    """Show statistics over live and ended sessions, as JSON."""

    async def stats() -> dict[str, Any]:
        async with open_runtime() as runtime:
            return await runtime.stats(user, type_, days)

    typer.echo(shown_json(asyncio.run(stats())))


@analytics.command()
def export(
    file: Annotated[Path, typer.Argument(help="a new file: .csv, .jsonl or .parquet", metavar="FILE")],
    user: User = None,
    type_: Type = None,
    days: Days = 30,
) -> None:
    """Write the metrics of ended sessions to a new file, one row per session."""

    async def write() -> int:
        async with open_runtime() as runtime:
            rows: SessionAnalytics = await runtime.analytics()
            return await rows.export(file, user_id=user, session_type=type_, days=days)

    typer.echo(f"{counted(asyncio.run(write()), 'row', 'rows')} written to {file}")
