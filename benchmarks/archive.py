"""Archiving: expired sessions from Valkey to PostgreSQL, compared with a raw pipeline over the same keys and rows.

The raw pipeline reads the same keys undecoded, COPYs the rows into both tables, inserts the words, and removes the keys
and index entries: all rows, words and commands were made before. It sends with redis-py as it comes; beside it stands
the same over the connections that fiml has of its own. COPY alone, of both tables, is the third measure.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from benchmarks.plan import Plan
from benchmarks.report import Facts
from benchmarks.timing import OURS, Batch, Comparison, in_turn
from fiml.core import clock
from fiml.core.config import Settings
from fiml.db.redis_commands import Command, with_prefix
from fiml.db.redis_node import connect
from fiml.db.redis_url import parse_redis_url
from fiml.sessions.backends.redis import keys
from fiml.sessions.backends.redis.index import leave, place_of
from fiml.sessions.backends.shapes import Ended
from fiml.sessions.backends.sql import archive as archive_rows
from fiml.sessions.backends.sql import metrics, words
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.records import SessionRecord
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.servers import postgres_server, valkey_server

RAW = "raw pipeline"
RAW_SENT_AS_OURS = "raw pipeline over fiml's own connections"
PREFIX = "fiml:"
QUERIES = 5
BATCH = 512
TABLES = "sessions, session_search, session_metrics, rollup_marks"
PUT_WORDS = """
    INSERT INTO session_search (session_id, words)
    SELECT id, array_to_tsvector(string_to_array(words, ' ')) FROM unnest($1::uuid[], $2::text[]) AS given(id, words)
"""


@dataclass(frozen=True)
class Rows:
    """What is COPYed into a table."""

    table: str
    columns: list[str]
    records: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Prepared:
    """Some sessions, as the raw pipeline is given them."""

    reading: list[Command]
    rows: list[Rows]
    words: tuple[list[UUID], list[str]]
    leaving: list[Command]


Send = Callable[[list[Command]], Awaitable[object]]
"""Sends commands in one round trip."""


class Bench:
    """The sessions of a round, and the ways to archive them."""

    def __init__(
        self, store: SessionStore, redis: Redis, connection: "asyncpg.Connection[Any]", time: FrozenClock
    ) -> None:
        self._store = store
        self._redis = redis
        self._connection = connection
        self._time = time

    async def fill(self, count: int, queries: int) -> list[Session]:
        """Add this many expired sessions."""
        await self._connection.execute(f"TRUNCATE {TABLES}")
        await self._redis.flushdb()
        created = []
        for start in range(0, count, 200):
            some = range(start, min(start + 200, count))
            created += await asyncio.gather(*(self._create(n, queries) for n in some))
        self._time.advance(hours=2)
        return created

    async def _create(self, n: int, queries: int) -> Session:
        session = await self._store.create_session(
            ["AAPL", "MSFT"], "equity", user_id=f"u{n % 100}", ttl_hours=1, tags=["tech"], title="A session"
        )
        for _ in range(queries):
            session.add_query(QueryRecord("price", {"symbol": "AAPL"}, "AAPL: close 175.43 USD (+2.30%)", 12.5))
        session.state.context["last_symbol"] = "AAPL"
        return await self._store.update_session(session.id, session)

    async def fiml(self, _records: list[SessionRecord]) -> float:
        elapsed_ms = clock.stopwatch()
        await self._store.cleanup_expired_sessions()
        return elapsed_ms()

    async def raw(self, records: list[SessionRecord], send: Send | None = None) -> float:
        send = send or self._send
        batches = [_prepared(records[start : start + BATCH]) for start in range(0, len(records), BATCH)]
        elapsed_ms = clock.stopwatch()
        for batch in batches:
            await send(batch.reading)
            async with self._connection.transaction():
                await self._copy(batch.rows)
                await self._connection.execute(PUT_WORDS, *batch.words)
            await send(batch.leaving)
        return elapsed_ms()

    async def copy(self, records: list[SessionRecord]) -> float:
        batches = [_rows(records[start : start + BATCH]) for start in range(0, len(records), BATCH)]
        elapsed_ms = clock.stopwatch()
        for rows in batches:
            async with self._connection.transaction():
                await self._copy(rows)
        return elapsed_ms()

    async def _send(self, commands: list[Command]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        await pipeline.execute()

    async def measure(self, way: Callable[..., Awaitable[float]], count: int, queries: int) -> float:
        """Milliseconds per session."""
        sessions = await self.fill(count, queries)
        records = [record for session in sessions if isinstance(record := (await self._read(session)), SessionRecord)]
        gc.collect()
        gc.freeze()  # what the benchmark holds itself, which no sweeper has in mind
        took_ms = await way(records)
        gc.unfreeze()
        archived = await self._connection.fetchval("SELECT count(*) FROM sessions")
        assert archived == count
        return took_ms / count

    async def _read(self, session: Session) -> object:
        [record] = await self._store._backend._sweeping.read([session.id])  # type: ignore[attr-defined]
        return record

    async def _copy(self, rows: list[Rows]) -> None:
        for each in rows:
            await self._connection.copy_records_to_table(each.table, columns=each.columns, records=each.records)


def _prepared(records: list[SessionRecord]) -> Prepared:
    found = [" ".join(sorted(words.read(record))) for record in records]
    return Prepared(
        reading=[command for record in records for command in _reading(record.header.id)],
        rows=_rows(records),
        words=([record.header.id for record in records], found),
        leaving=list(_leaving(records)),
    )


def _rows(records: list[SessionRecord]) -> list[Rows]:
    ended = Ended(clock.now(), write_metrics=True)
    of_tables = {
        "sessions": [archive_rows._session_row(record, ended) for record in records],
        "session_metrics": [metrics.row_of(record.header, ended.at) for record in records],
    }
    return [Rows(table, list(rows[0]), [tuple(row.values()) for row in rows]) for table, rows in of_tables.items()]


def _reading(session_id: UUID) -> list[Command]:
    header, entries, queries, _, trail = _keys(session_id)
    return [("HGETALL", header), ("HGETALL", entries), ("LRANGE", queries, 0, -1), ("LRANGE", trail, 0, -1)]


def _leaving(records: Sequence[SessionRecord]) -> Iterator[Command]:
    for record in records:
        yield ("DEL", *_keys(record.header.id))
    for stage in leave(place_of(record.header) for record in records):
        for command in stage:
            yield with_prefix(command, PREFIX)


def _keys(session_id: UUID) -> list[str]:
    return [PREFIX + key for key in keys.session_keys(session_id)]


async def swept(plan: Plan) -> Comparison:
    """Sessions archived by a sweep, on servers of its own, since its time is its own too."""
    time = FrozenClock()
    with clock.using(time), valkey_server() as valkey, postgres_server(durable=True) as postgres:
        connection = await asyncpg.connect(postgres.url)
        redis = Redis.from_url(valkey.url)
        async with SessionStore(Settings(redis_url=valkey.url, database_url=postgres.url)) as store:
            bench = Bench(store, redis, connection, time)

            def whole(way: Callable[..., Awaitable[float]]) -> Batch:
                async def batch(_calls: int) -> list[float]:
                    return [await bench.measure(way, plan.archived_sessions, QUERIES)]

                return batch

            node = connect(parse_redis_url(valkey.url))
            ways = {
                OURS: whole(bench.fiml),
                RAW: whole(bench.raw),
                RAW_SENT_AS_OURS: whole(partial(bench.raw, send=node.send)),
                "COPY alone": whole(bench.copy),
            }
            measured = await in_turn(ways, rounds=plan.rounds, calls=1)
            await node.close()
        await redis.aclose()
        await connection.close()
    operation = f"sweep, per session, {plan.archived_sessions:,} of {QUERIES} queries"
    note = (
        "the raw pipeline sends with redis-py as it comes; COPY alone is no peer, but what the rows cost at the least"
    )
    return Comparison(operation, measured, RAW, 1 / 0.6, note)


PEAK = """
import asyncio, json
from fiml.core import clock
from fiml.core.config import Settings
from fiml.db.redis_commands import Command, with_prefix
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock

def peak_kib():
    with open("/proc/self/status") as status:  # not getrusage, whose peak is inherited from the parent
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

async def main():
    time = FrozenClock()
    time.advance(days=1)
    with clock.using(time):
        async with SessionStore(Settings()) as store:
            await store.list_user_sessions(None, include_archived=True)
            before = peak_kib()
            count = await store.cleanup_expired_sessions()
            print(json.dumps([count, before, peak_kib()]))

asyncio.run(main())
"""


async def peaks(plan: Plan) -> Facts:
    """The peak of processes of their own that sweep more and more sessions."""
    facts = Facts("Peak memory of a sweep", ["expired sessions", "peak, MiB", "above an idle store, MiB"])
    time = FrozenClock()
    with clock.using(time), valkey_server() as valkey, postgres_server() as postgres:
        connection = await asyncpg.connect(postgres.url)
        redis = Redis.from_url(valkey.url)
        async with SessionStore(Settings(redis_url=valkey.url, database_url=postgres.url)) as store:
            for count in plan.swept_sessions:
                time.set(FrozenClock().now())
                await Bench(store, redis, connection, time).fill(count, 3)
                facts.rows.append(await _peak({"FIML_REDIS_URL": valkey.url, "FIML_DATABASE_URL": postgres.url}))
        await redis.aclose()
        await connection.close()
    return facts


async def _peak(environment: dict[str, str]) -> list[str | float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PEAK, env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    archived, before_kib, peak_kib = json.loads(out)
    return [float(archived), peak_kib / 1024, (peak_kib - before_kib) / 1024]
