"""Pages of a listing, and the cursors between them."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import InvalidInput, echo
from fiml.sessions.models import SessionSummary
from fiml.sessions.records import Header

_PARTIAL = ":p"


class SummaryPage(list[SessionSummary]):
    """One page of a listing; `next_cursor` asks for the next one and is `None` at the end, and only there.

    A `partial` page lacks archived sessions, because the archive is unavailable, and so do all pages that follow it.
    List again from the start when the archive is back.
    """

    def __init__(self, summaries: Iterable[SessionSummary], next_cursor: str | None, *, partial: bool = False) -> None:
        super().__init__(summaries)
        self.next_cursor = next_cursor
        self.partial = partial


class SearchPage(SummaryPage):
    """One page of what a search found, and what was searched.

    `searched` names the parts that were searched: `live`, `archived`. If `truncated`, the search stopped before the end
    of the live sessions, and `next_cursor` continues it there. `unreadable` are live sessions that can't be read. If
    `not_indexed`, more sessions had changed than one search can index: search again.
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
    """After which session a page begins, and whether an earlier page was partial."""

    position: tuple[datetime, UUID]
    is_partial: bool = False


def next_cursor(last: Header | None, searched_to: tuple[datetime, UUID] | None, *, is_partial: bool) -> str | None:
    """The cursor after the `last` session of a page, if there are more; else after where the look stopped early."""
    position = searched_to if last is None else (last.created_at, last.id)
    return None if position is None else encode_cursor(Cursor(position, is_partial))


def encode_cursor(cursor: Cursor) -> str:
    """A cursor as an opaque text for callers."""
    created_at, session_id = cursor.position
    position = f"{to_micros(created_at)}:{session_id.hex}{_PARTIAL if cursor.is_partial else ''}"
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Cursor:
    """The inverse of `encode_cursor`.

    Raises:
        InvalidInput: the text is not a cursor.
    """
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        micros, session_id = position.removesuffix(_PARTIAL).split(":")
        return Cursor((from_micros(int(micros)), UUID(session_id)), position.endswith(_PARTIAL))
    except (ValueError, TypeError, OverflowError) as exc:
        raise InvalidInput(
            "cursor", f"{echo(cursor)} is malformed", "give the next_cursor of the previous page"
        ) from exc
