"""The header of a live session as a row of SQLite."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import CorruptRecord, echo
from fiml.sessions import stored_json
from fiml.sessions.damage import DAMAGE
from fiml.sessions.models import QueryTotals
from fiml.sessions.records import Header, unreadable
from fiml.sessions.rights import decode_grants

_NAMES = msgspec.json.Decoder(list[str])
_COUNTS = msgspec.json.Decoder(dict[str, int])
_COUNTS_BY_NUMBER = msgspec.json.Decoder(dict[int, int])


class _Row(msgspec.Struct, array_like=True):
    """A row of `active_sessions`. SQLite would store any type in any column."""

    id: str
    user_id: str | None
    created_at: int
    # What a tracked query leaves as it is:
    type: str
    title: str | None
    assets: str
    tags: str
    expires_at: int
    grants: str
    # What every tracked query changes:
    last_accessed_at: int
    version: int
    total_queries: int
    cache_hits: int
    first_query_at: int | None
    last_query_at: int | None
    query_types: str
    timed_queries: int
    total_time_ms: float
    maps_bytes: int
    history_bytes: int
    time_histogram: str
    queries_by_day: str
    format: int


COLUMNS = _Row.__struct_fields__
# Separate from each other: tracking a query changes none of the named columns, and so no index.
NAMED = COLUMNS[COLUMNS.index("type") : COLUMNS.index("last_accessed_at")]
COUNTED = COLUMNS[COLUMNS.index("last_accessed_at") :]


def encode(header: Header) -> dict[str, Any]:
    """A row, as values by column."""
    return {
        "id": header.id.hex,
        "user_id": header.user_id,
        "created_at": to_micros(header.created_at),
        "type": header.type,
        "title": header.title,
        "assets": stored_json.json_of(header.assets),
        "tags": stored_json.json_of(header.tags),
        "expires_at": to_micros(header.expires_at),
        "grants": stored_json.json_of(header.grants),
        **encode_counted(header),
    }


def encode_counted(header: Header) -> dict[str, Any]:
    """The columns that every tracked query changes: times, version, sizes and totals."""
    totals = header.totals
    return {
        "last_accessed_at": to_micros(header.last_accessed_at),
        "version": header.version,
        "total_queries": totals.total_queries,
        "cache_hits": totals.cache_hits,
        "first_query_at": totals.first_query_at and to_micros(totals.first_query_at),
        "last_query_at": totals.last_query_at and to_micros(totals.last_query_at),
        "query_types": stored_json.json_of(totals.query_types),
        "timed_queries": totals.timed_queries,
        "total_time_ms": totals.total_time_ms,
        "maps_bytes": header.maps_bytes,
        "history_bytes": header.history_bytes,
        "time_histogram": stored_json.json_of(totals.time_histogram),
        "queries_by_day": stored_json.json_of(totals.queries_by_day),
        "format": header.format,
    }


def decode(row: Sequence[Any]) -> Header:
    """The header in a row of `COLUMNS`.

    Raises:
        CorruptRecord: a column has the wrong type, or isn't JSON.
        SchemaTooNew: the same, in a row that a later fiml wrote.
    """
    stored_id, *_, stored_format = row
    try:
        stored = msgspec.convert(row, _Row)
        return Header(
            id=UUID(stored.id),
            user_id=stored.user_id,
            type=stored.type,
            title=stored.title,
            assets=_NAMES.decode(stored.assets),
            tags=_NAMES.decode(stored.tags),
            created_at=from_micros(stored.created_at),
            expires_at=from_micros(stored.expires_at),
            last_accessed_at=from_micros(stored.last_accessed_at),
            version=stored.version,
            totals=QueryTotals(
                total_queries=stored.total_queries,
                cache_hits=stored.cache_hits,
                first_query_at=_moment(stored.first_query_at),
                last_query_at=_moment(stored.last_query_at),
                query_types=_COUNTS.decode(stored.query_types),
                timed_queries=stored.timed_queries,
                total_time_ms=stored.total_time_ms,
                time_histogram=_COUNTS_BY_NUMBER.decode(stored.time_histogram),
                queries_by_day=_COUNTS.decode(stored.queries_by_day),
            ),
            maps_bytes=stored.maps_bytes,
            history_bytes=stored.history_bytes,
            format=stored.format,
            grants=decode_grants(f"live session {stored.id}", stored.grants),
        )
    except CorruptRecord as exc:
        raise unreadable(exc.record, stored_format, exc.problem) from exc
    except DAMAGE as exc:
        raise unreadable(f"live session {_readable(stored_id)}", stored_format, str(exc)) from exc


def decode_id(stored_id: Any) -> UUID:
    """An id as it is stored.

    Raises:
        CorruptRecord: it is none.
    """
    try:
        return UUID(stored_id)
    except DAMAGE as exc:
        raise CorruptRecord(f"live session {_readable(stored_id)}", str(exc)) from exc


def _readable(stored_id: object) -> str:
    """The id as others know it, or as it is stored if it isn't one."""
    try:
        return str(UUID(str(stored_id)))
    except ValueError:
        return echo(stored_id)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)
