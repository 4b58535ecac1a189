"""What others do between the steps of a call: every order of the steps of several calls, and a process that freezes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import pytest

from fiml.sessions.backends.redis import keys
from fiml.sessions.backends.tiered import sweep
from fiml.testing.conformance import Crash

Result = TypeVar("Result")
# A context, since what an actor does in tasks of its own is the actor's as well.
_current_actor: ContextVar[int | None] = ContextVar("_current_actor", default=None)


class Schedule:
    """One order: `choices` says who goes on at each step; beyond them, whoever went last goes on."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = list(choices)
        self._gates: dict[int, asyncio.Future[None]] = {}
        self._is_anybody_new = asyncio.Event()
        self.taken: list[int] = []
        self.waiting: list[list[int]] = []

    async def around(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """A call to an engine; a call of an actor waits for its turn."""
        actor = _current_actor.get()
        if actor is not None:
            assert actor not in self._gates, "an actor makes one call at a time"
            self._gates[actor] = asyncio.get_running_loop().create_future()
            self._is_anybody_new.set()
            await self._gates[actor]
        return await call()

    async def run(self, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        """What each call returned or raised."""
        tasks = [asyncio.create_task(_as_actor(actor, call)) for actor, call in enumerate(calls)]
        for task in tasks:
            task.add_done_callback(lambda _: self._is_anybody_new.set())
        while not all(task.done() for task in tasks):
            self._is_anybody_new.clear()
            if all(task.done() or actor in self._gates for actor, task in enumerate(tasks)):
                self._gates.pop(self._choose()).set_result(None)
            else:
                await self._is_anybody_new.wait()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def _choose(self) -> int:
        waiting = sorted(self._gates)
        step = len(self.taken)
        if step < len(self._choices):
            choice = self._choices[step]
        else:
            last = self.taken[-1] if self.taken else waiting[0]
            choice = last if last in waiting else waiting[0]
        self.taken.append(choice)
        self.waiting.append(waiting)
        return choice

    def preemptions(self, choices: Sequence[int]) -> int:
        """How often somebody was interrupted who could have gone on."""
        pairs = zip(choices, choices[1:], self.waiting[1:], strict=False)
        return sum(now != before and before in waiting for before, now, waiting in pairs)

    def alternatives(self, at_most: int) -> Iterator[list[int]]:
        """The schedules that differ from this one for the first time after its own choices."""
        for step in range(len(self._choices), len(self.taken)):
            for other in self.waiting[step]:
                choices = [*self.taken[:step], other]
                if other != self.taken[step] and self.preemptions(choices) <= at_most:
                    yield choices


async def _as_actor(actor: int, call: Awaitable[Any]) -> Any:
    _current_actor.set(actor)
    return await call


def explore(at_most_preemptions: int) -> Iterator[Schedule]:
    """Every schedule, each to be run before the next one is asked for."""
    open_choices: list[list[int]] = [[]]
    while open_choices:
        schedule = Schedule(open_choices.pop())
        yield schedule
        open_choices += schedule.alternatives(at_most_preemptions)


class Frozen:
    """A process that stands still before one of its calls to an engine, while others do something."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]], *, does_die: bool) -> None:
        self.has_thawed = False
        self._calls_left = -1
        self._meanwhile = meanwhile
        self._does_die = does_die

    def freeze_at(self, call: int) -> None:
        """Stand still before a call from now, the first being 1."""
        self._calls_left = call

    async def around(self, call: Callable[[], Awaitable[Result]]) -> Result:
        self._calls_left -= 1
        if self._calls_left != 0:
            return await call()
        await self._meanwhile()
        self.has_thawed = True
        result = await call()
        if self._does_die:
            raise Crash
        return result


def sweep_one_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sweep look at the whole index at once, and work on one batch at a time, so that its steps have an order."""
    monkeypatch.setattr(sweep, "_LANES", 1)
    monkeypatch.setattr(sweep, "_PARTS_A_LOOK", keys.PARTS)
