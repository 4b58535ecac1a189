"""A million operations by 32 callers, and how the memory of the process and of Valkey develops.

Each caller leads one session after the other through its life, so that as many are live at the end as at the beginning.

    python -m benchmarks.soak --operations 1000000
"""

import argparse
import asyncio
import gc
from pathlib import Path

from benchmarks.engines import Engines, looked_up, open_engines
from benchmarks.plan import QUICK
from benchmarks.report import RESULTS, Facts, Report, machine
from fiml.core import clock
from fiml.sessions.store import SessionStore

CALLERS = 32
TRACKS = 12
OPERATIONS_A_LIFE = TRACKS + 8
STAGES = 10


async def run(operations: int, folder: Path) -> None:
    """Soak, and write the table."""
    facts = Facts(
        f"{operations:,} operations by {CALLERS} callers",
        ["operations", "a second", "process, MiB", "Valkey, MiB", "keys in Valkey"],
        note="Valkey keeps one small key for an hour of each session that was archived; the rest comes and goes.",
    )
    async with open_engines(QUICK) as engines:
        await _lives(engines.store, lives=20)
        facts.rows.append([0.0, 0.0, *await _memory(engines)])
        done = 0
        lives = max(operations // OPERATIONS_A_LIFE // STAGES // CALLERS, 1)
        for _ in range(STAGES):
            elapsed_ms = clock.stopwatch()
            await _lives(engines.store, lives=lives)
            stage = lives * CALLERS * OPERATIONS_A_LIFE
            done += stage
            facts.rows.append([float(done), stage / elapsed_ms() * 1000, *await _memory(engines)])
            print(facts.rows[-1], flush=True)
        info = await engines.redis.info("server")
        postgres = str(await engines.connection.fetchval("SHOW server_version"))
        report = Report(machine(valkey=str(info.get("valkey_version", info["redis_version"])), postgres=postgres))
    report.facts.append(facts)
    report.write(folder)
    print(f"written to {folder}")


async def _lives(store: SessionStore, *, lives: int) -> None:
    async def caller(number: int) -> None:
        for _ in range(lives):
            await _life(store, f"u{number}")

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


async def _life(store: SessionStore, user: str) -> None:
    """Create, track, read, list, update, extend, archive, find again."""
    created = await store.create_session(["AAPL"], "equity", user_id=user, ttl_hours=24)
    for number in range(TRACKS):
        await store.record_query(created.id, looked_up(number))
    await store.get_session(created.id, recent_queries=5)
    session = await store.get_session(created.id)
    assert session is not None
    assert session.state.history.total_queries == TRACKS
    await store.list_user_sessions(user, limit=10)
    session.state.context["last_symbol"] = "AAPL"
    await store.update_session(session.id, session)
    await store.extend_session(session.id, 1)
    assert await store.archive_session(session.id)
    ended = await store.get_session(session.id, recent_queries=0)
    assert ended is not None
    assert ended.is_archived


async def _memory(engines: Engines) -> list[float]:
    gc.collect()
    memory = await engines.redis.info("memory")
    return [_resident_mib(), int(memory["used_memory"]) / 2**20, float(await engines.redis.dbsize())]


def _resident_mib() -> float:
    with Path("/proc/self/status").open() as status:
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    return kib / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--into", type=Path, default=RESULTS / "soak")
    given = parser.parse_args()
    asyncio.run(run(given.operations, given.into))
