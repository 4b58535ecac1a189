"""The state of a store, for monitoring: what each engine tells about it in one exchange."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select, text

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import FimlError, Unavailable
from fiml.db.redis_replies import lowest_moment
from fiml.db.tables import active_sessions, maintenance_jobs, session_quarantine, sessions
from fiml.sessions.backends.redis.keys import expiry_keys
from fiml.sessions.backends.shapes import COUNTED_EXACTLY, RedisState, StoreFigures

if TYPE_CHECKING:  # redis-py is an extra
    from fiml.db.redis_client import RedisClient

LOOK_WITHIN_S = 2.0
# A user without the right to see other sessions' replication gets the number of replicas, but no lag.
_REPLICATION = text("SELECT count(*), max(extract(epoch FROM replay_lag)) FROM pg_stat_replication")
_ESTIMATE = text("SELECT reltuples FROM pg_class WHERE oid = 'sessions'::regclass")


async def gathered(figures: StoreFigures, *looks: tuple[str, Awaitable[None]]) -> StoreFigures:
    """Run the looks, each at its engine, and return the figures. An engine that is away or slow leaves its own out."""

    async def look_at(engine: str, look: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                await look
        except (FimlError, TimeoutError):
            figures.engines[engine] = False
        else:
            figures.engines.setdefault(engine, True)

    await asyncio.gather(*(look_at(*each) for each in looks))
    return figures


async def look_at_sessions_in_redis(client: "RedisClient", figures: StoreFigures, now: datetime) -> None:
    """Count live sessions by the expiry index."""
    keys, micros = expiry_keys(), to_micros(now)
    replies = await client.run(
        [
            *(("ZCARD", key) for key in keys),
            *(("ZCOUNT", key, "-inf", micros) for key in keys),
            *(("ZRANGE", key, 0, 0, "WITHSCORES") for key in keys),
        ]
    )
    size = len(keys)
    figures.live, figures.waiting = sum(replies[:size]), sum(replies[size : 2 * size])
    oldest = lowest_moment(replies[2 * size :])
    if oldest is not None and oldest <= now:
        figures.oldest_waiting = oldest


async def look_at_redis(client: "RedisClient", figures: StoreFigures) -> None:
    """What the servers tell about themselves, combined; nothing if they forbid the question."""
    from redis.exceptions import ResponseError  # noqa: PLC0415 - an extra, installed if there is a client

    try:
        told = [info for [info] in await client.ask_all([("INFO",)])]
    except Unavailable as exc:
        if isinstance(exc.__cause__, ResponseError):
            return
        raise
    if not all(isinstance(info, dict) and "evicted_keys" in info for info in told):
        return
    most = [info.get("maxmemory", 0) for info in told]
    figures.redis = RedisState(
        evicted_keys=sum(info["evicted_keys"] for info in told),
        may_evict=any(info.get("maxmemory_policy") != "noeviction" for info in told),
        is_append_only=all(info.get("aof_enabled") == 1 for info in told),
        used_bytes=sum(info.get("used_memory", 0) for info in told),
        max_bytes=sum(most) if all(most) else 0,
    )
    figures.replicas["redis"] = min(info.get("connected_slaves", 0) for info in told)
    replicas = [value for info in told for name, value in info.items() if name.startswith("slave")]
    lags = [float(each["lag"]) for each in replicas if isinstance(each, dict) and "lag" in each]
    if lags:
        figures.replica_lag_s["redis"] = max(lags)


def look_at_postgres(connection: Connection, figures: StoreFigures) -> None:
    """Count ended sessions and replicas."""
    look_at_ended(connection, figures)
    if figures.archived is not None and figures.archived > COUNTED_EXACTLY:
        figures.archived = max(COUNTED_EXACTLY, round(connection.scalar(_ESTIMATE) or 0))
    replicas, lag_s = connection.execute(_REPLICATION).one()
    figures.replicas["postgresql"] = replicas
    if lag_s is not None:
        figures.replica_lag_s["postgresql"] = float(lag_s)


def look_at_ended(connection: Connection, figures: StoreFigures) -> None:
    """Count what the database stores; archived sessions up to `COUNTED_EXACTLY` and one more."""
    some = select(sessions.c.id).limit(COUNTED_EXACTLY + 1).subquery()
    figures.archived = connection.scalar(select(func.count()).select_from(some))
    figures.quarantined = connection.scalar(select(func.count()).select_from(session_quarantine))
    done = select(maintenance_jobs.c.name, maintenance_jobs.c.finished_at)
    figures.jobs_done = {name: moment for name, moment in connection.execute(done) if moment is not None}


def look_at_file(connection: Connection, figures: StoreFigures, now: datetime) -> None:
    """Count what the embedded file stores."""
    look_at_ended(connection, figures)
    if figures.archived is not None and figures.archived > COUNTED_EXACTLY:
        figures.archived = connection.scalar(select(func.count()).select_from(sessions))
    has_expired = active_sessions.c.expires_at <= to_micros(now)
    waiting = select(func.count(), func.min(active_sessions.c.expires_at)).where(has_expired)
    figures.live = connection.scalar(select(func.count()).select_from(active_sessions))
    figures.waiting, oldest = connection.execute(waiting).one()
    with suppress(OverflowError):  # damage, which the next sweep sets aside
        figures.oldest_waiting = None if oldest is None else from_micros(oldest)
