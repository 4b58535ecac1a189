"""The second cache: a table of the database, which all processes share and which outlives them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, select

from fiml.cache.entries import CacheEntry, Layer
from fiml.core import clock
from fiml.core.errors import CorruptRecord
from fiml.core.log import get_logger
from fiml.db.dialects import upsert
from fiml.db.lazy import Database, LazyDatabase
from fiml.db.tables import market_cache

PURGE_EVERY_PUTS = 100
PURGE_ROWS = 1000

_log = get_logger()


class L2Cache:
    """Entries as rows of `market_cache`. The database is opened at the first call, and closed by `aclose`.

    An entry never replaces one that was learnt later. Rows past `keep_until` are removed, at most a thousand at a time,
    with the first entry that is put and every hundredth after it.
    """

    layer: Layer = "l2"

    def __init__(self, database: Database) -> None:
        self._database = LazyDatabase(database)
        self._puts = 0

    async def get(self, key: str) -> CacheEntry | None:
        wanted = select(*(market_cache.c[name] for name in _COLUMNS)).where(market_cache.c.key == key)
        try:
            row = await self._database.view(lambda connection: connection.execute(wanted).one_or_none())
        except CorruptRecord as exc:
            _log.warning("cache_value_damaged", layer=self.layer, problem=exc.problem)
            return None
        if row is None:
            return None
        entry = CacheEntry(*row)
        return entry if entry.keep_until > clock.now() else None

    async def put(self, key: str, entry: CacheEntry) -> None:
        now = clock.now()
        if entry.keep_until <= now:
            return
        is_purge_due = self._puts % PURGE_EVERY_PUTS == 0
        self._puts += 1
        row = {"key": key, **{name: getattr(entry, name) for name in _COLUMNS}}

        def write(connection: Connection) -> None:
            upsert(connection, market_cache, [row], key="key", where=_is_newer)
            # After it: a purge waits for nobody, but this entry might be one that another process is purging, and the
            # other one's entry one of ours.
            if is_purge_due:
                _purge(connection, now)

        await self._database.transact(write)

    async def purge(self, before: datetime) -> int:
        """Remove entries whose `keep_until` is before a moment, at most a thousand; how many were removed."""
        return await self._database.transact(lambda connection: _purge(connection, before))

    async def aclose(self) -> None:
        await self._database.close()


_COLUMNS = ("value", "known_at", "fresh_until", "keep_until")


def _is_newer(new: Any) -> ColumnElement[bool]:
    return new.known_at >= market_cache.c.known_at  # type: ignore[no-any-return]  # a comparison of columns


def _purge(connection: Connection, before: datetime) -> int:
    past = (
        select(market_cache.c.key)
        .where(market_cache.c.keep_until < before)
        .order_by(market_cache.c.keep_until, market_cache.c.key)
        .limit(PURGE_ROWS)
        # Without it, two purges at once could lock each other's rows and deadlock.
        .with_for_update(skip_locked=True)
    )
    # In one statement with the removal, PostgreSQL may run the selection once for each row, and find others each time.
    keys = connection.scalars(past).all()
    return connection.execute(delete(market_cache).where(market_cache.c.key.in_(keys))).rowcount if keys else 0
