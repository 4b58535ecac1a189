"""Rollups: the totals of a day's metrics. They are recomputed when the metrics change, never updated one by one.

All sums have one form, rows of kind, name and number. Both metrics and rollups can be selected in this form, so that
one query adds up days with current rollups and days without.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    true,
    union_all,
)

from fiml.db.dialects import is_postgresql, json_elements, json_members, json_object
from fiml.db.tables import rollup_marks, session_metrics, session_rollups

NUMBERS = ("sessions", "ended", "queries", "cache_hits", "duration_seconds", "abandoned")
MAPS = ("assets", "tags", "query_types", "time_histogram", "queries_by_day")
_LOCK_DAY = text("SELECT pg_advisory_xact_lock(hashtextextended('fiml.rollup ' || :day, 0))")

_metrics = session_metrics.c
_rollups = session_rollups.c


def days_behind(connection: Connection, since: date | None = None) -> list[date]:
    """The days whose metrics changed since their rollups were computed, oldest first."""
    days = select(rollup_marks.c.day).distinct().order_by(rollup_marks.c.day)
    return list(connection.scalars(days if since is None else days.where(rollup_marks.c.day >= since)))


def recompute(connection: Connection, day: date) -> None:
    """Recompute the rollups of a day.

    The day's marks are removed first, so that marks that others set meanwhile remain.
    """
    if is_postgresql(connection):
        connection.execute(_LOCK_DAY, {"day": day.isoformat()})
    connection.execute(delete(rollup_marks).where(rollup_marks.c.day == day))
    connection.execute(delete(session_rollups).where(session_rollups.c.day == day))
    for everybody in (False, True):
        _insert(connection, day, everybody=everybody)


def _insert(connection: Connection, day: date, *, everybody: bool) -> None:
    user = literal("") if everybody else func.coalesce(_metrics.user_id, "")
    by = (user.label("user_id"), _metrics.session_type)
    rows = union_all(*figures_of_metrics(connection, [of_day(day)], by=by)).subquery()
    counted = (
        select(rows.c.user_id, rows.c.session_type, rows.c.kind, rows.c.name, func.sum(rows.c.number).label("number"))
        .group_by(rows.c.user_id, rows.c.session_type, rows.c.kind, rows.c.name)
        .subquery()
    )

    def number(kind: str) -> Any:
        return func.coalesce(func.sum(case((counted.c.kind == kind, counted.c.number))), 0)

    def as_object(kind: str) -> Any:
        pairs = json_object(connection, counted.c.name, cast(counted.c.number, BigInteger))
        return func.coalesce(pairs.filter(counted.c.kind == kind), _empty(connection))

    grouped = select(
        literal(day, _rollups.day.type),
        literal(everybody, _rollups.everybody.type),
        counted.c.user_id,
        counted.c.session_type,
        *(number(kind) for kind in NUMBERS),
        *(as_object(kind) for kind in MAPS),
    ).group_by(counted.c.user_id, counted.c.session_type)
    names = ["day", "everybody", "user_id", "session_type", *NUMBERS, *MAPS]
    connection.execute(insert(session_rollups).from_select(names, grouped))


def of_day(day: date) -> ColumnElement[bool]:
    """The metrics of sessions created on a day, in UTC."""
    start = datetime.combine(day, time(), UTC)
    return and_(_metrics.created_at >= start, _metrics.created_at < start + timedelta(days=1))


def figures_of_metrics(
    connection: Connection, where: Sequence[ColumnElement[bool]], by: Sequence[ColumnElement[Any]] = ()
) -> list[Select[Any]]:
    """Statements that select kind, name and number of the totals of metrics, grouped by the columns `by`."""
    numbers: dict[str, ColumnElement[Any]] = {
        "sessions": func.count(),
        "ended": func.count(_metrics.ended_at),
        "queries": func.sum(_metrics.total_queries),
        "cache_hits": func.sum(_metrics.cache_hits),
        "duration_seconds": func.sum(_metrics.duration_seconds),
        "abandoned": func.count().filter(_metrics.abandoned),
    }
    columns = [*by]
    kinds: list[Select[Any]] = [
        select(*columns, *_labelled(kind, literal(""), number)).where(*where).group_by(*columns)
        for kind, number in numbers.items()
    ]
    types = select(*columns, *_labelled("types", _metrics.session_type, func.count()))
    kinds.append(types.where(*where).group_by(*columns, _metrics.session_type))
    lists = {"assets": _metrics.assets_analyzed, "tags": _metrics.tags}
    for kind, column in lists.items():
        element = json_elements(connection, column)
        each = select(*columns, *_labelled(kind, element.c.value, func.count()))
        joined = each.select_from(session_metrics.join(element, true())).where(*where)
        kinds.append(joined.group_by(*columns, element.c.value))
    objects = {
        "query_types": _metrics.query_type_summary,
        "time_histogram": _metrics.time_histogram,
        "queries_by_day": _metrics.queries_by_day,
    }
    for kind, column in objects.items():
        member = json_members(connection, column)
        each = select(*columns, *_labelled(kind, member.c.key, func.sum(cast(member.c.value, BigInteger))))
        joined = each.select_from(session_metrics.join(member, true())).where(*where)
        kinds.append(joined.group_by(*columns, member.c.key))
    return kinds


def figures_of_rollups(connection: Connection, where: Sequence[ColumnElement[bool]]) -> list[Select[Any]]:
    """Statements that select kind, name and number of the totals of rollups."""
    kinds: list[Select[Any]] = [
        select(*_labelled(kind, literal(""), func.coalesce(func.sum(_rollups[kind]), 0))).where(*where)
        for kind in NUMBERS
    ]
    types = select(*_labelled("types", _rollups.session_type, func.sum(_rollups.sessions))).where(*where)
    kinds.append(types.group_by(_rollups.session_type))
    for kind in MAPS:
        member = json_members(connection, _rollups[kind])
        each = select(*_labelled(kind, member.c.key, func.sum(cast(member.c.value, BigInteger))))
        joined = each.select_from(session_rollups.join(member, true())).where(*where)
        kinds.append(joined.group_by(member.c.key))
    return kinds


def _labelled(kind: str, name: ColumnElement[Any], number: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    return [literal(kind).label("kind"), name.label("name"), cast(number, BigInteger).label("number")]


def _empty(connection: Connection) -> Any:
    return cast("{}", _rollups.assets.type) if is_postgresql(connection) else literal("{}")
