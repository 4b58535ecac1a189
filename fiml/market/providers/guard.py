"""What protects fiml and a provider from each other: limits on time and rate, retries, and a circuit breaker."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

from aiolimiter import AsyncLimiter
from stamina import AsyncRetryingCaller

from fiml.core import clock
from fiml.core.deadlines import answer_within
from fiml.core.errors import BadData, InvalidInput, NotSupported, RateLimited, Unavailable

DEFAULT_WAIT = timedelta(seconds=60)
# A provider that asks us to wait for years has made a mistake: it is asked again the next day.
LONGEST_WAIT = timedelta(days=1)

T = TypeVar("T")

# An attempt that has this share of its call's whole time has enough of it.
_MOST = 0.9
_ANSWERS = (InvalidInput, NotSupported)  # the provider has answered, with a refusal
_NO_FAILURES = (RateLimited, BadData)  # the provider is up, but busy, or has a bad answer for perhaps just one symbol


class Guard:
    """Calls one provider, within limits that protect both sides.

    A call takes at most `timeout_s` in all, each attempt at most `attempt_timeout_s`. If the provider is away, the
    attempt is repeated after a jittered wait, up to `attempts` in all. At most `at_once` attempts run at a time, and at
    most `rate[0]` start within `rate[1]` seconds; waiting for that is part of the call, but not of the attempt. After
    `failures` failed calls in a row, calls are refused at once for `open_s` seconds; then one is let through as a
    trial. A call that waited for its turn until too little time was left for an attempt is no failure of the provider.
    After a rate limit, calls are refused until the named moment. One guard serves one event loop.
    """

    def __init__(
        self,
        name: str,
        *,
        attempt_timeout_s: float = 6,
        timeout_s: float = 12,
        attempts: int = 3,
        rate: tuple[float, float] = (5, 1),
        at_once: int = 64,
        failures: int = 5,
        open_s: float = 30,
    ) -> None:
        self.name = name
        self.attempt_timeout_s = attempt_timeout_s
        self.timeout_s = timeout_s
        self._limiter = AsyncLimiter(*rate)
        self._places = asyncio.Semaphore(at_once)
        self._caller = AsyncRetryingCaller(
            attempts=attempts, timeout=timeout_s, wait_initial=0.2, wait_max=1.0, wait_jitter=0.5
        )
        self._breaker = Breaker(name, failures=failures, open_s=open_s)
        self._limited_until: datetime | None = None

    async def call(self, function: Callable[[], Awaitable[T]], *, within_s: float | None = None) -> T:
        """What `function` returns; it may be called more than once, so it must not change anything.

        `within_s` is another limit for the whole call than `timeout_s`.

        Raises:
            RateLimited: the provider asked to wait; it isn't asked again before then.
            Unavailable: there was no answer in time or after all attempts, or too many calls failed before this one.
            BadData: as `function` raises it.
        """
        self._check_rate_limit()
        limit_s = within_s or self.timeout_s
        queue = _Queue()
        with self._breaker.entered():
            try:
                async with asyncio.timeout(limit_s):
                    return await self._caller(_is_worth_another_attempt, self._attempt, function, queue)
            except TimeoutError as exc:  # of the whole call; `_attempt` translates that of an attempt
                if queue.waited_s > limit_s - min(self.attempt_timeout_s, limit_s * _MOST):
                    raise _Crowded(self.name, "too many calls at once") from exc
                raise Unavailable(self.name, f"no answer within {limit_s:g} s") from exc
            except RateLimited as exc:
                self._limited_until = exc.retry_at
                raise

    def _check_rate_limit(self) -> None:
        if self._limited_until is not None and clock.now() < self._limited_until:
            raise RateLimited(self.name, self._limited_until)

    async def _attempt(self, function: Callable[[], Awaitable[T]], queue: "_Queue") -> T:
        with queue.waiting():
            await self._places.acquire()
        try:
            with queue.waiting():
                await self._limiter.acquire()
            async with answer_within(self.attempt_timeout_s, self.name):
                return await function()
        finally:
            self._places.release()


class _Queue:
    """How long a call's attempts waited for their turn."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for one wait."""
        elapsed_ms = clock.stopwatch()
        try:
            yield
        finally:
            self.waited_s += elapsed_ms() / 1000


class _Crowded(Unavailable):
    """The limits of the guard left no room for a call in time, which is not the provider's fault."""


class Breaker:
    """A circuit breaker: after `failures` in a row, refuses calls for `open_s` seconds; then one trial call decides."""

    def __init__(self, name: str, *, failures: int, open_s: float) -> None:
        self._name = name
        self._failures = failures
        self._open_for = timedelta(seconds=open_s)
        self._failed = 0
        self._opened_at: datetime | None = None
        self._is_on_trial = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A context for one call, whose outcome it records.

        Raises:
            Unavailable: no call is let through now; the message says when one will be.
        """
        opened_at = self._opened_at
        is_trial = opened_at is not None
        if opened_at is not None and (self._is_on_trial or clock.is_within(self._open_for, since=opened_at)):
            moment = clock.to_iso((opened_at + self._open_for).replace(microsecond=0))
            raise Unavailable(
                self._name, f"it failed {self._failed} times in a row, and will be tried again at {moment}"
            )
        self._is_on_trial = is_trial
        try:
            yield
        except BaseException as exc:
            self._leave(exc, is_trial=is_trial)
            raise
        self._leave(None, is_trial=is_trial)

    def _leave(self, exc: BaseException | None, *, is_trial: bool) -> None:
        """Record a call's outcome: an answer closes the breaker, a failure may open it, a cancellation does nothing."""
        if is_trial:
            self._is_on_trial = False
        if exc is None or isinstance(exc, _ANSWERS):
            self._failed, self._opened_at = 0, None
        elif isinstance(exc, Exception) and not isinstance(exc, (*_NO_FAILURES, _Crowded)):
            self._failed += 1
            if self._failed >= self._failures:
                self._opened_at = clock.now()


def retry_moment(retry_after: str | None) -> datetime:
    """The moment that a Retry-After header names, in seconds or as a date; a minute from now if it names none."""
    now = clock.now()
    moment = _after_seconds(retry_after, now) or _at_date(retry_after) or now + DEFAULT_WAIT
    return min(max(moment, now), now + LONGEST_WAIT)


def _after_seconds(text: str | None, now: datetime) -> datetime | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    if not math.isfinite(seconds) or seconds < 0:
        return now + DEFAULT_WAIT
    return now + timedelta(seconds=min(seconds, LONGEST_WAIT.total_seconds()))


def _at_date(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_worth_another_attempt(exc: Exception) -> bool:
    return isinstance(exc, Unavailable) and not isinstance(exc, (*_NO_FAILURES, _Crowded))
