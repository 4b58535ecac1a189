"""What `fiml doctor` found, and three of its checks: authentication on HTTP, the quarantine, and the newest session."""

from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fiml.core.config import Settings
from fiml.core.errors import FimlError, Unavailable

MARK_CHARACTERS = 8


class Mark(StrEnum):
    """How a check came out; only a problem fails the command."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, what was found, and what to do about it, if anything."""

    mark: Mark
    subject: str
    finding: str
    remedy: str | None = None

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        # Messages from servers may have several lines.
        return f"{self.mark:<{MARK_CHARACTERS}}" + " ".join(f"{self.subject}: {self.finding}{remedy}".split())


def authentication(settings: Settings) -> list[Check]:
    """Whether `fiml serve --http` could start with the settings of tokens; nothing is asked of an identity provider."""
    if settings.auth_issuer is None:
        return []
    from fiml.access.signed import SignedTokens  # noqa: PLC0415 - only needed with an issuer
    from fiml.mcp.auth import auth_settings  # noqa: PLC0415 - loads the MCP library

    try:
        SignedTokens(settings)
        auth_settings(settings)
    except FimlError as exc:
        return [Check(Mark.PROBLEM, "authentication", str(exc))]
    return [Check(Mark.OK, "authentication", f"tokens of {settings.auth_issuer}")]


def quarantine(count: int) -> list[Check]:
    """Whether sessions can't be archived."""
    if count == 0:
        return []
    finding = f"{count} session{'s' if count > 1 else ''} can't be archived"
    remedy = "`fiml sessions quarantine list` says why, `fiml sessions quarantine retry` tries again"
    return [Check(Mark.NOTE, "quarantine", finding, remedy)]


async def or_problem(subject: str, name: str, probe: Coroutine[Any, Any, Any]) -> Any:
    """What a probe found, or its failure as a check."""
    try:
        return await probe
    except Unavailable as exc:
        # The message ends with the advice to run this very command.
        return Check(Mark.PROBLEM, subject, str(exc).rpartition("; ")[0], f"start it, or correct {name}")
    except FimlError as exc:
        return Check(Mark.PROBLEM, subject, str(exc))


async def newest_session(settings: Settings) -> list[Check]:
    """Whether the newest session can be read, which needs the right keys. This doesn't count as an access."""
    found = await or_problem("sessions", "the settings", _read_newest(settings))
    if isinstance(found, Check):
        return [found]
    return [Check(Mark.OK, "sessions", "the newest one can be read")] if found else []


async def _read_newest(settings: Settings) -> bool:
    """Read the newest session; `False` if there is none."""
    from fiml.sessions.backends import open_backend  # noqa: PLC0415 - only this command needs it
    from fiml.sessions.backends.shapes import PageQuery  # noqa: PLC0415 - as above
    from fiml.sessions.records import to_session  # noqa: PLC0415 - as above

    backend = await open_backend(settings)
    try:
        page = await backend.page(PageQuery(limit=1, include_archived=True))
        for header, _ in page.rows:
            record = await backend.read(header.id, now=header.created_at)
            if record is not None:  # not deleted since
                to_session(record)
        return bool(page.rows)
    finally:
        await backend.close()
