"""A question that many ask at once and that is put once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class SharedLook(Generic[Answer]):
    """One look at a time: who asks while one is under way gets what it finds, and who leaves cuts nobody off."""

    def __init__(self, look: Callable[[], Awaitable[Answer]]) -> None:
        self._look = look
        self._under_way: asyncio.Future[Answer] | None = None

    async def result(self) -> Answer:
        """What the look finds."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(self._look())
        return await asyncio.shield(self._under_way)
