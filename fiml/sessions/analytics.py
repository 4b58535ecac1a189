"""What sessions add up to: one question, one query, one result."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Integer, Select, cast, func, select, true
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fiml.core import clock
from fiml.core.config import Settings
from fiml.db.engines import SQLITE_BEGIN
from fiml.db.postgres import translated
from fiml.db.tables import session_metrics, sessions
from fiml.sessions import values
from fiml.sessions.backends import archive
from fiml.sessions.models import Session, SessionType
from fiml.sessions.records import Header, header_of

MAX_DAYS = 3650
TOP_ASSETS = 10
_IDS_PER_QUERY = 500

Result = TypeVar("Result")


class LiveSessions(Protocol):
    """Where live sessions can be looked through: a `SessionStore` is one."""

    settings: Settings

    def live_headers(
        self, *, user_id: str | None, session_type: str | None, since: datetime
    ) -> AsyncIterator[Header]: ...


@dataclass
class _Sums:
    sessions: int = 0
    queries: int = 0
    duration_seconds: float = 0.0
    abandoned: int = 0
    assets: Counter[str] = field(default_factory=Counter)
    query_types: Counter[str] = field(default_factory=Counter)

    def add_live(self, header: Header, now: datetime) -> None:
        self.sessions += 1
        self.queries += header.totals.total_queries
        self.duration_seconds += (header.last_accessed_at - header.created_at).total_seconds()
        self.abandoned += archive.is_abandoned(header, now)
        self.assets.update(header.assets)
        self.query_types.update(header.totals.query_types)


class SessionAnalytics:
    """Figures over sessions whose metrics were written, as when they end; with a store, over live ones too.

    `session_maker` is the store's. Where `session_enable_analytics` is off, nothing is written, and the figures come
    from what is there.
    """

    def __init__(
        self,
        session_maker: async_sessionmaker[AsyncSession],
        store: LiveSessions | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self._session_maker = session_maker
        self._store = store
        if settings is None:
            settings = store.settings if store is not None else session_maker.kw.get("info", {}).get("settings")
        self._settings = settings or Settings()

    async def record_session_metrics(self, session: Session) -> None:
        """Write the metrics of a session as it is now. The same version twice changes nothing, a later one replaces.

        Nothing is written where analytics is off.
        """
        if self._settings.session_enable_analytics:
            header = header_of(session)
            await self._transact(
                lambda connection: _write_metrics(connection, header, is_archived=session.is_archived),
                begin="BEGIN IMMEDIATE",
            )

    async def get_session_stats(
        self, user_id: str | None = None, session_type: SessionType | str | None = None, days: int = 30
    ) -> dict[str, Any]:
        """Figures over the sessions created within the last `days`, of one user or type or of all.

        Keys: `total_sessions`, `total_queries`, `avg_queries_per_session`, `avg_duration_seconds` (creation to last
        access), `abandonment_rate` (ended by expiry with fewer than two queries; from 0 to 1), `top_assets` (at most
        ten pairs of asset and number of sessions), `query_type_distribution`, `analytics_enabled`.

        Raises:
            InvalidInput: a filter is not valid.
        """
        values.check_whole(days, "days", at_most=MAX_DAYS)
        user = values.check_user_id(user_id)
        type_name = None if session_type is None else SessionType.parse(session_type).value
        since = clock.now() - timedelta(days=days)
        live = await self._live(user, type_name, since)
        sums = await self._transact(lambda connection: _sum(connection, _filters(user, type_name, since), live))
        return _stats(sums, is_enabled=self._settings.session_enable_analytics)

    async def _live(self, user_id: str | None, session_type: str | None, since: datetime) -> list[Header]:
        if self._store is None:
            return []
        found = self._store.live_headers(user_id=user_id, session_type=session_type, since=since)
        return [header async for header in found]

    async def _transact(self, function: Callable[[Connection], Result], *, begin: str = "BEGIN") -> Result:
        with translated("the database of ended sessions"):
            async with self._session_maker.begin() as session:
                connection = await session.connection(execution_options={SQLITE_BEGIN: begin})
                return await connection.run_sync(function)


def _write_metrics(connection: Connection, header: Header, *, is_archived: bool) -> None:
    ended_at = None
    if is_archived:
        ended_at = connection.scalar(select(sessions.c.archived_at).where(sessions.c.id == header.id))
    elif clock.now() >= header.expires_at:
        ended_at = clock.now()
    archive.put_metrics(connection, header, ended_at)


def _filters(user_id: str | None, session_type: str | None, since: datetime) -> list[ColumnElement[bool]]:
    filters: list[ColumnElement[bool]] = [session_metrics.c.created_at >= since]
    if user_id is not None:
        filters.append(session_metrics.c.user_id == user_id)
    if session_type is not None:
        filters.append(session_metrics.c.session_type == session_type)
    return filters


def _sum(connection: Connection, filters: list[ColumnElement[bool]], live: list[Header]) -> _Sums:
    # A crash can leave a session both live and archived: there the live one counts.
    doubles = _with_metrics(connection, [header.id for header in live])
    if doubles:
        filters = [*filters, session_metrics.c.session_id.not_in(doubles)]
    sums = _sum_ended(connection, filters)
    now = clock.now()
    for header in live:
        sums.add_live(header, now)
    return sums


def _with_metrics(connection: Connection, session_ids: list[UUID]) -> list[UUID]:
    found: list[UUID] = []
    for start in range(0, len(session_ids), _IDS_PER_QUERY):
        some = session_ids[start : start + _IDS_PER_QUERY]
        ids = select(session_metrics.c.session_id).where(session_metrics.c.session_id.in_(some))
        found += connection.scalars(ids)
    return found


def _sum_ended(connection: Connection, filters: list[ColumnElement[bool]]) -> _Sums:
    metrics = session_metrics.c
    count, queries, duration, abandoned = connection.execute(
        select(
            func.count(),
            func.coalesce(func.sum(metrics.total_queries), 0),
            func.coalesce(func.sum(metrics.duration_seconds), 0),
            func.count().filter(metrics.abandoned),
        ).where(*filters)
    ).one()
    asset = archive.json_elements(connection, metrics.assets_analyzed)
    assets = select(asset.c.value, func.count()).select_from(session_metrics.join(asset, true()))
    query_type = archive.json_members(connection, metrics.query_type_summary)
    of_type = func.sum(cast(query_type.c.value, Integer))
    types = select(query_type.c.key, of_type).select_from(session_metrics.join(query_type, true()))
    return _Sums(
        sessions=count,
        queries=int(queries),
        duration_seconds=float(duration),
        abandoned=abandoned,
        assets=_count(connection, assets.where(*filters).group_by(asset.c.value)),
        query_types=_count(connection, types.where(*filters).group_by(query_type.c.key)),
    )


def _count(connection: Connection, statement: Select[Any]) -> Counter[str]:
    return Counter({name: int(count) for name, count in connection.execute(statement)})


def _stats(sums: _Sums, *, is_enabled: bool) -> dict[str, Any]:
    def per_session(total: float) -> float:
        return total / sums.sessions if sums.sessions else 0.0

    ranked = sorted(sums.assets.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "total_sessions": sums.sessions,
        "total_queries": sums.queries,
        "avg_queries_per_session": per_session(sums.queries),
        "avg_duration_seconds": per_session(sums.duration_seconds),
        "abandonment_rate": per_session(sums.abandoned),
        "top_assets": ranked[:TOP_ASSETS],
        "query_type_distribution": dict(sorted(sums.query_types.items(), key=lambda pair: (-pair[1], pair[0]))),
        "analytics_enabled": is_enabled,
    }
