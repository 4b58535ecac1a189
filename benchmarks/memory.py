"""What the memory costs: tracking, packing and searching, each beside a baseline in the same run, medians of rounds.

python -m benchmarks.memory --sessions 1000 --queries 10 --rounds 5
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from fiml.core import clock
from fiml.core.config import Settings, Synchronous
from fiml.sessions.context_pack import pack_context
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore

LONG = 1000
FIGURES = {name: 100.25 + place for place, name in enumerate(("price", "pe_ratio", "rsi_14", "sma_20", "sma_50"))}


def looked_up(number: int) -> QueryRecord:
    symbol = f"S{number % 50}"
    summary = f"{symbol}: close 100.25 USD (+0.12%), 2024-12-20, source yahoo"
    return QueryRecord("technical", {"symbol": symbol}, summary, 12.5, figures={**FIGURES, "n": float(number)})


async def median_ms(work: Callable[[], Awaitable[Any]], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        elapsed_ms = clock.stopwatch()
        await work()
        found.append(elapsed_ms())
    return statistics.median(found)


def line(what: str, ours: float, baseline: str, theirs: float) -> None:
    print(f"{what:<44} {ours:9.3f} ms   {baseline:<34} {theirs:9.3f} ms   ratio {ours / theirs:6.2f}")


async def pack(rounds: int) -> None:
    """The pack of a session of 1,000 queries, beside its bare JSON."""
    session = Session(type="equity", assets=["S1"])  # type: ignore[arg-type]  # the name is taken too
    session.state.history.queries.extend(looked_up(number) for number in range(LONG))

    async def packed() -> None:
        pack_context(session, max_tokens=2000)

    async def bare() -> None:
        json.dumps(session.to_dict())

    ours, theirs = await median_ms(packed, rounds), await median_ms(bare, rounds)
    line("pack 1,000 queries into 2,000 tokens", ours, "the session as JSON", theirs)


async def track(folder: Path, rounds: int) -> None:
    """A tracked query in the embedded file, beside one bare insert with its commit in a thread."""
    settings = Settings(data_dir=folder / "track", sqlite_synchronous=Synchronous.FULL)
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None, check_same_thread=False)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute("PRAGMA synchronous=FULL")
    bare.execute("CREATE TABLE queries (body TEXT)")
    text = json.dumps(looked_up(1).to_dict())

    async def insert() -> None:
        await asyncio.to_thread(bare.execute, "INSERT INTO queries VALUES (?)", (text,))

    async with SessionStore(settings) as store:
        session = await store.create_session(["S1"], "equity")
        count = iter(range(10**6))
        ours = await median_ms(lambda: store.record_query(session.id, looked_up(next(count))), rounds * 50)
    line("track in the embedded file", ours, "a bare insert in a thread", await median_ms(insert, rounds * 50))
    bare.close()


async def search(folder: Path, sessions: int, queries: int, rounds: int) -> None:
    """Searches in the embedded file, half of it archived, beside the engine's bare full-text query."""
    settings = Settings(data_dir=folder / "search", sqlite_synchronous=Synchronous.OFF)
    async with SessionStore(settings) as store:
        for number in range(sessions):
            title = f"needle {number}" if number % 100 == 0 else f"hay {number}"
            session = await store.create_session(["S1"], "equity", title=title)
            for query in range(queries):
                session.add_query(looked_up(number * queries + query))
            await store.update_session(session.id, session)
            if number % 2:
                await store.archive_session(session.id)
        elapsed_ms = clock.stopwatch()
        while (await store.search_sessions(None, "needle")).not_indexed:
            pass
        print(f"first searches, which index {sessions} sessions: {elapsed_ms():.0f} ms")
        bare = sqlite3.connect(settings.embedded_file)

        async def match() -> None:
            bare.execute("SELECT rowid FROM session_fts WHERE session_fts MATCH 'needle' LIMIT 20").fetchall()

        engine = await median_ms(match, rounds * 5)
        for what, text in (("words", "needle"), ("words and a figure", "needle rsi_14 > 50"), ("a figure", "n < 5")):
            ours = await median_ms(partial(store.search_sessions, None, text), rounds * 5)
            line(f"search {sessions} sessions by {what}", ours, "FTS5 alone, in this thread", engine)
        bare.close()


async def main() -> None:
    """Run all, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fiml-bench-") as name:
        folder = Path(name)
        await pack(given.rounds)
        await track(folder, given.rounds)
        await search(folder, given.sessions, given.queries, given.rounds)


if __name__ == "__main__":
    asyncio.run(main())
