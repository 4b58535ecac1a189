"""The state of the store, asked of the engines at each scrape: the same from every process with the same store."""

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import FimlError, Unavailable
from fiml.core.shared_look import SharedLook
from fiml.runtime import Runtime
from fiml.sessions.maintenance import JOBS

if TYPE_CHECKING:
    from fiml.sessions.backends.shapes import RedisState, StoreFigures

ANSWER_WITHIN_S = 3.0


class Standing(Collector):
    """Asks the store when a thread collects metrics; threads that ask at the same time share one look.

    A look takes two seconds at most. If the event loop itself doesn't answer, the figures are left out.
    """

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = runtime.settings
        self._look = SharedLook(lambda: _figures(runtime))
        self._loop = loop
        self._since = clock.now()

    def collect(self) -> Iterator[Metric]:
        waiting = asyncio.run_coroutine_threadsafe(self._look.result(), self._loop)
        try:
            figures = waiting.result(ANSWER_WITHIN_S)
        except TimeoutError:
            waiting.cancel()
            figures = Unavailable("the store", "no answer in time")
        yield from families(self._settings, figures, self._since)

    def describe(self) -> list[Metric]:
        """Describe nothing, so that registering doesn't ask the engines."""
        return []


async def _figures(runtime: Runtime) -> "StoreFigures | FimlError":
    try:
        return await (await runtime.store()).figures()
    except FimlError as exc:
        return exc


def families(settings: Settings, figures: "StoreFigures | FimlError", since: datetime) -> Iterator[Metric]:
    """The figures as Prometheus metrics, or what can be said if the store couldn't be asked.

    A job that was never done counts as done at `since`, so that somebody notices if it is never done at all.
    """
    yield _gauge("fiml_store_up", "Whether the store could be asked", float(not isinstance(figures, FimlError)))
    interval_s = settings.session_cleanup_interval_minutes * 60
    yield _gauge("fiml_cleanup_interval_seconds", "How often expired sessions are archived", interval_s)
    engines = ["sqlite"] if settings.is_embedded else ["redis", "postgresql"]
    if isinstance(figures, FimlError):
        if isinstance(figures, Unavailable):  # other errors, such as an outdated schema, tell nothing about the engines
            yield _engines(dict.fromkeys(engines, 0.0))
        return
    yield _engines({engine: float(figures.engines.get(engine, False)) for engine in engines})
    yield from _sessions(figures)
    done = {job.name: since.timestamp() for job in JOBS}
    done |= {job: moment.timestamp() for job, moment in figures.jobs_done.items()}
    yield _labelled("fiml_task_done_timestamp_seconds", "When a task was last done", "task", done)
    yield _labelled("fiml_engine_replicas", "Replicas that an engine has", "engine", figures.replicas)
    yield _labelled("fiml_engine_replica_lag_seconds", "Lag of the slowest replica", "engine", figures.replica_lag_s)
    if figures.redis is not None:
        yield from _redis(figures.redis)


def _engines(up: dict[str, float]) -> Metric:
    return _labelled("fiml_engine_up", "Whether an engine answered within two seconds", "engine", up)


def _sessions(figures: "StoreFigures") -> Iterator[Metric]:
    numbers = {
        "fiml_sessions_live": ("Live sessions", figures.live),
        "fiml_backlog_sessions": (
            "Expired sessions that wait to be archived; an upper bound in Redis",
            figures.waiting,
        ),
        "fiml_backlog_oldest_seconds": ("How long ago the oldest of them expired", _age_s(figures)),
        "fiml_sessions_archived": ("Archived sessions", figures.archived),
        "fiml_sessions_quarantined": ("Sessions that can't be archived", figures.quarantined),
    }
    for name, (words, number) in numbers.items():
        if number is not None:
            yield _gauge(name, words, number)


def _age_s(figures: "StoreFigures") -> float | None:
    if figures.waiting is None:
        return None
    return 0 if figures.oldest_waiting is None else _since(figures.oldest_waiting)


def _since(moment: datetime) -> float:
    return max(0.0, (clock.now() - moment).total_seconds())


def _redis(state: "RedisState") -> Iterator[Metric]:
    evicted = CounterMetricFamily("fiml_redis_evicted_keys", "Keys that Redis evicted for lack of memory")
    evicted.add_metric([], state.evicted_keys)
    yield evicted
    yield _gauge(
        "fiml_redis_may_evict", "Whether the maxmemory-policy of Redis lets it evict sessions", float(state.may_evict)
    )
    yield _gauge("fiml_redis_append_only", "Whether Redis has an append-only file", float(state.is_append_only))
    yield _gauge("fiml_redis_used_bytes", "Memory that Redis uses", state.used_bytes)
    yield _gauge("fiml_redis_max_bytes", "Memory that Redis may use; 0 without a limit", state.max_bytes)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _labelled(name: str, words: str, label: str, values: "dict[str, float] | dict[str, int]") -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
