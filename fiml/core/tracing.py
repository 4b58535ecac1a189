"""Sends traces where the standard OTEL_ variables say, without what users wrote."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fiml.core.log import get_logger

if TYPE_CHECKING:  # an extra
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_MS = 5000

_log = get_logger()
_provider: "TracerProvider | None" = None


@contextmanager
def tracing() -> Iterator[None]:
    """Trace this process while the block runs, if an OTEL_ variable asks for it.

    `OTEL_TRACES_EXPORTER` is `otlp` or `console` (to standard error), and defaults to `otlp` if an endpoint is named.
    If the exporter can't be provided, that is only logged: the variables may be meant for other programs.
    """
    wanted = wanted_exporter()
    if wanted is None:
        yield
        return
    provider = _provide(wanted)
    try:
        yield
    finally:
        if provider is not None:
            provider.shutdown()


def flush() -> None:
    """Send what was traced so far, for a process that may end without cleaning up."""
    if _provider is not None:
        _provider.force_flush(_FLUSH_MS)


def wanted_exporter() -> str | None:
    """The exporter of traces that the OTEL_ variables ask for, or `None`."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named and any(os.environ.get(name) for name in _ENDPOINTS):
        named = "otlp"
    return None if named in {"", "none"} else named


def _provide(wanted: str) -> "TracerProvider | None":
    global _provider  # noqa: PLW0603 - OpenTelemetry has one for the process
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra, as are those below
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from fiml.core.plain_spans import PlainSpans  # noqa: PLC0415

        exporter = _exporter(wanted)
    except ModuleNotFoundError:
        _log.warning("not_traced", exporter=wanted, problem="pip install 'fiml[tracing]'")
        return None
    if exporter is None:
        _log.warning("not_traced", problem="OTEL_TRACES_EXPORTER must be otlp, console or none")
        return None
    # A name from OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES takes precedence.
    resource = Resource.create() if _is_named() else Resource.create({SERVICE_NAME: "fiml"})
    _provider = TracerProvider(resource=resource)
    _provider.add_span_processor(BatchSpanProcessor(PlainSpans(exporter)))
    trace.set_tracer_provider(_provider)
    return _provider


def _is_named() -> bool:
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )


def _exporter(wanted: str) -> "SpanExporter | None":
    if wanted == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

        return OTLPSpanExporter()
    if wanted == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415 - as above

        return ConsoleSpanExporter(out=sys.stderr)
    return None
