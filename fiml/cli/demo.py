"""The demo: an analysis told as a story, on the sample's real history."""

import asyncio
import os
import subprocess
import sys
import tempfile
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.rule import Rule

from fiml.analysis import Answer, Question, ask
from fiml.cli.running import hit_of
from fiml.core.config import Settings
from fiml.market.models import Comparison, Depth
from fiml.runtime import Runtime, open_runtime
from fiml.sessions.models import Session, SessionType
from fiml.sessions.notes import KEY_PREFIX
from fiml.sessions.queries import SESSION_LAYER

USER = "trader_123"
ASSETS = ["AAPL", "MSFT", "NVDA"]


def tell() -> None:
    """Tell the whole story, in a temporary folder that is removed at the end. It is the same whatever is configured."""
    for name in [name for name in os.environ if name.upper().startswith("FIML_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="fiml-demo-") as folder:
        os.environ |= {"FIML_MARKET_DATA": "sample", "FIML_DATA_DIR": folder}
        asyncio.run(_tell())


def carry_on(session_id: str) -> None:
    """Do the part of the story's second process."""
    asyncio.run(_carry_on(session_id))


async def _tell() -> None:
    async with open_runtime(Settings()) as runtime:
        console = _console()
        session = await _begin(console, runtime)
        await _accumulate(console, runtime, session)
        await _compare(console, runtime, session)
        _chapter(console, "4  Another process opens the same session, by its id")
        await asyncio.to_thread(_second_process, session.id)
        await _end_and_resume(console, runtime, session.id)
        await _pack(console, runtime, session.id)
        await _add_up(console, runtime)


async def _begin(console: Console, runtime: Runtime) -> Session:
    _chapter(console, "1  A session, and its first question")
    store = await runtime.store()
    session = await store.create_session(
        ASSETS, SessionType.COMPARATIVE, user_id=USER, ttl_hours=24, tags=["tech"], title="Large tech"
    )
    _say(console, f"session [bold]{session.id}[/]")
    _say(console, f"about {', '.join(session.assets)}, for {USER}, until {session.expires_at:%Y-%m-%d %H:%M} UTC")
    _show(console, await _ask(runtime, session.id, "AAPL", Depth.QUICK))
    return session


async def _accumulate(console: Console, runtime: Runtime, session: Session) -> None:
    _chapter(console, "2  The context accumulates")
    answer = await _ask(runtime, session.id, "AAPL", Depth.STANDARD)
    _show(console, answer)
    technicals = answer.market.technicals
    assert technicals is not None  # noqa: S101 - a standard answer has them
    store = await runtime.store()
    current = await store.get_session(session.id)
    assert current is not None  # noqa: S101 - it was created above
    current.state.update_context("user_preference", "detailed_analysis")
    current.state.store_intermediate_result(
        "trend", {"sma_50": technicals.sma_50, "sma_200": technicals.sma_200, "rsi_14": technicals.rsi_14}
    )
    merged = await store.update_session(current.id, current)
    trend = merged.state.get_intermediate_result("trend")
    _say(console, f"kept: 50-day mean {trend['sma_50']:.2f}, 200-day mean {trend['sma_200']:.2f} USD")
    _say(console, f"kept: RSI {trend['rsi_14']:.1f}, as of {technicals.as_of}, source {technicals.source}")
    _say(console, "AAPL's price once more: the session holds it already")
    _show(console, await _ask(runtime, session.id, "AAPL", Depth.QUICK))


async def _compare(console: Console, runtime: Runtime, session: Session) -> None:
    _chapter(console, "3  A comparison, over the days that both have")
    answer = await _ask(runtime, session.id, "AAPL", Depth.DEEP)
    _show(console, answer)
    for comparison in answer.market.comparisons:
        _show_comparison(console, comparison)
    sessions = await runtime.sessions()
    current = await sessions.get_session(session.id, recent_queries=1)
    assert current is not None  # noqa: S101 - it was created above
    [record] = current.state.history.queries
    text = "Apple lagged NVIDIA and moved with it"
    [conclusion] = await sessions.remember(session.id, conclusions=[text], cites=[record.id])
    _say(console, f"concluded: {conclusion.text}, which rests on record {str(record.id)[:8]}")


def _second_process(session_id: UUID) -> None:
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "fiml", "demo", "--session", str(session_id)], check=True)  # noqa: S603 - us


async def _carry_on(session_id: str) -> None:
    async with open_runtime(Settings()) as runtime:
        console = _console()
        session = await (await runtime.store()).get_session(session_id)
        assert session is not None  # noqa: S101 - the first process keeps it
        _say(console, f"process {os.getpid()} finds {session.state.history.total_queries} queries:")
        for query in session.state.history.queries:
            _say(console, f"  {query.timestamp:%H:%M:%S} {query.query_type}{hit_of(query)}: {query.result_summary}")
        _say(console, f"the last symbol was {session.state.get_context('last_symbol')}; it goes on with NVDA:")
        _show(console, await _ask(runtime, session.id, "NVDA", Depth.STANDARD))


async def _end_and_resume(console: Console, runtime: Runtime, session_id: UUID) -> None:
    _chapter(console, "5  Archived, found again, resumed")
    store = await runtime.store()
    await store.archive_session(session_id)
    [found] = await store.list_user_sessions(USER, include_archived=True, asset="NVDA")
    state = "archived" if found.is_archived else "live"
    _say(console, f"found by its asset NVDA: “{escape(found.title or '')}”, {state}, {found.total_queries} queries")
    [hit] = await store.search_sessions(USER, "lagged NVIDIA price > 170", symbol="AAPL")
    _say(console, f"found by what was concluded and a price above 170: “{escape(hit.title or '')}”")
    session = await store.resume_session(session_id)
    history = session.state.history
    _say(console, f"resumed under the same id: {history.total_queries} queries, version {session.version}")
    known = ", ".join(key for key in session.state.context if not key.startswith(KEY_PREFIX))
    _say(console, f"and it still knows: {known}; {', '.join(session.state.intermediate_results)}")


async def _pack(console: Console, runtime: Runtime, session_id: UUID) -> None:
    _chapter(console, "6  What a new conversation begins with, in 500 tokens")
    pack = await (await runtime.sessions()).pack_context(session_id, max_tokens=500)
    for line in pack.lines:
        name = line.id if ":" in line.id else line.id[:8]
        text = line.text.partition(" | ")[0].partition(" [cites")[0]
        _say(console, f"[dim]{escape(name)}[/]  {escape(text)}")
    _say(console, "each with the id of its record, and as many figures as fit the budget")


async def _add_up(console: Console, runtime: Runtime) -> None:
    _chapter(console, "7  What it adds up to")
    stats = await runtime.stats(USER, None, 30)
    types = ", ".join(f"{name} {count}" for name, count in stats["query_type_distribution"].items())
    _say(console, f"{stats['total_sessions']} session, {stats['total_queries']} queries: {types}")
    _say(console, "assets: " + ", ".join(f"{symbol} {count}" for symbol, count in stats["top_assets"]))
    console.print()
    _say(console, "All figures are history from the packaged sample, not today's prices.")
    _say(console, "Next: docs/tutorial.md, or `fiml install claude-code --write` for your assistant.")


async def _ask(runtime: Runtime, session_id: UUID, symbol: str, depth: Depth) -> Answer:
    question = Question(symbol=symbol, depth=depth)
    return await ask(question, market=runtime.market, sessions=await runtime.sessions(), session_id=session_id)


def _console() -> Console:
    # Without a terminal, lines aren't wrapped, for the program that reads them.
    return Console() if sys.stdout.isatty() else Console(width=200, highlight=False)


def _chapter(console: Console, title: str) -> None:
    console.print()
    if console.is_terminal:
        console.print(Rule(f"[bold cyan]{title}[/]", align="left", style="cyan"))
    else:
        console.print(f"== {title}")


def _say(console: Console, text: str) -> None:
    """Print a line, indented by two columns. If it is too long, it continues with the same indentation."""
    said = text.lstrip()
    console.print(Padding(said, (0, 0, 0, 2 + len(text) - len(said)), expand=False))


def _show(console: Console, answer: Answer) -> None:
    quote = answer.market.quote
    change = "" if quote.change_percent is None else f" ([{_color(quote.change)}]{quote.change_percent:+.2f}%[/])"
    _say(console, f"[bold]{quote.symbol}[/]  {quote.price_label} [bold]{quote.price_text}[/]{change}")
    _say(
        console, f"      as of {quote.as_of}, {quote.exchange}, source {quote.source}, adjusted for {quote.adjustment}"
    )
    if answer.since_last_look is not None:
        looked = answer.since_last_look
        _say(console, f"      since the last look at {looked.looked_at:%H:%M:%S} UTC: {looked.summary}")
    origin = "answered from the session" if answer.layer == SESSION_LAYER else "recorded"
    _say(console, f"      {origin}; queries so far: {answer.total_queries}")


def _show_comparison(console: Console, comparison: Comparison) -> None:
    _say(console, f"with [bold]{comparison.other}[/], {comparison.overlap_from} to {comparison.overlap_to}:")
    returns = {comparison.symbol: comparison.return_self, comparison.other: comparison.return_other}
    told = ", ".join(f"{symbol} {'none' if made is None else f'{made:+.1%}'}" for symbol, made in returns.items())
    correlation = "none" if comparison.correlation is None else f"{comparison.correlation:.2f}"
    _say(console, f"      {told}, correlation {correlation}, {comparison.overlap_days} days")
    if comparison.note:
        _say(console, f"      [yellow]{escape(comparison.note)}[/]")


def _color(change: float | None) -> str:
    return "green" if change is not None and change >= 0 else "red"
