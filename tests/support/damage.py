"""Damages what an engine stores of a session, or lets it refuse one."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any
from uuid import UUID

from fiml.core.config import Settings
from fiml.db.redis_client import RedisClient
from tests.support.deployment import execute


class Surgeon:
    """Damages what is stored, and repairs it again."""

    def __init__(self, settings: Settings, session_id: UUID) -> None:
        self._settings = settings
        self._hex = session_id.hex

    async def redis(self, *commands: Any) -> list[Any]:
        assert self._settings.redis_url is not None
        client = RedisClient(self._settings.redis_url, ())
        replies = await client.run(
            [
                tuple(self._meant(str(word).replace("KEY", f"fiml:{{{self._hex}}}")) for word in each)
                for each in commands
            ]
        )
        await client.close()
        return replies

    async def is_live(self) -> bool:
        return await self.redis(("EXISTS", "KEY:header")) == [1]

    def sqlite(self, statement: str) -> None:
        with closing(sqlite3.connect(self._settings.embedded_file)) as connection, connection:
            connection.execute(self._meant(statement.replace("ID", f"'{self._hex}'")))

    @staticmethod
    def _meant(text: str) -> str:
        return text.replace("DEEP", "[" * 100_000)

    async def damage(self, how: str) -> None:
        on_redis, on_sqlite = DAMAGES[how]
        if self._settings.is_embedded:
            self.sqlite(on_sqlite)
        else:
            await self.redis(*on_redis)


DAMAGES: dict[str, tuple[list[tuple[Any, ...]], str]] = {
    "a date": ([("HSET", "KEY:header", "created", "[")], "UPDATE active_sessions SET created_at = 'x' WHERE id = ID"),
    "an entry that is no JSON": (
        [("HSET", "KEY:entries", "c:0", "{half")],
        "UPDATE active_entries SET value = '{half' WHERE session_id = ID AND key = '0'",
    ),
    "an entry of the trail that is no JSON": (
        [("LSET", "KEY:trail", 1, "{half")],
        "UPDATE active_trail SET entry = '{half' WHERE n = (SELECT max(n) FROM active_trail WHERE session_id = ID)",
    ),
    "a lost query": (
        [("LPOP", "KEY:queries")],
        "DELETE FROM active_queries WHERE n = (SELECT min(n) FROM active_queries WHERE session_id = ID)",
    ),
    "a lost history": ([("DEL", "KEY:queries")], "DELETE FROM active_queries WHERE session_id = ID"),
    "lost entries": ([("DEL", "KEY:entries")], "DELETE FROM active_entries WHERE session_id = ID"),
    "no version": (
        [("HDEL", "KEY:header", "version")],
        "UPDATE active_sessions SET version = 'abc' WHERE id = ID",
    ),
    "a version that is no number": (
        [("HSET", "KEY:header", "version", "zz")],
        "UPDATE active_sessions SET time_histogram = '[]' WHERE id = ID",
    ),
    "a query that is no object": (
        [("LSET", "KEY:queries", 1, "5")],
        "UPDATE active_queries SET body = '5' WHERE n = (SELECT min(n) FROM active_queries WHERE session_id = ID)",
    ),
    "bytes that are no text": (
        [("HSET", "KEY:header", "totals", "half")],
        "UPDATE active_queries SET body = CAST(x'7bff' AS TEXT)"
        " WHERE n = (SELECT min(n) FROM active_queries WHERE session_id = ID)",
    ),
    "assets that are a number": (
        [("HSET", "KEY:header", "a:AAPL", "first")],
        "UPDATE active_sessions SET assets = '5' WHERE id = ID",
    ),
    "tags that are a number": (
        [("HSET", "KEY:header", "t:tech", "first")],
        "UPDATE active_sessions SET tags = '5' WHERE id = ID",
    ),
    "a count that is no number": (
        [("HSET", "KEY:header", "history_bytes", "many")],
        "UPDATE active_sessions SET cache_hits = 'many' WHERE id = ID",
    ),
    "a user that is no text": (
        [("HSET", "KEY:header", "user", "\x00\x1f", "type", "poetry")],
        "UPDATE active_sessions SET user_id = x'00ff', type = 'poetry' WHERE id = ID",
    ),
    "an unknown type": (
        [("HSET", "KEY:header", "type", "poetry")],
        "UPDATE active_sessions SET type = 'poetry' WHERE id = ID",
    ),
    "assets that are none": (
        [("DEL", "KEY:queries"), ("SET", "KEY:queries", "text")],
        "UPDATE active_sessions SET assets = '[' WHERE id = ID",
    ),
    "an entry that is nested without end": (
        [("HSET", "KEY:entries", "c:0", "DEEP")],
        "UPDATE active_entries SET value = 'DEEP' WHERE session_id = ID AND key = '0'",
    ),
    "a query that is nested without end": (
        [("LSET", "KEY:queries", 1, '{"parameters":DEEP')],
        """UPDATE active_queries SET body = '{"parameters":DEEP'"""
        " WHERE n = (SELECT min(n) FROM active_queries WHERE session_id = ID)",
    ),
    "a number beyond counting": (
        [("HSET", "KEY:header", "version", str(1 << 70))],
        "UPDATE active_sessions SET last_accessed_at = 9000000000000000000 WHERE id = ID",
    ),
}


@asynccontextmanager
async def refusing(settings: Settings, title: str) -> AsyncIterator[None]:
    """A database that takes no session of a title while the block runs."""
    if settings.database_url is not None:
        check = f"CHECK (title IS DISTINCT FROM '{title}')"
        await execute(settings.database_url, f"ALTER TABLE sessions ADD CONSTRAINT refuse {check}")
        try:
            yield
        finally:
            await execute(settings.database_url, "ALTER TABLE sessions DROP CONSTRAINT refuse")
        return
    with closing(sqlite3.connect(settings.embedded_file)) as connection:
        refuse = f"WHEN NEW.title = '{title}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        connection.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON sessions {refuse}")
        yield
        connection.execute("DROP TRIGGER refuse")
