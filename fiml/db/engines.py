"""SQLAlchemy engines. On each of them JSON columns take and give text, so that no value is decoded on the way."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from fiml.core.config import Synchronous
from fiml.core.errors import Misconfigured, MissingExtra

BUSY_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 5
# What libpq calls `sslmode`, asyncpg calls `ssl`.
_LIBPQ_NAMES = {"sslmode": "ssl"}


def _as_text(value: str) -> str:
    return value


def postgres_engine(database_url: str) -> AsyncEngine:
    """A pooled engine over asyncpg.

    Raises:
        MissingExtra: asyncpg is not installed.
    """
    try:
        return create_async_engine(
            asyncpg_url(database_url),
            json_serializer=_as_text,
            json_deserializer=_as_text,
            pool_pre_ping=True,
            connect_args={"timeout": CONNECT_TIMEOUT_S},
        )
    except ModuleNotFoundError as exc:
        raise MissingExtra("PostgreSQL (FIML_DATABASE_URL)", "server") from exc


def asyncpg_url(database_url: str) -> URL:
    """The URL as other tools write it, for SQLAlchemy and asyncpg."""
    try:
        url = make_url(database_url)
    except ValueError as exc:
        raise Misconfigured("FIML_DATABASE_URL is no URL; valid is postgresql://user@host/name") from exc
    query = {_LIBPQ_NAMES.get(name, name): value for name, value in url.query.items()}
    return url.set(drivername="postgresql+asyncpg", query=query)


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


def _set_up_sqlite(engine: Engine, synchronous: Synchronous, *, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        # The driver would begin transactions by rules of its own, and none for a change of the schema.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous.value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
