"""Limits on how long a call may take, and that a cancellation stays what it is."""

import asyncio
from typing import Any

import pytest

from fiml.core.deadlines import Deadlines

SHORT_S, LONG_S = 0.1, 60


async def test_a_call_in_time_gives_what_it_returns_or_raises() -> None:
    deadlines = Deadlines()

    assert await deadlines.within(LONG_S, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ZeroDivisionError):
        await deadlines.within(LONG_S, _fail())


async def test_a_late_call_is_ended_and_the_others_go_on() -> None:
    deadlines, go_on = Deadlines(), asyncio.Event()
    ended: list[str] = []

    async def stand_still() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    waiting = [asyncio.create_task(deadlines.within(LONG_S, go_on.wait())) for _ in range(3)]
    for _ in range(2):  # the timer goes on, and begins anew
        with pytest.raises(TimeoutError):
            await deadlines.within(SHORT_S, stand_still())
    go_on.set()

    assert await asyncio.gather(*waiting) == [True] * 3
    assert ended == ["cleaned up"] * 2
    task: Any = asyncio.current_task()
    assert task.cancelling() == 0


async def test_a_call_that_somebody_cancels_is_cancelled_also_when_it_is_late() -> None:
    deadlines = Deadlines()
    is_cleaning_up = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            is_cleaning_up.set()
            await asyncio.Event().wait()

    early = asyncio.create_task(deadlines.within(LONG_S, asyncio.Event().wait()))
    late = asyncio.create_task(deadlines.within(SHORT_S, slow_to_end()))
    await asyncio.sleep(0)
    early.cancel()
    await is_cleaning_up.wait()  # the deadline has passed
    late.cancel()

    for task in (early, late):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert early.cancelled()
    assert late.cancelled()


def test_it_serves_one_event_loop_after_the_other() -> None:
    deadlines = Deadlines()

    for _ in range(2):
        with pytest.raises(TimeoutError):
            asyncio.run(deadlines.within(SHORT_S, asyncio.sleep(LONG_S)))


async def _fail() -> None:
    raise ZeroDivisionError
