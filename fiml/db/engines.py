"""SQLAlchemy engines. On each of them JSON columns take and give text, so that no value is decoded on the way."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from fiml.core.config import Synchronous
from fiml.core.errors import Misconfigured, MissingExtra, echo

BUSY_TIMEOUT_S = 30
_WAL_TRIES = 600
# The execution option that names how a transaction on SQLite begins.
SQLITE_BEGIN = "fiml_sqlite_begin"
CONNECT_TIMEOUT_S = 2
MAX_CONNECTIONS = 20
POOL_TIMEOUT_S = 2
_ADDRESS = ("host", "port")
_PARAMETERS = ("sslmode", "connect_timeout", "application_name")

registry.register("postgresql.fiml", "fiml.db.asyncpg_dialect", "AsyncpgDialect")


def _as_text(value: str) -> str:
    return value


def postgres_engine(database_url: str) -> AsyncEngine:
    """A pooled engine over asyncpg, from a URL as libpq's tools write it.

    Raises:
        Misconfigured: it is no URL, or has a parameter that isn't known here.
        MissingExtra: asyncpg is not installed.
    """
    url = _parse(database_url)
    try:
        return create_async_engine(
            url.set(drivername="postgresql+fiml", query={k: v for k, v in url.query.items() if k in _ADDRESS}),
            json_serializer=_as_text,
            json_deserializer=_as_text,
            pool_size=MAX_CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            # A trip each time, so that no call fails for a connection that the server's restart has cut.
            pool_pre_ping=True,
            connect_args=_connect_args(url),
        )
    except ModuleNotFoundError as exc:
        raise MissingExtra("PostgreSQL (FIML_DATABASE_URL)", "server") from exc


def _parse(database_url: str) -> URL:
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):
        # Their messages repeat the URL, and with it the password.
        raise Misconfigured(
            "FIML_DATABASE_URL is no URL; valid is postgresql://user@host/name, with reserved characters of a "
            "password percent-encoded"
        ) from None
    unknown = [name for name in url.query if name not in (*_ADDRESS, *_PARAMETERS)]
    if unknown:
        known = ", ".join((*_ADDRESS, *_PARAMETERS))
        raise Misconfigured(f"FIML_DATABASE_URL has the parameter {echo(unknown[0])}; known here are {known}")
    return url


def _connect_args(url: URL) -> dict[str, Any]:
    """What libpq calls otherwise than asyncpg."""
    given = {name: str(value) for name, value in url.query.items()}
    arguments: dict[str, Any] = {"timeout": _seconds(given.get("connect_timeout"))}
    if "sslmode" in given:
        arguments["ssl"] = given["sslmode"]
    if "application_name" in given:
        arguments["server_settings"] = {"application_name": given["application_name"]}
    return arguments


def _seconds(text: str | None) -> float:
    if text is None:
        return CONNECT_TIMEOUT_S
    try:
        return float(text)
    except ValueError:
        raise Misconfigured(f"FIML_DATABASE_URL has connect_timeout={echo(text)}; give seconds") from None


def sqlite_engine(file: Path, synchronous: Synchronous) -> Engine:
    """An engine over the standard library's driver whose transactions are the application's own."""
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
    # SQLite waits for a lock everywhere but here, and two processes may open a new file at once.
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
        # The driver would begin transactions by rules of its own, and none for a change of the schema.
        connection.isolation_level = None
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute(f"PRAGMA synchronous={synchronous.value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(SQLITE_BEGIN, begin))
