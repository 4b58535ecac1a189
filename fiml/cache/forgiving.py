"""A cache whose failures never cause a question to fail."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fiml.cache.entries import AnswerCache, CacheEntry, Layer
from fiml.core.errors import FimlError, RecordRefused
from fiml.core.log import get_logger

PATIENCE_S = 1.0
REST_S = 10.0

_log = get_logger()
Result = TypeVar("Result")


class ForgivingCache:
    """A cache that is created at its first use. A call that fails, or takes longer than a second, counts as a miss.

    Failures are logged. After one, the cache isn't asked for ten seconds: while an engine is away, every answer would
    take a second longer.
    """

    def __init__(self, layer: Layer, make: Callable[[], AnswerCache]) -> None:
        self.layer = layer
        self._make = make
        self._cache: AnswerCache | None = None
        self._rests_until = 0.0

    async def get(self, key: str) -> CacheEntry | None:
        return await self._forgiven("get", lambda cache: cache.get(key))

    async def put(self, key: str, entry: CacheEntry) -> None:
        await self._forgiven("put", lambda cache: cache.put(key, entry))

    async def aclose(self) -> None:
        cache, self._cache = self._cache, None
        if cache is None:
            return
        try:
            await cache.aclose()
        except FimlError as exc:
            _log.warning("cache_failed", layer=self.layer, call="aclose", problem=str(exc))

    async def _forgiven(self, call: str, ask: Callable[[AnswerCache], Awaitable[Result]]) -> Result | None:
        # The event loop's time: in tests, fiml's clock stands still.
        time = asyncio.get_running_loop().time
        if time() < self._rests_until:
            return None
        try:
            if self._cache is None:
                self._cache = self._make()
            async with asyncio.timeout(PATIENCE_S):
                return await ask(self._cache)
        except (FimlError, TimeoutError) as exc:
            if not isinstance(exc, RecordRefused):  # only this entry is at fault
                self._rests_until = time() + REST_S
            problem = str(exc) or f"no answer within {PATIENCE_S:g} s"
            _log.warning("cache_failed", layer=self.layer, call=call, problem=problem)
            return None
