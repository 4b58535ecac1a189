"""A clock that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2024, 12, 23, 15, 30, tzinfo=UTC)


class FrozenClock:
    """Always tells the moment it was set to. `fiml.core.clock.using(FrozenClock())` makes it the process's clock."""

    def __init__(self, moment: datetime = START) -> None:
        self.set(moment)

    def now(self) -> datetime:
        """The moment, which is the same at each call."""
        return self._moment

    def advance(self, **by: Any) -> datetime:
        """Move forward, by the arguments of a `timedelta`, as in `advance(hours=2)`. Returns the new moment."""
        self._moment += timedelta(**by)
        return self._moment

    def set(self, moment: datetime) -> None:
        """Move to a moment, earlier or later."""
        if moment.utcoffset() is None:
            raise ValueError("the clock tells aware times: give a datetime with a time zone")
        self._moment = moment.astimezone(UTC)
