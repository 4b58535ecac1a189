"""A process's measurements as Prometheus metrics. Labels have few values; none is a user, session or symbol."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fiml import __version__
from fiml.core.observe import Counted, Timed

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (0.1, 0.5, 1, 5, 15, 60, 300, 1800)


class Recorder:
    """Records measurements in a registry; it is a `fiml.core.observe.Meter`.

    No label is called `job` or `instance`, since Prometheus uses these names itself.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, label: str, words: str, buckets: tuple[float, ...] = _QUICK) -> Histogram:
            return Histogram(name, words, [label, "code"], buckets=buckets, registry=registry)

        self._timed = {
            Timed.CALL: histogram("fiml_call_seconds", "call", "Requests of MCP clients"),
            Timed.OPERATION: histogram("fiml_operation_seconds", "verb", "Verbs of the session store"),
            Timed.ENGINE: histogram("fiml_engine_seconds", "engine", "Exchanges with an engine"),
            Timed.JOB: histogram("fiml_task_seconds", "task", "Tasks of the maintenance", _LONG),
            Timed.FETCH: histogram("fiml_fetch_seconds", "part", "Parts of answers asked of a market provider"),
        }
        self._counted = {
            Counted.JOB_SESSIONS: Counter(
                "fiml_task_sessions", "What tasks dealt with", ["task", "outcome"], registry=registry
            ),
            Counted.MARKET_ANSWERS: Counter(
                "fiml_market_answers", "Parts of answers by who gave them", ["layer", "stale"], registry=registry
            ),
            Counted.HTTP_REFUSED: Counter(
                "fiml_http_refused", "Requests on HTTP that were refused before a tool", ["status"], registry=registry
            ),
            Counted.PROVIDER_ERRORS: Counter(
                "fiml_provider_errors", "Questions to a provider that failed", ["provider", "code"], registry=registry
            ),
        }
        build = Gauge("fiml_build", "The version", ["version"], registry=registry, multiprocess_mode="max")
        build.labels(__version__).set(1)

    def timed(self, kind: Timed, name: str, code: str, seconds: float) -> None:
        self._timed[kind].labels(name, code).observe(seconds)

    def counted(self, what: Counted, *labels: str, by: float = 1) -> None:
        self._counted[what].labels(*labels).inc(by)
