"""A real Celery worker with beat, as a process, on real servers."""

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from celery.schedules import crontab
from structlog.testing import capture_logs

from fiml.core import clock
from fiml.core.clock import using
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, MissingExtra
from fiml.sessions import tasks
from fiml.sessions.keyring import KeyFile
from fiml.sessions.maintenance import Job
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.worker import beat_schedule, make_app, run_worker
from tests.support.deployment import Deployment
from tests.support.fleets import watched_valkeys
from tests.support.servers import postgres_server, valkey_server
from tests.support.tls import Certificates, tls_before

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
BACKLOG = 3000
PASSWORD = "never/shown"  # noqa: S105  nobody's


@pytest.fixture(autouse=True)
def tasks_closed() -> Iterator[None]:
    """No test leaves an event loop to the next."""
    yield
    tasks.close()


@contextmanager
def worker(
    settings: Settings, tmp_path: Path, *arguments: str, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """`fiml worker` as a process; it has ended, with what it forked, when the block has."""
    environment = {
        "PATH": os.environ["PATH"],
        "FIML_REDIS_URL": str(settings.redis_url),
        "FIML_DATABASE_URL": str(settings.database_url),
        "FIML_DATA_DIR": str(tmp_path / "worker"),
        "FIML_TASK_TIME_LIMIT_MINUTES": "1",
        "FIML_TASK_VISIBILITY_TIMEOUT_MINUTES": "2",
    } | variables
    with (tmp_path / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fiml", "worker", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
        children = []
        try:
            yield process
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
            process.wait(PATIENCE_S)
            for child in children:
                if child.is_running():
                    child.kill()


def kill_with_children(process: "subprocess.Popen[bytes]") -> None:
    """As when a machine goes: the worker and what it forked, by their process ids."""
    children = psutil.Process(process.pid).children(recursive=True)
    for pid in (process.pid, *(child.pid for child in children)):
        os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE_S)


async def backlog(settings: Settings, count: int) -> set[str]:
    """Sessions that expired long ago; their ids."""
    with using(FrozenClock()):
        async with SessionStore(settings) as store:
            ids = set()
            for _ in range(0, count, 100):
                made = await asyncio.gather(
                    *(store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1) for _ in range(min(count, 100)))
                )
                await asyncio.gather(*(store.record_query(session.id, make_query()) for session in made))
                ids |= {str(session.id) for session in made}
            return ids


async def archived(settings: Settings) -> set[str]:
    async with SessionStore(settings) as store:
        found, cursor = set(), None
        while True:
            page = await store.list_user_sessions(None, include_archived=True, limit=200, cursor=cursor)
            found |= {str(summary.id) for summary in page if summary.is_archived}
            cursor = page.next_cursor
            if cursor is None:
                return found


def wait_until(is_so: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def test_a_task_that_the_broker_delivers_archives(deployment: Deployment, tmp_path: Path) -> None:
    settings = deployment.settings()
    ids = asyncio.run(backlog(settings, 20))
    app = make_app(settings)

    with worker(settings, tmp_path):
        results = [
            app.send_task(f"fiml.sessions.{name}").get(timeout=PATIENCE_S)
            for name in (
                "cleanup_expired_sessions",
                "cleanup_expired_sessions",
                "generate_session_metrics",
                "delete_old_archived_sessions",
            )
        ]

    assert [result.pop("duration_seconds") > 0 for result in results] == [True] * 4
    assert results == [
        {"archived": 20, "quarantined": 0, "postponed": 0, "dropped": 0},
        {"archived": 0, "quarantined": 0, "postponed": 0, "dropped": 0},
        {"written": 0, "days": 1},
        {"deleted": 0, "held": 0, "tombstones": 0},
    ]
    assert asyncio.run(archived(settings)) == ids
    log = (tmp_path / "worker.log").read_text()
    assert "beat: Starting" in log


@pytest.mark.parametrize("has_tls", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_worker_finds_its_broker_behind_sentinels_and_keeps_to_its_prefix(
    deployment: Deployment, tmp_path: Path, *, has_tls: bool
) -> None:
    with watched_valkeys() as watched, ExitStack() as stack:
        url = stack.enter_context(watched.behind_tls(Certificates(tmp_path))) if has_tls else watched.url
        settings = Settings(redis_url=url, database_url=deployment.database_url, redis_prefix="desk-1")
        ids = asyncio.run(backlog(settings, 5))
        app = make_app(settings)

        with worker(settings, tmp_path, FIML_REDIS_PREFIX="desk-1"):
            result = app.send_task("fiml.sessions.cleanup_expired_sessions").get(timeout=PATIENCE_S)
        with redis.Redis.from_url(watched.master.url) as client:
            prefixes = {key.partition(b":")[0] for key in client.scan_iter("*", count=1000)}

    assert result["archived"] == 5
    assert asyncio.run(archived(deployment.settings())) == ids
    assert prefixes == {b"desk-1"}


def test_a_worker_reaches_its_broker_with_tls(deployment: Deployment, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    with valkey_server(password=PASSWORD) as valkey, tls_before(valkey.port, certificates) as port:
        url = f"rediss://:never%2Fshown@127.0.0.1:{port}/1?ssl_ca_certs={certificates.file}"
        settings = Settings(redis_url=url, database_url=deployment.database_url)
        app = make_app(settings)

        with worker(settings, tmp_path):
            result = app.send_task("fiml.sessions.cleanup_expired_sessions").get(timeout=PATIENCE_S)
        log = (tmp_path / "worker.log").read_text()

    assert result["archived"] == 0
    assert "never" not in log


def test_a_worker_that_is_killed_in_the_middle_is_finished_by_the_next(deployment: Deployment, tmp_path: Path) -> None:
    settings = deployment.settings()
    ids = asyncio.run(backlog(settings, BACKLOG))
    app = make_app(settings)

    with worker(settings, tmp_path, "--no-beat", "--concurrency", "1") as first:
        app.send_task("fiml.sessions.cleanup_expired_sessions")
        wait_until(lambda: bool(asyncio.run(archived(settings))), tmp_path / "worker.log")
        kill_with_children(first)
    between = asyncio.run(archived(settings))

    with worker(settings, tmp_path, "--no-beat", "--concurrency", "1"):
        result = app.send_task("fiml.sessions.cleanup_expired_sessions").get(timeout=PATIENCE_S)

    assert asyncio.run(archived(settings)) == ids
    assert result["archived"] >= len(ids) - len(between)
    assert result["quarantined"] == 0


def test_a_restart_of_the_broker_during_a_task_ends_the_worker_with_a_failure_at_worst(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Celery may fail to go on; then whoever watches over the worker must see that it has failed."""
    with valkey_server(append_only=True) as valkey:
        settings = Settings(redis_url=valkey.url, database_url=deployment.database_url)
        ids = asyncio.run(backlog(settings, BACKLOG))
        app = make_app(settings)
        with worker(settings, tmp_path, "--no-beat", "--concurrency", "1") as first:
            app.send_task("fiml.sessions.cleanup_expired_sessions")
            wait_until(lambda: bool(asyncio.run(archived(settings))), tmp_path / "worker.log")
            valkey.stop()
            valkey.start()
            wait_until(
                lambda: first.poll() is not None or asyncio.run(archived(settings)) == ids, tmp_path / "worker.log"
            )
            assert first.poll() in (None, 1)

        with worker(settings, tmp_path, "--no-beat", "--concurrency", "1"):
            app.send_task("fiml.sessions.cleanup_expired_sessions").get(timeout=PATIENCE_S)

        assert asyncio.run(archived(settings)) == ids


def test_a_worker_that_fails_ends_with_a_failure(deployment: Deployment, tmp_path: Path) -> None:
    code = """
import sys
from celery.worker.consumer.consumer import Consumer

def fail(self):
    raise AttributeError("on purpose")

Consumer.start = fail
sys.argv = ["fiml", "worker", "--no-beat"]
from fiml.cli import main
main()
"""
    environment = {
        "PATH": os.environ["PATH"],
        "FIML_REDIS_URL": str(deployment.redis_url),
        "FIML_DATABASE_URL": deployment.database_url,
        "FIML_DATA_DIR": str(tmp_path),
    }

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip

    assert done.returncode == 1
    assert "the worker is unavailable (it failed, as the log says); start it again" in done.stderr


def test_beat_needs_a_folder_that_it_can_write(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://localhost:1", database_url="postgresql://x", data_dir=Path("/proc/self"))

    with pytest.raises(Misconfigured, match="beat can't keep its state in the folder"):
        run_worker(settings, concurrency=1, has_beat=True)


def test_what_an_unexpected_error_says_reaches_neither_celery_nor_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_store: SessionStore) -> Any:
        raise ValueError("what a user wrote")

    monkeypatch.setattr(tasks, "_METRICS", Job("generate_session_metrics", fail, lambda _settings: clock.now()))

    with capture_logs() as logs, pytest.raises(tasks.TaskFailed, match="ValueError") as failed:
        tasks.generate_session_metrics()

    assert failed.value.__suppress_context__
    assert [line["event"] for line in logs] == ["task_failed"]


def test_the_tasks_run_in_the_process_too() -> None:
    """On the embedded file, called as functions: as a program's own scheduler would."""
    asyncio.run(backlog(Settings(), 5))

    assert tasks.cleanup_expired_sessions()["archived"] == 5
    assert tasks.cleanup_expired_sessions()["archived"] == 0
    assert tasks.generate_session_metrics()["days"] == 1
    assert tasks.delete_old_archived_sessions()["deleted"] == 0


async def test_the_tasks_run_from_within_an_event_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIML_DATA_DIR", str(tmp_path / "another"))

    assert tasks.cleanup_expired_sessions.apply().get()["archived"] == 0


def test_the_app_loses_no_task_to_a_lost_worker() -> None:
    conf = make_app(Settings(redis_url="redis://localhost", database_url="postgresql://localhost/x")).conf

    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit > conf.task_soft_time_limit
    assert conf.accept_content == ["json"]


def test_the_beat_table_is_that_of_the_settings() -> None:
    table = beat_schedule(Settings(session_cleanup_interval_minutes=7, daily_tasks_at="04:30"))

    schedules: dict[str, Any] = {name: entry["schedule"] for name, entry in table.items()}
    assert schedules["cleanup_expired_sessions"] == timedelta(minutes=7)
    assert schedules["delete_old_archived_sessions"] == crontab(hour=4, minute=30)
    assert {entry["task"] for entry in table.values()} == {
        tasks.cleanup_expired_sessions.name,
        tasks.delete_old_archived_sessions.name,
        tasks.generate_session_metrics.name,
    }


def test_the_beat_table_has_the_change_of_keys_where_something_is_encrypted(tmp_path: Path) -> None:
    table = beat_schedule(Settings(encryption_keys=tmp_path / "keys"))

    assert table["reencrypt_sessions"]["task"] == tasks.reencrypt_sessions.name


def test_the_task_of_a_change_of_keys_runs_in_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIML_DATA_DIR", str(tmp_path / "encrypted"))
    assert tasks.reencrypt_sessions()["rewritten"] == 0  # nothing is encrypted
    KeyFile(tmp_path / "keys").add()
    monkeypatch.setenv("FIML_ENCRYPTION_KEYS", str(tmp_path / "keys"))

    assert tasks.reencrypt_sessions()["rewritten"] == 0


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix:///run/s?db=1&password=p%2F&decode_responses=1", "redis+socket://:p%2F@/run/s?virtual_host=1"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://[::1]/3?username=u&password=p%2F&socket_timeout=5", "redis://u:p%2F@[::1]:6379/3"),
        ("rediss://u:p%2F@h:1/2?ssl_cert_reqs=none", "rediss://u:p%2F@h:1/2"),
        ("redis+sentinel://:p@a,b:1/main/3", "sentinel://:p@a:26379/3;sentinel://:p@b:1/3"),
    ],
)
def test_the_broker_is_the_redis_of_the_sessions(url: str, broker: str) -> None:
    assert make_app(Settings(redis_url=url, database_url="postgresql://localhost/x")).conf.broker_url == broker


def test_another_broker_can_be_named() -> None:
    assert make_app(Settings(broker_url="redis://broker:6379/1")).conf.broker_url == "redis://broker:6379/1"


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h/0?nonsense=1", "redis://h/0?ssl_ca_certs=/no", "redis://h/0?max_connections=0", "redis://h/x"),
        *("rediss://h/0?ssl_ca_certs=/no", "rediss://h/0?ssl_keyfile=/no", "redis+sentinel://h"),
    ],
)
def test_a_broker_that_can_not_be_used_is_refused_by_the_name_of_its_variable(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"^FIML_BROKER_URL "):
        make_app(Settings(broker_url=url))


def test_a_cluster_cannot_be_the_broker() -> None:
    settings = Settings(redis_url="redis+cluster://localhost", database_url="postgresql://localhost/x")
    with pytest.raises(Misconfigured, match="set FIML_BROKER_URL to a Redis without Cluster mode"):
        run_worker(settings, concurrency=1, has_beat=False)

    another = settings.model_copy(update={"broker_url": "redis://broker:6379/1"})
    assert make_app(another).conf.broker_url == "redis://broker:6379/1"


def test_tasks_without_celery_are_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "celery", None)
    monkeypatch.delitem(sys.modules, tasks.__name__)

    with pytest.raises(MissingExtra, match=r"fiml\[server\]"):
        importlib.import_module(tasks.__name__)


def test_a_worker_without_a_broker_says_what_to_set() -> None:
    with pytest.raises(Misconfigured, match="FIML_REDIS_URL"):
        run_worker(Settings(), concurrency=1, has_beat=False)


async def test_an_engine_that_goes_in_the_middle_of_a_sweep_loses_nothing(clock: FrozenClock) -> None:
    with valkey_server(append_only=True) as valkey, postgres_server(durable=True) as postgres:
        settings = Settings(redis_url=valkey.url, database_url=postgres.url)
        async with SessionStore(settings) as store:
            ids = {str((await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)).id) for _ in range(1500)}
            clock.advance(hours=2)
            for server in (postgres, valkey):
                sweep = asyncio.create_task(store.cleanup_expired_sessions())
                while not sweep.done() and not await _is_any_archived(store):
                    pass
                server.kill()
                await asyncio.gather(sweep, return_exceptions=True)
                server.start()

            assert await archived(settings) <= ids
            async with SessionStore(settings) as after:
                await after.cleanup_expired_sessions()
                assert await after.cleanup_expired_sessions() == 0
            assert await archived(settings) == ids


async def _is_any_archived(store: SessionStore) -> bool:
    page = await store.list_user_sessions(None, include_archived=True, limit=200)
    return any(summary.is_archived for summary in page)
