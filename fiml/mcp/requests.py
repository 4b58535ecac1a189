"""Names the request in log lines, and logs and measures the outcome of each one, without its content."""

import re
from collections.abc import Collection
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fiml.core import observe
from fiml.core.clock import stopwatch
from fiml.core.log import get_logger, in_request, is_in_request

REQUEST_ID = "x-request-id"
UNKNOWN = "unknown"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Any other method could be arbitrary text from the client.
_METHODS = {
    *("initialize", "ping", "server/discover", "completion/complete"),
    *("tools/list", "tools/call", "prompts/list", "prompts/get"),
    *("resources/list", "resources/read", "resources/templates/list"),
}

_log = get_logger()


class NamedRequests:
    """Wraps the HTTP application: each response has the id under which its request is logged.

    That is the client's `X-Request-Id` if it is short and plain, else a new id. A trace in `traceparent` is continued.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        with in_request(given if _WELL_FORMED.fullmatch(given) else None) as request_id:

            async def send_named(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
                await send(message)

            with observe.going_on(dict(headers)):
                await self._app(scope, receive, send_named)


class RequestLog:
    """Logs and measures the outcome of each request; on stdio, it is logged at the level `debug` only."""

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = frozenset(tools)

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.request_id is None:
            return await call_next(ctx)
        if is_in_request():
            return await self._answer(ctx, call_next, _log.info)
        with in_request():
            return await self._answer(ctx, call_next, _log.debug)

    async def _answer(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext, log: Any) -> HandlerResult:
        name, elapsed_ms = self._name(ctx), stopwatch()
        code = observe.OK
        try:
            result = await call_next(ctx)
            code = _code_of_result(result)
        except BaseException as exc:
            code = f"mcp{exc.error.code}" if isinstance(exc, MCPError) else observe.code_of(exc)
            raise
        else:
            return result
        finally:
            ms = elapsed_ms()
            observe.note(observe.Timed.CALL, name, code, ms / 1000)
            log("answered", call=name, code=code, duration_ms=round(ms, 1))

    def _name(self, ctx: ServerRequestContext[Any, Any]) -> str:
        """The tool or the method; an unknown one could be arbitrary text from the caller, and isn't named."""
        if ctx.method != "tools/call":
            return ctx.method if ctx.method in _METHODS else UNKNOWN
        tool = (ctx.params or {}).get("name")
        return tool if isinstance(tool, str) and tool in self._tools else UNKNOWN


def _code_of_result(result: HandlerResult) -> str:
    # A tool's answer is already serialized here; that of a check before the tool is still a model.
    if isinstance(result, CallToolResult):
        is_error, content = result.is_error, result.structured_content
    elif isinstance(result, dict):
        is_error, content = result.get("isError") is True, result.get("structuredContent")
    else:
        return observe.OK
    if not is_error:
        return observe.OK
    return str(content.get("code", "error")) if isinstance(content, dict) else "error"
