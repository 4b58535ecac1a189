"""Query times as a histogram with logarithmic buckets: histograms can be added up, percentiles can't."""

import math

TIME_BUCKETS_PER_DECADE = 20
# How far a time may be from the geometric middle of its bucket, as a fraction, with the rounding of `percentile_ms`.
QUERY_TIME_ERROR = math.ceil(100 * (10 ** (1 / (2 * TIME_BUCKETS_PER_DECADE)) - 1)) / 100
_SHORTEST_MS = 0.001


def time_bucket(milliseconds: float) -> int:
    """The logarithmic bucket of a query's time: times in one bucket differ by at most 12 percent.

    Times below a microsecond count as one microsecond.
    """
    return math.floor(TIME_BUCKETS_PER_DECADE * math.log10(max(milliseconds, _SHORTEST_MS)))


def percentile_ms(histogram: dict[int, int], fraction: float) -> float | None:
    """The time that this fraction of the queries doesn't exceed: the geometric middle of its bucket, milliseconds."""
    rank = fraction * sum(histogram.values())
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= rank:
            return float(f"{10 ** ((bucket + 0.5) / TIME_BUCKETS_PER_DECADE):.4g}")
    return None
