"""Archiving: expired sessions from Valkey to PostgreSQL, beside a raw pipeline over the same keys and rows.

The raw pipeline reads the same keys undecoded, COPYs rows that were prepared before into both tables, inserts the words
that were found before, and removes the keys and index entries. COPY alone, of both tables, is the second baseline.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import asyncpg
from redis.asyncio import Redis

from benchmarks.plan import Plan
from benchmarks.report import Facts
from benchmarks.timing import OURS, Batch, Comparison, in_turn
from fiml.core import clock
from fiml.core.config import Settings
from fiml.db.redis_commands import Command, with_prefix
from fiml.sessions.backends import archive as archive_rows
from fiml.sessions.backends import metrics, words
from fiml.sessions.backends import redis_keys as keys
from fiml.sessions.backends.base import Ended
from fiml.sessions.backends.redis_index import leave, place_of
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.records import SessionRecord
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.servers import postgres_server, valkey_server

RAW = "raw pipeline"
QUERIES = 5
BATCH = 512
TABLES = "sessions, session_search, session_metrics, rollup_marks"
PUT_WORDS = """
    INSERT INTO session_search (session_id, words)
    SELECT id, array_to_tsvector(string_to_array(words, ' ')) FROM unnest($1::uuid[], $2::text[]) AS given(id, words)
"""


class Bench:
    """The sessions of a round, and the three ways to archive them."""

    def __init__(
        self, store: SessionStore, redis: Redis, connection: "asyncpg.Connection[Any]", time: FrozenClock
    ) -> None:
        self._store = store
        self._redis = redis
        self._connection = connection
        self._time = time

    async def fill(self, count: int, queries: int) -> list[Session]:
        """So many sessions that have expired."""
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

    async def fiml(self, _sessions: list[Session], _records: list[SessionRecord]) -> float:
        elapsed_ms = clock.stopwatch()
        await self._store.cleanup_expired_sessions()
        return elapsed_ms()

    async def raw(self, sessions: list[Session], records: list[SessionRecord]) -> float:
        rows, figures = self._rows(records)
        found = [" ".join(sorted(words.read(record))) for record in records]
        elapsed_ms = clock.stopwatch()
        for start in range(0, len(sessions), BATCH):
            some = slice(start, start + BATCH)
            await self._run(command for session in sessions[some] for command in _reading(session))
            await self._copy(rows[some], figures[some], found[some])
            await self._run(with_prefix(command, "fiml:") for command in _leaving(records[some]))
        return elapsed_ms()

    async def _run(self, commands: Iterable[Command]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        await pipeline.execute()

    async def copy(self, _sessions: list[Session], records: list[SessionRecord]) -> float:
        rows, figures = self._rows(records)
        elapsed_ms = clock.stopwatch()
        for start in range(0, len(rows), BATCH):
            await self._copy(rows[start : start + BATCH], figures[start : start + BATCH])
        return elapsed_ms()

    async def measure(self, way: Callable[..., Awaitable[float]], count: int, queries: int) -> float:
        """Milliseconds a session."""
        sessions = await self.fill(count, queries)
        records = [record for session in sessions if isinstance(record := (await self._read(session)), SessionRecord)]
        took_ms = await way(sessions, records)
        archived = await self._connection.fetchval("SELECT count(*) FROM sessions")
        assert archived == count
        return took_ms / count

    async def _read(self, session: Session) -> object:
        [record] = await self._store._backend._sweeping.read([session.id])  # type: ignore[attr-defined]
        return record

    def _rows(self, records: list[SessionRecord]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        ended = Ended(clock.now(), write_metrics=True)
        rows = [archive_rows._session_row(record, ended) for record in records]
        return rows, [metrics.row_of(record.header, ended.at) for record in records]

    async def _copy(self, rows: list[dict[str, Any]], figures: list[dict[str, Any]], found: Sequence[str] = ()) -> None:
        async with self._connection.transaction():
            for table, some in (("sessions", rows), ("session_metrics", figures)):
                if some:
                    await self._connection.copy_records_to_table(
                        table, columns=list(some[0]), records=[tuple(row.values()) for row in some]
                    )
            if found:
                await self._connection.execute(PUT_WORDS, [row["id"] for row in rows], found)


def _reading(session: Session) -> list[Command]:
    header, entries, queries, _, trail = (f"fiml:{key}" for key in keys.session_keys(session.id))
    return [("HGETALL", header), ("HGETALL", entries), ("LRANGE", queries, 0, -1), ("LRANGE", trail, 0, -1)]


def _leaving(records: Sequence[SessionRecord]) -> Iterator[Command]:
    for record in records:
        for key in keys.session_keys(record.header.id):
            yield ("DEL", key)
    for stage in leave(place_of(record.header) for record in records):
        yield from stage


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

            ways = {OURS: whole(bench.fiml), RAW: whole(bench.raw), "COPY alone": whole(bench.copy)}
            measured = await in_turn(ways, rounds=plan.rounds, calls=1)
        await redis.aclose()
        await connection.close()
    operation = f"sweep, per session, {plan.archived_sessions:,} of {QUERIES} queries"
    return Comparison(operation, measured, RAW, 1 / 0.6, "COPY alone is no peer, but what the rows cost at the least")


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
