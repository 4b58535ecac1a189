"""A database that opens at its first use, for callers that may never use it."""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from fiml.core.config import Settings

Result = TypeVar("Result")


class Database(Protocol):
    """What the databases of both deployments have in common: `SqliteFile` and `PostgresDatabase`."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def transact(self, function: Callable[[Connection], Result]) -> Result: ...

    async def view(self, function: Callable[[Connection], Result]) -> Result: ...


class LazyDatabase:
    """A database that the first call opens; if that fails, the next call tries again.

    Raises:
        Misconfigured, Unavailable: from every call, when the database can't be opened.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opening = asyncio.Lock()
        self._is_open = False

    async def transact(self, function: Callable[[Connection], Result]) -> Result:
        """Run a function in a transaction; if it raises, nothing is written."""
        await self._open()
        return await self._database.transact(function)

    async def view(self, function: Callable[[Connection], Result]) -> Result:
        """Run a function that only reads."""
        await self._open()
        return await self._database.view(function)

    async def close(self) -> None:
        """Close it; a later call opens it again. Closing twice is harmless."""
        async with self._opening:
            self._is_open = False
            await self._database.close()

    async def _open(self) -> None:
        async with self._opening:
            if not self._is_open:
                await self._database.open()
                self._is_open = True


def database_of(settings: Settings) -> Database:
    """The database that the settings name; it is not opened."""
    if settings.database_url is None:
        from fiml.db.sqlite_file import SqliteFile  # noqa: PLC0415 - one deployment doesn't load the other

        return SqliteFile(settings.embedded_file, settings.sqlite_synchronous)
    from fiml.db.postgres import PostgresDatabase  # noqa: PLC0415 - as above

    return PostgresDatabase(settings.database_url)
