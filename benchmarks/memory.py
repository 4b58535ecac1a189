"""What the memory costs: packing and searching in the embedded file, each beside the least that does the same."""

import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

from benchmarks.bare_file import bare_connection, hop
from benchmarks.engines import looked_up
from benchmarks.plan import Plan
from benchmarks.timing import OURS, Call, Comparison, calls_of, in_turn
from fiml.core.config import Settings, Synchronous
from fiml.sessions.context_pack import pack_context
from fiml.sessions.models import Session
from fiml.sessions.store import SessionStore

LONG = 1000
QUERIES = 10
BARE_JSON = "the session as JSON"
MATCH = (
    "SELECT w.session_id FROM session_fts JOIN session_words w ON w.id = session_fts.rowid"
    " WHERE session_fts MATCH 'needle'"
)
SCAN = """
SELECT id FROM active_sessions WHERE {where} AND EXISTS (
    SELECT 1 FROM active_queries q WHERE q.session_id = active_sessions.id AND json_extract(q.body, {condition})
UNION ALL
SELECT id FROM sessions WHERE {where} AND EXISTS (
    SELECT 1 FROM json_each(sessions.history_queries) q WHERE json_extract(q.value, {condition})
"""


@dataclass(frozen=True)
class Search:
    """What is searched for, and the bare statement that finds the ids of the same sessions."""

    what: str
    text: str
    baseline: str
    statement: str


SEARCHES = (
    Search("words", "needle", "one hop and FTS5 alone", MATCH),
    Search(
        "words and a figure",
        "needle rsi_14 > 50",
        "one hop, FTS5 and a bare scan of what it found",
        SCAN.format(where=f"id IN ({MATCH})", condition="'$.figures.rsi_14') > 50"),
    ),
    Search(
        "a figure",
        "n < 5",
        "one hop and a bare scan of the same JSON",
        SCAN.format(where="TRUE", condition="'$.figures.n') < 5"),
    ),
)


async def memory(plan: Plan) -> AsyncIterator[Comparison]:
    """The pack of a long session, and searches."""
    yield await pack(plan)
    with tempfile.TemporaryDirectory(prefix="fiml-bench-") as folder:
        settings = Settings(data_dir=Path(folder), sqlite_synchronous=Synchronous.OFF)
        async with SessionStore(settings) as store:
            await _fill(store, plan.searched_sessions)
            while (await store.search_sessions(None, "needle")).not_indexed:
                pass
            with closing(bare_connection(settings.embedded_file)) as bare, ThreadPoolExecutor(1) as thread:
                for each in SEARCHES:
                    yield await search(plan, store, partial(hop, thread, partial(find, bare, each)), each)


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


async def search(plan: Plan, store: SessionStore, bare: Call, asked: Search) -> Comparison:
    """A search in the embedded file, half of it archived, beside what the engine takes to find the same sessions."""
    ways = {OURS: calls_of(partial(store.search_sessions, None, asked.text)), asked.baseline: calls_of(bare)}
    measured = await in_turn(ways, rounds=plan.rounds, calls=5)
    note = "ours checks who asks and gives a page of summaries in order, the bare statement ids"
    return Comparison(
        f"search {plan.searched_sessions:,} sessions by {asked.what}", measured, asked.baseline, note=note
    )


def find(bare: sqlite3.Connection, asked: Search) -> set[UUID]:
    """The sessions that the bare statement finds."""
    return {UUID(found) for (found,) in bare.execute(asked.statement)}


async def _fill(store: SessionStore, sessions: int) -> None:
    for number in range(sessions):
        title = f"needle {number}" if number % 101 == 0 else f"hay {number}"
        session = await store.create_session(["S1"], "equity", title=title)
        for query in range(QUERIES):
            session.add_query(looked_up(number * QUERIES + query))
        await store.update_session(session.id, session)
        if number % 2:
            await store.archive_session(session.id)
