"""One look that serves all who ask for it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from fiml.core.errors import Unavailable

Answer = TypeVar("Answer")


class SharedLook(Generic[Answer]):
    """Runs one look at a time: callers that ask meanwhile share its result. Cancelling one leaves it to the others."""

    def __init__(self, look: Callable[[], Awaitable[Answer]]) -> None:
        self._look = look
        self._under_way: asyncio.Future[Answer] | None = None

    async def result(self) -> Answer:
        """What the look finds.

        Raises:
            Unavailable: `close` was called meanwhile.
        """
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(self._look())
            self._under_way.add_done_callback(_retrieve_exception)
        look = self._under_way
        await asyncio.wait({look})  # a caller that is cancelled here leaves the look running for the others
        if look.cancelled():
            raise Unavailable("the engine", "it was closed during the call")
        return look.result()

    async def close(self) -> None:
        """Cancel a look that is under way."""
        look, self._under_way = self._under_way, None
        if look is not None:
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)


def _retrieve_exception(look: asyncio.Future[Any]) -> None:
    if not look.cancelled():
        look.exception()  # in case all who asked were cancelled
