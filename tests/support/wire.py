"""A relay between a client and a server that records the traffic: how often, which commands, which replies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.addresses import before_postgres, before_redis

CHUNK_BYTES = 1 << 20


@dataclass
class Wire:
    """What went over the wire since `clear`; each side's bytes are joined until the other one speaks."""

    turns: list[tuple[str, bytes]] = field(default_factory=list)

    def clear(self) -> None:
        self.turns.clear()

    def hear(self, speaker: str, said: bytes) -> None:
        if self.turns and self.turns[-1][0] == speaker:
            said = self.turns.pop()[1] + said
        self.turns.append((speaker, said))

    @property
    def round_trips(self) -> int:
        """How often the client sent something after it had its reply."""
        return len(self.requests)

    @property
    def requests(self) -> list[bytes]:
        return [said for speaker, said in self.turns if speaker == "client"]

    @property
    def replies(self) -> list[bytes]:
        return [said for speaker, said in self.turns if speaker == "server"]

    @property
    def commands(self) -> list[list[bytes]]:
        """The Redis commands that were sent, with their arguments."""
        return [command for request in self.requests for command in parse_commands(request)]


def parse_commands(request: bytes) -> Iterator[list[bytes]]:
    """The commands of a request in the protocol of Redis."""
    at = 0
    while at < len(request):
        count, at = _number(request, at, b"*")
        command = []
        for _ in range(count):
            size, at = _number(request, at, b"$")
            command.append(request[at : at + size])
            at += size + 2
        yield command


def _number(request: bytes, at: int, kind: bytes) -> tuple[int, int]:
    end = request.index(b"\r\n", at)
    assert request[at : at + 1] == kind
    return int(request[at + 1 : end]), end + 2


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """Connects each client to the server, and passes bytes on until one side closes the connection."""

    def __init__(self, wire: Wire, connect: Callable[[], Awaitable[Streams]]) -> None:
        self._wire = wire
        self._connect = connect
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._connect()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on("client", reader, server_writer))
                group.create_task(self._pass_on("server", server_reader, writer))
        finally:
            writer.close()
            server_writer.close()

    async def _pass_on(self, speaker: str, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while said := await source.read(CHUNK_BYTES):
            self._wire.hear(speaker, said)
            target.write(said)
            await target.drain()
        target.close()


@asynccontextmanager
async def tcp_wire(host: str, port: int) -> AsyncIterator[tuple[Wire, int]]:
    """A wire to a server, and the port on loopback at which it answers."""
    wire = Wire()
    relay = Relay(wire, lambda: asyncio.open_connection(host, port))
    async with _relaying(relay, await asyncio.start_server(relay.accept, "127.0.0.1", 0)) as server:
        yield wire, server.sockets[0].getsockname()[1]


@asynccontextmanager
async def unix_wire(socket: Path, folder: Path) -> AsyncIterator[Wire]:
    """A wire to a server on a Unix socket; it answers in `folder`, under the same name."""
    wire = Wire()
    relay = Relay(wire, lambda: asyncio.open_unix_connection(socket))
    async with _relaying(relay, await asyncio.start_unix_server(relay.accept, folder / socket.name)):
        yield wire


def redis_wire(url: str) -> AbstractAsyncContextManager[tuple[Wire, str]]:
    """A wire to a Redis server, and the URL at which it answers."""
    return before_redis(url, tcp_wire)


def postgres_wire(url: str) -> AbstractAsyncContextManager[tuple[Wire, str]]:
    """A wire to a PostgreSQL server, and the URL at which it answers."""
    return before_postgres(url, tcp_wire, unix_wire)


@asynccontextmanager
async def _relaying(relay: Relay, server: asyncio.Server) -> AsyncIterator[asyncio.Server]:
    try:
        yield server
    finally:
        server.close()
        await relay.close()  # the server waits for its connections, which the client may leave open
        await server.wait_closed()
