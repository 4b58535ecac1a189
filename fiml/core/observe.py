"""What is done, how it ends and how long it takes: measurements for a meter, and OpenTelemetry's spans.

Nothing is measured unless somebody asks for it: `measure_with` sets the meter, and spans are made if the process has a
tracer provider. Neither ever sees an argument, the id of a session or user, or an error's message: only the names of
verbs, engines and jobs, and a code for how each ended.
"""

import functools
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from fiml.core.clock import stopwatch
from fiml.core.errors import CorruptRecord, FimlError, Misconfigured, RecordRefused, Unavailable

if TYPE_CHECKING:  # loading it takes time, which a process without traces should not spend
    from opentelemetry.trace import Span

OK = "ok"
_SCOPE = "fiml"
# Errors that are the fault of fiml or of an engine; the others are about the caller's question.
_FAULTS = (Unavailable, Misconfigured, RecordRefused, CorruptRecord)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)


class Timed(StrEnum):
    """What takes time and ends in a code."""

    CALL = "call"
    """A request of an MCP client, by its method or tool. The MCP library makes its span itself."""
    OPERATION = "operation"
    """A verb of the store, including the verbs that it calls."""
    ENGINE = "engine"
    """One exchange with Redis, PostgreSQL or the file."""
    JOB = "job"
    """A job of the maintenance."""
    FETCH = "fetch"
    """A question to a market provider, for one part of an answer."""


class Counted(StrEnum):
    """What is counted; each docstring names the labels, in order."""

    JOB_SESSIONS = "job_sessions"
    """Sessions that a job dealt with: job, outcome."""
    MARKET_ANSWERS = "market_answers"
    """Parts of answers: the layer that gave the part, whether it was stale."""
    HTTP_REFUSED = "http_refused"
    """Requests on HTTP that were refused before they reached a tool: status."""
    PROVIDER_ERRORS = "provider_errors"
    """Questions to a provider that failed: provider, code."""


class Meter(Protocol):
    """Takes measurements. It is called within the event loop, and must neither wait nor raise."""

    def timed(self, kind: Timed, name: str, code: str, seconds: float) -> None: ...

    def counted(self, what: Counted, *labels: str, by: float = 1) -> None: ...


_meter: Meter | None = None
_operation_is_watched: ContextVar[bool | None] = ContextVar("fiml_operation_is_watched", default=None)
"""Whether the current operation is measured or traced, so that its engines needn't find out again."""


def measure_with(meter: Meter | None) -> None:
    """Send this process's measurements to a meter; `None` stops measuring."""
    global _meter  # noqa: PLW0603 - the one meter of the process
    _meter = meter


def count(what: Counted, *labels: str, by: float = 1) -> None:
    """Count something, if there is a meter."""
    if _meter is not None:
        _meter.counted(what, *labels, by=by)


def note(kind: Timed, name: str, code: str, seconds: float) -> None:
    """Pass on a duration that was measured elsewhere, if there is a meter."""
    if _meter is not None:
        _meter.timed(kind, name, code, seconds)


def code_of(exc: BaseException) -> str:
    """A code for how something ended that raised; there are only a few."""
    if isinstance(exc, FimlError):
        return exc.code
    return "error" if isinstance(exc, Exception) else "cancelled"


@contextmanager
def observed(kind: Timed, name: str) -> Iterator[None]:
    """Measure and trace a block."""
    elapsed_ms = stopwatch()
    code = OK
    with _span(kind, name) as span:
        try:
            yield
        except BaseException as exc:
            code = code_of(exc)
            _mark(span, exc, code)
            raise
        finally:
            note(kind, name, code, elapsed_ms() / 1000)


def observed_call(
    kind: Timed, name: str
) -> Callable[[Callable[Parameters, Coroutine[Any, Any, Result]]], Callable[Parameters, Coroutine[Any, Any, Result]]]:
    """Measure and trace a method. Without a meter or a tracer it costs a microsecond a call."""

    def decorate(
        method: Callable[Parameters, Coroutine[Any, Any, Result]],
    ) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
        @functools.wraps(method)
        async def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            is_watched = _operation_is_watched.get()
            if not (_is_watched() if is_watched is None else is_watched):
                return await method(*args, **kwargs)
            with observed(kind, name):
                return await method(*args, **kwargs)

        return call

    return decorate


def observed_verbs(*but: str) -> Callable[[Class], Class]:
    """Measure and trace a class's public coroutine methods, including inherited ones, `but` the named ones."""

    def decorate(cls: Class) -> Class:
        for name in dir(cls):
            method = getattr(cls, name)
            if not name.startswith("_") and name not in but and iscoroutinefunction(method):
                setattr(cls, name, _operation(name, method))
        return cls

    return decorate


def _operation(
    name: str, method: Callable[Parameters, Coroutine[Any, Any, Result]]
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    @functools.wraps(method)
    async def verb(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if _operation_is_watched.get() is not None:
            return await method(*args, **kwargs)
        is_watched = _is_watched()
        token = _operation_is_watched.set(is_watched)
        try:
            if not is_watched:
                return await method(*args, **kwargs)
            with observed(Timed.OPERATION, name):
                return await method(*args, **kwargs)
        finally:
            _operation_is_watched.reset(token)

    return verb


def _is_watched() -> bool:
    return _meter is not None or is_traced()


def is_traced() -> bool:
    """Whether a tracer provider is set. If OpenTelemetry isn't loaded, nobody can have set one."""
    trace = sys.modules.get("opentelemetry.trace")
    # A private attribute, for speed; a version that lacks it is asked through its public function.
    if trace is None or (getattr(trace, "_TRACER_PROVIDER", trace) is None and not _is_provider_named()):
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@functools.cache
def _is_provider_named() -> bool:
    """Whether a variable names the provider. OpenTelemetry reads it every time, which would take 3% of a call."""
    return "OTEL_PYTHON_TRACER_PROVIDER" in os.environ


def trace_headers() -> dict[str, str]:
    """Headers that let another process continue the current trace; empty if there is none."""
    headers: dict[str, str] = {}
    if is_traced():
        from opentelemetry.propagate import inject  # noqa: PLC0415 - as above

        inject(headers)
    return headers


@contextmanager
def going_on(headers: dict[str, str]) -> Iterator[None]:
    """Continue, within the block, the trace that another process's headers name."""
    if not is_traced():
        yield
        return
    from opentelemetry import context  # noqa: PLC0415 - as above
    from opentelemetry.propagate import extract  # noqa: PLC0415

    token = context.attach(extract(headers))
    try:
        yield
    finally:
        context.detach(token)


def trace_id() -> str | None:
    """The id of the current trace, as logs write it."""
    if not is_traced():
        return None
    from opentelemetry.trace import format_trace_id, get_current_span  # noqa: PLC0415 - as above

    found = get_current_span().get_span_context()
    return format_trace_id(found.trace_id) if found.is_valid else None


@contextmanager
def _span(kind: Timed, name: str) -> "Iterator[Span | None]":
    if not is_traced():
        yield None
        return
    from opentelemetry.trace import SpanKind, get_tracer  # noqa: PLC0415 - as above

    is_outside = kind in {Timed.ENGINE, Timed.FETCH}
    with get_tracer(_SCOPE).start_as_current_span(
        name if kind is Timed.OPERATION else f"{kind} {name}",
        kind=SpanKind.CLIENT if is_outside else SpanKind.INTERNAL,
        attributes={"db.system.name": name} if kind is Timed.ENGINE else {},
        # An exception's message may contain what a user wrote.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def _mark(span: "Span | None", exc: BaseException, code: str) -> None:
    if span is None:
        return
    from opentelemetry.trace import StatusCode  # noqa: PLC0415 - as above

    span.set_attribute("error.type", code)
    if isinstance(exc, _FAULTS) or (isinstance(exc, Exception) and not isinstance(exc, FimlError)):
        span.set_status(StatusCode.ERROR)
