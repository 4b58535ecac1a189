"""`fiml serve --http` as a process of its own, and clients of it."""

import asyncio
import os
import re
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.support.mcp_client import ROOT, STATELESS, Caller, environment, mode_of
from tests.support.servers import PATIENCE_SECONDS

START_TRIES = 300
_LISTENING = re.compile(r"""address['":=\s]+([\d.]+:\d+)['",\s]+path""")  # in text and in JSON; metrics have no path


@dataclass
class HttpServer:
    """A server process, its address and its log."""

    process: Process
    url: str
    log: Path

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            return await client.get(self.url + path, headers=headers)

    async def post(self, body: bytes, **headers: str) -> httpx2.Response:
        """Post a body to the MCP endpoint."""
        usual = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx2.AsyncClient() as client:
            return await client.post(f"{self.url}/mcp", content=body, headers={**usual, **named})

    @asynccontextmanager
    async def caller(self, *, era: str = STATELESS, token: str | None = None) -> AsyncIterator[Caller]:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(headers=headers) as http:
            transport = streamable_http_client(f"{self.url}/mcp", http_client=http)
            async with Client(transport, mode=mode_of(era)) as client:
                assert client.protocol_version == era
                yield Caller(client)

    async def send(self, *lines: str, body: bytes = b"") -> bytes:
        """A request in any words, its lines without their ends; all that comes back until the connection is closed."""
        reader, writer = await self.connect()
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return await asyncio.open_connection(host, int(port))


@asynccontextmanager
async def http_server(
    folder: Path, *, before: str = "", host: str = "127.0.0.1", **variables: str
) -> AsyncIterator[HttpServer]:
    """A server with its data in `folder`, or where `variables` say; ended at the end of the block.

    `before` is Python that its process runs first.
    """
    log = folder.with_name(f"{folder.name}-{uuid4().hex}.log")
    with log.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"{before}\nfrom fiml.cli import main; main()"),
            *("serve", "--http", f"{host}:0"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
            cwd=ROOT,
            env={"PATH": os.defpath} | environment(folder) | variables,
        )
    try:
        server = HttpServer(process, await _listening(log, process), log)
        await _wait_until_it_answers(server)
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _listening(log: Path, process: Process) -> str:
    """The URL of the server, once it has a port."""
    for _ in range(START_TRIES):
        if found := _LISTENING.search(_said(log)):
            return f"http://{found[1]}"
        assert process.returncode is None, f"the server ended at its start:\n{_said(log)}"
        await asyncio.sleep(0.1)
    raise AssertionError(f"the server doesn't listen:\n{_said(log)}")


def _said(log: Path) -> str:
    return log.read_text()


async def _wait_until_it_answers(server: HttpServer) -> None:
    for _ in range(START_TRIES):
        try:
            await server.get("/health")
        except httpx2.TransportError:
            assert server.process.returncode is None, "the server ended at its start"
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError("the server doesn't answer")


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
