"""The totals behind the statistics: of live sessions, and of those that have metrics."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, or_, select, text, union_all

from fiml.db.dialects import is_postgresql
from fiml.db.tables import session_metrics, session_rollups
from fiml.sessions.backends.sql import metrics, rollups
from fiml.sessions.records import Header

_IDS_PER_QUERY = 5000
_MOST_SPANS = 50
_A_DAY = timedelta(days=1)

Sums = dict[str, Counter[str]]
"""Numbers by kind and name; the kinds in `rollups.NUMBERS` have a single number, with an empty name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which sessions count: created since a moment, of one user or type or of all."""

    since: datetime
    user_id: str | None = None
    session_type: str | None = None

    def on_metrics(self) -> list[ColumnElement[bool]]:
        """The conditions on rows of metrics, except the time."""
        conditions: list[ColumnElement[bool]] = []
        if self.user_id is not None:
            conditions.append(session_metrics.c.user_id == self.user_id)
        if self.session_type is not None:
            conditions.append(session_metrics.c.session_type == self.session_type)
        return conditions

    def on_rollups(self) -> list[ColumnElement[bool]]:
        """The conditions on rows of rollups, except the time."""
        rows = session_rollups.c
        conditions = [rows.everybody.is_(self.user_id is None), rows.user_id == (self.user_id or "")]
        if self.session_type is not None:
            conditions.append(rows.session_type == self.session_type)
        return conditions


def add_ended(sums: Sums, connection: Connection, filters: Filters, *, live_ids: Sequence[UUID]) -> None:
    """Add the sessions that have metrics to the totals, without those that are live. The transaction's first reads."""
    if is_postgresql(connection):
        # One snapshot: the metrics of a session that ends in between would not be added, but subtracted below.
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    for kind, name, number in connection.execute(statement(connection, filters)):
        sums[kind][name] += int(number or 0)
    # After a crash, a session may be both live and archived: then the live one counts.
    for row in _metrics_of(connection, filters, live_ids):
        _subtract(sums, row)


def statement(connection: Connection, filters: Filters) -> Any:
    """Select kind, name and number: from current rollups, but from metrics for the first day and outdated days."""
    first = metrics.day_of(filters.since)
    spans = _spans([day for day in rollups.days_behind(connection, first) if day > first])
    day, created_at = session_rollups.c.day, session_metrics.c.created_at
    rolled_up = [day > first, *(~day.between(start, end) for start, end in spans), *filters.on_rollups()]
    of_first = (created_at >= filters.since) & (created_at < _midnight(first + _A_DAY))
    behind = ((created_at >= _midnight(start)) & (created_at < _midnight(end + _A_DAY)) for start, end in spans)
    return union_all(
        *rollups.figures_of_rollups(connection, rolled_up),
        *rollups.figures_of_metrics(connection, [or_(of_first, *behind), *filters.on_metrics()]),
    )


def _spans(days: Sequence[date]) -> list[tuple[date, date]]:
    """Sorted days as spans of consecutive days, first to last; as a single span if there would be too many."""
    spans: list[tuple[date, date]] = []
    for day in days:
        if spans and day == spans[-1][1] + _A_DAY:
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    return spans if len(spans) <= _MOST_SPANS else [(days[0], days[-1])]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def add_live(sums: Sums, header: Header, now: datetime) -> None:
    """Add a live session to the totals."""
    totals = header.totals
    numbers = {
        "sessions": 1,
        "active": int(now < header.expires_at),
        "queries": totals.total_queries,
        "cache_hits": totals.cache_hits,
        "duration_seconds": metrics.duration_s(header.created_at, header.last_accessed_at),
        "abandoned": int(metrics.is_abandoned(header, now)),
    }
    for kind, number in numbers.items():
        sums[kind][""] += number
    sums["types"][header.type] += 1
    sums["assets"].update(header.assets)
    sums["tags"].update(header.tags)
    sums["query_types"].update(totals.query_types)
    sums["time_histogram"].update({str(bucket): n for bucket, n in totals.time_histogram.items()})
    sums["queries_by_day"].update(totals.queries_by_day)


def _metrics_of(connection: Connection, filters: Filters, session_ids: Sequence[UUID]) -> list[RowMapping]:
    found: list[RowMapping] = []
    conditions = [session_metrics.c.created_at >= filters.since, *filters.on_metrics()]
    for start in range(0, len(session_ids), _IDS_PER_QUERY):
        some = session_metrics.c.session_id.in_(session_ids[start : start + _IDS_PER_QUERY])
        found += connection.execute(select(session_metrics).where(some, *conditions)).mappings()
    return found


def _subtract(sums: Sums, row: RowMapping) -> None:
    numbers = {
        "sessions": 1,
        "ended": int(row["ended_at"] is not None),
        "queries": row["total_queries"],
        "cache_hits": row["cache_hits"],
        "duration_seconds": row["duration_seconds"],
        "abandoned": int(row["abandoned"]),
    }
    for kind, number in numbers.items():
        sums[kind][""] -= number
    sums["types"][row["session_type"]] -= 1
    sums["assets"].subtract(json.loads(row["assets_analyzed"]))
    sums["tags"].subtract(json.loads(row["tags"]))
    sums["query_types"].subtract(json.loads(row["query_type_summary"]))
    sums["time_histogram"].subtract(json.loads(row["time_histogram"]))
    sums["queries_by_day"].subtract(json.loads(row["queries_by_day"]))
