"""A proxy in front of a server, for connection faults: slow, cut, silent and refused connections."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.addresses import before_postgres, before_redis
from tests.support.servers import PORTS
from tests.support.wire import CHUNK_BYTES, Streams

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
_LISTEN_TRIES = 20


@dataclass(eq=False)
class _Fault:
    """What is done to the replies on a connection, after a number of others went through."""

    after_replies: int = 0
    delay_s: float = 0
    is_cut: bool = False
    is_silent: bool = False
    is_felt: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold_back(self) -> None:
        """Return when a reply may be sent on."""
        self.is_felt.set()
        await asyncio.sleep(self.delay_s)
        if self.is_silent:
            await self.is_over.wait()


class _Connection:
    """A client's connection, with one of its own to the server."""

    def __init__(self, client: Streams, server: Streams, fault: _Fault) -> None:
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self.fault = fault

    async def run(self) -> None:
        """Pass bytes on until one side closes the connection."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on_requests())
                group.create_task(self._pass_on_replies())
        finally:
            self.cut()

    def cut(self) -> None:
        self._client.transport.abort()
        self._server.transport.abort()

    async def _pass_on_requests(self) -> None:
        with suppress(OSError):
            while said := await self._client_reader.read(CHUNK_BYTES):
                self._server.write(said)
                await self._server.drain()
        self._server.close()

    async def _pass_on_replies(self) -> None:
        fault, replies = self.fault, 0
        with suppress(OSError):
            while said := await self._server_reader.read(CHUNK_BYTES):
                if fault is not self.fault:
                    fault, replies = self.fault, 0
                replies += 1
                if replies > fault.after_replies:
                    await fault.hold_back()
                    if fault.is_cut:
                        self._client.write(said[: len(said) // 2])
                        break
                self._client.write(said)
                await self._client.drain()
        self._client.close()


class Proxy:
    """Passes on what clients and the server say, until it is told otherwise.

    What it is told counts for the connections that there are and for new ones, until it is told something else; on
    each, `after_replies` replies from then on go through before. Requests always reach the server: what is spoilt is
    the reply, so that the client can't know what was done.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Streams]], listen: Callable[[Accept], Awaitable[asyncio.Server]]
    ) -> None:
        self._connect = connect
        self._listen = listen
        self._listener: asyncio.Server | None = None
        self._fault = _Fault()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self) -> None:
        """Take connections, also after `refuse`."""
        if self._listener is None:
            self._listener = await self._listen(self._begin)

    def pass_on(self) -> None:
        """Pass everything through; replies that were held back are sent on."""
        self._change(_Fault())

    def delay(self, seconds: float) -> None:
        """Let each reply wait."""
        self._change(_Fault(delay_s=seconds))

    def cut(self, *, after_replies: int = 0) -> None:
        """End each connection in the middle of a reply."""
        self._change(_Fault(after_replies, is_cut=True))

    def hang(self, *, after_replies: int = 0) -> None:
        """Take connections and requests, and let no reply through."""
        self._change(_Fault(after_replies, is_silent=True))

    def lose(self) -> None:
        """Never reply again on existing connections; new ones work as usual."""
        for connection in self._connections:
            connection.fault = _Fault(is_silent=True)
        self._fault = _Fault()

    async def wait_until_felt(self) -> None:
        """Return when the last change has affected a reply."""
        await self._fault.is_felt.wait()

    async def refuse(self) -> None:
        """End all connections, and take none until `accept`."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _change(self, fault: _Fault) -> None:
        self._fault.is_over.set()
        self._fault = fault
        for connection in self._connections:
            connection.fault.is_over.set()
            connection.fault = fault

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve((reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also where it is cancelled before it has begun.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, client: Streams) -> None:
        try:
            server = await self._connect()
        except OSError:
            return
        connection = _Connection(client, server, self._fault)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


@asynccontextmanager
async def tcp_proxy(host: str, port: int) -> AsyncIterator[tuple[Proxy, int]]:
    """A proxy in front of a server, and the port on loopback at which it answers."""
    own_port = 0

    async def listen(accept: Accept) -> asyncio.Server:
        nonlocal own_port
        if own_port == 0:
            server, own_port = await _listen_somewhere(accept)
            return server
        return await asyncio.start_server(accept, "127.0.0.1", own_port)

    async with _proxy(lambda: asyncio.open_connection(host, port), listen) as proxy:
        yield proxy, own_port


@asynccontextmanager
async def unix_proxy(socket: Path, folder: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a server on a Unix socket; it answers in `folder`, under the same name."""
    path = folder / socket.name
    async with _proxy(
        lambda: asyncio.open_unix_connection(socket), lambda accept: asyncio.start_unix_server(accept, path)
    ) as proxy:
        yield proxy


def redis_proxy(url: str) -> AbstractAsyncContextManager[tuple[Proxy, str]]:
    """A proxy in front of a Redis server, and the URL at which it answers."""
    return before_redis(url, tcp_proxy)


def postgres_proxy(url: str) -> AbstractAsyncContextManager[tuple[Proxy, str]]:
    """A proxy in front of a PostgreSQL server, and the URL at which it answers."""
    return before_postgres(url, tcp_proxy, unix_proxy)


@asynccontextmanager
async def _proxy(
    connect: Callable[[], Awaitable[Streams]], listen: Callable[[Accept], Awaitable[asyncio.Server]]
) -> AsyncIterator[Proxy]:
    proxy = Proxy(connect, listen)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.refuse()


async def _listen_somewhere(accept: Accept) -> tuple[asyncio.Server, int]:
    for _ in range(_LISTEN_TRIES):
        port = secrets.choice(PORTS)
        with suppress(OSError):  # somebody has it
            return await asyncio.start_server(accept, "127.0.0.1", port), port
    raise RuntimeError("no free port found")
