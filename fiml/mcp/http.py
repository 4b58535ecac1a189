"""The server on streamable HTTP. It is stateless: no request depends on a connection or a process.

If the settings accept tokens, each caller must have one, and sees its user's sessions. Without authentication, the
address must be a loopback one, and the local user is the only principal, as on stdio: other callers could list all
sessions and read any of them.
"""

import asyncio
import ipaddress
import signal
import socket
import sys
from datetime import datetime, timedelta
from typing import Any

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fiml.access.rates import Allowances, open_allowances
from fiml.core import clock
from fiml.core.addresses import split_address
from fiml.core.config import Settings
from fiml.core.errors import FimlError, InvalidInput, Misconfigured, echo
from fiml.core.log import get_logger
from fiml.core.observe import Counted, count
from fiml.core.shared_look import SharedLook
from fiml.mcp.auth import BearerVerifier
from fiml.mcp.limits import BodyInTime, HeadersInTime, OneMeaning, RateLimit
from fiml.mcp.requests import NamedRequests
from fiml.mcp.server import build_server
from fiml.metrics.exposing import exposing
from fiml.runtime import Runtime, open_runtime
from fiml.sessions.maintenance import is_sweep_late
from fiml.sessions.store import SessionStore

PATH = "/mcp"
MAX_BODY_BYTES = 2 * 1024 * 1024
SHUTDOWN_S = 25
MAX_CONNECTIONS = 1000
_KEEP_ALIVE_S = 30
_RETRY_AFTER_S = 5
_LEAST_REFUSAL = 400
# A look at the engines takes two seconds at most. The first one also loads the drivers and opens the store, which takes
# two seconds more if PostgreSQL hangs.
READY_WITHIN_S = 10.0
_LOOK_FOR_BACKLOG_EVERY = timedelta(minutes=1)

_log = get_logger()


def parse_address(text: str, *, is_authenticated: bool = False) -> tuple[str, int]:
    """Host and port from `HOST:PORT`, with an IPv6 host in brackets.

    Raises:
        InvalidInput: the text doesn't have that form.
        Misconfigured: callers are not authenticated, and the host is not a loopback one.
    """
    try:
        host, port = split_address(text)
    except ValueError:
        raise InvalidInput(
            "--http", f"{echo(text)} is not an address", "give HOST:PORT, such as 127.0.0.1:8765"
        ) from None
    if not is_authenticated and not _is_loopback(host):
        raise Misconfigured(
            f"--http {text} is not a loopback address: without authentication, every caller would see every "
            "session; bind to 127.0.0.1 or [::1], or set FIML_AUTH_ISSUER or FIML_AUTH_TOKENS"
        )
    return host, port


def build_app(
    runtime: Runtime, host: str, verifier: BearerVerifier | None = None, allowances: Allowances | None = None
) -> Starlette:
    """The application: MCP at `/mcp`, and `/health` and `/ready`, which show no data.

    Authenticated callers may call as often as the allowances permit.
    """

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    probe = _Probe(runtime)

    async def ready(_request: Request) -> Response:
        answer = await probe.answer()
        return JSONResponse(answer, status_code=503 if answer["status"] == "unavailable" else 200)

    app = build_server(runtime, verifier).streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        # An event stream would be cut off when the server stops, and no tool sends anything before its result.
        json_response=True,
        max_request_body_size=MAX_BODY_BYTES,
        transport_security=_security(host, runtime.settings.hosts),
        host=host,
    )
    app.add_exception_handler(Exception, _not_known)
    app.user_middleware.insert(0, Middleware(OneMeaning))
    # After the SDK's own middleware, which authenticates the caller.
    app.user_middleware.append(Middleware(BodyInTime))
    if allowances is not None:
        app.user_middleware.append(Middleware(RateLimit, allowances))
    app.router.redirect_slashes = False  # a redirect would go to whatever host the request names
    for route in app.routes:
        if isinstance(route, Route) and route.path == PATH:
            # A GET would open a stream on which nothing is ever sent, and occupy a connection for any length of time.
            route.methods = {"POST"}
    app.router.routes += [Route("/health", health), Route("/ready", ready)]
    return app


class _Probe:
    """Whether the engines answer in time. Requests at the same time share one look, so that looks don't pile up.

    While only the archive is away, the server is still useful: live sessions work. So it is while nobody sweeps.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._look = SharedLook(self._engines_answer)
        self._looked_for_backlog_at: datetime | None = None
        self._has_backlog = False

    async def answer(self) -> dict[str, Any]:
        """`status`: `ok`, `degraded` while only the archive is away, or `unavailable`; `backlog`, if there is one."""
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                return await self._look.result()
        except TimeoutError:
            _log.warning("not_ready", code="no_answer_in_time")
            return {"status": "unavailable"}

    async def _engines_answer(self) -> dict[str, Any]:
        try:
            store = await self._runtime.store()
            away = await store.away()
            if not away:
                await self._look_for_backlog(store)
        except FimlError as exc:
            _log.warning("not_ready", code=exc.code)
            return {"status": "unavailable"}
        if away:
            _log.warning("not_ready", away=away)
            return {"status": "unavailable" if "live" in away else "degraded"}
        return {"status": "ok", "backlog": True} if self._has_backlog else {"status": "ok"}

    async def _look_for_backlog(self, store: SessionStore) -> None:
        # Probes may come every second, and the figures count many sessions.
        if clock.is_within(_LOOK_FOR_BACKLOG_EVERY, since=self._looked_for_backlog_at):
            return
        oldest = (await store.figures()).oldest_waiting
        self._has_backlog = is_sweep_late(oldest, self._runtime.settings.session_cleanup_interval_minutes)
        self._looked_for_backlog_at = clock.now()


class RefusalsNoted:
    """Wraps the application: counts requests that are refused before they reach a tool, and logs each in a line.

    When callers can't be authenticated, since the issuer's keys or the database of tokens are away or damaged,
    Starlette answers by `_not_known`, and then raises the error again: that would be a traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_call = scope["type"] == "http" and scope["path"] == PATH

        async def watched(message: Message) -> None:
            if is_call and message["type"] == "http.response.start" and message["status"] >= _LEAST_REFUSAL:
                count(Counted.HTTP_REFUSED, str(message["status"]))
                _log.info("request_refused", status=message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except FimlError as exc:
            _log.warning("callers_not_known", problem=str(exc))


async def _not_known(_request: Request, error: Exception) -> Response:
    if isinstance(error, FimlError):
        retry_after = {"retry-after": str(_RETRY_AFTER_S)}
        return JSONResponse({"error": "temporarily_unavailable"}, status_code=503, headers=retry_after)
    return JSONResponse({"error": "server_error"}, status_code=500)


async def serve_http(settings: Settings, address: str) -> None:
    """Serve clients at an address until told to stop. Calls under way then have up to 25 seconds to finish."""
    host, port = parse_address(address, is_authenticated=settings.is_authenticated)
    # After finishing its calls, uvicorn raises the signal again. Its default action would kill us before we clean up.
    signal.signal(signal.SIGTERM, _leave)
    verifier = BearerVerifier(settings) if settings.is_authenticated else None
    allowances = open_allowances(settings)
    async with open_runtime(settings) as runtime, exposing(runtime):
        config = uvicorn.Config(
            NamedRequests(RefusalsNoted(build_app(runtime, host, verifier, allowances))),
            http=HeadersInTime,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        try:
            sockets = await _bound_sockets(host, port)
            chosen = sockets[0].getsockname()[1]  # by the system, if 0 was given
            where = f"{_in_address(host)}:{chosen}"
            _log.info("serving_http", address=where, path=PATH, authenticated=settings.is_authenticated)
            await uvicorn.Server(config).serve(sockets)
        finally:
            for part in (verifier, allowances):
                if part is not None:
                    await part.aclose()


async def _bound_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host. If uvicorn bound them and failed, it would exit the process."""
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as exc:
        raise Misconfigured(
            f"--http {_in_address(host)}:{port}: can't listen there ({exc.strerror}); give an address of this machine "
            "and a free port"
        ) from exc
    sockets = [each.dup() for each in server.sockets]
    server.close()
    return sockets


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _leave(_signal: int, _frame: object) -> None:
    sys.exit(0)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _security(bound: str, names: list[str]) -> TransportSecuritySettings:
    """Allow loopback, the bound address and the names in the settings: keeps out sites whose DNS names point here."""
    hosts = ("127.0.0.1", "localhost", "[::1]")
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        # Browsers leave out the default port.
        allowed_hosts=[each for name in (*hosts, _in_address(bound), *names) for each in (name, f"{name}:*")],
        allowed_origins=[
            *(f"{scheme}://{host}{port}" for scheme in ("http", "https") for host in hosts for port in ("", ":*")),
            *(f"https://{name}" for name in names),
        ],
    )
