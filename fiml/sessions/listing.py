"""Pages of a listing, and the cursors between them."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import InvalidInput, echo
from fiml.sessions.models import SessionSummary

_PARTIAL = ":p"


class SummaryPage(list[SessionSummary]):
    """One page of a listing; `next_cursor` asks for the next one and is `None` at the end.

    A `partial` page lacks archived sessions, since the archive is away; so do all pages that its cursor leads to. List
    anew when it is back.
    """

    def __init__(self, summaries: Iterable[SessionSummary], next_cursor: str | None, *, partial: bool = False) -> None:
        super().__init__(summaries)
        self.next_cursor = next_cursor
        self.partial = partial


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
        partial: bool = False,
    ) -> None:
        super().__init__(summaries, next_cursor, partial=partial)
        self.truncated = truncated
        self.searched = searched
        self.unreadable = list(unreadable)
        self.not_indexed = not_indexed


@dataclass(frozen=True, slots=True)
class Cursor:
    """Behind which session a page begins, and whether a page before it was partial."""

    position: tuple[datetime, UUID]
    is_partial: bool = False


def encode_cursor(cursor: Cursor) -> str:
    """A cursor as callers have it."""
    created_at, session_id = cursor.position
    position = f"{to_micros(created_at)}:{session_id.hex}{_PARTIAL if cursor.is_partial else ''}"
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Cursor:
    """The inverse of `encode_cursor`.

    Raises:
        InvalidInput: no page had this cursor.
    """
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        micros, session_id = position.removesuffix(_PARTIAL).split(":")
        return Cursor((from_micros(int(micros)), UUID(session_id)), position.endswith(_PARTIAL))
    except (ValueError, TypeError, OverflowError) as exc:
        raise InvalidInput("cursor", f"{echo(cursor)} is malformed", "give next_cursor of the page before") from exc
