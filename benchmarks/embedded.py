"""The embedded file: a tracked query beside one hop to a thread and one bare commit at the same synchronous level."""

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.engines import Engines, looked_up
from benchmarks.peers import SQLITE
from benchmarks.timing import OURS, Comparison, calls_of, in_turn
from fiml.core.config import Settings, Synchronous
from fiml.sessions.store import SessionStore

HOP = "one hop and a bare commit"


async def embedded(engines: Engines) -> AsyncIterator[Comparison]:
    """A query tracked at each level."""
    with tempfile.TemporaryDirectory(prefix="fiml-bench-") as folder:
        for level in (Synchronous.NORMAL, Synchronous.FULL):
            yield await track(engines, Path(folder), level)


async def track(engines: Engines, folder: Path, level: Synchronous) -> Comparison:
    body = json.dumps(looked_up(1).to_dict())
    settings = Settings(data_dir=folder / level.value, sqlite_synchronous=level)
    plan = engines.plan
    ready = [looked_up(number) for number in range(plan.rounds * (plan.calls + 1))]
    with closing(_bare_file(folder / f"bare-{level.value}.db", level)) as bare, ThreadPoolExecutor(1) as thread:

        async def hop() -> None:
            await asyncio.get_running_loop().run_in_executor(thread, partial(_append, bare, body))

        async with SessionStore(settings) as store:
            session = await store.create_session(["S1"], "equity")
            ways = {
                OURS: calls_of(lambda: store.record_query(session.id, ready.pop())),
                HOP: calls_of(hop),
                **(engines.peers.ways("track", SQLITE, history=1) if level is Synchronous.NORMAL else {}),
            }
            measured = await in_turn(ways, rounds=plan.rounds, calls=plan.calls)
    note = "the bare commit holds an insert and an update"
    return Comparison(f"track in the embedded file, synchronous {level.value}", measured, HOP, 1.5, note)


def _bare_file(path: Path, level: Synchronous) -> sqlite3.Connection:
    bare = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute(f"PRAGMA synchronous={level.value}")
    bare.execute("CREATE TABLE queries (id INTEGER PRIMARY KEY, body TEXT)")
    bare.execute("CREATE TABLE sessions (id INTEGER PRIMARY KEY, total INTEGER)")
    bare.execute("INSERT INTO sessions VALUES (1, 0)")
    return bare


def _append(bare: sqlite3.Connection, body: str) -> None:
    bare.execute("BEGIN IMMEDIATE")
    bare.execute("INSERT INTO queries (body) VALUES (?)", (body,))
    bare.execute("UPDATE sessions SET total = total + 1 WHERE id = 1")
    bare.execute("COMMIT")
