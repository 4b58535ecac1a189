"""How a session's totals are stored in its header in Redis: packed, so that a script needs no call for each number.

`totals.lua` is the scripts' side of this.

There are four fields: the sums, and the numbers of queries by type, by bucket of their time, and by day. As long as
each field has at most 64 bytes, as in most sessions with ten queries, Redis keeps the hash in its compact form.
"""

from datetime import datetime

import msgspec

from fiml.core.clock import from_micros, to_micros
from fiml.db.redis_commands import Argument
from fiml.sessions.models import QueryTotals

_OLD_COUNTS = frozenset((b"n:", b"b:", b"d:"))

# Queries, cache hits, timed queries and their milliseconds; the first and the last moment in microseconds, empty if
# there is none. The moments are texts, since Lua's numbers hold microseconds exactly only up to the year 2255.
_sums = msgspec.msgpack.Decoder(tuple[int, int, int, float, str, str])
_by_name = msgspec.msgpack.Decoder(dict[str, int])
_by_bucket = msgspec.msgpack.Decoder(dict[int, int], strict=False)  # the buckets' numbers are stored as text


def encode_totals(totals: QueryTotals) -> list[tuple[str, Argument]]:
    """The fields of totals."""
    sums = (
        totals.total_queries,
        totals.cache_hits,
        totals.timed_queries,
        totals.total_time_ms,
        _moment(totals.first_query_at),
        _moment(totals.last_query_at),
    )
    by_bucket = {str(bucket): count for bucket, count in totals.time_histogram.items()}
    return [
        ("totals", msgspec.msgpack.encode(sums)),
        ("types", _counts(totals.query_types)),
        ("times", _counts(by_bucket)),
        ("days", _counts(totals.queries_by_day)),
    ]


def decode_totals(sums: bytes, types: bytes, times: bytes, days: bytes) -> QueryTotals:
    """Totals from their fields, in the order of `encode_totals`.

    Raises:
        ValueError, msgspec.DecodeError: a field isn't what `encode_totals` writes.
    """
    total, hits, timed, time_ms, first, last = _sums.decode(sums)
    return QueryTotals(
        total_queries=total,
        cache_hits=hits,
        first_query_at=from_micros(int(first)) if first else None,
        last_query_at=from_micros(int(last)) if last else None,
        query_types=_by_name.decode(types) if types else {},
        timed_queries=timed,
        total_time_ms=time_ms,
        time_histogram=_by_bucket.decode(times) if times else {},
        queries_by_day=_by_name.decode(days) if days else {},
    )


def totals_in(header: dict[bytes, bytes]) -> QueryTotals:
    """The totals in a header of any layout.

    Raises:
        KeyError: a field is missing.
        ValueError, msgspec.DecodeError: a field can't be decoded.
    """
    if b"totals" in header:
        return decode_totals(header[b"totals"], header[b"types"], header[b"times"], header[b"days"])
    return _old_totals(header)


def _old_totals(header: dict[bytes, bytes]) -> QueryTotals:
    """The totals in a header of the old layout, which has a field for each sum and each count."""
    first, last = header.get(b"first"), header.get(b"last")
    counts: dict[bytes, dict[str, int]] = {letter: {} for letter in _OLD_COUNTS}
    for field, count in header.items():
        if field[:2] in _OLD_COUNTS:
            counts[field[:2]][field[2:].decode()] = int(count)
    return QueryTotals(
        total_queries=int(header[b"total"]),
        cache_hits=int(header[b"hits"]),
        first_query_at=from_micros(int(first)) if first else None,
        last_query_at=from_micros(int(last)) if last else None,
        query_types=counts[b"n:"],
        timed_queries=int(header[b"timed"]),
        total_time_ms=float(header[b"time_ms"]),
        time_histogram={int(bucket): count for bucket, count in counts[b"b:"].items()},
        queries_by_day=counts[b"d:"],
    )


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else str(to_micros(moment))


def _counts(counts: dict[str, int]) -> bytes:
    return msgspec.msgpack.encode(counts) if counts else b""
