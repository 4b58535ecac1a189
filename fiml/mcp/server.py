"""Builds the MCP server and runs it on stdio."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp.server import MCPServer

from fiml import __version__
from fiml.core.config import Settings
from fiml.mcp.auth import BearerVerifier, TokenCheck, auth_settings
from fiml.mcp.memory_tools import memory_tools
from fiml.mcp.prompts import PromptCheck, add_prompts
from fiml.mcp.refusals import ArgumentCheck, CountCheck
from fiml.mcp.requests import RequestLog
from fiml.mcp.resources import AddressCheck, add_resources
from fiml.mcp.sharing_tools import sharing_tools
from fiml.mcp.stdio import run_on_stdio
from fiml.mcp.tools import session_tools
from fiml.runtime import Runtime, maintaining, open_runtime

INSTRUCTIONS = """\
fiml keeps a financial analysis alive. Begin one with create-analysis-session and pass its session_id as sessionId to \
search-by-symbol and search-by-coin: each query is recorded, and the answer says what changed since the last look.
To continue an earlier analysis, find it with search-sessions (by words, figures, dates) or list-sessions (with \
includeArchived, since it may have ended), read what it knows with get-session-context, and call resume-session if it \
has ended. get-session-info shows its state, extend-session keeps it alive longer, close-session ends it. Write \
decisions and conclusions down with update-session-context, citing the ids of the records they rest on. share-session \
shares a session with another user.
Always name a figure's source and as_of date; source `sample` is history, not today's market.
"""


def build_server(runtime: Runtime, verifier: BearerVerifier | None = None) -> MCPServer[None]:
    """A server with the tools, over a runtime that the caller closes. While it runs, it does the maintenance.

    With a verifier, callers on HTTP need a token that it accepts.
    """
    tools = [*session_tools(runtime), *memory_tools(runtime), *sharing_tools(runtime)]

    log = RequestLog([tool.name for tool in tools])

    @asynccontextmanager
    async def lifespan(_server: MCPServer[Any]) -> AsyncIterator[None]:
        async with maintaining(runtime):
            yield

    server = MCPServer[None](
        name="fiml",
        title="fiml: financial analysis sessions",
        version=__version__,
        instructions=INSTRUCTIONS,
        tools=tools,
        middleware=[
            log,
            *([] if verifier is None else [TokenCheck()]),
            CountCheck(),
            ArgumentCheck(tools),
            PromptCheck(),
            AddressCheck(),
        ],
        lifespan=lifespan,
        log_level="WARNING",
        auth=None if verifier is None else auth_settings(runtime.settings),
        token_verifier=verifier,
    )
    add_prompts(server, runtime)
    add_resources(server, runtime)
    return server


async def serve_stdio(settings: Settings) -> None:
    """Serve the client on standard input and output until it leaves."""
    async with open_runtime(settings) as runtime:
        await run_on_stdio(build_server(runtime))
