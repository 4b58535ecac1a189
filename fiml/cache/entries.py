"""The entries of a cache, their keys, and the protocol of a cache."""

import json
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Literal, Protocol
from urllib.parse import quote

from fiml.core import clock

MAX_KEY_CHARACTERS = 200

Layer = Literal["l1", "l2"]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An answer as text: learnt at `known_at`, current until `fresh_until`, kept as a fallback until `keep_until`."""

    value: str
    known_at: datetime
    fresh_until: datetime
    keep_until: datetime

    @property
    def is_current(self) -> bool:
        """Whether it is current."""
        return clock.is_current(known_at=self.known_at, until=self.fresh_until)

    def to_json(self) -> str:
        """The entry as one text."""
        times = {name: getattr(self, name).isoformat() for name in _TIMES}
        return json.dumps({"value": self.value, **times})

    @classmethod
    def from_json(cls, text: str | bytes) -> "CacheEntry":
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is not an entry.
        """
        try:
            fields = json.loads(text)
            value, *times = fields["value"], *(datetime.fromisoformat(fields[name]) for name in _TIMES)
        except (LookupError, TypeError, RecursionError) as exc:
            raise ValueError(f"no cache entry: {exc!r}") from exc
        if not isinstance(value, str) or any(moment.utcoffset() is None for moment in times):
            raise ValueError("no cache entry: a value that is no text, or a time without its zone")
        return cls(value, *times)


_TIMES = ("known_at", "fresh_until", "keep_until")


class AnswerCache(Protocol):
    """Keeps entries by key, for as long as they last and there is room.

    Raises, from every call but `aclose`:
        Unavailable, RecordRefused, Misconfigured: the engine is away, refuses the entry, or can't be opened.
    """

    @property
    def layer(self) -> Layer:
        """Which cache this is."""

    async def get(self, key: str) -> CacheEntry | None:
        """The entry, current or not; `None` if it is missing, past `keep_until` or unreadable."""

    async def put(self, key: str, entry: CacheEntry) -> None:
        """Store an entry, in place of an older one. An entry past `keep_until` is not stored."""

    async def aclose(self) -> None:
        """Close the connection to the engine; may be called twice."""


def cache_key(source: str, part: str, *names: str | None) -> str:
    """The key of an answer, at most 200 ASCII characters without blanks. Different names have different keys."""
    key = ":".join(
        "=" if name is None else quote(name, safe="", errors="surrogatepass") for name in (source, part, *names)
    )
    if len(key) <= MAX_KEY_CHARACTERS:
        return key
    # Escaped names contain no "=", so that no other key looks like a digest.
    return f"sha256={sha256(key.encode()).hexdigest()}"
