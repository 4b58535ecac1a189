"""The deployments' backends with a hook around each call to an engine."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from fiml.core.config import Settings
from fiml.db.postgres import PostgresDatabase
from fiml.db.redis_client import RedisClient
from fiml.db.redis_commands import Command
from fiml.db.sqlite_file import SqliteFile
from fiml.sessions.backends import with_encryption
from fiml.sessions.backends.base import Backend
from fiml.sessions.backends.sqlite.backend import SqliteBackend
from fiml.sessions.backends.tiered.backend import SCRIPTS, TieredBackend
from fiml.sessions.store import SessionStore
from fiml.testing import open_store_over

Result = TypeVar("Result")


class Around(Protocol):
    """Makes a call to an engine, or doesn't."""

    async def __call__(self, call: Callable[[], Awaitable[Result]]) -> Result: ...


class WatchedFile(SqliteFile):
    """A SQLite file; a call to the engine is a hop to its thread."""

    around: Around

    async def _hop(self, work: Callable[[], Result]) -> Result:
        async def hop() -> Result:
            return await super(WatchedFile, self)._hop(work)

        return await self.around(hop)


class WatchedClient(RedisClient):
    """A Redis client; a call to the engine is a round trip."""

    around: Around

    async def _send(self, commands: Sequence[Command], confirmed_by: list[int] | None = None) -> list[Any]:
        async def send() -> list[Any]:
            return await super(WatchedClient, self)._send(commands, confirmed_by)

        return await self.around(send)


class WatchedDatabase(PostgresDatabase):
    """A PostgreSQL database; a call to the engine is a transaction."""

    around: Around

    async def _transact(
        self, function: Callable[[Connection], Result], within_s: float, *, autocommit: bool = False
    ) -> Result:
        async def transact() -> Result:
            return await super(WatchedDatabase, self)._transact(function, within_s, autocommit=autocommit)

        return await self.around(transact)


def watched_backend(settings: Settings, around: Around) -> Backend:
    """The backend of the settings, each of whose calls to its engines goes through `around`."""
    if settings.redis_url is None or settings.database_url is None:
        file = WatchedFile(settings.embedded_file, settings.sqlite_synchronous)
        file.around = around
        return with_encryption(SqliteBackend(file, settings.sqlite_synchronous), settings)
    client = WatchedClient.of(settings, SCRIPTS)
    client.around = around
    database = WatchedDatabase(settings.database_url)
    database.around = around
    return with_encryption(TieredBackend(client, database), settings)


def open_watched_store(settings: Settings, around: Around) -> AbstractAsyncContextManager[SessionStore]:
    return open_store_over(watched_backend(settings, around), settings)
