"""Redis's replies, converted."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fiml.core.clock import from_micros


def lowest_moment(replies: Sequence[Any]) -> datetime | None:
    """The earliest score of several `ZRANGE key 0 0 WITHSCORES`, whose scores are microseconds since 1970."""
    micros = [int(float(_score(reply))) for reply in replies if reply]
    return from_micros(min(micros)) if micros else None


def moment_of(reply: Sequence[Any]) -> datetime:
    """The time in a reply to `TIME`."""
    seconds, micros = reply
    return from_micros(0) + timedelta(seconds=int(seconds), microseconds=int(micros))


def _score(reply: Any) -> Any:
    # RESP3 replies with pairs, RESP2 with one flat list.
    return reply[0][1] if isinstance(reply[0], list | tuple) else reply[1]
