"""Pages of listings, put together from parts."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from fiml.sessions.records import Header

Row = TypeVar("Row")


def readable(
    select: Callable[[Sequence[Row]], Sequence[Row]], decode: Callable[[Row], Header | None], limit: int
) -> list[Header]:
    """The first `limit` headers that can be read; `select(seen)` returns up to `limit` rows after those seen so far."""
    found: list[Header] = []
    seen: list[Row] = []
    while True:
        rows = select(seen)
        found += [header for header in map(decode, rows) if header is not None]
        seen += rows
        if len(rows) < limit or len(found) >= limit:
            return found[:limit]


def newest_first(headers: Sequence[Header]) -> list[Header]:
    """Headers in the order of a listing."""
    by_id = sorted(headers, key=lambda header: header.id.hex)
    return sorted(by_id, key=lambda header: header.created_at, reverse=True)


def merge_pages(live: Sequence[Header], archived: Sequence[Header], limit: int) -> list[tuple[Header, bool]]:
    """Merge two pages into one, newest first, then by id; a session in both counts as live."""
    live_ids = {header.id for header in live}
    rows = [(header, False) for header in live]
    rows += [(header, True) for header in archived if header.id not in live_ids]
    rows.sort(key=lambda row: row[0].id.hex)
    rows.sort(key=lambda row: row[0].created_at, reverse=True)
    return rows[:limit]


def first_position(*positions: tuple[datetime, UUID] | None) -> tuple[datetime, UUID] | None:
    """The position that comes first in a listing; `None` is its end."""
    by_id = sorted((each for each in positions if each is not None), key=lambda each: each[1].hex)
    return max(by_id, key=lambda each: each[0], default=None)


def rows_down_to(rows: Sequence[tuple[Header, bool]], position: tuple[datetime, UUID]) -> list[tuple[Header, bool]]:
    """The rows of a page that don't come after the session at a position."""
    created_at, session_id = position
    return [
        (header, is_archived)
        for header, is_archived in rows
        if header.created_at > created_at or (header.created_at == created_at and header.id.hex <= session_id.hex)
    ]
