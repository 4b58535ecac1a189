"""Redis's replies, converted."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fiml.core.clock import from_micros


def lowest_moment(replies: Sequence[Any]) -> datetime | None:
    """The earliest score of several `ZRANGE key 0 0 WITHSCORES`, whose scores are microseconds since 1970."""
    micros = [int(score) for reply in replies for _, score in scored(reply)]
    return from_micros(min(micros)) if micros else None


def moment_of(reply: Sequence[Any]) -> datetime:
    """The time in a reply to `TIME`."""
    seconds, micros = reply
    return from_micros(0) + timedelta(seconds=int(seconds), microseconds=int(micros))


def scored(reply: Sequence[Any]) -> list[tuple[bytes, float]]:
    """The members and scores in a reply to `ZRANGE ... WITHSCORES`."""
    # RESP3 replies with pairs, RESP2 with one flat list.
    if reply and isinstance(reply[0], list | tuple):
        return [(member, float(score)) for member, score in reply]
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]
