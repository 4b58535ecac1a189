"""The space that a session takes: bytes in Valkey while it lives, bytes in PostgreSQL when it has ended."""

from collections import Counter
from typing import Any

from benchmarks.engines import Engines
from benchmarks.report import Facts

HISTORIES = (0, 10, 100)
TABLES = ("sessions", "session_metrics", "session_search")


async def space(engines: Engines) -> list[Facts]:
    """Bytes of live and of archived sessions, by history."""
    live = Facts("Bytes of a live session in Valkey", ["history", "in all", "of which", "per query more"])
    ended = Facts("Bytes of an archived session in PostgreSQL", ["history", "in all", "of which", "per query more"])
    for history in HISTORIES:
        await engines.clear()
        before = await _used(engines)
        count = engines.plan.sized_sessions
        ids = [(await engines.session(history, user=f"u{number % 100}")).id for number in range(count)]
        _add(live, history, (await _used(engines) - before) / count, await _by_key(engines.redis, count))
        empty = await _by_table(engines, 1)
        for session_id in ids:
            await engines.store.archive_session(session_id)
        filled = await _by_table(engines, 1)
        parts = Counter({table: (filled[table] - empty[table]) / count for table in TABLES})
        _add(ended, history, sum(parts.values()), parts)
    live.note = (
        "All is the growth of `used_memory` divided by the sessions; the parts are `MEMORY USAGE` of each kind of key."
    )
    ended.note = "Tables with their indexes and TOAST, freshly filled."
    return [live, ended]


def _add(facts: Facts, history: int, total: float, parts: "Counter[str]") -> None:
    of_which = ", ".join(f"{name} {size:,.0f}" for name, size in parts.most_common(6))
    more: str | float = ""
    if facts.rows:
        first = facts.rows[0]
        more = (total - float(first[1])) / (history - int(first[0]))
    facts.rows.append([float(history), total, of_which, more])


async def _used(engines: Engines) -> int:
    info = await engines.redis.info("memory")
    return int(info["used_memory"])


async def _by_key(redis: Any, count: int) -> "Counter[str]":
    """Bytes a session of each kind of key, named by what stands behind the session's id, or before the index's."""
    sizes: Counter[str] = Counter()
    async for key in redis.scan_iter(count=1000):
        name = key.decode()
        kind = name.rpartition("}:")[2] if "}:" in name else f"index {name.rpartition(':')[0]}"
        sizes[kind] += await redis.memory_usage(key, samples=0) / count
    return sizes


async def _by_table(engines: Engines, count: int) -> dict[str, float]:
    return {
        table: await engines.connection.fetchval("SELECT pg_total_relation_size($1::regclass)", table) / count
        for table in TABLES
    }
