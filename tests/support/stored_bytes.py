"""Everything that the engines of a deployment hold, as bytes to look through."""

import asyncpg
import redis

from fiml.core.config import Settings
from fiml.db.tables import server, shared


async def stored_bytes(settings: Settings) -> bytes:
    """Every file of the embedded store, or every key of Redis and every row of PostgreSQL."""
    if settings.redis_url is None or settings.database_url is None:
        files = sorted(path for path in settings.embedded_file.parent.iterdir() if path.is_file())
        return b"\n".join(path.read_bytes() for path in files)
    return _redis_bytes(settings.redis_url) + await _postgres_bytes(settings.database_url)


def _redis_bytes(url: str) -> bytes:
    with redis.Redis.from_url(url) as client:
        held: list[object] = []
        for key in client.scan_iter(count=1000):
            match client.type(key):
                case b"hash":
                    held += [key, *(part for pair in client.hgetall(key).items() for part in pair)]
                case b"list":
                    held += [key, *client.lrange(key, 0, -1)]
                case b"set":
                    held += [key, *client.smembers(key)]
                case b"zset":
                    held += [key, *client.zrange(key, 0, -1)]
                case _:
                    held += [key, client.get(key)]
        return b"\n".join(part if isinstance(part, bytes) else str(part).encode() for part in held)


async def _postgres_bytes(url: str) -> bytes:
    connection = await asyncpg.connect(url)
    try:
        rows: list[str] = []
        for table in (*shared.tables, *server.tables):
            found = await connection.fetch(f"SELECT t::text AS row FROM {table} t")  # noqa: S608 - our own tables
            rows += [row["row"] for row in found]
        # What isn't text, such as the quarantine's records, stands there in hexadecimal digits too.
        binary = await connection.fetch("SELECT record FROM session_quarantine")
        return "\n".join(rows).encode() + b"\n".join(row["record"] for row in binary)
    finally:
        await connection.close()
