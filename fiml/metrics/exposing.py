"""Serves metrics at `FIML_METRICS_ADDRESS`: those of a server process, or of a worker and the processes it forks.

They have an address of their own, not a path beside `/mcp`: they contain nothing of any user's, but are meant for the
operators of fiml only.
"""

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from socket import AF_INET, AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fiml.core.addresses import split_address
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, MissingExtra
from fiml.core.log import get_logger
from fiml.core.observe import measure_with
from fiml.runtime import Runtime

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_PATIENCE_S = 10

_log = get_logger()


@asynccontextmanager
async def exposing(runtime: Runtime) -> AsyncIterator[None]:
    """Measure this process, and serve its measurements and the state of the store, while the block runs.

    If no address is set, nothing is measured.

    Raises:
        MissingExtra: prometheus-client is not installed.
        Misconfigured: the address is in use, or isn't one of this machine.
    """
    if runtime.settings.metrics_address is None:
        yield
        return
    registry = _registry_of_process()
    from fiml.metrics.standing import Standing  # noqa: PLC0415 - needs the extra, which is installed

    registry.register(Standing(runtime, asyncio.get_running_loop()))
    with _answering(runtime.settings.metrics_address, registry):
        yield


@contextmanager
def exposing_worker(settings: Settings) -> Iterator[None]:
    """Measure this process and those that it forks within the block, and serve the sums of their measurements.

    Raises:
        MissingExtra, Misconfigured: as `exposing`.
    """
    if settings.metrics_address is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="fiml-metrics-") as folder:
        # prometheus-client reads this when it is imported. Forked processes then write their counts where we read them.
        # What the variable names already may be gone: a worker that gets SIGHUP begins anew with its old environment.
        os.environ[MULTIPROCESS_FOLDER] = folder
        _registry_of_process()
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - an extra, installed as above
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # as prometheus-client has it
        with _answering(settings.metrics_address, registry):
            yield


def _registry_of_process() -> "CollectorRegistry":
    """A registry that records everything that is measured from now on."""
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise MissingExtra("metrics (FIML_METRICS_ADDRESS)", "metrics") from exc
    from fiml.metrics.recorder import Recorder  # noqa: PLC0415 - as above

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    measure_with(Recorder(registry))
    return registry


@contextmanager
def _answering(address: str, registry: "CollectorRegistry") -> Iterator[None]:
    from prometheus_client import make_wsgi_app  # noqa: PLC0415 - an extra, installed as above

    host, port = split_address(address)
    kind = _IPv6Server if ":" in host else _Server
    try:
        server = make_server(host, port, _only_metrics(make_wsgi_app(registry)), kind, handler_class=_Handler)
    except OSError as exc:
        measure_with(None)
        raise Misconfigured(f"FIML_METRICS_ADDRESS: can't listen on {address} ({exc}); give another address") from exc
    thread = threading.Thread(target=server.serve_forever, name="fiml-metrics", daemon=True)
    thread.start()
    _log.info("metrics_exposed", address=address)
    try:
        yield
    finally:
        measure_with(None)
        server.shutdown()
        thread.join()
        server.server_close()


def _only_metrics(metrics: Any) -> Any:
    """The application, at `/metrics` only."""

    def application(environment: dict[str, Any], start_response: Any) -> Any:
        if environment.get("PATH_INFO") == "/metrics":
            return metrics(environment, start_response)
        start_response("404 Not Found", [("content-type", "text/plain")])
        return [b"see /metrics\n"]

    return application


class _Server(ThreadingMixIn, WSGIServer):
    """Uses a thread for each scrape, so that one that hangs holds up neither others nor the end of the process."""

    address_family = AF_INET
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, but don't look up the host's name: a name server that is away would hold up the start."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _IPv6Server(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Don't log scrapes."""
