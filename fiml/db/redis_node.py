"""Connections to one Redis or Valkey server, or to whichever one the Sentinels name as the master."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from fiml.core.errors import Misconfigured, Unavailable, Unconfirmed
from fiml.db.redis_commands import Argument, Command
from fiml.db.redis_url import Kind, RedisAddress

MAX_CONNECTIONS = 64
CONNECT_S = 2
CLOSE_S = 0.2
# Asked one after the other, within the time that a call has.
SENTINEL_S = 0.5
CONFIRM_MS = 1000


class Node:
    """A pool with a limit. Who calls sees to it that no wait is endless.

    Raises:
        Unavailable: from every call, when the server is away.
        Misconfigured: it lets nobody in with this password.
    """

    def __init__(self, name: str, pool: ConnectionPool, *, replicas: int = 0, sentinel: Sentinel | None = None) -> None:
        self.name = name
        self._redis = Redis.from_pool(pool)
        self._replicas = replicas
        self._sentinel = sentinel
        # redis-py's own pool that waits takes a lock and a timer for each call, also where nobody waits.
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)

    async def send(self, commands: Sequence[Command], *, is_confirmed: bool = False) -> list[Any]:
        """The replies in order, a `ResponseError` in the place of that of a refused command: one round trip.

        Raises:
            Unconfirmed: fewer replicas than there should be have it within a second.
        """
        if not is_confirmed or not self._replicas:
            return await self._translated(commands)
        *replies, reached = await self._translated([*commands, ("WAIT", self._replicas, CONFIRM_MS)])
        if isinstance(reached, ResponseError):
            raise Unavailable(f"Redis at {self.name}", f"it refused to wait for replicas: {reached}") from reached
        if reached < self._replicas:
            raise Unconfirmed(f"Redis at {self.name}", reached, self._replicas)
        return replies

    async def suspect(self) -> None:
        """The server may be another one by now: connect anew. Each idle connection would fail a call of its own."""
        # A TLS connection says goodbye, to a server that may hear nothing.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._redis.connection_pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose(close_connection_pool=True)
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _translated(self, commands: Sequence[Command]) -> list[Any]:
        try:
            async with self._free:
                return await self._exchange(commands)
        except AuthenticationError as exc:
            raise Misconfigured(f"Redis at {self.name} refuses ({exc}); check FIML_REDIS_URL") from exc
        except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
            await self.suspect()
            raise Unavailable(f"Redis at {self.name}", str(exc) or type(exc).__name__) from exc
        except RedisError as exc:
            raise Unavailable(f"Redis at {self.name}", f"it refused: {exc}") from exc

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            return [await self._single(commands[0])]
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute(raise_on_error=False)

    async def _single(self, command: Command) -> Any:
        try:
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]  # as redis-py has it
        except ResponseError as exc:
            return exc


def connect(address: RedisAddress, host: tuple[str, int] | None = None, *, replicas: int = 0) -> Node:
    """A node at an address; at one of its hosts, where it is given. It connects at the first call.

    Raises:
        Misconfigured: the options don't fit the kind of connection.
    """
    options = {
        # Without it nobody would say whether a connection has something left to read.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        **address.options,
    }
    try:
        if address.kind is Kind.SENTINEL:
            return _behind_sentinels(address, options, replicas)
        if host is not None:
            options |= {"host": host[0], "port": host[1]}
        connection_class = options.pop("connection_class", Connection)
        pool = ConnectionPool(connection_class=_packing(connection_class), max_connections=MAX_CONNECTIONS, **options)
        _try_options(pool)
        return Node(address.name if host is None else f"{host[0]}:{host[1]}", pool, replicas=replicas)
    except (TypeError, ValueError, RedisError):
        # Its message may hold a value.
        raise Misconfigured(
            "FIML_REDIS_URL has a parameter whose value can't be used; see docs/reference/settings.md"
        ) from None


def _behind_sentinels(address: RedisAddress, options: dict[str, Any], replicas: int) -> Node:
    timeouts = {"socket_connect_timeout": SENTINEL_S, "socket_timeout": SENTINEL_S, "retry": options["retry"]}
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # as redis-py has it
        address.hosts, sentinel_kwargs={**timeouts, "ssl": address.is_tls, **tls, **address.sentinel_options}
    )
    connection_class = SentinelManagedSSLConnection if address.is_tls else SentinelManagedConnection
    options.pop("connection_class", None)
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]  # as above
        address.service,
        sentinel,
        connection_class=_packing(connection_class),
        max_connections=MAX_CONNECTIONS,
        **options,
    )
    _try_options(pool)
    return Node(address.name, pool, replicas=replicas, sentinel=sentinel)


def _try_options(pool: ConnectionPool) -> None:
    """Make a connection that is never used: it raises where it doesn't take the options."""
    pool.make_connection()  # type: ignore[no-untyped-call]  # as redis-py has it


class _Packing:
    """A connection whose commands are written by hiredis; redis-py does it in Python, for three times a PING."""

    def pack_command(self, *arguments: Argument) -> list[bytes]:
        name, *others = arguments
        # As redis-py has it, which knows the replies of some commands by a name of two words.
        words: tuple[Any, ...] = (*str(name).split(), *others)
        return [pack_command(words)]


@cache
def _packing(connection_class: type) -> Any:
    return type(f"Packing{connection_class.__name__}", (_Packing, connection_class), {})
