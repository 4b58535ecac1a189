"""Statistics over sessions: one question, one query, one result."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput
from fiml.db.engines import ASYNC_SQLITE_WRITES
from fiml.db.postgres import CALL_S, translated
from fiml.db.tables import sessions
from fiml.sessions import values
from fiml.sessions.analytics import export
from fiml.sessions.analytics.figures import Filters, Sums, add_ended, add_live
from fiml.sessions.analytics.results import MetricsTable, SessionStats
from fiml.sessions.backends.sql import archive, metrics
from fiml.sessions.changes import check_state
from fiml.sessions.models import Session, SessionType
from fiml.sessions.query_json import encode_query
from fiml.sessions.records import Header, header_of

MAX_DAYS = 3650
MAX_ROWS = 100_000
WITHIN_S = 60

Result = TypeVar("Result")


class LiveSessions(Protocol):
    """A source of live sessions, such as a `SessionStore`."""

    settings: Settings

    def live_headers(
        self, *, user_id: str | None, session_type: str | None, since: datetime
    ) -> AsyncIterator[Header]: ...


class SessionAnalytics:
    """Statistics over sessions whose metrics were written, which happens when they end; with a store, also live ones.

    `session_maker` is the store's. If `session_enable_analytics` is off, no metrics are written, and the statistics
    cover those that exist.
    """

    def __init__(
        self,
        session_maker: async_sessionmaker[AsyncSession],
        store: LiveSessions | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        """Take a session maker and, for live sessions, the store.

        Raises:
            InvalidInput: the first argument is something else, such as the store itself.
        """
        if not isinstance(session_maker, async_sessionmaker):
            raise InvalidInput(
                "session_maker", f"is a {type(session_maker).__name__}", "give store.session_maker, then the store"
            )
        self._session_maker = session_maker
        self._store = store
        if settings is None:
            settings = store.settings if store is not None else session_maker.kw.get("info", {}).get("settings")
        self._settings = settings or Settings()

    async def record_session_metrics(self, session: Session) -> None:
        """Write the metrics of a session as it is now. A later version replaces an earlier one.

        Nothing is written if analytics is off, or if the session was deleted.

        Raises:
            InvalidInput: a value can't be stored; nothing was written.
        """
        header = _checked_header(session)
        if self._settings.session_enable_analytics:
            await self._transact(
                lambda connection: _write_metrics(connection, header, is_archived=session.is_archived),
                writes=True,
            )

    async def get_session_stats(
        self, user_id: str | None = None, session_type: SessionType | str | None = None, days: int = 30
    ) -> SessionStats:
        """Statistics over the sessions created within the last `days`, of one user or type, or of all.

        A dict with the keys `total_sessions`, `active_sessions`, `archived_sessions`, `total_queries`,
        `avg_queries_per_session`, `avg_duration_seconds` (creation to last access), `abandonment_rate` (ended by
        expiry with fewer than two queries; from 0 to 1), `cache_hit_rate` (from 0 to 1), `type_breakdown`,
        `top_assets` and `popular_tags` (at most ten pairs of name and number of sessions),
        `query_type_distribution`, `queries_over_time` (pairs of day in UTC and number of queries),
        `median_query_time_ms` and `p95_query_time_ms` (`None` if no query was timed; each is the middle of a
        logarithmic bucket, off by at most the fraction `query_time_error`), `analytics_enabled`.

        The database computes them from daily rollups; for days whose metrics changed since, from the metrics.

        Raises:
            InvalidInput: a filter is not valid.
        """
        filters = self._filters(user_id, session_type, days)
        sums: Sums = defaultdict(Counter)
        live_ids: list[UUID] = []
        if self._store is not None:
            async for header in self._store.live_headers(
                user_id=filters.user_id, session_type=filters.session_type, since=filters.since
            ):
                add_live(sums, header, clock.now())
                live_ids.append(header.id)
        await self._transact(lambda connection: add_ended(sums, connection, filters, live_ids=live_ids))
        return SessionStats.of(sums, is_enabled=self._settings.session_enable_analytics)

    async def get_session_metrics(
        self,
        user_id: str | None = None,
        session_type: SessionType | str | None = None,
        days: int = 30,
        limit: int = 10_000,
    ) -> MetricsTable:
        """The metrics of ended sessions created within the last `days`, one row a session, newest first.

        At most `limit` rows; `export` writes any number of them to a file.

        Raises:
            InvalidInput: a filter or the limit is not valid.
        """
        filters = self._filters(user_id, session_type, days)
        size = values.check_whole(limit, "limit", at_most=MAX_ROWS)
        return MetricsTable(
            await self._transact(lambda connection: export.page(connection, filters, limit=size, after=None))
        )

    async def export(
        self,
        file: Path | str,
        *,
        format: str | None = None,  # noqa: A002 - the word that users look for
        user_id: str | None = None,
        session_type: SessionType | str | None = None,
        days: int = 30,
    ) -> int:
        """Write the metrics of ended sessions to a new file, one row a session, newest first; how many rows.

        `format` is `csv`, `jsonl` or `parquet`; the default is the file's suffix. Memory is bounded for any number of
        rows. In CSV and Parquet, lists and counts are JSON texts. If writing fails, the file is removed.

        Raises:
            InvalidInput: the format is unknown, the file exists or can't be written, or a filter is not valid.
            MissingExtra: Parquet needs pyarrow.
        """
        filters = self._filters(user_id, session_type, days)
        target = export.open_target(Path(file), format)
        return await export.write(
            target, lambda after: self._transact(lambda connection: export.page(connection, filters, after=after))
        )

    def _filters(self, user_id: str | None, session_type: SessionType | str | None, days: int) -> Filters:
        values.check_whole(days, "days", at_most=MAX_DAYS)
        user = values.check_user_id(user_id)
        type_name = None if session_type is None else SessionType.parse(session_type).value
        return Filters(since=clock.now() - timedelta(days=days), user_id=user, session_type=type_name)

    async def _transact(self, function: Callable[[Connection], Result], *, writes: bool = False) -> Result:
        with translated("the database of ended sessions"), self._telling_damage():
            async with asyncio.timeout(WITHIN_S), self._session_maker.begin() as session:
                # The inner limit cancels connecting, after which the driver may linger; the outer limit ends that too.
                async with asyncio.timeout(CALL_S), asyncio.timeout(CALL_S - 0.5):
                    connection = await session.connection(execution_options={ASYNC_SQLITE_WRITES: writes})
                return await connection.run_sync(function)

    def _telling_damage(self) -> AbstractContextManager[None]:
        engine = self._session_maker.kw["bind"]
        if engine.dialect.name != "sqlite":
            return nullcontext()
        from fiml.db.sqlite_file import translated as sqlite_translated  # noqa: PLC0415 - of one deployment

        return sqlite_translated(Path(engine.url.database))


def _checked_header(session: Session) -> Header:
    """The header of a session that may never have come from the store, after a check of all that its metrics need."""
    given: object = session
    if not isinstance(given, Session):
        raise InvalidInput("session", f"is a {type(given).__name__}", "give the Session that was read")
    values.check_whole(session.version, "version", at_most=values.MAX_VERSION)
    for name in ("created_at", "expires_at", "last_accessed_at"):
        values.check_moment(getattr(session, name), name)
    check_state(session)
    for query in session.state.history.queries:
        encode_query(query)
    checked: dict[str, Any] = {
        "id": values.parse_session_id(session.id),
        "user_id": values.check_user_id(session.user_id),
        "assets": values.check_assets(session.assets),
        "tags": values.check_tags(session.tags),
    }
    return replace(header_of(session), **checked)


def _write_metrics(connection: Connection, header: Header, *, is_archived: bool) -> None:
    archive.lock(connection, [header.id])
    if archive.is_buried(connection, header.id):
        return
    ended_at = None
    if is_archived:
        ended_at = connection.scalar(select(sessions.c.archived_at).where(sessions.c.id == header.id))
    elif clock.now() >= header.expires_at:
        ended_at = clock.now()
    metrics.put(connection, [metrics.row_of(header, ended_at)])
