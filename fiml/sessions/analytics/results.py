"""The results of the analytics: plain values, which can be turned into pandas or polars data frames."""

from collections import Counter
from typing import Any, Self

from fiml.core.errors import MissingExtra
from fiml.sessions.analytics.export import COLUMNS, flat
from fiml.sessions.histogram import QUERY_TIME_ERROR, percentile_ms

TOP = 10


def _pandas() -> Any:
    try:
        import pandas  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise MissingExtra("to_pandas", "pandas") from exc
    return pandas


def _polars() -> Any:
    try:
        import polars  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise MissingExtra("to_polars", "polars") from exc
    return polars


class SessionStats(dict[str, Any]):
    """Statistics, as `get_session_stats` describes them."""

    @classmethod
    def of(cls, sums: dict[str, Counter[str]], *, is_enabled: bool) -> Self:
        """The statistics from totals by kind and name."""
        total = {kind: sums[kind][""] for kind in ("sessions", "active", "queries", "cache_hits", "abandoned")}
        count = total["sessions"]
        times = {int(bucket): number for bucket, number in sums["time_histogram"].items() if number > 0}
        return cls(
            total_sessions=count,
            active_sessions=total["active"],
            archived_sessions=sums["ended"][""],
            total_queries=total["queries"],
            avg_queries_per_session=_ratio(total["queries"], count),
            avg_duration_seconds=_ratio(sums["duration_seconds"][""], count),
            abandonment_rate=_ratio(total["abandoned"], count),
            cache_hit_rate=_ratio(total["cache_hits"], total["queries"]),
            type_breakdown=dict(_ranked(sums["types"])),
            top_assets=_ranked(sums["assets"])[:TOP],
            popular_tags=_ranked(sums["tags"])[:TOP],
            query_type_distribution=dict(_ranked(sums["query_types"])),
            queries_over_time=sorted((day, number) for day, number in sums["queries_by_day"].items() if number > 0),
            median_query_time_ms=percentile_ms(times, 0.5),
            p95_query_time_ms=percentile_ms(times, 0.95),
            query_time_error=QUERY_TIME_ERROR,
            analytics_enabled=is_enabled,
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row a figure: `figure`, `name` (empty for a single number) and `value`."""
        rows: list[dict[str, Any]] = []
        for figure, value in self.items():
            if isinstance(value, dict | list):
                pairs = value.items() if isinstance(value, dict) else value
                rows += [{"figure": figure, "name": name, "value": float(number)} for name, number in pairs]
            else:
                rows.append({"figure": figure, "name": "", "value": None if value is None else float(value)})
        return rows

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _pandas().DataFrame(self.rows(), columns=["figure", "name", "value"])

    def to_polars(self) -> Any:
        """The rows as a polars DataFrame.

        Raises:
            MissingExtra: polars is not installed.
        """
        polars = _polars()
        return polars.DataFrame(
            self.rows(), schema={"figure": polars.String, "name": polars.String, "value": polars.Float64}
        )


class MetricsTable(list[dict[str, Any]]):
    """Rows of metrics, one a session, newest first; the columns are those of `session_metrics`."""

    def to_pandas(self) -> Any:
        """As a pandas DataFrame.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _pandas().DataFrame(list(self), columns=None if self else COLUMNS)

    def to_polars(self) -> Any:
        """As a polars DataFrame, in which lists and counts by name are JSON texts.

        Raises:
            MissingExtra: polars is not installed.
        """
        rows = [flat(row) for row in self]
        return _polars().DataFrame(rows, schema=None if rows else list(COLUMNS), infer_schema_length=None)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    found = [(name, number) for name, number in counts.items() if number > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))
