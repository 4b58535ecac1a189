"""The caches of a deployment."""

from fiml.cache.entries import AnswerCache
from fiml.cache.forgiving import ForgivingCache
from fiml.core.config import Settings
from fiml.core.errors import MissingExtra


def open_caches(settings: Settings) -> tuple[AnswerCache, ...]:
    """The first and the second cache. Each opens at its first use; one that can't be opened is skipped."""
    if settings.is_embedded:
        return ForgivingCache("l1", _memory), ForgivingCache("l2", lambda: _database(settings))
    return ForgivingCache("l1", lambda: _redis(settings)), ForgivingCache("l2", lambda: _database(settings))


def _memory() -> AnswerCache:
    from fiml.cache.l1_cache import MemoryL1Cache  # noqa: PLC0415 - one deployment doesn't load the other

    return MemoryL1Cache()


def _redis(settings: Settings) -> AnswerCache:
    from fiml.cache.l1_cache import RedisL1Cache  # noqa: PLC0415 - as above

    try:
        from fiml.db.redis_client import RedisClient  # noqa: PLC0415 - only the server deployment has the driver
    except ModuleNotFoundError as exc:
        raise MissingExtra("Redis (FIML_REDIS_URL)", "server") from exc
    return RedisL1Cache(RedisClient.of(settings))


def _database(settings: Settings) -> AnswerCache:
    from fiml.cache.l2_cache import L2Cache  # noqa: PLC0415 - SQLAlchemy, not needed to start
    from fiml.db.lazy import database_of  # noqa: PLC0415 - as above

    return L2Cache(database_of(settings))
