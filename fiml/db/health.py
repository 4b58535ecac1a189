"""Facts about the databases, found out without changing anything in them."""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, NullPool, create_engine, func, select, text

from fiml.core.clock import from_micros, now, stopwatch, to_micros
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, MissingExtra, Unavailable
from fiml.db import schema
from fiml.db.postgres import PostgresDatabase
from fiml.db.redis_replies import lowest_moment, moment_of
from fiml.db.sqlite_file import translated as sqlite_translated
from fiml.db.tables import active_sessions, session_quarantine

if TYPE_CHECKING:  # redis-py is an extra
    from fiml.db.redis_client import RedisClient


class SchemaState(StrEnum):
    """How a database's schema compares with the one that this version of fiml needs."""

    NONE = "none yet"
    CURRENT = "current"
    OUTDATED = "outdated"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class SchemaFacts:
    """The revision of a database (`None` if it is empty), and how it compares."""

    revision: str | None
    state: SchemaState


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFacts:
    """Facts about a server that was reached. `None` is what the server didn't tell."""

    name: str
    version: str | None
    masters: int
    """How many masters its Cluster has; otherwise 1."""
    latency_ms: float
    eviction_policy: str | None
    memory_share: float | None
    """How much of the memory that it may use is used, as a fraction; `None` also if there is no limit."""
    is_append_only: bool | None
    most_waiting: int | None
    """At most this many sessions wait to be archived: an extended session counts until the sweeper looks at it."""
    oldest_waiting: datetime | None
    """When the first of them expired; `None` also if none waits."""
    ahead_s: float | None
    """By how much its clock is ahead of ours; negative if it is behind."""
    replicas: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFacts:
    """Facts about a server that was reached."""

    name: str
    version: str
    latency_ms: float
    schema: SchemaFacts
    ahead_s: float
    """By how much its clock is ahead of ours; negative if it is behind."""
    replicas: int
    quarantined: int
    """How many sessions can't be archived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteFacts:
    """Facts about a file that exists.

    `size_bytes` includes its log. `waiting` counts the live sessions that have expired, the first at `oldest_waiting`;
    `quarantined` those that can't be archived.
    """

    name: str
    version: str
    latency_ms: float
    schema: SchemaFacts
    size_bytes: int
    waiting: int
    oldest_waiting: datetime | None
    quarantined: int


async def redis_facts(settings: Settings, *, expiry_keys: Sequence[str]) -> RedisFacts:
    """What Redis or Valkey tells about itself; `expiry_keys` are the parts of its expiry index.

    If the masters of a Cluster differ, the worst value counts.

    Raises:
        Misconfigured: the URL can't be used.
        MissingExtra: redis-py is not installed.
        Unavailable: the server can't be reached, or doesn't let us in.
    """
    client = _redis_client(settings)
    try:
        await client.ask_all([("PING",)])  # connects, so that the round trip below is timed alone
        elapsed_ms = stopwatch()
        masters = len(await client.ask_all([("PING",)]))
        latency_ms = elapsed_ms()
        before = now()
        told_times = await _told(client.ask_all([("TIME",)]))
        after = now()
        ahead_s = [_ahead_s(moment_of(told), before, after) for [told] in told_times or []]
        about = await _told(client.ask_all([("INFO", "server"), ("INFO", "replication"), ("INFO", "memory")]))
        about = about or [[{}, {}, {}]]
        configured = await _told(client.ask_all([("CONFIG GET", "maxmemory-policy"), ("CONFIG GET", "appendonly")]))
        due = await _told(client.run([("ZCOUNT", key, "-inf", to_micros(now())) for key in expiry_keys]))
        first = await _told(client.run([("ZRANGE", key, 0, 0, "WITHSCORES") for key in expiry_keys]))
    finally:
        await client.close()
    server = about[0][0]
    policies = [policy for found, _ in configured or [] for policy in found.values()]
    append_only = [value == "yes" for _, found in configured or [] for value in found.values()]
    replicas = [replication["connected_slaves"] for _, replication, _ in about if "connected_slaves" in replication]
    shares = [memory["used_memory"] / memory["maxmemory"] for *_, memory in about if memory.get("maxmemory")]
    return RedisFacts(
        name="Valkey" if server.get("server_name") == "valkey" else "Redis",
        version=server.get("valkey_version") or server.get("redis_version"),
        masters=masters,
        latency_ms=latency_ms,
        eviction_policy=next((policy for policy in policies if policy != "noeviction"), next(iter(policies), None)),
        memory_share=max(shares, default=None),
        is_append_only=all(append_only) if append_only else None,
        most_waiting=None if due is None else sum(due),
        oldest_waiting=_if_past(lowest_moment(first or [])),
        ahead_s=max(ahead_s, key=abs, default=None),
        replicas=min(replicas, default=None),
    )


async def postgres_facts(url: str) -> PostgresFacts:
    """What a PostgreSQL database tells about itself, in a transaction that can't write.

    Raises:
        Misconfigured: the URL is wrong, or the server refuses this user or database.
        MissingExtra: asyncpg is not installed.
        Unavailable: the server can't be reached, or doesn't answer within two seconds.
    """
    database = PostgresDatabase(url)
    try:
        return await database.look(_postgres_facts)
    finally:
        await database.close()


async def sqlite_facts(file: Path) -> SqliteFacts | None:
    """Facts about the embedded file; `None` if there is no file yet. It is not created.

    Raises:
        Misconfigured: the file can't be reached or opened, or is not a database.
        CorruptRecord: the file is damaged.
        Unavailable: the disk reports an error.
    """
    try:
        return await asyncio.to_thread(_sqlite_facts, file)
    except OSError as exc:
        problem = f"{file} can't be reached ({exc.strerror}); give this user access, or set FIML_DATA_DIR"
        raise Misconfigured(problem) from exc


def can_write(file: Path) -> bool:
    """Whether this user may write to a file, or create it and its folders if they are missing."""
    if file.exists() and not os.access(file, os.W_OK):
        return False
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _redis_client(settings: Settings) -> "RedisClient":
    try:
        from fiml.db.redis_client import RedisClient  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise MissingExtra("Redis (FIML_REDIS_URL)", "server") from exc
    return RedisClient.of(settings)


async def _told(asked: Awaitable[list[Any]]) -> list[Any] | None:
    """The replies, or `None` if the server forbids one of the commands."""
    from redis.exceptions import ResponseError  # noqa: PLC0415 - an extra, installed if there is a client

    try:
        return await asked
    except Unavailable as exc:
        if isinstance(exc.__cause__, ResponseError):
            return None
        raise


def _postgres_facts(connection: Connection) -> PostgresFacts:
    version = str(connection.scalar(text("SHOW server_version")))
    elapsed_ms = stopwatch()
    connection.execute(text("SELECT 1"))
    latency_ms = elapsed_ms()
    before = now()
    ahead_s = _ahead_s(connection.scalar(text("SELECT clock_timestamp()")), before, now())
    return PostgresFacts(
        name="PostgreSQL",
        version=version.split(maxsplit=1)[0],
        latency_ms=latency_ms,
        schema=_schema_facts(schema.revision(connection)),
        ahead_s=ahead_s,
        replicas=connection.scalar(text("SELECT count(*) FROM pg_stat_replication")) or 0,
        quarantined=_quarantined(connection),
    )


def _sqlite_facts(file: Path) -> SqliteFacts | None:
    log = file.with_name(file.name + "-wal")
    try:
        size_bytes = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    size_bytes += log.stat().st_size if log.exists() else 0
    # SQLite's read-only mode would create a log beside the file and leave it there. If there is no log, nobody writes
    # to the file, and it can be opened as immutable.
    mode = "mode=ro" if log.exists() else "immutable=1"
    uri = f"{file.absolute().as_uri()}?{mode}"
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)
    with sqlite_translated(file), closing(engine.connect()) as connection:
        revision = schema.revision(connection)
        elapsed_ms = stopwatch()
        waiting, oldest_waiting = _waiting(connection)
        latency_ms = elapsed_ms()
        quarantined = _quarantined(connection)
    return SqliteFacts(
        name="SQLite",
        version=sqlite3.sqlite_version,
        latency_ms=latency_ms,
        schema=_schema_facts(revision),
        size_bytes=size_bytes,
        waiting=waiting,
        oldest_waiting=oldest_waiting,
        quarantined=quarantined,
    )


def _quarantined(connection: Connection) -> int:
    if not connection.dialect.has_table(connection, session_quarantine.name):
        return 0
    return connection.scalar(select(func.count()).select_from(session_quarantine)) or 0


def _waiting(connection: Connection) -> tuple[int, datetime | None]:
    if not connection.dialect.has_table(connection, active_sessions.name):
        return 0, None
    has_expired = active_sessions.c.expires_at <= to_micros(now())
    counted = select(func.count(), func.min(active_sessions.c.expires_at)).where(has_expired)
    waiting, oldest = connection.execute(counted).one()
    return waiting, None if oldest is None else from_micros(oldest)


def _ahead_s(theirs: datetime, before: datetime, after: datetime) -> float:
    """By how much their clock is ahead, if they read it halfway between our two moments."""
    return (theirs - (before + (after - before) / 2)).total_seconds()


def _if_past(moment: datetime | None) -> datetime | None:
    return moment if moment is not None and moment <= now() else None


def _schema_facts(revision: str | None) -> SchemaFacts:
    if revision is None:
        state = SchemaState.NONE
    elif revision not in schema.REVISIONS:
        state = SchemaState.NEWER
    elif revision != schema.REVISIONS[-1]:
        state = SchemaState.OUTDATED
    else:
        state = SchemaState.CURRENT
    return SchemaFacts(revision, state)
