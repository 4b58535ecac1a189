"""A server of the SDK with one tool and nothing behind it: the least that a call and a start can cost.

python benchmarks/bare_server.py             # on standard input and output
python benchmarks/bare_server.py 127.0.0.1 8123
"""

import sys
from collections.abc import Awaitable, Callable

from mcp.server import MCPServer
from pydantic import BaseModel


class Info(BaseModel):
    """An answer of the shape and size of get-session-info's."""

    status: str = "success"
    session_id: str
    user_id: str | None = "analyst"
    type: str = "equity"
    title: str | None = "One"
    assets: list[str] = ["AAPL", "MSFT"]
    tags: list[str] = ["tech"]
    created_at: str = "2024-12-24T15:30:00Z"
    expires_at: str = "2024-12-25T15:30:00Z"
    last_accessed_at: str = "2024-12-24T15:30:00Z"
    is_expired: bool = False
    is_archived: bool = False
    time_remaining_hours: float = 24.0
    total_queries: int = 0
    cache_hit_rate: float = 0.0
    query_types: dict[str, int] = {}
    recent_queries: list[dict[str, str]] = []


async def nothing(_session_id: str) -> None:
    """What is behind the tool, by default."""


def build(behind: Callable[[str], Awaitable[object]] = nothing) -> MCPServer[None]:
    """The server, whose tool waits for what is behind it."""
    server = MCPServer[None]("bare", log_level="WARNING")  # else uvicorn writes a line for each call

    @server.tool(name="get-session-info")
    async def info(sessionId: str) -> Info:  # noqa: N803 - as the protocol has it
        """The state of a session."""
        await behind(sessionId)
        return Info(session_id=sessionId)

    return server


if __name__ == "__main__":
    if len(sys.argv) > 1:
        host, port = sys.argv[1:]
        build().run("streamable-http", host=host, port=int(port), stateless_http=True, json_response=True)
    else:
        build().run()
