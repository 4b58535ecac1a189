"""The engines without fiml: a session as anybody would lay it out, over a bare client.

What it writes is encoded before, and what it reads is decoded to dicts by the library that fiml decodes with.
"""

from hashlib import sha1
from typing import Any

import msgspec
from redis.asyncio import Redis

from benchmarks.engines import looked_up
from fiml.sessions.query_json import encode_query

TRACK = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('HINCRBY', KEYS[2], 'total', 1)
redis.call('ZADD', KEYS[3], ARGV[2], KEYS[2])
return redis.call('HGETALL', KEYS[2])
"""
UPDATE = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'version', 1)
"""
FIELDS = {
    "user": "analyst",
    "type": "equity",
    "title": "One",
    "created": 1734998400000000,
    "expires": 1735084800000000,
    "accessed": 1734998400000000,
    "version": 1,
    "total": 0,
    "hits": 0,
    "a:AAPL": 1,
    "a:MSFT": 2,
    "t:tech": 3,
}
BODY = encode_query(looked_up(1)).text
PAGE = 50

decode = msgspec.json.Decoder().decode


class RawSession:
    """A header, a list of queries and an index on Redis, under keys of its own."""

    _made = 0

    def __init__(self, redis: Redis) -> None:
        RawSession._made += 1
        self._redis: Any = redis  # untyped in parts
        self._name = f"raw:{{{RawSession._made}}}"

    @property
    def header(self) -> str:
        return f"{self._name}:header"

    @property
    def queries(self) -> str:
        return f"{self._name}:queries"

    async def fill(self, history: int) -> "RawSession":
        """Store the header, and a history of the size of ours."""
        await self._redis.script_load(TRACK)
        await self._redis.script_load(UPDATE)
        await self._redis.hset(self.header, mapping=FIELDS)
        if history:
            await self._redis.rpush(self.queries, *(encode_query(looked_up(number)).text for number in range(history)))
        return self

    async def create(self) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for index in ("raw:user", "raw:all"):
            pipeline.zadd(index, {self._name: 0})
        pipeline.zadd("raw:expiry", {self._name: 1})
        pipeline.hset(self.header, mapping=FIELDS)
        await pipeline.execute()

    async def track(self) -> None:
        await self._redis.evalsha(digest(TRACK), 3, self.queries, self.header, "raw:recent", BODY, 1)

    async def texts(self) -> list[bytes]:
        """The whole session in one trip; the texts of its queries."""
        return await self._texts(self._redis.pipeline(transaction=False))

    async def read(self) -> list[Any]:
        """The whole session in one trip, its JSON decoded."""
        return [decode(text) for text in await self.texts()]

    async def update(self) -> list[Any]:
        """An entry set, and the session as it is merged, in one trip."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.evalsha(digest(UPDATE), 1, self.header, "c:last_symbol", '"AAPL"')
        return [decode(text) for text in await self._texts(pipeline)]

    async def extend(self) -> list[Any]:
        """Another expiry, and the session, in one trip."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(self.header, "expires", 1735084800000001)
        return [decode(text) for text in await self._texts(pipeline)]

    async def _texts(self, pipeline: Any) -> list[bytes]:
        pipeline.hgetall(self.header)
        pipeline.lrange(self.queries, 0, -1)
        *_, queries = await pipeline.execute()
        return list(queries)


class RawListing:
    """An index of a user's sessions, and their headers."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def fill(self, count: int) -> "RawListing":
        for start in range(0, count, 1000):
            pipeline = self._redis.pipeline(transaction=False)
            for number in range(start, min(start + 1000, count)):
                pipeline.zadd("raw:listing", {f"{number:016}": 0})
                pipeline.hset(f"raw:listed:{number:016}", mapping=FIELDS)
            await pipeline.execute()
        return self

    async def page(self) -> None:
        members = await self._redis.zrange("raw:listing", "-", "+", bylex=True, offset=0, num=PAGE + 1)
        pipeline = self._redis.pipeline(transaction=False)
        for member in members:
            pipeline.hgetall(f"raw:listed:{member.decode()}")
        await pipeline.execute()


def digest(script: str) -> str:
    """The digest by which the server knows a script."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest()
