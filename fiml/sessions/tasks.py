"""The maintenance jobs as Celery tasks. `fiml.worker` registers them; each may be delivered any number of times."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from fiml.core import clock, observe, tracing
from fiml.core.config import Settings
from fiml.core.errors import FimlError, MissingExtra, Unavailable
from fiml.core.log import get_logger, in_request
from fiml.runtime import Runtime
from fiml.sessions import maintenance
from fiml.sessions.maintenance import Job, Result
from fiml.sessions.store import SessionStore

try:
    from celery import current_task, shared_task
    from celery.exceptions import SoftTimeLimitExceeded
    from celery.signals import before_task_publish, worker_process_shutdown
except ModuleNotFoundError as exc:
    raise MissingExtra("fiml.sessions.tasks (Celery)", "server") from exc

# The waits double up to a minute, which is less than any visibility timeout. A task survives half an hour without an
# engine.
_AGAIN: dict[str, Any] = {
    "autoretry_for": (Unavailable,),
    "retry_backoff": True,
    "retry_backoff_max": 60,
    "retry_jitter": False,
    "max_retries": 36,
}
_log = get_logger()
_CLEANUP, _RETENTION, _METRICS = maintenance.JOBS
_Value = TypeVar("_Value")


@shared_task(name="fiml.sessions.cleanup_expired_sessions", **_AGAIN)
def cleanup_expired_sessions() -> Result:
    """Archive expired sessions; counts and `duration_seconds`. Several tasks at once share the work."""
    return _process().do(_CLEANUP)


@shared_task(name="fiml.sessions.delete_old_archived_sessions", **_AGAIN)
def delete_old_archived_sessions() -> Result:
    """Delete archived sessions past retention; counts and `duration_seconds`."""
    return _process().do(_RETENTION)


@shared_task(name="fiml.sessions.generate_session_metrics", **_AGAIN)
def generate_session_metrics() -> Result:
    """Write missing metrics, and the rollups of days whose metrics changed; counts and `duration_seconds`."""
    return _process().do(_METRICS)


@shared_task(name="fiml.sessions.reencrypt_sessions", **_AGAIN)
def reencrypt_sessions() -> Result:
    """Encrypt everything with the current key, unless that is done already; counts and `duration_seconds`."""
    return _process().do(_KEY_CHANGE)


async def _reencrypt(store: SessionStore) -> Result:
    return await maintenance.reencrypt_if_due(store, maintenance.a_holder())


# Recorded under its own name; that a key is done is recorded under a name with the key's id.
_KEY_CHANGE = Job("reencrypt_sessions", _reencrypt, lambda _settings: clock.now())


class TaskFailed(Exception):
    """A task failed unexpectedly; the log has the stack."""


class _Process:
    """An event loop in a thread of its own, for the tasks of this process, and the engines that were opened in it."""

    def __init__(self, settings: Settings) -> None:
        self.pid = os.getpid()
        self.settings = settings
        self._runtime = Runtime(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fiml-tasks", daemon=True)
        self._thread.start()

    def do(self, job: Job) -> Result:
        """What the job counted.

        Raises:
            FimlError: as the job raises it.
            TaskFailed: the job raised anything else; Celery would log its message, and keep it in the broker.
        """
        request = current_task.request
        with in_request(request.id), observe.going_on(request.headers or {}):
            try:
                return self._wait_for(self._do(job))
            except (FimlError, SoftTimeLimitExceeded):
                raise
            except Exception as exc:  # noqa: BLE001 - its message may hold what a user wrote
                _log.exception("task_failed", task=job.name)
                raise TaskFailed(type(exc).__name__) from None

    def close(self) -> None:
        self._wait_for(self._runtime.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _do(self, job: Job) -> Result:
        return await maintenance.do(job, await self._runtime.store())

    def _wait_for(self, work: Coroutine[Any, Any, _Value]) -> _Value:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except SoftTimeLimitExceeded:
            future.cancel()
            raise
        except CancelledError as exc:
            raise Unavailable("the task", "its process is being shut down") from exc


@before_task_publish.connect
def send_the_trace_along(headers: dict[str, Any] | None = None, **_signal: Any) -> None:
    """Make the task part of its sender's trace."""
    if headers is not None:
        headers.update(observe.trace_headers())


_current: _Process | None = None


@worker_process_shutdown.connect
def close(**_signal: Any) -> None:
    """Close what this process opened; the next task opens it again."""
    global _current  # noqa: PLW0603 - as below
    if _current is not None and _current.pid == os.getpid():
        _current.close()
    _current = None
    tracing.flush()


def _process() -> _Process:
    """The loop of this process; a new one after a fork, in which threads don't survive, or if the settings changed."""
    global _current  # noqa: PLW0603 - one for the process's life
    settings = Settings()
    if _current is None or _current.pid != os.getpid():
        _current = _Process(settings)
    elif _current.settings != settings:
        close()
        _current = _Process(settings)
    return _current
