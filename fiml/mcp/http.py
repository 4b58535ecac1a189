"""The server on streamable HTTP, stateless: nothing sticks to a connection or a process.

Without authentication the address must be a loopback one, and the local user is the one principal, as on stdio: an
id would be the only secret, and listing the sessions hands out every one.
"""

import ipaddress
from uuid import UUID

import structlog
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fiml.core.config import Settings
from fiml.core.errors import FimlError, InvalidInput, Misconfigured, echo
from fiml.mcp.server import build_server
from fiml.runtime import Runtime, open_runtime

PATH = "/mcp"
MAX_BODY_BYTES = 2 * 1024 * 1024
SHUTDOWN_S = 25
MAX_CONNECTIONS = 1000
_KEEP_ALIVE_S = 30
_NOBODYS = UUID(int=0)

_log = structlog.get_logger()


def parse_address(text: str) -> tuple[str, int]:
    """Host and port from `HOST:PORT`, an IPv6 host in brackets.

    Raises:
        InvalidInput: it isn't of that form.
        Misconfigured: the host isn't a loopback one.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise InvalidInput("--http", f"{echo(text)} is no address", "give HOST:PORT, such as 127.0.0.1:8765")
    if not _is_loopback(host):
        raise Misconfigured(
            f"--http {host}:{port} is no loopback address: without authentication every caller there would see every "
            "session; bind to 127.0.0.1 or [::1]"
        )
    return host, int(port)


def build_app(runtime: Runtime, host: str) -> Starlette:
    """The application: MCP at `/mcp`, and `/health` and `/ready`, which show no data."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        try:
            # A look for a session that nobody has asks every engine.
            await (await runtime.store()).get_session(_NOBODYS, recent_queries=0)
        except FimlError as exc:
            _log.warning("not_ready", code=exc.code)
            return JSONResponse({"status": "unavailable"}, status_code=503)
        return JSONResponse({"status": "ok"})

    app = build_server(runtime).streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        max_request_body_size=MAX_BODY_BYTES,
        transport_security=_security(),
        host=host,
    )
    app.router.routes += [Route("/health", health), Route("/ready", ready)]
    return app


async def serve_http(settings: Settings, address: str) -> None:
    """Serve clients at an address until told to stop; calls under way are finished first, for 25 seconds at most."""
    host, port = parse_address(address)
    async with open_runtime(settings) as runtime:
        config = uvicorn.Config(
            build_app(runtime, host),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        _log.info("serving_http", address=address, path=PATH)
        await uvicorn.Server(config).serve()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _security() -> TransportSecuritySettings:
    """Only loopback hosts and origins: a page of another site that has its name point here must not get in."""
    hosts = ("127.0.0.1", "localhost", "[::1]")
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[f"{host}:*" for host in hosts],
        allowed_origins=[f"http://{host}:*" for host in hosts],
    )
