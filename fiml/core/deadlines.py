"""Limits on how long a call may take: `answer_within` for a block, and `Deadlines` where calls are many.

`asyncio.timeout` arms a timer for each call. `Deadlines` watches all calls with one timer, which costs far less.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fiml.core.errors import Unavailable

TICK_S = 0.05

Result = TypeVar("Result")


@asynccontextmanager
async def answer_within(seconds: float, what: str) -> AsyncIterator[None]:
    """Give `what`, which the block asks, this long to answer.

    Raises:
        Unavailable: it took longer, and the block was cancelled.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise Unavailable(what, f"no answer within {seconds:.3g} s") from exc


class Deadlines:
    """The calls under way, each with its deadline: it is ended up to a twentieth of a second early, never late.

    Serves one event loop at a time.
    """

    def __init__(self) -> None:
        self._ends_at: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def within(self, seconds: float, call: Coroutine[Any, Any, Result]) -> Result:
        """Return what a call returns. A task may make only one such call at a time.

        Raises:
            TimeoutError: the call took longer, and was cancelled.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - an awaited coroutine runs in a task
        cancellations = task.cancelling()
        self._ends_at[task] = loop.time() + seconds - TICK_S
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(TICK_S, self._look, loop)
        try:
            return await call
        except asyncio.CancelledError as exc:
            # As in asyncio.timeout: somebody else may have cancelled the task as well.
            if task in self._late and task.uncancel() <= cancellations:
                raise TimeoutError from exc
            raise
        finally:
            del self._ends_at[task]
            self._late.discard(task)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        now = loop.time()
        for task, ends_at in list(self._ends_at.items()):
            if ends_at <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        if self._ends_at:
            loop.call_later(TICK_S, self._look, loop)
        else:
            self._loop = None
