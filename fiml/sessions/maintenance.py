"""The maintenance jobs and when they are due, whoever runs them: `fiml serve`, a Celery worker or a shell."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, time, timedelta
from uuid import uuid4

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import FimlError
from fiml.core.log import get_logger
from fiml.core.observe import Counted, Timed, count, observed
from fiml.sessions.store import SessionStore

HOLD_FOR = timedelta(minutes=5)
_RENEW_S = 60

Result = dict[str, int | float]
"""Counts, and `duration_seconds`."""

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Job:
    """A periodic job. It is due if it was last done before `done_before`."""

    name: str
    work: Callable[[SessionStore], Awaitable[Result]]
    done_before: Callable[[Settings], datetime]


async def cleanup_expired_sessions(store: SessionStore) -> Result:
    """Archive what has expired: `archived`, `quarantined`, `postponed`, `dropped`, as in a `SweepReport`."""
    elapsed_ms = clock.stopwatch()
    report = await store.sweep()
    return {**asdict(report), "duration_seconds": elapsed_ms() / 1000}


async def delete_old_archived_sessions(store: SessionStore) -> Result:
    """Delete sessions past retention: how many were `deleted`, `held` by a legal hold, and `tombstones` purged."""
    elapsed_ms = clock.stopwatch()
    return {
        "deleted": await store.delete_old_archived_sessions(),
        "held": await store.count_held_past_retention(),
        "tombstones": await store.purge_tombstones(),
        "duration_seconds": elapsed_ms() / 1000,
    }


async def generate_session_metrics(store: SessionStore) -> Result:
    """Write missing metrics (`written`), and the rollups of days whose metrics changed (`days`)."""
    elapsed_ms = clock.stopwatch()
    return {
        "written": await store.write_missing_metrics(),
        "days": await store.roll_up(),
        "duration_seconds": elapsed_ms() / 1000,
    }


async def reencrypt_sessions(store: SessionStore) -> Result:
    """Encrypt everything with the current key: sessions `rewritten`, and those left as `unreadable` or `in_clear`."""
    elapsed_ms = clock.stopwatch()
    counts = {"rewritten": 0, "unreadable": 0, "in_clear": 0}
    async for progress in store.reencrypt_sessions():
        counts = {name: getattr(progress, name) for name in counts}
    return {**counts, "duration_seconds": elapsed_ms() / 1000}


async def reencrypt_if_due(store: SessionStore, holder: str) -> Result:
    """As `reencrypt_sessions`, unless it was already done with the current key or another process is doing it."""
    done = [result for job in _key_changes(store) if (result := await _do_if_due(job, store, holder)) is not None]
    return done[0] if done else {"rewritten": 0, "unreadable": 0, "in_clear": 0, "duration_seconds": 0.0}


def is_sweep_late(oldest_waiting: datetime | None, interval_minutes: int) -> bool:
    """Whether no sweep has looked at an expired session for two intervals."""
    # A session that expires right after a sweep waits for a whole interval; allow one more for the sweep itself.
    return oldest_waiting is not None and clock.now() - oldest_waiting > 2 * timedelta(minutes=interval_minutes)


def _an_interval_ago(settings: Settings) -> datetime:
    return clock.now() - timedelta(minutes=settings.session_cleanup_interval_minutes)


def _last_time_of_day(settings: Settings) -> datetime:
    now = clock.now()
    today = datetime.combine(now.date(), time.fromisoformat(settings.daily_tasks_at), UTC)
    return today if today <= now else today - timedelta(days=1)


JOBS = (
    Job("cleanup_expired_sessions", cleanup_expired_sessions, _an_interval_ago),
    Job("delete_old_archived_sessions", delete_old_archived_sessions, _last_time_of_day),
    Job("generate_session_metrics", generate_session_metrics, _last_time_of_day),
)


def key_change(key_id: str) -> Job:
    """The job that re-encrypts everything, done once for each key that becomes the current one."""
    return Job(f"reencrypt:{key_id}", reencrypt_sessions, lambda _settings: datetime.min.replace(tzinfo=UTC))


def _key_changes(store: SessionStore) -> list[Job]:
    key_id = store.current_key_id
    return [] if key_id is None else [key_change(key_id)]


def _jobs_of(store: SessionStore) -> list[Job]:
    try:
        return [*JOBS, *_key_changes(store)]
    except FimlError as exc:  # a mistake in the key file must not stop the archiving
        _log.warning("job_failed", job="reencrypt", code=exc.code, problem=str(exc))
        return list(JOBS)


async def do(job: Job, store: SessionStore) -> Result:
    """Do a job now, even if another process is doing it, and record that it is done."""
    with observed(Timed.JOB, job.name):
        result = await job.work(store)
    for outcome, number in result.items():
        if outcome != "duration_seconds":
            count(Counted.JOB_SESSIONS, job.name, outcome, by=number)
    await store.keeping.finish_job(job.name, now=clock.now(), result=result)
    return result


async def do_due_jobs(store: SessionStore, holder: str) -> dict[str, Result]:
    """Do the jobs that are due and that no other process is doing; returns their results by name.

    If a process dies during a job, another one can take the job over five minutes later.
    """
    done: dict[str, Result] = {}
    for job in _jobs_of(store):
        try:
            result = await _do_if_due(job, store, holder)
        except FimlError as exc:  # the other jobs may succeed, and the next look tries this one again
            _log.warning("job_failed", job=job.name, code=exc.code, problem=str(exc))
        except Exception:  # noqa: BLE001 - a fault of ours, reported in full; it must not stop the other jobs either
            _log.exception("job_failed", job=job.name)
        else:
            done |= {} if result is None else {job.name: result}
    return done


async def _do_if_due(job: Job, store: SessionStore, holder: str) -> Result | None:
    if not await _claim(job, store, holder):
        return None
    async with _left_to_others(job, store, holder):
        return await _do_while_held(job, store, holder)


async def _do_while_held(job: Job, store: SessionStore, holder: str) -> Result | None:
    """Do a job while holding it. If another process takes the job over, abort the work and leave it to that process."""
    work, hold = asyncio.create_task(do(job, store)), asyncio.create_task(_hold(job, store, holder))
    try:
        await asyncio.wait({work, hold}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        hold.result()
        _log.warning("job_taken_over", job=job.name, next_step="it is left to who has it now")
        return None
    finally:
        for task in (work, hold):
            task.cancel()
        await asyncio.gather(work, hold, return_exceptions=True)


async def _claim(job: Job, store: SessionStore, holder: str) -> bool:
    return await store.keeping.claim_job(
        job.name,
        holder=holder,
        now=clock.now(),
        done_before=job.done_before(store.settings),
        hold_for=HOLD_FOR,
    )


def a_holder() -> str:
    """A unique name under which a process holds jobs."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{uuid4().hex[:8]}"


async def do_jobs_when_due(open_store: Callable[[], Awaitable[SessionStore]], *, look_every_s: float) -> None:
    """Do the jobs whenever they are due, until cancelled. A failure is logged, and the job tried again later."""
    holder = a_holder()
    while True:
        try:
            for name, result in (await do_due_jobs(await open_store(), holder)).items():
                _log.info("job_done", job=name, **result)
        except FimlError as exc:
            _log.warning("maintenance_failed", code=exc.code, problem=str(exc))
        except Exception:  # noqa: BLE001 - a fault of ours, reported in full; a server must not stop archiving for it
            _log.exception("maintenance_failed")
        await asyncio.sleep(look_every_s)


@asynccontextmanager
async def _left_to_others(job: Job, store: SessionStore, holder: str) -> AsyncIterator[None]:
    """If the block fails, release the job for the next process that looks."""
    try:
        yield
    except BaseException:
        with suppress(FimlError):  # if the store is what failed, the hold runs out by itself
            await store.keeping.let_go_of_job(job.name, holder=holder)
        raise


async def _hold(job: Job, store: SessionStore, holder: str) -> None:
    """Keep renewing the hold on a job, until another process has taken it."""
    is_mine = True
    while is_mine:
        await asyncio.sleep(_RENEW_S)
        try:
            is_mine = await store.keeping.keep_job(job.name, holder=holder, until=clock.now() + HOLD_FOR)
        except FimlError as exc:  # the hold lasts long enough for a few more tries
            _log.warning("job_not_kept", job=job.name, code=exc.code, problem=str(exc))
