"""The results of the memory tools, as output schemas."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from fiml.core.model import Model
from fiml.mcp.results import Result, SessionLine


class ContextLine(Model):
    """One thing that a session knows."""

    id: str = Field(description="UUID of the query or note, to cite; `assets`; `<map>:<key>` of an entry")
    text: str


class SessionContext(Result):
    """What a session knows."""

    session_id: UUID
    title: str | None
    type: str
    is_archived: bool
    expires_at: str
    total_queries: int
    max_tokens: int
    lines: list[ContextLine]
    left_out: int = Field(description="lines that the budget had no room for")


class UpdatedContext(Result):
    """What was written down."""

    session_id: UUID
    written: list[UUID] = Field(description="ids of the note and the conclusion, to cite")


class ResumedSession(Result):
    """A session that lives again."""

    session_id: UUID
    title: str | None
    assets: list[str]
    expires_at: datetime
    time_remaining_hours: float
    total_queries: int


class ClosedSession(Result):
    """A session in the archive."""

    session_id: UUID
    is_archived: Literal[True] = True
    was_live: bool = Field(description="false if it was in the archive already")


class FoundSessions(Result):
    """One page of sessions that a search found, newest first."""

    sessions: list[SessionLine]
    next_cursor: str | None = Field(description="give it as cursor to continue; null at the end")
    searched: Annotated[list[str], Field(description="`live`, `archived`")]
    truncated: bool = Field(description="not all live sessions were searched yet")
    partial: bool = Field(
        description="archived sessions are missing, since the archive is unavailable: search again later"
    )
    unreadable: list[UUID] = Field(description="live sessions whose record is damaged")
    not_indexed: bool = Field(description="more sessions changed than one search indexes; search again")
