"""Live sessions in Redis as the releases up to 0.3 laid them out, with a field of the header for each total."""

from uuid import UUID

import redis

from fiml.core.clock import to_micros
from fiml.core.config import Settings
from fiml.sessions.backends.redis.totals import totals_in

SUMS = ("total", "hits", "timed", "time_ms", "first", "last")
COUNTS = ("n:", "b:", "d:")


def header_key(session_id: UUID) -> str:
    return f"fiml:{{{session_id.hex}}}:header"


def lay_out_as_before(settings: Settings, session_id: UUID) -> None:
    """Give a session the header that format 3 had."""
    assert settings.redis_url is not None
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        key = header_key(session_id)
        totals = totals_in(client.hgetall(key))
        sums = (
            totals.total_queries,
            totals.cache_hits,
            totals.timed_queries,
            repr(totals.total_time_ms),
            totals.first_query_at and to_micros(totals.first_query_at),
            totals.last_query_at and to_micros(totals.last_query_at),
        )
        client.hdel(key, "totals", "types", "times", "days")
        client.hset(key, mapping={name: value for name, value in zip(SUMS, sums, strict=True) if value is not None})
        counts = [f"n:{name}" for name, count in totals.query_types.items() for _ in range(count)]
        counts += [f"b:{bucket}" for bucket, count in totals.time_histogram.items() for _ in range(count)]
        counts += [f"d:{day}" for day, count in totals.queries_by_day.items() for _ in range(count)]
        for field in counts:
            client.hincrby(key, field, 1)
        client.hset(key, "format", 3)


def is_laid_out_as_before(settings: Settings, session_id: UUID) -> bool:
    """Whether anything is left of it."""
    assert settings.redis_url is not None
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        fields = [field.decode() for field in client.hkeys(header_key(session_id))]
    return any(field in SUMS or field.startswith(COUNTS) for field in fields)
