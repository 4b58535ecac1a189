"""Archiving: expired sessions from Valkey to PostgreSQL, beside a raw pipeline over the same keys and rows.

The raw pipeline reads the same keys undecoded, COPYs rows that were prepared before into both tables, and removes the
keys and index entries. COPY alone is the second baseline. Rounds in turn, medians.

    python -m benchmarks.archive --sessions 5000 --queries 5 --rounds 5
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from redis.asyncio import Redis

from fiml.core import clock
from fiml.core.config import Settings
from fiml.sessions.backends import archive, metrics
from fiml.sessions.backends import redis_keys as keys
from fiml.sessions.backends.base import Ended
from fiml.sessions.backends.redis_index import leave, place_of
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.records import SessionRecord
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.servers import postgres_server, valkey_server

BATCH = 512
TABLES = "sessions, session_search, session_metrics, rollup_marks"


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
        elapsed_ms = clock.stopwatch()
        for start in range(0, len(sessions), BATCH):
            some = sessions[start : start + BATCH]
            pipeline = self._redis.pipeline(transaction=False)
            for session in some:
                header, entries, queries, _ = keys.session_keys(session.id)
                pipeline.execute_command("HGETALL", header)
                pipeline.execute_command("HGETALL", entries)
                pipeline.execute_command("LRANGE", queries, 0, -1)
            await pipeline.execute()
            await self._copy(rows[start : start + BATCH], figures[start : start + BATCH])
            pipeline = self._redis.pipeline(transaction=False)
            for session in some:
                pipeline.execute_command("DEL", *keys.session_keys(session.id))
            for command in leave(place_of(record.header) for record in records[start : start + BATCH]):
                pipeline.execute_command(*command)
            await pipeline.execute()
        return elapsed_ms()

    async def copy(self, _sessions: list[Session], records: list[SessionRecord]) -> float:
        rows, figures = self._rows(records)
        elapsed_ms = clock.stopwatch()
        for start in range(0, len(rows), BATCH):
            await self._copy(rows[start : start + BATCH], figures[start : start + BATCH])
        return elapsed_ms()

    async def measure(self, way: Callable[..., Awaitable[float]], count: int, queries: int) -> float:
        """Sessions per second."""
        sessions = await self.fill(count, queries)
        records = [record for session in sessions if isinstance(record := (await self._read(session)), SessionRecord)]
        took_ms = await way(sessions, records)
        archived = await self._connection.fetchval("SELECT count(*) FROM sessions")
        assert archived == count
        return count / took_ms * 1000

    async def _read(self, session: Session) -> object:
        [record] = await self._store._backend._sweeping.read([session.id])  # type: ignore[attr-defined]
        return record

    def _rows(self, records: list[SessionRecord]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        ended = Ended(clock.now(), write_metrics=True)
        rows = [archive._session_row(record, ended) for record in records]
        return rows, [metrics.row_of(record.header, ended.at) for record in records]

    async def _copy(self, rows: list[dict[str, Any]], figures: list[dict[str, Any]]) -> None:
        async with self._connection.transaction():
            for table, some in (("sessions", rows), ("session_metrics", figures)):
                if some:
                    await self._connection.copy_records_to_table(
                        table, columns=list(some[0]), records=[tuple(row.values()) for row in some]
                    )


async def run(count: int, queries: int, rounds: int) -> None:
    time = FrozenClock()
    with clock.using(time), valkey_server() as valkey, postgres_server(durable=True) as postgres:
        connection = await asyncpg.connect(postgres.url)
        redis = Redis.from_url(valkey.url)
        async with SessionStore(Settings(redis_url=valkey.url, database_url=postgres.url)) as store:
            bench = Bench(store, redis, connection, time)
            ways = {"fiml": bench.fiml, "raw pipeline": bench.raw, "COPY alone": bench.copy}
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    rates[name].append(await bench.measure(way, count, queries))
        await redis.aclose()
        await connection.close()
    print(f"archive: {count} sessions of {queries} queries, {rounds} rounds in turn, medians")
    ours = statistics.median(rates["fiml"])
    for name, measured in rates.items():
        middle = statistics.median(measured)
        spread = f"{min(measured):.0f} to {max(measured):.0f}"
        print(f"  {name:<14} {middle:8.0f} sessions/s ({spread}); fiml is {ours / middle:.2f} of it")


PEAK = """
import asyncio, json
from fiml.core import clock
from fiml.core.config import Settings
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


async def peak_memory(counts: list[int]) -> None:
    """The peak of a process of its own that sweeps so many sessions."""
    time = FrozenClock()
    with clock.using(time), valkey_server() as valkey, postgres_server() as postgres:
        settings = Settings(redis_url=valkey.url, database_url=postgres.url)
        connection = await asyncpg.connect(postgres.url)
        redis = Redis.from_url(valkey.url)
        async with SessionStore(settings) as store:
            for count in counts:
                time.set(FrozenClock().now())
                await Bench(store, redis, connection, time).fill(count, 3)
                environment = {"FIML_REDIS_URL": valkey.url, "FIML_DATABASE_URL": postgres.url}
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", PEAK, env=environment, stdout=asyncio.subprocess.PIPE
                )
                out, _ = await process.communicate()
                archived, before_kib, peak_kib = json.loads(out)
                print(
                    f"peak memory, {archived} expired sessions: {peak_kib / 1024:.0f} MiB "
                    f"({(peak_kib - before_kib) / 1024:.0f} above an idle store)"
                )
        await redis.aclose()
        await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[1_000, 100_000])
    given = parser.parse_args()
    asyncio.run(run(given.sessions, given.queries, given.rounds))
    if given.memory:
        asyncio.run(peak_memory(given.memory))
