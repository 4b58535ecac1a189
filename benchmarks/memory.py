"""What the memory costs: packing and searching in the embedded file, each beside a baseline."""

import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.engines import looked_up
from benchmarks.plan import Plan
from benchmarks.timing import OURS, Comparison, calls_of, in_turn
from fiml.core.config import Settings, Synchronous
from fiml.sessions.context_pack import pack_context
from fiml.sessions.models import Session
from fiml.sessions.store import SessionStore

LONG = 1000
QUERIES = 10
SEARCHES = {"words": "needle", "words and a figure": "needle rsi_14 > 50", "a figure": "n < 5"}
BARE_JSON = "the session as JSON"
BARE_MATCH = "FTS5 alone, in this thread"


async def memory(plan: Plan) -> AsyncIterator[Comparison]:
    """The pack of a long session, and searches."""
    yield await pack(plan)
    with tempfile.TemporaryDirectory(prefix="fiml-bench-") as folder:
        settings = Settings(data_dir=Path(folder), sqlite_synchronous=Synchronous.OFF)
        async with SessionStore(settings) as store:
            await _fill(store, plan.searched_sessions)
            while (await store.search_sessions(None, "needle")).not_indexed:
                pass
            with closing(sqlite3.connect(settings.embedded_file)) as bare:
                for what, text in SEARCHES.items():
                    yield await search(plan, store, bare, what, text)


async def pack(plan: Plan) -> Comparison:
    """The pack of a session of 1,000 queries, beside its bare JSON."""
    session = Session(type="equity", assets=["S1"])  # type: ignore[arg-type]  # the name is taken too
    session.state.history.queries.extend(looked_up(number) for number in range(LONG))

    async def packed() -> None:
        pack_context(session, max_tokens=2000)

    async def bare() -> None:
        json.dumps(session.to_dict())

    ways = {OURS: calls_of(packed), BARE_JSON: calls_of(bare)}
    measured = await in_turn(ways, rounds=plan.rounds, calls=5)
    return Comparison("pack 1,000 queries into 2,000 tokens", measured, BARE_JSON)


async def search(plan: Plan, store: SessionStore, bare: sqlite3.Connection, what: str, text: str) -> Comparison:
    """A search in the embedded file, half of it archived, beside the engine's bare full-text query."""

    async def match() -> None:
        bare.execute("SELECT rowid FROM session_fts WHERE session_fts MATCH 'needle' LIMIT 20").fetchall()

    ways = {OURS: calls_of(partial(store.search_sessions, None, text)), BARE_MATCH: calls_of(match)}
    measured = await in_turn(ways, rounds=plan.rounds, calls=5)
    return Comparison(f"search {plan.searched_sessions:,} sessions by {what}", measured, BARE_MATCH)


async def _fill(store: SessionStore, sessions: int) -> None:
    for number in range(sessions):
        title = f"needle {number}" if number % 100 == 0 else f"hay {number}"
        session = await store.create_session(["S1"], "equity", title=title)
        for query in range(QUERIES):
            session.add_query(looked_up(number * QUERIES + query))
        await store.update_session(session.id, session)
        if number % 2:
            await store.archive_session(session.id)
