"""A PostgreSQL database behind one pool: each call is one transaction."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from fiml.core.addresses import without_secrets
from fiml.core.errors import FimlError, Misconfigured, RecordRefused, Unavailable
from fiml.core.observe import Timed, observed_call
from fiml.db import schema
from fiml.db.engines import dispose, postgres_engine

Result = TypeVar("Result")

# Classes of SQLSTATE: wrong credentials, wrong database, missing tables or rights.
_CONFIGURATION = ("28", "3D", "42")
# Data, constraints and limits: the record itself is at fault, and sending it again won't help.
_REFUSAL = ("22", "23", "54")

# How long a caller waits for a transaction, including the wait for a connection; and how long the maintenance waits.
CALL_S = 2.0
MAINTENANCE_S = 60.0


class PostgresDatabase:
    """The database of the server deployment.

    Its schema is checked before the first transaction; if the server is away at first, before the first one that
    reaches it.

    Raises:
        Unavailable: from every call, when the server is away, refuses, or doesn't answer in time. A transaction that
            was under way may have been committed.
        Misconfigured: the server is there, but doesn't let us in or lacks what we need.
    """

    def __init__(self, database_url: str) -> None:
        self._name = without_secrets(database_url)
        self.engine = postgres_engine(database_url)
        self._autocommitting = self.engine.execution_options(isolation_level="AUTOCOMMIT")  # over the same pool
        self._reading = self.engine.execution_options(postgresql_readonly=True)  # as above
        self._is_closed = False
        self._is_prepared = False
        self._preparing: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Connect. An empty database gets the schema; one with a different schema is refused."""
        self._is_closed = False
        await self._prepare()

    async def close(self) -> None:
        """Close all connections. Until it is opened again, every call is refused: nobody would close its connection."""
        self._is_closed = True
        self._is_prepared = False
        left = [*self._under_way, *([self._preparing] if self._preparing else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        engine = self.engine.sync_engine
        event.listen(engine, "close", _hang_up)
        await dispose(self.engine)
        event.remove(engine, "close", _hang_up)

    @observed_call(Timed.ENGINE, "postgresql")
    async def transact(self, function: Callable[[Connection], Result]) -> Result:
        """Run a function in a transaction. Two seconds at most."""
        return await self._transact(function, CALL_S)

    async def maintain(self, function: Callable[[Connection], Result]) -> Result:
        """As `transact`, for longer work: a minute at most."""
        return await self._transact(function, MAINTENANCE_S)

    @observed_call(Timed.ENGINE, "postgresql")
    async def view(self, function: Callable[[Connection], Result]) -> Result:
        """As `transact`, for a function that only reads: without BEGIN and COMMIT, which take two round trips."""
        return await self._transact(function, CALL_S, autocommit=True)

    async def look(self, function: Callable[[Connection], Result]) -> Result:
        """Run a function in a transaction that can't write, without checking the schema. Two seconds at most."""
        return await self._in_time(self._run(function, self._reading), CALL_S)

    async def upgrade(self) -> None:
        """Bring the schema up to date, however long that takes."""
        await self._in_time(self._run(schema.upgrade), None)

    async def _transact(
        self, function: Callable[[Connection], Result], within_s: float, *, autocommit: bool = False
    ) -> Result:
        if not self._is_prepared:
            await self._prepare()
        return await self._in_time(self._run(function, self._autocommitting if autocommit else None), within_s)

    async def _prepare(self) -> None:
        # All callers wait for the same check, so that a server that hangs holds none of them up twice.
        preparing = self._preparing
        if preparing is None or preparing.done():
            preparing = self._preparing = asyncio.create_task(self._look_at_schema())
            preparing.add_done_callback(_retrieve_exception)
        await asyncio.wait({preparing})
        self._outcome(preparing)

    async def _look_at_schema(self) -> None:
        found = await self._in_time(self._run(schema.revision), CALL_S)
        if found is None:
            await self._in_time(self._run(schema.upgrade), MAINTENANCE_S)
        else:
            schema.check(found)
        self._is_prepared = True

    async def _run(self, function: Callable[[Connection], Result], engine: AsyncEngine | None = None) -> Result:
        with translated(f"PostgreSQL at {self._name}"):
            async with (engine or self.engine).begin() as connection:
                return await connection.run_sync(function)

    async def _in_time(self, work: Coroutine[Any, Any, Result], within_s: float | None) -> Result:
        """Return what `work` returns. If it is late, the caller gives up at once, and the work cleans up by itself."""
        if self._is_closed:
            work.close()
            raise Unavailable(f"PostgreSQL at {self._name}", "the store was closed during the call")
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            done, _ = await asyncio.wait({task}, timeout=within_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            task.add_done_callback(_retrieve_exception)
            raise Unavailable(f"PostgreSQL at {self._name}", f"no answer within {within_s:g} s")
        return self._outcome(task)

    def _outcome(self, task: "asyncio.Task[Result]") -> Result:
        if task.cancelled():
            raise Unavailable(f"PostgreSQL at {self._name}", "the store was closed during the call")
        return task.result()


def _hang_up(connection: Any, _record: object) -> None:
    """Drop a connection. Closing it properly would wait for the server, which may hang."""
    connection.driver_connection.terminate()


def _retrieve_exception(task: "asyncio.Task[Any]") -> None:
    """Keep asyncio from reporting a failure that nobody is waiting for any more."""
    if not task.cancelled():
        task.exception()


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors into fiml's; `name` says which database, without secrets."""
    try:
        yield
    except (InterfaceError, PoolTimeoutError, OSError, TimeoutError) as exc:
        if isinstance(refusal := _driver_error(exc), ValueError):
            raise _refused_by_driver(name, refusal) from exc
        wordless = "no answer in time" if isinstance(exc, TimeoutError) else type(exc).__name__
        raise Unavailable(name, str(getattr(exc, "orig", None) or exc) or wordless) from exc
    except DBAPIError as exc:
        state = getattr(exc.orig, "sqlstate", None) or ""
        if state.startswith(_CONFIGURATION):
            raise Misconfigured(f"{name} refuses ({exc.orig}); check FIML_DATABASE_URL") from exc
        if state.startswith(_REFUSAL):
            raise RecordRefused("the record", str(exc.orig)) from exc
        if isinstance(refusal := _driver_error(exc), ValueError):
            raise _refused_by_driver(name, refusal) from exc
        raise Unavailable(name, str(exc.orig)) from exc


def _driver_error(exc: BaseException) -> BaseException | None:
    return getattr(getattr(exc, "orig", None), "__cause__", None)


def _refused_by_driver(name: str, exc: ValueError) -> FimlError:
    """The error for a value that asyncpg can't send, or for settings with which it can't connect."""
    from asyncpg import ClientConfigurationError  # noqa: PLC0415 - an extra, installed if it raised this

    if isinstance(exc, ClientConfigurationError):
        return Misconfigured(f"{name} can't be reached ({str(exc).splitlines()[0]}); check FIML_DATABASE_URL")
    return RecordRefused("the record", str(exc))


async def upgrade(database_url: str) -> None:
    """Bring a database to the current schema."""
    database = PostgresDatabase(database_url)
    try:
        await database.upgrade()
    finally:
        await database.close()
