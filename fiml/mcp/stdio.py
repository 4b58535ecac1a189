"""The stdio transport, which answers every request, also one that can't be read.

The SDK passes over a line that isn't JSON to its parser (half a character, an integer of thousands of digits, three
hundred brackets), and the client waits for ever.
"""

import json
from types import TracebackType
from typing import Any, Self

from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCResponse
from pydantic import ValidationError

from fiml.mcp.refusals import refuse_unreadable

_MAX_DIGITS = 18


async def run_on_stdio(server: MCPServer[None]) -> None:
    """Serve the client on standard input and output until it leaves."""
    lowlevel = server._lowlevel_server  # noqa: SLF001 - `run_stdio_async` takes no streams
    async with stdio_server() as (incoming, outgoing):
        answered = _AnsweredStream(incoming, outgoing)
        await lowlevel.run(answered, outgoing, lowlevel.create_initialization_options())


class _AnsweredStream:
    """The messages of a stream; what stands between them and can't be read is answered at once."""

    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def last_context(self) -> Any:
        """The context of the message that was received last, as the SDK's own streams have it."""
        return getattr(self._incoming, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        return await self._readable(await self._incoming.receive())

    async def aclose(self) -> None:
        await self._incoming.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return await self._readable(await anext(self._incoming))

    async def __aenter__(self) -> Self:
        await self._incoming.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        is_handled: bool | None = await self._incoming.__aexit__(kind, error, trace)
        return is_handled

    async def _readable(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        while isinstance(item, ValidationError):
            if (reply := answer_unreadable(item)) is not None:
                await self._outgoing.send(SessionMessage(reply))
            item = await anext(self._incoming)
        return item


def answer_unreadable(error: ValidationError) -> JSONRPCResponse | JSONRPCError | None:
    """The reply to a line that isn't JSON to the SDK; `None` where it wasn't a request."""
    [problem, *_] = error.errors(include_url=False, include_context=False)
    request = _read_leniently(problem["input"])
    request_id = request.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, int | str):
        return None
    if request.get("method") != "tools/call":
        return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=PARSE_ERROR, message=problem["msg"]))
    result = refuse_unreadable(problem["msg"]).model_dump(by_alias=True, mode="json", exclude_none=True)
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=result)


def _read_leniently(line: object) -> dict[str, Any]:
    """What Python's own parser, which takes more, makes of a line; empty where that is no object either."""
    if not isinstance(line, str | bytes):
        return {}
    try:
        read = json.loads(line, parse_int=lambda digits: int(digits) if len(digits) <= _MAX_DIGITS else None)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
