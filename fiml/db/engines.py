"""SQLAlchemy engines. JSON columns take and return text on each of them, so that no value is decoded on the way."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from fiml.core.config import Synchronous
from fiml.core.errors import Misconfigured, MissingExtra
from fiml.db.postgres_url import parse_postgres_url

BUSY_TIMEOUT_S = 30
_WAL_TRIES = 600
# The execution option that names how a transaction on SQLite begins.
SQLITE_BEGIN = "fiml_sqlite_begin"
MAX_CONNECTIONS = 20
POOL_TIMEOUT_S = 2
_MAX_PORT = 65_535

registry.register("postgresql.fiml", "fiml.db.asyncpg_dialect", "AsyncpgDialect")


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
    _set_up_sqlite(engine, synchronous, begin="BEGIN IMMEDIATE")
    return engine


def async_sqlite_engine(file: Path, synchronous: Synchronous) -> AsyncEngine:
    """An engine over aiosqlite, for analytics beside the store's own connection."""
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(file)),
        json_serializer=_as_text,
        json_deserializer=_as_text,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    _set_up_sqlite(engine.sync_engine, synchronous, begin="BEGIN")
    return engine


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    # Two processes may open a new file at once, and this is the one statement for which SQLite doesn't wait for a lock.
    for _ in range(_WAL_TRIES):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(BUSY_TIMEOUT_S / _WAL_TRIES)
        else:
            return
    cursor.execute("PRAGMA journal_mode=WAL")


def _set_up_sqlite(engine: Engine, synchronous: Synchronous, *, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        # Otherwise the driver begins transactions by its own rules, and none for a change of the schema.
        connection.isolation_level = None
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute(f"PRAGMA synchronous={synchronous.value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(SQLITE_BEGIN, begin))
