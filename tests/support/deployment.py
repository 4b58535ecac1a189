"""The server deployment of one test run: a database and a Redis database that nothing else uses."""

import asyncio
import secrets
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis
from sqlalchemy import make_url

from fiml.core.config import Settings
from fiml.db.tables import server, shared
from fiml.sessions.store import SessionStore
from tests.support.servers import database_url, redis_url

CLAIM = "claimed-by-tests-of-fiml"
CLAIM_S = 3600
NUMBERED_DATABASES = 16
# A table of a few rows is emptied sixty times as fast as by TRUNCATE, which makes new files.
EMPTY = "; ".join(f"{table.delete()}" for tables in (shared, server) for table in tables.tables.values())


class Deployment:
    """Valkey and PostgreSQL, as empty as `clean` leaves them."""

    def __init__(self, redis_url: str, database_url: str, runner: asyncio.Runner) -> None:
        self.redis_url = redis_url
        self.database_url = database_url
        self._runner = runner
        self._redis = redis.Redis.from_url(redis_url)
        self._connection: asyncpg.Connection[Any] = self._run(asyncpg.connect(database_url))

    def settings(self, **changes: Any) -> Settings:
        return Settings(redis_url=self.redis_url, database_url=self.database_url, **changes)

    def clean(self) -> None:
        """Remove every session, and nothing else."""
        self._run(self._connection.execute(EMPTY))
        patterns = ("fiml:*", "fiml", "fiml\x06*", "_kombu*", "unacked*", "celery*")  # Celery's keys too
        keys = [key for pattern in patterns for key in self._redis.scan_iter(pattern, count=1000)]
        if keys:
            self._redis.unlink(*keys)

    def close(self) -> None:
        self._run(self._connection.close())
        self._redis.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)


@contextmanager
def server_deployment() -> Iterator[Deployment]:
    """Servers with an empty schema for as long as the block runs."""
    with (
        # With a loop factory the runner leaves the thread's current loop alone.
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
        redis_url() as redis,
        database_url() as database,
        free_redis_database(redis) as live,
        new_database(database, runner) as archive,
    ):
        runner.run(_create_schema(Settings(redis_url=live, database_url=archive)))
        with closing(Deployment(live, archive, runner)) as deployment:
            yield deployment
            deployment.clean()


@contextmanager
def free_redis_database(url: str) -> Iterator[str]:
    """The URL of an empty numbered database, claimed until the block ends."""
    for number in range(NUMBERED_DATABASES):
        candidate = _numbered(url, number)
        with redis.Redis.from_url(candidate) as client:
            if client.dbsize() == 0 and client.set(CLAIM, "1", nx=True, ex=CLAIM_S):
                try:
                    yield candidate
                finally:
                    client.delete(CLAIM)
                return
    raise RuntimeError(f"each of the {NUMBERED_DATABASES} databases of {url} holds something: name an unused server")


def _numbered(url: str, number: int) -> str:
    address = urlsplit(url)
    in_query = address.scheme == "unix"  # there the path is the socket's
    return urlunsplit(address._replace(query=f"db={number}") if in_query else address._replace(path=f"/{number}"))


@contextmanager
def new_database(url: str, runner: asyncio.Runner) -> Iterator[str]:
    """The URL of a new database, dropped when the block ends."""
    name = f"fiml_test_{secrets.token_hex(8)}"
    runner.run(execute(url, f"CREATE DATABASE {name}"))
    try:
        yield make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        runner.run(execute(url, f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _create_schema(settings: Settings) -> None:
    async with SessionStore(settings):
        pass
