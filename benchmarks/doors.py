"""The MCP door: a call and a start, beside a server of the SDK with one bare tool."""

import asyncio
import json
import os
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from benchmarks import bare_server
from benchmarks.bare_file import hop
from benchmarks.engines import Engines
from benchmarks.timing import OURS, Batch, Comparison, calls_of, in_turn
from fiml.core import clock
from fiml.core.config import Settings
from fiml.mcp.results import RECENT_QUERIES
from fiml.mcp.server import build_server
from fiml.runtime import open_runtime
from tests.support.http_server import http_server

BARE = "bare tool"
BARE_READ = "bare tool around the same read"
BARE_TRIP = "bare tool around one trip"
BARE_START = "bare server"
FILE = "the embedded file"
SERVERS = "Valkey and PostgreSQL"
TOOL = "get-session-info"
BARE_FILE = Path(bare_server.__file__)
SERVE = (sys.executable, "-m", "fiml", "serve")
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "benchmarks", "version": "1"},
}
HELLO = b"".join(
    json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
    for message in (
        {"id": 1, "method": "initialize", "params": INITIALIZE},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list", "params": {}},
    )
)


async def doors(engines: Engines) -> AsyncIterator[Comparison]:
    """Calls in memory, on stdio and HTTP, and starts."""
    with tempfile.TemporaryDirectory(prefix="fiml-bench-") as name:
        folder = Path(name)
        with ThreadPoolExecutor(1) as thread:
            yield await in_memory(engines, engines.settings, engines.redis.ping, over=SERVERS)
            yield await in_memory(engines, Settings(data_dir=folder), lambda: hop(thread, int), over=FILE)
        yield await on_stdio(engines, folder)
        yield await on_http(engines, folder, {}, over=FILE)
        yield await on_http(engines, folder, engines.urls, over=SERVERS)
        yield await starts(engines, folder)


async def in_memory(
    engines: Engines, settings: Settings, trip: Callable[[], Awaitable[object]], *, over: str
) -> Comparison:
    """Beside bare tools that wait for nothing, for one trip to the engine that does nothing there, and for the read."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(open_runtime(settings))
        ours = await stack.enter_async_context(Client(build_server(runtime)))
        bare = await stack.enter_async_context(Client(bare_server.build()))
        store = await runtime.store()
        read = partial(store.get_session, recent_queries=RECENT_QUERIES)
        reading = await stack.enter_async_context(Client(bare_server.build(read)))
        travelling = await stack.enter_async_context(Client(bare_server.build(lambda _session_id: trip())))
        others = {BARE: bare, BARE_TRIP: travelling, BARE_READ: reading}
        return await compared(engines, f"MCP call in memory, over {over}", ours, others)


async def on_stdio(engines: Engines, folder: Path) -> Comparison:
    variables = {"PATH": os.defpath, "FIML_DATA_DIR": str(folder), "FIML_MARKET_DATA": "sample"}
    ours = StdioServerParameters(command=SERVE[0], args=list(SERVE[1:]), env=variables)
    bare = StdioServerParameters(command=sys.executable, args=[str(BARE_FILE)], env=variables)
    with (folder / "stdio.log").open("a") as log:
        async with Client(stdio_client(ours, errlog=log)) as one, Client(stdio_client(bare, errlog=log)) as other:
            return await compared(engines, f"MCP call on stdio, over {FILE}", one, {BARE: other})


async def on_http(engines: Engines, folder: Path, urls: dict[str, str], *, over: str) -> Comparison:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(http_server(folder, **urls))
        url = await stack.enter_async_context(_bare_http())
        ours = await stack.enter_async_context(Client(streamable_http_client(f"{server.url}/mcp")))
        bare = await stack.enter_async_context(Client(streamable_http_client(f"{url}/mcp")))
        return await compared(engines, f"MCP call on HTTP, over {over}", ours, {BARE: bare})


async def compared(engines: Engines, operation: str, ours: Client, others: dict[str, Client]) -> Comparison:
    """`get-session-info` of a session without queries, and bare tools of its shape."""
    made = await ours.call_tool("create-analysis-session", {"assets": ["AAPL", "MSFT"], "sessionType": "equity"})
    assert made.structured_content is not None
    session_id = str(made.structured_content["session_id"])
    ways = {name: _calls(client, session_id) for name, client in {OURS: ours, **others}.items()}
    measured = await in_turn(ways, rounds=engines.plan.rounds, calls=engines.plan.calls)
    note = "one trip is a PING, or a hop to a thread and back; the read is what any tool over the store takes"
    return Comparison(operation, measured, BARE, 1.5, note if BARE_READ in others else "")


def _calls(client: Client, session_id: str) -> Batch:
    async def call() -> None:
        result = await client.call_tool(TOOL, {"sessionId": session_id})
        assert not result.is_error, result

    return calls_of(call)


async def starts(engines: Engines, folder: Path) -> Comparison:
    """From the start of the process to its answer to `tools/list`."""

    def start(*command: str) -> Batch:
        async def batch(_calls: int) -> list[float]:
            return [await started_ms(command, folder)]

        return batch

    ways = {OURS: start(*SERVE), BARE_START: start(sys.executable, str(BARE_FILE))}
    for batch in ways.values():
        await batch(1)  # bytecode is written, and the files are read once
    measured = await in_turn(ways, rounds=engines.plan.starts, calls=1)
    return Comparison("start to tools/list", measured, BARE_START, 1.2)


async def started_ms(command: tuple[str, ...], folder: Path) -> float:
    """Milliseconds until a new server has listed its tools."""
    variables = {"PATH": os.defpath, "FIML_DATA_DIR": str(folder), "FIML_MARKET_DATA": "sample"}
    elapsed_ms = clock.stopwatch()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=variables, limit=1 << 22
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(HELLO)
    while json.loads(await process.stdout.readline()).get("id") != 2:
        pass
    took_ms = elapsed_ms()
    process.stdin.close()
    await process.communicate()
    return took_ms


@asynccontextmanager
async def _bare_http() -> AsyncIterator[str]:
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(BARE_FILE), "127.0.0.1", str(port), stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        await _listening(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _listening(port: int) -> None:
    for _ in range(300):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            await writer.wait_closed()
            return
    raise RuntimeError("the bare server did not start")
