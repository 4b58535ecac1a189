"""How much is measured: a quick run, to see whether all still works, or a full one, for figures to quote."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes of a run."""

    rounds: int
    calls: int
    histories: tuple[int, ...]
    pages: tuple[int, ...]
    users: tuple[int, ...]
    writers: tuple[int, ...]
    writes: int
    replica_calls: int
    archived_sessions: int
    swept_sessions: tuple[int, ...]
    metrics_rows: int
    sized_sessions: int
    searched_sessions: int
    starts: int


QUICK = Plan(
    rounds=3,
    calls=20,
    histories=(0, 100, 1000),
    pages=(1000,),
    users=(1, 100),
    writers=(1, 16, 64),
    writes=512,
    replica_calls=200,
    archived_sessions=1000,
    swept_sessions=(),
    metrics_rows=20_000,
    sized_sessions=200,
    searched_sessions=100,
    starts=3,
)

FULL = Plan(
    rounds=7,
    calls=60,
    histories=(0, 10, 100, 1000, 5000),
    pages=(1000, 10_000, 100_000, 1_000_000),
    users=(1, 10, 100, 1000),
    writers=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    writes=4096,
    replica_calls=2000,
    archived_sessions=5000,
    swept_sessions=(1000, 100_000),
    metrics_rows=1_000_000,
    sized_sessions=2000,
    searched_sessions=1000,
    starts=9,
)
