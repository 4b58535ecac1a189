"""The first cache: Redis or Valkey in the server deployment, the process's memory in the embedded one."""

from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING

from fiml.cache.entries import CacheEntry, Layer
from fiml.core import clock
from fiml.core.log import get_logger

if TYPE_CHECKING:  # redis-py is an extra
    from fiml.db.redis_client import RedisClient

KEY_PREFIX = "cache:"
MAX_ENTRIES = 1000

_MILLISECOND = timedelta(milliseconds=1)
_log = get_logger()


class RedisL1Cache:
    """Entries in Redis, which expire there by themselves. It connects at the first call."""

    layer: Layer = "l1"

    def __init__(self, client: "RedisClient") -> None:
        self._client = client

    async def get(self, key: str) -> CacheEntry | None:
        [text] = await self._client.run([("GET", KEY_PREFIX + key)])
        if text is None:
            return None
        try:
            entry = CacheEntry.from_json(text)
        except ValueError as exc:
            _log.warning("cache_value_damaged", layer=self.layer, problem=str(exc))
            return None
        return entry if entry.keep_until > clock.now() else None

    async def put(self, key: str, entry: CacheEntry) -> None:
        remaining_ms = (entry.keep_until - clock.now()) // _MILLISECOND
        if remaining_ms > 0:
            await self._client.run([("SET", KEY_PREFIX + key, entry.to_json(), "PX", remaining_ms)])

    async def aclose(self) -> None:
        await self._client.close()


class MemoryL1Cache:
    """Entries in memory; if there are too many, the least recently used one is removed."""

    layer: Layer = "l1"

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()

    async def get(self, key: str) -> CacheEntry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.keep_until <= clock.now():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry

    async def put(self, key: str, entry: CacheEntry) -> None:
        if entry.keep_until <= clock.now():
            return
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    async def aclose(self) -> None:
        self._entries.clear()
