"""How often a principal may call: an allowance of calls that grows back, shared by all replicas.

An allowance is stored as one moment: when it would be full again (the generic cell rate algorithm). A call takes one
small key and one round trip, and calls don't bunch up at the start of each minute.
"""

import asyncio
import hashlib
import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from fiml.core import clock
from fiml.core.clock import to_micros
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, MissingExtra, Unavailable
from fiml.core.log import get_logger

TAKE_TIMEOUT_S = 1.0
# After Redis failed to answer, it isn't asked for this long, so that not every call waits for it.
ALONE_FOR = timedelta(seconds=5)
MAX_KEPT = 10_000
_MINUTE_MICROS = 60_000_000

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Rate:
    """How many calls a minute, and how many at once."""

    per_minute: int
    burst: int

    @property
    def cost_micros(self) -> int:
        """How long one call takes to grow back."""
        return _MINUTE_MICROS // self.per_minute

    @property
    def whole_micros(self) -> int:
        """How long the whole allowance takes to grow back."""
        return self.cost_micros * self.burst


class Allowances(Protocol):
    """The allowances of all principals."""

    async def take(self, user_id: str) -> timedelta:
        """Take one call. Returns how long to wait for it: zero if it was taken."""

    async def aclose(self) -> None: ...


class OwnAllowances:
    """Allowances of one process, for the embedded deployment."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._whole_at: dict[str, int] = {}

    async def take(self, user_id: str) -> timedelta:
        now = to_micros(clock.now())
        # A moment further ahead is possible only if the clock was set back.
        last = min(max(self._whole_at.get(user_id, now), now), now + self._rate.whole_micros)
        whole_at = last + self._rate.cost_micros
        wait = whole_at - self._rate.whole_micros - now
        if wait > 0:
            self._whole_at[user_id] = last
            return timedelta(microseconds=wait)
        if len(self._whole_at) >= MAX_KEPT and user_id not in self._whole_at:
            self._forget(now)
        self._whole_at[user_id] = whole_at
        return timedelta()

    def _forget(self, now: int) -> None:
        """Keep the emptiest allowances, half of the maximum, so that not every further call has to clean up again."""
        pending = [(moment, user) for user, moment in self._whole_at.items() if moment > now]
        self._whole_at = {user: moment for moment, user in heapq.nlargest(MAX_KEPT // 2, pending)}

    async def aclose(self) -> None:
        """Nothing to close."""


class SharedAllowances:
    """Allowances of an installation, in its Redis. While Redis is away, each process counts for itself.

    The clocks of fiml's replicas are used: one that is some seconds behind grants that many seconds' worth of calls
    less.
    """

    def __init__(self, settings: Settings, rate: Rate) -> None:
        from fiml.db.redis_client import RedisClient  # noqa: PLC0415 - only the server deployment needs it
        from fiml.db.redis_commands import Script  # noqa: PLC0415 - as above

        self._rate = rate
        self._script = Script.load("fiml.access", "take")
        self._client = RedisClient.of(settings, [self._script])
        self._own = OwnAllowances(rate)
        self._alone_since: datetime | None = None

    async def take(self, user_id: str) -> timedelta:
        now = clock.now()
        if clock.is_within(ALONE_FOR, since=self._alone_since):
            return await self._own.take(user_id)
        take = self._script([key_of(user_id)], to_micros(now), self._rate.cost_micros, self._rate.whole_micros)
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S):
                [wait] = await self._client.run([take])
        except (Unavailable, Misconfigured, TimeoutError) as exc:
            _log.warning("rates_not_shared", problem=str(exc) or type(exc).__name__)
            self._alone_since = now
            return await self._own.take(user_id)
        return timedelta(microseconds=wait)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def open_allowances(settings: Settings) -> Allowances | None:
    """The allowances of an installation; `None` if nobody is limited.

    Raises:
        MissingExtra: the allowances are in Redis, and redis-py isn't installed.
    """
    if not settings.http_rate_per_minute:
        return None
    rate = Rate(settings.http_rate_per_minute, settings.http_rate_burst)
    if settings.redis_url is None:
        return OwnAllowances(rate)
    try:
        return SharedAllowances(settings, rate)
    except ModuleNotFoundError as exc:
        raise MissingExtra("Redis (FIML_REDIS_URL)", "server") from exc


def key_of(user_id: str) -> str:
    """The key of a principal, of the same length for every name."""
    return f"rate:{hashlib.sha256(user_id.encode()).hexdigest()[:32]}"
