"""Statistics at a million archived sessions: one user's thirty days, and everybody's.

The metrics are made in the database. The baseline is the same statistics added up from the metrics, without rollups.

    python -m benchmarks.analytics --sessions 1000000
"""

import argparse
import asyncio
import statistics
from datetime import date, timedelta

import asyncpg

from fiml.core import clock
from fiml.core.config import Settings
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.store import SessionStore
from tests.support.servers import postgres_server, valkey_server

USERS = 1000
DAYS = 30
ROUNDS = 7
FILL = """
INSERT INTO session_metrics (session_id, user_id, session_type, created_at, duration_seconds, total_queries,
    cache_hit_rate, avg_query_time_ms, assets_analyzed, query_type_summary, completed_normally, abandoned, ended_at,
    version, tags, cache_hits, time_histogram, queries_by_day, format)
SELECT gen_random_uuid(), 'u' || n % $2, (ARRAY['equity', 'crypto', 'portfolio', 'comparative', 'macro'])[1 + n % 5],
    moment, n % 3600, 4, 0.25, 12.5,
    jsonb_build_array('A' || n % 500, 'A' || n % 499, 'B' || n % 40), '{"price": 2, "technical": 1, "fundamentals": 1}',
    n % 3 = 0, n % 7 = 0, moment + interval '1 hour', 5, jsonb_build_array('tag' || n % 50), 1,
    jsonb_build_object((n % 60)::text, 2, (n % 70)::text || '0', 2),
    jsonb_build_object(((moment AT TIME ZONE 'UTC')::date)::text, 4), 2
FROM (
    SELECT n, $3::timestamptz - (n % ($4 * 86400)) * interval '1 second' AS moment FROM generate_series(1, $1) AS n
) AS moments
"""


async def run(count: int) -> None:
    with valkey_server() as valkey, postgres_server(durable=True) as postgres:
        async with SessionStore(Settings(redis_url=valkey.url, database_url=postgres.url)) as store:
            connection = await asyncpg.connect(postgres.url)
            elapsed_ms = clock.stopwatch()
            await connection.execute(FILL, count, USERS, clock.now(), DAYS)
            print(f"{count} rows of metrics made in {elapsed_ms() / 1000:.0f} s")
            today = clock.now().date()
            await connection.executemany("INSERT INTO rollup_marks (day) VALUES ($1)", _days(today))
            analytics = SessionAnalytics(store.session_maker, store)
            await connection.execute("ANALYZE")
            before = {user: await timed(analytics, user, rounds=2) for user in ("u7", None)}
            elapsed_ms = clock.stopwatch()
            days = await store.roll_up()
            print(f"rollups of {days} days made in {elapsed_ms() / 1000:.1f} s")
            await connection.execute("ANALYZE")
            for user, name in (("u7", "one user"), (None, "everybody")):
                middle, lowest, highest, total = await timed(analytics, user, rounds=ROUNDS)
                print(
                    f"  {name:<10} {middle:7.1f} ms ({lowest:.1f} to {highest:.1f}), {total} sessions; "
                    f"{middle / before[user][0]:.3f} of the same from metrics alone ({before[user][0]:.0f} ms)"
                )
            await connection.close()


def _days(today: date) -> list[tuple[date]]:
    return [(today - timedelta(days=n),) for n in range(DAYS + 2)]


async def timed(analytics: SessionAnalytics, user: str | None, *, rounds: int) -> tuple[float, float, float, int]:
    """Median, least and most milliseconds, and how many sessions were counted."""
    measured = []
    for _ in range(rounds):
        elapsed_ms = clock.stopwatch()
        stats = await analytics.get_session_stats(user_id=user, days=DAYS)
        measured.append(elapsed_ms())
    return statistics.median(measured), min(measured), max(measured), stats["total_sessions"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    asyncio.run(run(parser.parse_args().sessions))
