"""`fiml sessions replay`: what became of a session's figures."""

import asyncio
from typing import Annotated

import typer

from fiml.cli.running import AsJson, SessionId, plain, shown_json
from fiml.core.config import MarketData, Settings
from fiml.core.errors import SessionNotFound
from fiml.replay import DEFAULT_TOLERANCE, Drift, Replay, ReplayedQuery
from fiml.replay import replay as ask_again
from fiml.runtime import open_runtime
from fiml.sessions.values import parse_session_id

_SHOWN_DRIFTS = 12


def replay(
    session_id: SessionId,
    tolerance: Annotated[float, typer.Option(help="how far a figure may move, as a fraction")] = DEFAULT_TOLERANCE,
    market_data: Annotated[
        MarketData | None, typer.Option(help="the source to ask, instead of FIML_MARKET_DATA")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a session's questions again and show which figures changed, and which conclusions rest on them."""
    changed = {} if market_data is None else {"market_data": market_data}
    found = asyncio.run(_replay(session_id, tolerance, Settings(**changed)))
    if as_json:
        typer.echo(shown_json(found.to_dict()))
    else:
        _show(found)


async def _replay(session_id: str, tolerance: float, settings: Settings) -> Replay:
    parsed = parse_session_id(session_id)
    async with open_runtime(settings) as runtime:
        session = await (await runtime.sessions()).get_session(parsed)
        if session is None:
            raise SessionNotFound(parsed)
        return await ask_again(session, market=runtime.market, tolerance=tolerance)


def _show(found: Replay) -> None:
    for query in found.queries:
        typer.echo(_headline(query))
        for drift in query.drifts[:_SHOWN_DRIFTS]:
            typer.echo(f"    {_line(drift)}")
        if len(query.drifts) > _SHOWN_DRIFTS:
            typer.echo(f"    and {len(query.drifts) - _SHOWN_DRIFTS} more (--json shows all)")
    moved = sum(bool(query.drifts) for query in found.queries)
    compared = sum(bool(query.compared) for query in found.queries)
    typer.echo(f"{moved} of {compared} records that could be compared moved by more than {found.tolerance:.2%}")
    if compared < len(found.queries):
        typer.echo(f"{len(found.queries) - compared} could not be compared: see above")
    for conclusion in found.conclusions:
        records = ", ".join(str(record_id)[:8] for record_id in conclusion.records)
        typer.echo(f"look again at: {plain(conclusion.note.text)} (rests on {records})")


def _headline(query: ReplayedQuery) -> str:
    head = f"{str(query.record_id)[:8]}  {query.asked_at[:16]}  {plain(query.symbol or '-')}: "
    if query.source_then is None and query.as_of_then is None and query.problem is not None:
        return head + plain(query.problem)
    head += f"{plain(query.source_then or '?')} {query.as_of_then or '?'}"
    if query.source_now is not None:
        head += f" -> {plain(query.source_now)} {query.as_of_now}"
    if query.compared:
        head += f", {len(query.drifts)} of {query.compared} figures moved"
    return head if query.problem is None else f"{head}; {plain(query.problem)}"


def _line(drift: Drift) -> str:
    now = "gone" if drift.now is None else f"{drift.now:.10g}"
    change = "" if drift.change is None else f" ({drift.change:+.2%})"
    return f"{plain(drift.figure)}: {drift.then:.10g} -> {now}{change}"
