"""SQLAlchemy engines. JSON columns take and return text on each of them, so that no value is decoded on the way."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from sqlalchemy.util import await_

from fiml.core.config import Synchronous
from fiml.core.errors import Misconfigured, MissingExtra
from fiml.db.postgres_url import parse_postgres_url

BUSY_TIMEOUT_S = 30
_TRIED_AGAIN_AFTER_S = 0.001
_PRIMARY_CODE = 0xFF  # the rest of SQLite's code of an error says more about it
# The execution option that says how a transaction on SQLite begins: a function of the driver's connection, as
# `begin_to_read` and `begin_to_write`.
SQLITE_BEGIN = "fiml_sqlite_begin"
# The execution option that says whether a transaction of the asynchronous engine on SQLite writes.
ASYNC_SQLITE_WRITES = "fiml_async_sqlite_writes"
MAX_CONNECTIONS = 20
POOL_TIMEOUT_S = 2
_MAX_PORT = 65_535

Result = TypeVar("Result")

registry.register("postgresql.fiml", "fiml.db.asyncpg_dialect", "AsyncpgDialect")


class Transact(Protocol):
    """Runs a function in a transaction of the database."""

    async def __call__(self, function: Callable[[Connection], Result]) -> Result: ...


def _as_text(value: str) -> str:
    return value


def postgres_engine(database_url: str) -> AsyncEngine:
    """A pooled engine over asyncpg, from a URL in libpq's form.

    Raises:
        Misconfigured: the URL can't be parsed, or has an unknown parameter or one with a value that can't be used.
        MissingExtra: asyncpg is not installed.
    """
    url, connect_args = parse_postgres_url(database_url)
    try:
        engine = create_async_engine(
            url.set(drivername="postgresql+fiml"),
            json_serializer=_as_text,
            json_deserializer=_as_text,
            pool_size=MAX_CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            # Costs a round trip each time, so that no call fails because a restart of the server cut the connection.
            pool_pre_ping=True,
            # What a transaction reads after it has waited for a lock must be newer than the lock: a database may have
            # another default, with which a deleted session could be archived.
            isolation_level="READ COMMITTED",
            connect_args=connect_args,
        )
        _check_ports(engine)
    except ModuleNotFoundError as exc:
        raise MissingExtra("PostgreSQL (FIML_DATABASE_URL)", "server") from exc
    except (ArgumentError, ValueError):
        raise Misconfigured(
            "FIML_DATABASE_URL has a host or port that can't be used; write postgresql://user@host:5432/name, "
            "?host=one,two&port=5432,5432 for several servers, and ?host=/folder&port=5432 for a Unix socket"
        ) from None
    return engine


def _check_ports(engine: AsyncEngine) -> None:
    _, options = engine.dialect.create_connect_args(engine.url)
    ports = options.get("port", _MAX_PORT)
    if not all(0 < port <= _MAX_PORT for port in (ports if isinstance(ports, list) else [ports])):
        raise ValueError("no port")


def sqlite_engine(file: Path, synchronous: Synchronous) -> Engine:
    """An engine over the standard library's driver, in which the application begins the transactions."""
    engine = create_engine(
        URL.create("sqlite", database=str(file)),
        json_serializer=_as_text,
        json_deserializer=_as_text,
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
    )
    _set_up_sqlite(engine, synchronous)

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.get_execution_options().get(SQLITE_BEGIN, begin_to_write)(driver(connection))

    return engine


def async_sqlite_engine(file: Path, synchronous: Synchronous) -> AsyncEngine:
    """An engine over aiosqlite, for analytics beside the store's own connection."""
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(file)),
        json_serializer=_as_text,
        json_deserializer=_as_text,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    _set_up_sqlite(engine.sync_engine, synchronous)

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        if connection.get_execution_options().get(ASYNC_SQLITE_WRITES):
            execute_when_free(connection.exec_driver_sql, "BEGIN IMMEDIATE", pause=_pause_in_the_loop)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


async def dispose(engine: AsyncEngine) -> None:
    """Close all connections: those in use, such as by statistics, when they are returned."""
    pool = engine.pool
    await engine.dispose()
    event.listen(pool, "checkin", _close_returned)


def _close_returned(_connection: object, entry: ConnectionPoolEntry) -> None:
    entry.invalidate()


def driver(connection: Connection) -> sqlite3.Connection:
    """The standard library's connection under SQLAlchemy's, in the same transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)  # noqa: S101  only called on an engine of `sqlite_engine`
    return raw


def begin_to_read(connection: sqlite3.Connection) -> None:
    """Begin a transaction that reads, which waits for nobody."""
    connection.execute("BEGIN")


def begin_to_write(connection: sqlite3.Connection, *, wait_s: float = BUSY_TIMEOUT_S) -> None:
    """Begin a transaction that holds the file's write lock."""
    execute_when_free(connection.execute, "BEGIN IMMEDIATE", wait_s=wait_s)


def execute_when_free(
    execute: Callable[[str], object],
    statement: str,
    *,
    wait_s: float = BUSY_TIMEOUT_S,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Execute a statement that needs the file's write lock. If another holds it, try again each millisecond.

    SQLite's own wait tries less and less often, down to ten times a second. Another process that writes without a
    pause leaves the lock for a fraction of a millisecond at a time: such a wait would miss that for seconds.

    Raises:
        sqlite3.OperationalError, sqlalchemy.exc.OperationalError: the file is still locked after `wait_s`, or the
            statement failed; which of them, depends on whose `execute` it is.
    """
    execute("PRAGMA busy_timeout=0")
    try:
        _try_until_free(execute, statement, wait_s, pause)
    finally:
        execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")


def empty_log(connection: sqlite3.Connection) -> bool:
    """Write the file's log into the file and empty it; `False` if somebody who began to read earlier kept it from that.

    SQLite waits for readers by itself, but not for another process that does the same at the time.
    """
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        [(is_busy, *_)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if not is_busy or time.monotonic() >= until:
            return not is_busy
        time.sleep(_TRIED_AGAIN_AFTER_S)


def _try_until_free(
    execute: Callable[[str], object],
    statement: str,
    wait_s: float = BUSY_TIMEOUT_S,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            execute(statement)
        except (sqlite3.OperationalError, OperationalError) as exc:
            if not _is_busy(exc) or time.monotonic() >= until:
                raise
        else:
            return
        pause(_TRIED_AGAIN_AFTER_S)


def _is_busy(exc: sqlite3.OperationalError | OperationalError) -> bool:
    error = exc.orig if isinstance(exc, OperationalError) else exc
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_BUSY


def _pause_in_the_loop(seconds: float) -> None:
    """Pause a function that SQLAlchemy runs for its asynchronous engine."""
    await_(asyncio.sleep(seconds))


def _set_up_sqlite(engine: Engine, synchronous: Synchronous) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        # Otherwise the driver begins transactions by its own rules, and none for a change of the schema.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Two processes may open a new file at once, and for this statement SQLite doesn't wait at all.
        _try_until_free(cursor.execute, "PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous.value}")
        cursor.close()
