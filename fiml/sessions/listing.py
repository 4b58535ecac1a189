"""Pages of a listing, and the cursors between them."""

import base64
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import InvalidInput, echo
from fiml.sessions.models import SessionSummary


class SummaryPage(list[SessionSummary]):
    """One page of a listing; `next_cursor` asks for the next one and is `None` at the end."""

    def __init__(self, summaries: Iterable[SessionSummary], next_cursor: str | None) -> None:
        super().__init__(summaries)
        self.next_cursor = next_cursor


class SearchPage(SummaryPage):
    """One page of what a search found, and what it is a search of.

    `searched` names the parts that were looked through: `live`, `archived`. With `truncated` the look through the live
    sessions stopped short, and `next_cursor` goes on from there. `unreadable` are live sessions that can't be read;
    with `not_indexed` more sessions had changed than one search indexes: search again.
    """

    def __init__(
        self,
        summaries: Iterable[SessionSummary],
        *,
        next_cursor: str | None,
        truncated: bool,
        searched: tuple[str, ...],
        unreadable: Iterable[UUID],
        not_indexed: bool,
    ) -> None:
        super().__init__(summaries, next_cursor)
        self.truncated = truncated
        self.searched = searched
        self.unreadable = list(unreadable)
        self.not_indexed = not_indexed


def encode_cursor(created_at: datetime, session_id: UUID) -> str:
    """The cursor of the page after the session at this position."""
    position = f"{to_micros(created_at)}:{session_id.hex}"
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Behind which session a page begins.

    Raises:
        InvalidInput: no page had this cursor.
    """
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        micros, session_id = position.split(":")
        return from_micros(int(micros)), UUID(session_id)
    except (ValueError, TypeError, OverflowError) as exc:
        raise InvalidInput("cursor", f"{echo(cursor)} is malformed", "give next_cursor of the page before") from exc
