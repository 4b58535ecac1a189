"""The one clock: nothing else in fiml reads the time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# By how much the clocks of machines that work together may differ.
_CLOCKS_DIFFER = timedelta(seconds=5)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Tells the time, as an aware UTC datetime."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - here, and nowhere else


_current: Clock = SystemClock()


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return _current.now()


@contextmanager
def using(clock: Clock) -> Iterator[None]:
    """Let `clock` tell the time for the whole process until the block ends."""
    global _current  # noqa: PLW0603 - the one clock of the process
    previous, _current = _current, clock
    try:
        yield
    finally:
        _current = previous


def stopwatch() -> Callable[[], float]:
    """Start measuring; calling the result returns the milliseconds since then. Independent of the clock above."""
    started = time.perf_counter()
    return lambda: (time.perf_counter() - started) * 1000


def is_within(span: timedelta, *, since: datetime | None) -> bool:
    """Whether less than `span` has passed since a moment; `False` if it is in the future (the clock was set back)."""
    return since is not None and since <= now() < since + span


def is_current(*, known_at: datetime, until: datetime) -> bool:
    """Whether what was learnt at a moment is current, as it is until another.

    It isn't if the clock that saw it is ahead of ours, by more than clocks usually differ.
    """
    return known_at <= now() + _CLOCKS_DIFFER and now() < until


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970 in UTC, exact."""
    return (moment - EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The inverse of `to_micros`."""
    return EPOCH + micros * _MICROSECOND


def to_iso(moment: datetime) -> str:
    """A time as fiml writes it in JSON: `2024-12-24T15:30:00Z`, with microseconds if there are any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
