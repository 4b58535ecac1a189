"""The stdio transport, which answers every request, even one that can't be parsed.

The SDK ignores a line that its JSON parser rejects (half a character, an integer of thousands of digits, three hundred
brackets, a comma too many), and the client would wait for ever.
"""

import json
import re
from types import TracebackType
from typing import Any, Self

from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCResponse
from pydantic import ValidationError

from fiml.core.log import get_logger
from fiml.mcp.refusals import refuse_unreadable

_log = get_logger()
_MAX_DIGITS = 18
_TOKEN = re.compile(r"""\s*("(?:[^"\\]++|\\.)*+"|[][{},:]|[^][{},:"\s]++)""")
_CLOSING = {"{": "}", "[": "]"}
_NAMES = {'"id"', '"method"'}


async def run_on_stdio(server: MCPServer[None]) -> None:
    """Serve the client on standard input and output until it leaves, or no longer reads."""
    lowlevel = server._lowlevel_server  # noqa: SLF001 - `run_stdio_async` takes no streams
    try:
        async with stdio_server() as (incoming, outgoing):
            answered = _AnsweredStream(incoming, outgoing)
            await lowlevel.run(answered, outgoing, lowlevel.create_initialization_options())
    except* BrokenPipeError:
        _log.info("client_gone")


class _AnsweredStream:
    """The messages of a stream. Lines between them that can't be parsed are answered at once."""

    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def last_context(self) -> Any:
        """The context of the last message received, an attribute that the SDK's own streams have."""
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
    """The reply to a line that the SDK can't parse; `None` if it is blank, or a notification."""
    [problem, *_] = error.errors(include_url=False, include_context=False)
    line = problem["input"]
    if problem["type"] != "json_invalid" or not isinstance(line, str) or not line.strip():
        return None
    try:
        request = _read_leniently(line)
    except (ValueError, RecursionError):
        request = {"id": None} | _outline(line)
    if "id" not in request:
        return None
    request_id = request["id"] if _is_id(request["id"]) else None
    if request_id is None or request.get("method") != "tools/call":
        return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=PARSE_ERROR, message=problem["msg"]))
    result = refuse_unreadable(problem["msg"]).model_dump(by_alias=True, mode="json", exclude_none=True)
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=result)


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return value.isprintable()  # an id with half a character can't be sent back
    return isinstance(value, int) and not isinstance(value, bool)


def _read_leniently(line: str) -> dict[str, Any]:
    """Parse a line with Python's own parser, which accepts more; empty if the line isn't an object.

    Raises:
        ValueError, RecursionError: Python's parser rejects the line too.
    """
    read = json.loads(line, parse_int=_integer)
    return read if isinstance(read, dict) else {}


def _outline(line: str) -> dict[str, Any]:
    """The id and method in the beginning of a line, up to where its brackets don't match. Works without recursion."""
    closing: list[str] = []
    outermost: list[str] = []
    position = 0
    while token := _TOKEN.match(line, position):
        position, text = token.end(), token[1]
        if text in _CLOSING:
            closing.append(_CLOSING[text])
        elif text in _CLOSING.values():
            if not closing or closing.pop() != text:
                break
        elif closing == ["}"]:
            outermost.append(text)
    named = zip(outermost, outermost[1:], outermost[2:], strict=False)
    return {key[1:-1]: _scalar(value) for key, colon, value in named if colon == ":" and key in _NAMES}


def _scalar(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_integer)
    except ValueError:
        return None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MAX_DIGITS else None
