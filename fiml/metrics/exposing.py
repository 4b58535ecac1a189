"""Answers Prometheus at `FIML_METRICS_ADDRESS`: of a server's process, or of a worker with the processes it forks.

The address is one of its own, not a path beside `/mcp`: what is told there is nobody's in particular, but is meant for
those who run fiml.
"""

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from socket import AF_INET, AF_INET6
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog

from fiml.core.config import Settings, split_address
from fiml.core.errors import Misconfigured, MissingExtra
from fiml.core.observe import measure_with
from fiml.runtime import Runtime

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_PATIENCE_S = 10

_log = structlog.get_logger()


@asynccontextmanager
async def exposing(runtime: Runtime) -> AsyncIterator[None]:
    """Measure this process, and answer with that and how the store stands, while the block runs.

    Nothing is measured where no address is set.

    Raises:
        MissingExtra: prometheus-client is not installed.
        Misconfigured: the address is taken, or none of this machine.
    """
    if runtime.settings.metrics_address is None:
        yield
        return
    registry = _registry_of_process()
    from fiml.metrics.standing import Standing  # noqa: PLC0415 - an extra, which is there

    registry.register(Standing(runtime, asyncio.get_running_loop()))
    with _answering(runtime.settings.metrics_address, registry):
        yield


@contextmanager
def exposing_worker(settings: Settings) -> Iterator[None]:
    """Measure this process and those that it forks within the block, and answer with the sum of them.

    Raises:
        MissingExtra, Misconfigured: as `exposing`.
    """
    if settings.metrics_address is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="fiml-metrics-") as folder:
        # Read when prometheus-client is imported: forked processes then write what they count where we read it.
        os.environ.setdefault(MULTIPROCESS_FOLDER, folder)
        _registry_of_process()
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - an extra, which is there
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # as prometheus-client has it
        with _answering(settings.metrics_address, registry):
            yield


def _registry_of_process() -> "CollectorRegistry":
    """A registry that takes what is measured from now on."""
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
    from prometheus_client import make_wsgi_app  # noqa: PLC0415 - an extra, which is there

    host, port = split_address(address)
    kind = _IPv6Server if ":" in host else _Server
    try:
        server = make_server(host, port, _only_metrics(make_wsgi_app(registry)), kind, handler_class=_Handler)
    except OSError as exc:
        measure_with(None)
        raise Misconfigured(f"FIML_METRICS_ADDRESS: nothing can listen at {address} ({exc}); name another") from exc
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
    """The application at `/metrics`, and nothing elsewhere."""

    def application(environment: dict[str, Any], start_response: Any) -> Any:
        if environment.get("PATH_INFO") == "/metrics":
            return metrics(environment, start_response)
        start_response("404 Not Found", [("content-type", "text/plain")])
        return [b"see /metrics\n"]

    return application


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each scrape; one that hangs holds up no other, and not the end of the process."""

    address_family = AF_INET
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log no scrape."""
