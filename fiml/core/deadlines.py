"""Limits on how long a call may take, for much less than `asyncio.timeout` costs each one.

One timer looks after all calls that are under way, so that a call arms none of its own.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

TICK_S = 0.05

Result = TypeVar("Result")


class Deadlines:
    """The calls under way and when each is too late: ended up to a twentieth of a second early, never later.

    It serves one event loop at a time.
    """

    def __init__(self) -> None:
        self._ends_at: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def within(self, seconds: float, call: Coroutine[Any, Any, Result]) -> Result:
        """What a call returns. A task is in one such call at a time.

        Raises:
            TimeoutError: it took longer, and was cancelled.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that is awaited runs in one
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
