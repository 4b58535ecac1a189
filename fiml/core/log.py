"""Logs: an event name and fields, one event a line, to standard error: on stdio, standard output is the wire.

A line names the request that it belongs to, and the trace if there is one. No line contains what a user stored or
asked: an unexpected exception is logged by its type and its stack, without its message.
"""

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from io import TextIOBase
from traceback import extract_tb
from typing import Any, TextIO, cast
from uuid import uuid4

import structlog
from structlog.contextvars import bound_contextvars, get_contextvars, merge_contextvars

from fiml.core.config import LogFormat, LogLevel
from fiml.core.observe import trace_id

_REQUEST = "request_id"
_FIRST = ["timestamp", "level", "event", _REQUEST]
Event = MutableMapping[str, Any]


class _StandardError(TextIOBase):
    """Standard error. A line that can't be written to it, as to a full disk, is lost.

    Else the call that logged it would fail after it was done, and be repeated.
    """

    def write(self, text: str) -> int:
        if sys.stderr is not None:  # as without a console
            with suppress(OSError, ValueError):
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        stderr = getattr(sys, "stderr", None)  # at the interpreter's end, the module itself may be None
        if stderr is not None:
            with suppress(OSError, ValueError):
                stderr.flush()


_STANDARD_ERROR = cast("TextIO", _StandardError())


class _Output:
    """Where structlog writes as it is configured, or standard error: its own default is standard output."""

    def __getattr__(self, name: str) -> Any:
        if not structlog.is_configured():
            return getattr(structlog.PrintLogger(_STANDARD_ERROR), name)
        factory = structlog.get_config()["logger_factory"]
        # Without a name, the standard library's would be that of this module.
        arguments = ("fiml",) if isinstance(factory, structlog.stdlib.LoggerFactory) else ()
        return getattr(factory(*arguments), name)


def get_logger() -> Any:
    """The log of fiml. A program that uses fiml as a library may configure structlog; it need not."""
    return structlog.wrap_logger(_Output())


def configure_logging(level: LogLevel = LogLevel.INFO, form: LogFormat = LogFormat.TEXT) -> None:
    """Send every log of the process to standard error; libraries log warnings and above."""
    shared: list[Any] = [
        merge_contextvars,
        _add_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_words,
    ]
    render = (
        structlog.processors.JSONRenderer(default=repr)
        if form is LogFormat.JSON
        else structlog.processors.KeyValueRenderer(key_order=_FIRST, drop_missing=True)
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(_STANDARD_ERROR),
    )
    of_libraries = logging.StreamHandler(sys.stderr)
    of_libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:-1], structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _without_words, render],
        )
    )
    logging.basicConfig(handlers=[of_libraries], level=max(number, logging.WARNING), force=True)


@contextmanager
def in_request(request_id: str | None = None) -> Iterator[str]:
    """Let the lines that the block logs name a request. Yields its id, a new one if none is given."""
    known = request_id or uuid4().hex
    with bound_contextvars(**{_REQUEST: known}):
        yield known


def is_in_request() -> bool:
    """Whether lines logged now name a request."""
    return _REQUEST in get_contextvars()


def _add_trace(_logger: object, _method: str, event: Event) -> Event:
    if (found := trace_id()) is not None:
        event["trace_id"] = found
    return event


def _without_words(_logger: object, _method: str, event: Event) -> Event:
    """Reduce an exception to its types and stack, and drop rows that PostgreSQL quotes: both may hold a user's text."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    exc = found[1] if isinstance(found, tuple) else found
    if isinstance(exc, BaseException):
        event["exception"] = _described(exc)
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = value.partition("\nDETAIL:")[0]
    return event


def _described(exc: BaseException) -> str:
    frames = " < ".join(
        f"{each.name} ({each.filename}:{each.lineno})" for each in reversed(extract_tb(exc.__traceback__))
    )
    described = f"{type(exc).__name__} in {frames}"
    parts = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    below = [*parts, *([] if cause is None else [cause])]
    return " | ".join([described, *(_described(each) for each in below)])
