"""A minimal server on the SDK, over HTTP: what it fails, the SDK fails."""

import sys

import uvicorn
from mcp.server import MCPServer

bare = MCPServer[None]("bare", log_level="ERROR")


@bare.tool()
def echo(text: str) -> str:
    """Return the same text."""
    return text


@bare.resource("bare://text")
def text() -> str:
    """A text."""
    return "text"


@bare.prompt()
def ask() -> str:
    """A question."""
    return "What is it?"


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    app = bare.streamable_http_app(stateless_http=True, json_response=True)
    uvicorn.run(app, host=host, port=int(port), log_level="error")
