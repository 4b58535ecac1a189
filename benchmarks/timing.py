"""Times an operation done in several ways, in turn, so that a machine that slows down slows them all."""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fiml.core import clock

Call = Callable[[], Awaitable[Any]]
Batch = Callable[[int], Awaitable[list[float]]]
"""Does an operation so many times; the milliseconds of each."""

OURS = "fiml"


@dataclass(frozen=True)
class Figure:
    """What a way took: the median of all calls, and the quarter of them below and above."""

    median: float
    low: float
    high: float


@dataclass
class Comparison:
    """An operation in several ways; `rounds` holds for each way what its rounds measured, in milliseconds.

    `baseline` is the way that `limit` counts from: the median of the rounds' ratios is to stay at or below it.
    """

    operation: str
    rounds: dict[str, list[list[float]]]
    baseline: str
    limit: float | None = None
    note: str = ""
    figures: dict[str, Figure] = field(init=False)

    def __post_init__(self) -> None:
        self.figures = {name: figure_of([ms for each in rounds for ms in each]) for name, rounds in self.rounds.items()}

    def ratio(self, baseline: str | None = None) -> float:
        """Ours to a baseline's: the median of the ratios of each round's medians."""
        theirs = self.rounds[baseline or self.baseline]
        pairs = zip(self.rounds[OURS], theirs, strict=True)
        return statistics.median(statistics.median(ours) / statistics.median(other) for ours, other in pairs)

    @property
    def peers(self) -> list[str]:
        """The ways that are neither ours nor the baseline."""
        return [name for name in self.rounds if name not in {OURS, self.baseline}]

    @property
    def is_met(self) -> bool | None:
        """Whether the limit is kept; `None` where there is none."""
        return None if self.limit is None else self.ratio() <= self.limit


def figure_of(measured: list[float]) -> Figure:
    """The figure of measured calls."""
    if len(measured) == 1:
        return Figure(measured[0], measured[0], measured[0])
    low, middle, high = statistics.quantiles(measured, n=4, method="inclusive")
    return Figure(middle, low, high)


def calls_of(call: Call, *, pause_s: float = 0) -> Batch:
    """The batch that awaits a call again and again, after a pause each time; the first one isn't counted."""

    async def batch(count: int) -> list[float]:
        await call()
        measured = []
        for _ in range(count):
            if pause_s:
                await asyncio.sleep(pause_s)
            measured.append(await one_ms(call))
        return measured

    return batch


async def one_ms(call: Call) -> float:
    """How long a call takes."""
    elapsed_ms = clock.stopwatch()
    await call()
    return elapsed_ms()


async def in_turn(ways: Mapping[str, Batch], *, rounds: int, calls: int) -> dict[str, list[list[float]]]:
    """What this many rounds of each way measured; every other round goes through the ways backwards."""
    measured: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            measured[name].append(await ways[name](calls))
    return measured


async def in_lockstep(ways: Mapping[str, Call], *, times: int) -> dict[str, list[float]]:
    """What this many calls of each way took, one call of each after the other; every other time backwards.

    Nothing but the ways themselves can make a difference of a few percent then, such as memory that was just in use.
    """
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(times):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            measured[name].append(await one_ms(ways[name]))
    return measured
