"""The embedded file: a tracked query beside the least that stores one at the same synchronous level.

That is one hop to a thread and a bare commit of two statements. Beside it stands the floor of this design: the
statements that fiml needs for a query, on the same file, in one hop, with all they are given ready-made. Then the
same beside another process that writes to the file without a pause, where the wait for the lock takes most.
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.bare_file import bare_connection, hop
from benchmarks.engines import Engines, looked_up
from benchmarks.peers import SQLITE
from benchmarks.timing import OURS, Batch, Comparison, calls_of, in_turn
from fiml.core import clock
from fiml.core.config import Settings, Synchronous
from fiml.sessions.backends.sqlite import headers, rows
from fiml.sessions.changes import Change
from fiml.sessions.models import QueryRecord
from fiml.sessions.query_json import encode_query
from fiml.sessions.records import Header
from fiml.sessions.rights import ANYBODY
from fiml.sessions.store import SessionStore

HOP = "one hop and a bare commit"
FLOOR = "one hop and fiml's own statements"
OWN_WAIT = "fiml's own statements with SQLite's own wait"
WAIT_S = 120  # no bare writer gives up
PAUSE_S = 0.01  # a caller that doesn't pause keeps the lock from the others, instead of waiting for it
READ = f"{rows._SELECT} WHERE id = :id AND {rows._SEEN}"


async def embedded(engines: Engines) -> AsyncIterator[Comparison]:
    """A query tracked at each level, and beside a busy writer."""
    with tempfile.TemporaryDirectory(prefix="fiml-bench-") as folder:
        for level in (Synchronous.NORMAL, Synchronous.FULL):
            yield await track(engines, Path(folder), level)
        yield await track_beside_a_writer(engines, Path(folder) / "busy")


async def track(engines: Engines, folder: Path, level: Synchronous) -> Comparison:
    """Each is given what it appends: fiml a record, the others its text."""
    plan = engines.plan
    body = json.dumps(looked_up(1).to_dict())
    settings = Settings(data_dir=folder / level.value, sqlite_synchronous=level)
    with closing(_two_tables(folder / f"bare-{level.value}.db", level)) as bare, ThreadPoolExecutor(1) as thread:
        async with SessionStore(settings) as store:
            ways = {
                OURS: tracked(store),
                HOP: calls_of(lambda: hop(thread, partial(_append, bare, body))),
                FLOOR: tracked_bare(store, thread),
                # SQLite's own level, which the peer leaves as it is, is full.
                **(engines.peers.ways("track", SQLITE, history=1) if level is Synchronous.FULL else {}),
            }
            measured = await in_turn(ways, rounds=plan.rounds, calls=plan.calls)
    note = (
        "the bare commit holds an insert and an update; fiml's own statements are what this design takes at the least"
    )
    return Comparison(f"track in the embedded file, synchronous {level.value}", measured, HOP, 1.5, note)


async def track_beside_a_writer(engines: Engines, folder: Path) -> Comparison:
    """Another process has five writers that never pause; ours do."""
    plan = engines.plan
    async with SessionStore(Settings(data_dir=folder)) as store, busy_writer(folder):
        with ThreadPoolExecutor(1) as thread:
            ways = {
                OURS: tracked(store, pause_s=PAUSE_S),
                OWN_WAIT: tracked_bare(store, thread, pause_s=PAUSE_S),
            }
            measured = await in_turn(ways, rounds=plan.rounds, calls=plan.calls)
    note = f"how long one wait in ten took at least, and the longest: {_waits(measured)}"
    return Comparison("track in the embedded file beside a busy process", measured, OWN_WAIT, note=note)


def _waits(measured: Mapping[str, list[list[float]]]) -> str:
    ordered = {name: sorted(ms for each in rounds for ms in each) for name, rounds in measured.items()}
    return "; ".join(f"{name} {ms[len(ms) * 9 // 10]:.0f} and {ms[-1]:.0f} ms" for name, ms in ordered.items())


def tracked(store: SessionStore, *, pause_s: float = 0) -> Batch:
    """A store appends ready-made records to a new session."""

    async def batch(calls: int) -> list[float]:
        session = await store.create_session(["S1"], "equity")
        ready = [looked_up(number) for number in range(calls + 1)]
        return await calls_of(lambda: store.record_query(session.id, ready.pop()), pause_s=pause_s)(calls)

    return batch


def tracked_bare(store: SessionStore, thread: ThreadPoolExecutor, *, pause_s: float = 0) -> Batch:
    """The statements that fiml needs append to a new session, with all they are given ready-made."""
    file, level = store.settings.embedded_file, store.settings.sqlite_synchronous

    async def batch(calls: int) -> list[float]:
        session = await store.create_session(["S1"], "equity")
        with closing(bare_connection(file, level, wait_s=WAIT_S)) as same:
            ready = iter(prepared(same, session.id, calls + 1))
            append = partial(append_as_ours, same)
            return await calls_of(lambda: hop(thread, partial(append, next(ready))), pause_s=pause_s)(calls)

    return batch


@asynccontextmanager
async def busy_writer(folder: Path) -> AsyncIterator[None]:
    """Another process, which writes to the embedded file in the folder without a pause until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.busy_writer", str(folder), stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"writing\n"
        yield
    finally:
        process.stdin.close()
        await process.wait()
    assert process.returncode == 0, "the busy writer failed, so nothing was measured beside it"


@dataclass(frozen=True)
class Prepared:
    """What the statements for one query are given."""

    read: dict[str, Any]
    query: tuple[str, str, str]
    counted: dict[str, Any]
    entry: tuple[str, str]


def prepared(connection: sqlite3.Connection, session_id: UUID, count: int) -> list[Prepared]:
    """So many queries for a session, one after the other."""
    header = rows.select_header(connection, session_id)
    assert header is not None
    return [_prepared(header, looked_up(number)) for number in range(count)]


def _prepared(header: Header, query: QueryRecord) -> Prepared:
    encoded, key = encode_query(query), header.id.hex
    change = Change([encoded])
    header.totals.add(query)
    header.history_bytes += encoded.size
    rows.change_header(header, change, clock.now())
    return Prepared(
        read={"id": key, "user": None},
        query=(key, encoded.id.hex, encoded.text),
        counted={"id": key, **headers.encode_counted(header)},
        entry=(key, change.act(ANYBODY, clock.now()).at_version(header.version)),
    )


def append_as_ours(connection: sqlite3.Connection, ready: Prepared) -> None:
    """What fiml does to the file for a query, and nothing else."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(READ, ready.read).fetchone()
    connection.execute(rows._APPEND_QUERY, ready.query)
    connection.execute(rows._UPDATE_COUNTED, ready.counted)
    connection.execute(rows._ADD_TO_TRAIL, ready.entry)
    connection.execute("COMMIT")


def _two_tables(path: Path, level: Synchronous) -> sqlite3.Connection:
    bare = bare_connection(path, level)
    bare.execute("CREATE TABLE queries (id INTEGER PRIMARY KEY, body TEXT)")
    bare.execute("CREATE TABLE sessions (id INTEGER PRIMARY KEY, total INTEGER)")
    bare.execute("INSERT INTO sessions VALUES (1, 0)")
    return bare


def _append(bare: sqlite3.Connection, body: str) -> None:
    bare.execute("BEGIN IMMEDIATE")
    bare.execute("INSERT INTO queries (body) VALUES (?)", (body,))
    bare.execute("UPDATE sessions SET total = total + 1 WHERE id = 1")
    bare.execute("COMMIT")
