"""Runs the benchmarks and writes `benchmarks/results/`.

python -m benchmarks            # in full, a quarter of an hour
python -m benchmarks --quick    # three minutes
python -m benchmarks --only live doors
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from benchmarks.analytics import stats
from benchmarks.archive import peaks, swept
from benchmarks.curves import curves
from benchmarks.doors import doors
from benchmarks.embedded import embedded
from benchmarks.engines import Engines, open_engines
from benchmarks.live import ended, live, pages
from benchmarks.memory import memory
from benchmarks.plan import FULL, QUICK, Plan
from benchmarks.plotting import plot
from benchmarks.report import RESULTS, Facts, Report, line, machine
from benchmarks.space import space
from benchmarks.timing import Comparison
from fiml.core import clock
from fiml.core.log import configure_logging

Family = Callable[[Engines, Report], Awaitable[None]]


async def _live(engines: Engines, report: Report) -> None:
    await _compare(report, live(engines))


async def _ended(engines: Engines, report: Report) -> None:
    await _compare(report, ended(engines))


async def _pages(engines: Engines, report: Report) -> None:
    await engines.clear()
    await _compare(report, pages(engines))
    await engines.clear()


async def _embedded(engines: Engines, report: Report) -> None:
    await _compare(report, embedded(engines))


async def _doors(engines: Engines, report: Report) -> None:
    await _compare(report, doors(engines))


async def _memory(engines: Engines, report: Report) -> None:
    await _compare(report, memory(engines.plan))


async def _archive(engines: Engines, report: Report) -> None:
    _add(report, await swept(engines.plan))
    if engines.plan.swept_sessions:
        _tell(report, await peaks(engines.plan))


async def _analytics(engines: Engines, report: Report) -> None:
    for comparison in await stats(engines):
        _add(report, comparison)


async def _space(engines: Engines, report: Report) -> None:
    for facts in await space(engines):
        _tell(report, facts)


async def _curves(engines: Engines, report: Report) -> None:
    for facts in await curves(engines):
        _tell(report, facts)


FAMILIES: dict[str, Family] = {
    "live": _live,
    "pages": _pages,
    "archived": _ended,
    "archive": _archive,
    "analytics": _analytics,
    "embedded": _embedded,
    "doors": _doors,
    "memory": _memory,
    "space": _space,
    "curves": _curves,
}


async def _compare(report: Report, comparisons: AsyncIterator[Comparison]) -> None:
    async for comparison in comparisons:
        _add(report, comparison)


def _add(report: Report, comparison: Comparison) -> None:
    report.comparisons.append(comparison)
    print(line(comparison), flush=True)


def _tell(report: Report, facts: Facts) -> None:
    report.facts.append(facts)
    print(facts.title, *facts.rows, sep="\n  ", flush=True)


async def run(plan: Plan, names: list[str], folder: Path) -> None:
    """Measure the named families, and write what came out."""
    elapsed_ms = clock.stopwatch()
    async with open_engines(plan) as engines:
        info = await engines.redis.info("server")
        valkey = str(info.get("valkey_version", info["redis_version"]))
        postgres = str(await engines.connection.fetchval("SHOW server_version"))
        report = Report(machine(valkey=valkey, postgres=postgres))
        try:
            for name in names:
                await FAMILIES[name](engines, report)
        finally:  # what was measured before something failed took its minutes
            report.machine["minutes"] = f"{elapsed_ms() / 60_000:.1f}"
            report.write(folder)
            plot(report, folder)
            print(f"written to {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and write the results.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="some families")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the folder to write to")
    given = parser.parse_args()
    configure_logging()  # as a server has it: a line for each call would be measured too
    asyncio.run(run(QUICK if given.quick else FULL, given.only, given.into))
