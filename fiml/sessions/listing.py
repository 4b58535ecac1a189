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


def encode_cursor(last: SessionSummary) -> str:
    """The cursor of the page after this session."""
    position = f"{to_micros(last.created_at)}:{last.id.hex}"
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
