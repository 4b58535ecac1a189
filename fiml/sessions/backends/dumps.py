"""A session that can't be archived, byte for byte as it was stored, in a form that can be stored and read."""

import json
from dataclasses import dataclass
from typing import Any, Self

from fiml.sessions.damage import DAMAGE, corrupt


@dataclass(frozen=True, slots=True)
class Dump:
    """All that an engine has of a session. Bytes that aren't UTF-8 become lone surrogates, so that none are lost."""

    engine: str
    parts: dict[str, Any]

    def to_bytes(self) -> bytes:
        """As JSON in ASCII."""
        return json.dumps({"engine": self.engine, "parts": self.parts}).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            CorruptRecord: it has been damaged since.
        """
        try:
            stored = json.loads(text)
            return cls(stored["engine"], stored["parts"])
        except DAMAGE as exc:
            raise corrupt("what was set aside of a session", exc) from exc
