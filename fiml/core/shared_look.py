"""A question that many ask at once and that is put once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from fiml.core.errors import Unavailable

Answer = TypeVar("Answer")


class SharedLook(Generic[Answer]):
    """One look at a time: who asks while one is under way gets what it finds, and who leaves cuts nobody off."""

    def __init__(self, look: Callable[[], Awaitable[Answer]]) -> None:
        self._look = look
        self._under_way: asyncio.Future[Answer] | None = None

    async def result(self) -> Answer:
        """What the look finds.

        Raises:
            Unavailable: it was closed meanwhile.
        """
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(self._look())
        look = self._under_way
        await asyncio.wait({look})  # who is cancelled here leaves it to the others
        if look.cancelled():
            raise Unavailable("what was asked", "it was closed meanwhile")
        return look.result()

    async def close(self) -> None:
        """End a look under way."""
        look, self._under_way = self._under_way, None
        if look is not None:
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)
