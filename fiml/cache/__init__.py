"""Two caches for answers of live market providers: the first near and short-lived, the second in the database."""

from fiml.cache.entries import AnswerCache, CacheEntry, cache_key
from fiml.cache.opening import open_caches

__all__ = ["AnswerCache", "CacheEntry", "cache_key", "open_caches"]
