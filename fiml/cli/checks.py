"""What `fiml doctor` found, and two of its checks: authentication on HTTP, and the quarantine."""

from dataclasses import dataclass
from enum import StrEnum

from fiml.core.config import Settings
from fiml.core.errors import FimlError

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
