"""Statistics at a million archived sessions: one user's thirty days, and everybody's.

The metrics are made in the database. The baseline is the same statistics added up from the metrics, without rollups.
"""

from datetime import date, timedelta

from benchmarks.engines import Engines
from benchmarks.timing import OURS, Comparison, one_ms
from fiml.core import clock
from fiml.sessions.analytics import SessionAnalytics

USERS = 1000
DAYS = 30
WITHOUT = "without rollups"
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


async def stats(engines: Engines) -> list[Comparison]:
    """One user's statistics and everybody's, beside the same without rollups."""
    count = engines.plan.metrics_rows
    await engines.clear()
    connection = engines.connection
    await connection.execute(FILL, count, USERS, clock.now(), DAYS)
    await connection.executemany("INSERT INTO rollup_marks (day) VALUES ($1)", _days(clock.now().date()))
    await connection.execute("ANALYZE")
    analytics = SessionAnalytics(engines.store.session_maker, engines.store)
    rounds = engines.plan.rounds
    users = {"one user": "u7", "everybody": None}
    # A day that is marked is added up from the metrics; when its rollup is made, the mark goes.
    before = {who: await _rounds(analytics, user, rounds) for who, user in users.items()}
    await engines.store.roll_up()
    await connection.execute("ANALYZE")
    after = {who: await _rounds(analytics, user, rounds) for who, user in users.items()}
    await engines.clear()
    return [
        Comparison(f"stats of {who}, {count:,} archived", {OURS: after[who], WITHOUT: before[who]}, WITHOUT)
        for who in users
    ]


def _days(today: date) -> list[tuple[date]]:
    return [(today - timedelta(days=n),) for n in range(DAYS + 2)]


async def _rounds(analytics: SessionAnalytics, user: str | None, rounds: int) -> list[list[float]]:
    async def ask() -> None:
        await analytics.get_session_stats(user_id=user, days=DAYS)

    return [[await one_ms(ask)] for _ in range(rounds)]
