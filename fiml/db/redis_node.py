"""Connections to one Redis or Valkey server, or to whichever one the Sentinels name as the master."""

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from fiml.core.errors import Misconfigured, Unavailable, echo
from fiml.core.shared_look import SharedLook
from fiml.db.redis_commands import SCRIPT_COMMAND, Command
from fiml.db.redis_url import Kind, RedisAddress

MAX_CONNECTIONS = 64
CONNECT_S = 2
# Sentinels are asked one after the other, all within the time of one call.
SENTINEL_S = 0.5
CONFIRM_MS = 1000


class Node:
    """Connections to one server, as many as are needed at once, up to a limit.

    The caller limits how long a call may wait. The connections are redis-py's, but not the pool and the client: these
    take longer for a call than the server does.

    Raises:
        Unavailable: from every call, when the server is away.
        Misconfigured: from every call, when the server doesn't accept the user or password.
    """

    def __init__(
        self, name: str, pool: ConnectionPool, *, places: int, replicas: int = 0, sentinel: Sentinel | None = None
    ) -> None:
        self.name = name
        self._pool = pool
        self._redis = Redis.from_pool(pool)
        self._replicas = replicas
        self._sentinel = sentinel
        self._places = asyncio.Semaphore(places)
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._is_closed = False

    async def send(self, commands: Sequence[Command], confirmed_by: list[int] | None = None) -> list[Any]:
        """Send commands in one round trip; their replies, in order. A refused command's reply is its `ResponseError`.

        With `confirmed_by`, wait for the replicas, a second at most, and append to it how many have what was written.
        """
        if confirmed_by is None:
            return await self._translated(commands)
        *replies, reached = await self._translated([*commands, ("WAIT", self._replicas, CONFIRM_MS)])
        if isinstance(reached, ResponseError):
            raise Unavailable(f"Redis at {self.name}", f"it refused to wait for replicas: {reached}") from reached
        confirmed_by.append(reached)
        return replies

    async def suspect(self) -> None:
        """Another server may have taken over: drop the idle connections, each of which would make a call fail."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close all connections; that of a call which is still connecting closes when the call ends."""
        self._is_closed = True
        connections, self._idle = [*self._idle, *self._in_use], []
        await asyncio.gather(*(connection.disconnect() for connection in connections))
        if isinstance(self._pool, _AskingPool):
            await self._pool.looking.close()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _translated(self, commands: Sequence[Command]) -> list[Any]:
        try:
            async with self._places:
                return await self._exchange(commands)
        except AuthenticationError as exc:
            raise Misconfigured(f"Redis at {self.name} refuses ({exc}); check FIML_REDIS_URL") from exc
        except MasterNotFoundError as exc:  # its message describes every Sentinel at length
            await self.suspect()
            raise Unavailable(f"Redis at {self.name}", "none of the Sentinels that answered names a master") from exc
        except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
            await self.suspect()
            raise Unavailable(f"Redis at {self.name}", str(exc) or type(exc).__name__) from exc
        except RedisError as exc:
            if (wrong := _wrong_address(str(exc))) is not None:
                raise Misconfigured(f"Redis at {self.name} {wrong}") from exc
            raise Unavailable(f"Redis at {self.name}", f"it refused: {exc}") from exc

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = await self._connected()
        self._in_use.add(connection)
        is_over = False
        try:
            await connection.send_packed_command([_packed(command) for command in commands], check_health=False)
            replies = [await self._reply(connection, str(command[0])) for command in commands]
            is_over = True
            return replies
        finally:
            self._in_use.discard(connection)
            if is_over and not self._is_closed:
                self._idle.append(connection)
            else:
                # A reply may still arrive, and the next call would take it for its own.
                await connection.disconnect(nowait=True)

    async def _connected(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            # If there is something to read before anything was sent, the connection has ended or has an old reply.
            if not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        connection = _new_connection(self._pool)
        await connection.connect()  # type: ignore[no-untyped-call]  # as redis-py has it
        return connection

    async def _reply(self, connection: Connection, name: str) -> Any:
        try:
            if name == SCRIPT_COMMAND:  # redis-py doesn't convert a script's reply
                return await connection.read_response()
            return await self._redis.parse_response(connection, name)
        except ReadOnlyError as exc:
            # The address may name another server by now, which only a new connection reaches.
            raise RedisConnectionError(f"it is a replica by now: {exc}") from exc
        except ResponseError as exc:
            return exc


def connect(address: RedisAddress, host: tuple[str, int] | None = None, *, replicas: int = 0) -> Node:
    """A node at an address, or at one `host` of it. It connects at the first call.

    Raises:
        Misconfigured: the options don't fit the kind of connection.
    """
    options = {
        # Enabled, these notifications would make it impossible to tell whether a connection has an old reply to read.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        **address.options,
    }
    places = options.pop("max_connections", MAX_CONNECTIONS)
    try:
        if address.kind is Kind.SENTINEL:
            return _behind_sentinels(address, options, places, replicas)
        if host is not None:
            options |= {"host": host[0], "port": host[1]}
        connection_class = options.pop("connection_class", Connection)
        pool = ConnectionPool(connection_class=connection_class, **options)
        _new_connection(pool)  # raises if the options are not valid
        return Node(address.name if host is None else f"{host[0]}:{host[1]}", pool, places=places, replicas=replicas)
    except (TypeError, ValueError, RedisError):
        # The original message may contain a password.
        raise Misconfigured(
            "FIML_REDIS_URL has a parameter whose value can't be used; see docs/reference/settings.md"
        ) from None


def _behind_sentinels(address: RedisAddress, options: dict[str, Any], places: int, replicas: int) -> Node:
    timeouts = {"socket_connect_timeout": SENTINEL_S, "socket_timeout": SENTINEL_S, "retry": options["retry"]}
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # as redis-py has it
        address.hosts, sentinel_kwargs={**timeouts, "ssl": address.is_tls, **tls, **address.sentinel_options}
    )
    connection_class = SentinelManagedSSLConnection if address.is_tls else SentinelManagedConnection
    options.pop("connection_class", None)
    pool = _AskingPool(
        address.service,
        sentinel,
        connection_class=connection_class,
        **options,
    )
    _new_connection(pool)  # as above
    return Node(address.name, pool, places=places, replicas=replicas, sentinel=sentinel)


class _AskingPool(SentinelConnectionPool):
    """Asks the Sentinels once for all callers that connect at the same time.

    redis-py reorders its list of Sentinels while they answer: with several callers at once, it loses some Sentinels and
    lists others twice.
    """

    def __init__(self, service: str, sentinel: Sentinel, **options: Any) -> None:
        super().__init__(service, sentinel, **options)  # type: ignore[no-untyped-call]  # as above
        self.looking: SharedLook[tuple[str, int]] = SharedLook(self._look)

    async def get_master_address(self) -> tuple[str, int]:
        return await self.looking.result()

    async def _look(self) -> tuple[str, int]:
        try:
            return await super().get_master_address()  # type: ignore[no-any-return, no-untyped-call]  # as above
        except MasterNotFoundError:
            known = await self._known_names()
            if known is not None and self.service_name not in known:
                raise Misconfigured(
                    f"the Sentinels of FIML_REDIS_URL know no master {echo(self.service_name)}; they know "
                    f"{', '.join(sorted(known)) or 'none'}; put the right name after their addresses"
                ) from None
            raise

    async def _known_names(self) -> set[str] | None:
        """The names of all masters that the Sentinels know; `None` if no Sentinel answers."""
        asked = (sentinel.sentinel_masters() for sentinel in self.sentinel_manager.sentinels)
        told = [answer for answer in await asyncio.gather(*asked, return_exceptions=True) if isinstance(answer, dict)]
        return {str(name) for answer in told for name in answer} if told else None


def _wrong_address(refusal: str) -> str | None:
    """What the server's refusal says is wrong with the URL, or `None`."""
    if "DB index is out of range" in refusal:
        return "has no database of that number; end FIML_REDIS_URL with one that it has, such as /0"
    if "unknown command 'SENTINEL'" in refusal:
        return "is not a Sentinel; begin FIML_REDIS_URL with redis://"
    return None


def _new_connection(pool: ConnectionPool) -> Connection:
    return pool.make_connection()  # type: ignore[no-any-return, no-untyped-call]  # as redis-py has it


def _packed(command: Command) -> bytes:
    words: tuple[Any, ...] = command
    if command[0] != SCRIPT_COMMAND:
        name, *others = command
        # redis-py knows how to convert some replies by a command name of two words, such as CONFIG GET.
        words = (*str(name).split(), *others)
    packed: bytes = pack_command(words)
    return packed
