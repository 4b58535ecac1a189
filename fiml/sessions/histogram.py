"""Query times as a histogram with logarithmic buckets: histograms add up, percentiles don't."""

import math

TIME_BUCKETS_PER_DECADE = 20
# Half a bucket, from its geometric middle, as a fraction.
QUERY_TIME_ERROR = round(10 ** (1 / (2 * TIME_BUCKETS_PER_DECADE)) - 1, 3)
_SHORTEST_MS = 0.001


def time_bucket(milliseconds: float) -> int:
    """The logarithmic bucket of a query's time: the times of one bucket differ by 12 percent at most.

    Anything below a microsecond counts as one.
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
