"""Clients of the MCP server: in this process, over stdio, and one that sees every byte of the wire."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any
from uuid import UUID

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent

from fiml.core.config import Settings
from fiml.market.service import MarketService
from fiml.mcp.server import build_server
from fiml.runtime import Runtime, open_runtime
from fiml.sessions.models import Session
from fiml.testing.stores import copy_empty_file

ROOT = Path(__file__).parent.parent.parent
HANDSHAKE = "2025-11-25"
STATELESS = "2026-07-28"
ERAS = (HANDSHAKE, STATELESS)
TOOLS = (
    "create-analysis-session",
    "get-session-info",
    "list-sessions",
    "extend-session",
    "get-session-analytics",
    "search-by-symbol",
    "search-by-coin",
    "get-session-context",
    "update-session-context",
    "resume-session",
    "close-session",
    "search-sessions",
    "share-session",
)
SERVE = ("-m", "fiml", "serve")
# What a message for a model never has: an exception's name, a traceback, a validator's own words.
PYTHON = ("Traceback", 'File "', "Error executing", "Error:", "Exception", "pydantic", "input_value", "NoneType")
MAX_LINE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Caller:
    """Calls tools, and tells an answer from a refusal."""

    client: Client

    async def answer(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured content of an answer, which the text repeats."""
        result = await self.client.call_tool(tool, arguments)
        content = structured(result)
        assert not result.is_error, content
        assert json.loads(text_of(result)) == content
        return content

    async def refusal(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured content of a tool error that a model can act upon."""
        result = await self.client.call_tool(tool, arguments)
        content, text = structured(result), text_of(result)
        assert result.is_error, content
        assert content["status"] == "error"
        assert content["code"] in text
        assert content["message"] in text
        assert content.get("next_step", "") in text
        assert not [word for word in PYTHON if word in text or word in json.dumps(content)], text
        return content

    async def create(self, *assets: str, **arguments: Any) -> str:
        """The id of a new session."""
        named = {"assets": list(assets) or ["AAPL"], "sessionType": "equity"} | arguments
        return str((await self.answer("create-analysis-session", **named))["session_id"])


@dataclass(frozen=True)
class Door(Caller):
    """A client of a server in this process, and the runtime behind the server."""

    runtime: Runtime

    async def session(self, session_id: str) -> Session:
        """What the store has of a session, read without counting as an access of the model's."""
        found = await (await self.runtime.store()).get_session(UUID(session_id))
        assert found is not None, f"session {session_id} is gone"
        return found


@asynccontextmanager
async def door(settings: Settings, *, era: str = STATELESS, market: MarketService | None = None) -> AsyncIterator[Door]:
    """A client of a server over `settings`, both in this process."""
    if settings.is_embedded:
        with suppress(NotADirectoryError):  # such a folder is the server's to find
            await copy_empty_file(settings.embedded_file)
    async with (
        open_runtime(settings, market=market) as runtime,
        Client(build_server(runtime), mode=mode_of(era)) as client,
    ):
        yield Door(client, runtime)


@asynccontextmanager
async def stdio_caller(folder: Path, *, era: str = STATELESS) -> AsyncIterator[Caller]:
    """A client of a server process of its own, with its data in `folder`."""
    server = StdioServerParameters(command=sys.executable, args=list(SERVE), env=environment(folder), cwd=ROOT)
    with log_file(folder) as log:
        async with Client(stdio_client(server, errlog=log), mode=mode_of(era)) as client:
            assert client.protocol_version == era
            yield Caller(client)


class Wire:
    """A server process, and the lines that go to it and come from it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._last_id = 0

    async def handshake(self) -> None:
        """Begin as a client of the handshake era does."""
        client = {"name": "tests", "version": "1"}
        await self.ask("initialize", {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": client})
        await self.next_answer()
        await self.write(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> int:
        """Send a request without awaiting its answer; its id."""
        self._last_id += 1
        await self.write(
            json.dumps({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params or {}}),
        )
        return self._last_id

    async def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def next_answer(self) -> dict[str, Any] | None:
        """What the server says next; `None` when it has ended."""
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        if not line.endswith("\n"):  # the end, or a line that a kill cut
            return None
        self.lines.append(line)
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def log_has(self, event: str) -> None:
        """Return when the server has logged an event."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if event in line.decode():
                return
        raise AssertionError(f"the server ended without logging {event}")

    async def leave(self) -> None:
        """Close the server's input, and read the rest of its output."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        while await self.next_answer() is not None:
            pass
        assert await self.process.wait() == 0


@asynccontextmanager
async def wire(folder: Path, *, command: tuple[str, ...] = SERVE) -> AsyncIterator[Wire]:
    """A server process with its data in `folder`, ended at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env={"PATH": os.defpath} | environment(folder),
        limit=MAX_LINE_BYTES,
    )
    try:
        yield Wire(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def environment(folder: Path) -> dict[str, str]:
    """What a server process needs to keep its data in `folder`, and to treat warnings as errors."""
    return {"FIML_DATA_DIR": str(folder), "FIML_MARKET_DATA": "sample", "PYTHONWARNINGS": "error::UserWarning"}


def log_file(folder: Path) -> TextIOWrapper:
    return (folder.parent / "server.log").open("a")


def mode_of(era: str) -> str:
    """The SDK client's name for an era."""
    return "legacy" if era == HANDSHAKE else era


def structured(result: CallToolResult) -> dict[str, Any]:
    assert isinstance(result.structured_content, dict), result
    return result.structured_content


def text_of(result: CallToolResult) -> str:
    [block] = result.content
    assert isinstance(block, TextContent)
    return block.text


def tokens(value: Any) -> float:
    """Tokens of a JSON value: four bytes each of its compact UTF-8."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) / 4
