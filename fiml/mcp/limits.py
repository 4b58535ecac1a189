"""Limits for callers on HTTP: unambiguous requests, the time to send one, and calls in a minute."""

import asyncio
import math
from datetime import timedelta

import msgspec
from mcp_types import ErrorData, JSONRPCError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fiml.access.rates import Allowances
from fiml.core import clock
from fiml.core.errors import RateLimited
from fiml.mcp.auth import current_principal
from fiml.mcp.refusals import next_step_of

HEADERS_WITHIN_S = 10.0
BODY_WITHIN_S = 20.0
ID_WITHIN_S = 0.5
# One of the codes that JSON-RPC reserves for servers.
RATE_LIMITED = -32050
_SAID_ONCE = (b"authorization", b"content-type", b"host", b"origin")
_LENGTHS = {b"content-length", b"transfer-encoding"}


class OneMeaning:
    """Answers 400 to a request that a proxy in front may understand differently than we do, and closes the connection.

    A request with two lengths may hide a second request. Of two tokens or hosts, the proxy may check one while we use
    the other.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_ambiguous([name.lower() for name, _ in scope["headers"]]):
            await PlainTextResponse("Bad Request", 400, {"connection": "close"})(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_ambiguous(names: list[bytes]) -> bool:
    return set(names) >= _LENGTHS or any(names.count(name) > 1 for name in _SAID_ONCE)


class RateLimit:
    """Answers 429 to a principal that calls more often than it may. The local user is not limited."""

    def __init__(self, app: ASGIApp, allowances: Allowances) -> None:
        self._app = app
        self._allowances = allowances

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user_id = current_principal().user_id
        if scope["type"] == "http" and user_id is not None:
            wait = await self._allowances.take(user_id)
            if wait:
                await _too_many(math.ceil(wait.total_seconds()), await _id_of_call(receive))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Call(msgspec.Struct):
    id: int | str | None = None


async def _id_of_call(receive: Receive) -> int | str | None:
    """The id of a call whose body comes in one piece and at once, as usual; a refusal waits for no more than that."""
    try:
        async with asyncio.timeout(ID_WITHIN_S):
            message = await receive()
    except (HTTPException, TimeoutError):
        return None
    if message["type"] != "http.request" or message.get("more_body", False):
        return None
    try:
        return msgspec.json.decode(message.get("body", b""), type=_Call).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _too_many(seconds: int, call_id: int | str | None) -> JSONResponse:
    """The refusal, also as an error of the protocol: clients show its message to the model."""
    error = RateLimited("fiml", clock.now() + timedelta(seconds=seconds))
    data = {"code": error.code, "next_step": next_step_of(error), "retry_after_seconds": seconds}
    refusal = JSONRPCError(
        jsonrpc="2.0", id=call_id, error=ErrorData(code=RATE_LIMITED, message=f"{error.code}: {error}", data=data)
    )
    return JSONResponse(
        refusal.model_dump(mode="json", by_alias=True), status_code=429, headers={"retry-after": str(seconds)}
    )


class BodyInTime:
    """Answers 408 to a caller that doesn't send the whole body in time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _in_time(receive)
        await self._app(scope, receive, send)


def _in_time(receive: Receive) -> Receive:
    until = asyncio.get_running_loop().time() + BODY_WITHIN_S
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        # After the body, the next message is the caller's disconnect, which has no limit.
        try:
            async with asyncio.timeout_at(None if is_whole else until):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, headers={"connection": "close"}) from None
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


class HeadersInTime(H11Protocol):
    """A connection that is closed if the headers of a request don't arrive in time.

    The time starts with a new connection, or with the first bytes of a further request; between two requests, uvicorn's
    own limit for idle connections applies.
    """

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._close_soon()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Before the first request, `cycle` is None, although its annotation says otherwise.
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]
            self._close_soon()
        else:
            self._stay_open()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stay_open()
        super().connection_lost(exc)

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = self.loop.call_later(HEADERS_WITHIN_S, self._close)

    def _stay_open(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        self._closing = None
        if not self.transport.is_closing():
            self.transport.close()
