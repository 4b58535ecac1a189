"""What `/metrics` reports: what a process did and the state of its store, without any user data."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, Unavailable
from fiml.core.shared_look import SharedLook
from fiml.db.schema import REVISIONS
from fiml.metrics.exposing import exposing
from fiml.runtime import open_runtime
from fiml.sessions.backends.shapes import COUNTED_EXACTLY, StoreFigures
from fiml.sessions.maintenance import JOBS, do
from fiml.sessions.models import QueryRecord
from fiml.testing import FrozenClock
from tests.operation.test_worker import PATIENCE_S, worker
from tests.support.deployment import Deployment, execute
from tests.support.http_server import free_port, http_server
from tests.support.scraping import fetch, parse, scrape
from tests.support.servers import postgres_server, valkey_server

LABEL_VALUE = re.compile(r"[A-Za-z0-9_./+-]{1,40}")


def address() -> str:
    return f"127.0.0.1:{free_port()}"


async def test_the_state_of_a_store_is_reported_on_every_deployment(
    backend_settings: Settings, clock: FrozenClock
) -> None:
    where = address()
    settings = Settings(**(backend_settings.model_dump(exclude_unset=True) | {"metrics_address": where}))
    async with open_runtime(settings) as runtime, exposing(runtime):
        store = await runtime.store()
        first = await store.create_session(["AAPL"], "equity", ttl_hours=1)
        await store.create_session(["AAPL"], "equity", ttl_hours=10)
        ended = await store.create_session(["AAPL"], "equity", ttl_hours=10)
        await store.archive_session(ended.id)
        clock.advance(hours=3)
        await store.record_query((await store.create_session(["MSFT"], "equity")).id, QueryRecord("price"))

        before = await scrape(where)
        await do(JOBS[0], store)
        after = await scrape(where)

    assert (before["fiml_sessions_live"], before["fiml_backlog_sessions"]) == (3, 1)
    assert before["fiml_backlog_oldest_seconds"] == 2 * 3600
    assert (before["fiml_sessions_archived"], before["fiml_sessions_quarantined"]) == (1, 0)
    assert (after["fiml_sessions_live"], after["fiml_backlog_sessions"]) == (2, 0)
    assert (after["fiml_backlog_oldest_seconds"], after["fiml_sessions_archived"]) == (0, 2)
    done = after['fiml_task_done_timestamp_seconds{task="cleanup_expired_sessions"}']
    assert done == clock.now().timestamp()
    assert after['fiml_task_sessions_total{outcome="archived",task="cleanup_expired_sessions"}'] == 1
    assert after['fiml_operation_seconds_count{code="ok",verb="create_session"}'] == 4
    assert {value for name, value in after.items() if name.startswith("fiml_engine_up")} == {1}
    assert str(first.id) not in str(after)


async def test_redis_eviction_and_the_engines_replicas_are_reported(deployment: Deployment) -> None:
    where = address()
    settings = Settings(**(deployment.settings().model_dump(exclude_unset=True) | {"metrics_address": where}))
    async with open_runtime(settings) as runtime, exposing(runtime):
        samples = await scrape(where)

    assert samples["fiml_redis_evicted_keys_total"] == 0
    assert samples["fiml_redis_may_evict"] == 0
    assert samples["fiml_redis_append_only"] in {0, 1}
    assert samples["fiml_redis_used_bytes"] > 0
    assert samples['fiml_engine_replicas{engine="redis"}'] == 0
    assert samples['fiml_engine_replicas{engine="postgresql"}'] == 0


async def set_revision(deployment: Deployment, revision: str) -> None:
    await execute(deployment.database_url, f"UPDATE fiml_schema_version SET version_num = '{revision}'")  # noqa: S608


async def test_an_outdated_schema_says_nothing_about_the_engines(deployment: Deployment) -> None:
    where = address()
    settings = Settings(**(deployment.settings().model_dump(exclude_unset=True) | {"metrics_address": where}))
    await set_revision(deployment, REVISIONS[-2])
    try:
        async with open_runtime(settings) as runtime, exposing(runtime):
            samples = await scrape(where)
    finally:
        await set_revision(deployment, REVISIONS[-1])

    assert samples["fiml_store_up"] == 0
    assert [name for name in samples if name.startswith("fiml_engine_up")] == []


async def test_a_job_that_was_never_done_counts_from_the_start_of_the_server(
    deployment: Deployment, clock: FrozenClock
) -> None:
    where = address()
    settings = Settings(**(deployment.settings().model_dump(exclude_unset=True) | {"metrics_address": where}))
    started = clock.now()
    async with open_runtime(settings) as runtime, exposing(runtime):
        clock.advance(hours=27)
        samples = await scrape(where)

    assert samples['fiml_task_done_timestamp_seconds{task="delete_old_archived_sessions"}'] == started.timestamp()


async def test_an_engine_that_hangs_or_is_away_leaves_out_its_figures_only() -> None:
    with valkey_server() as valkey, postgres_server() as postgres:
        where = address()
        settings = Settings(redis_url=valkey.url, database_url=postgres.url, metrics_address=where)
        async with open_runtime(settings) as runtime, exposing(runtime):
            await (await runtime.store()).create_session(["AAPL"], "equity")
            # It takes the commands, and answers when it is let go on.
            with redis.Redis.from_url(valkey.url) as admin:
                admin.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
            hanging = await scrape(where)
            valkey.kill()
            away = await scrape(where)
            valkey.start()
            back = await scrape(where)
            postgres.stop()
            without_archive = await scrape(where)

    for samples in (hanging, away):
        assert samples['fiml_engine_up{engine="redis"}'] == 0
        assert samples['fiml_engine_up{engine="postgresql"}'] == 1
        assert "fiml_sessions_live" not in samples
        assert samples["fiml_sessions_archived"] == 0
    assert back['fiml_engine_up{engine="redis"}'] == 1
    assert without_archive['fiml_engine_up{engine="postgresql"}'] == 0
    assert "fiml_sessions_live" in without_archive


async def test_a_stuck_event_loop_does_not_hide_what_the_process_did(tmp_path: Path) -> None:
    where = address()
    async with open_runtime(Settings(data_dir=tmp_path, metrics_address=where)) as runtime, exposing(runtime):
        await (await runtime.store()).create_session(["AAPL"], "equity")
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(fetch(where)[1]))
        thread.start()
        thread.join()  # the loop stands still meanwhile

    samples = parse(found[0])
    assert samples["fiml_store_up"] == 0
    assert samples['fiml_operation_seconds_count{code="ok",verb="create_session"}'] == 1


async def test_all_who_scrape_at_once_wait_for_one_look() -> None:
    looks, go_on = 0, asyncio.Event()

    async def look() -> StoreFigures:
        nonlocal looks
        looks += 1
        await go_on.wait()
        return StoreFigures(engines={})

    shared = SharedLook(look)
    first, *others = [asyncio.ensure_future(shared.result()) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()  # one who leaves takes the others' answer with him in no case
    go_on.set()
    await asyncio.gather(*others)
    await shared.result()

    assert looks == 2


async def test_a_look_that_is_closed_ends_and_who_waits_for_it_is_told() -> None:
    before, begun = asyncio.all_tasks(), asyncio.Event()

    async def look() -> StoreFigures:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    shared = SharedLook(look)
    waiting = asyncio.ensure_future(shared.result())
    await begun.wait()
    await shared.close()

    with pytest.raises(Unavailable, match="closed during the call"):
        await waiting
    assert asyncio.all_tasks() == before


async def test_above_a_limit_postgresql_estimates_instead_of_counting(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiml.sessions.backends.figures.COUNTED_EXACTLY", 2)
    async with open_runtime(deployment.settings()) as runtime:
        store = await runtime.store()
        for _ in range(5):
            await store.archive_session((await store.create_session(["AAPL"], "equity")).id)
        figures = await store.figures()

    assert figures.archived is not None
    assert 2 <= figures.archived <= COUNTED_EXACTLY


async def test_a_server_answers_at_an_address_of_its_own_and_names_nobody(tmp_path: Path) -> None:
    where = address()
    async with http_server(tmp_path / "data", FIML_METRICS_ADDRESS=where) as server:
        async with server.caller() as caller:
            session_id = await caller.create("AAPL", title="hunter2", userId="ann", tags=["hunter2"])
            await caller.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)
            await caller.refusal("get-session-info", sessionId="hunter2")
            await caller.refusal("hunter2")
        refused = await server.post(b"hunter2")
        beside = await server.get("/metrics")
        text = (await asyncio.to_thread(fetch, where))[1]
        elsewhere = await asyncio.to_thread(fetch, where, "/")
        server.process.send_signal(signal.SIGTERM)
        ended = await server.process.wait()

    assert beside.status_code == 404
    assert elsewhere[0] == 404
    assert refused.status_code == 400
    assert ended == 0
    samples = parse(text)
    assert samples['fiml_http_refused_total{status="400"}'] == 1
    assert samples['fiml_call_seconds_count{call="search-by-symbol",code="ok"}'] == 1
    assert samples['fiml_call_seconds_count{call="get-session-info",code="invalid_session_id"}'] == 1
    assert samples['fiml_call_seconds_count{call="unknown",code="unknown_tool"}'] == 1
    assert samples['fiml_market_answers_total{layer="provider",stale="false"}'] > 0
    assert not [word for word in ("hunter2", "ann", session_id, "AAPL") if word in text]
    values = {value for name in samples for value in re.findall(r'="([^"]*)"', name)}
    assert not [value for value in values if not LABEL_VALUE.fullmatch(value)]


async def test_no_name_server_is_asked_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("socket.getfqdn", asked.append)
    where = f"0.0.0.0:{free_port()}"

    async with open_runtime(Settings(data_dir=tmp_path, metrics_address=where)) as runtime, exposing(runtime):
        pass

    assert asked == []


async def test_an_address_that_is_taken_is_refused_at_start(tmp_path: Path) -> None:
    where = address()
    settings = Settings(data_dir=tmp_path, metrics_address=where)
    async with open_runtime(settings) as one, open_runtime(settings) as two, exposing(one):
        with pytest.raises(Misconfigured, match="FIML_METRICS_ADDRESS"):
            async with exposing(two):
                pass


def test_without_its_package_a_server_says_which_extra_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import asyncio; from fiml.core.config import Settings; from fiml.mcp.http import serve_http\n"
        "asyncio.run(serve_http(Settings(), '127.0.0.1:0'))\n"
    )
    environment = {"FIML_DATA_DIR": str(tmp_path), "FIML_METRICS_ADDRESS": address()}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    assert "pip install 'fiml[metrics]'" in done.stderr


def test_a_worker_reports_what_the_processes_it_forked_did(deployment: Deployment, tmp_path: Path) -> None:
    from fiml.worker import make_app  # noqa: PLC0415 - Celery, for this test only

    where = address()
    settings = deployment.settings()
    app = make_app(settings)
    with worker(settings, tmp_path, "--no-beat", FIML_METRICS_ADDRESS=where):
        app.send_task("fiml.sessions.cleanup_expired_sessions").get(timeout=PATIENCE_S)
        samples = _when_told(where, 'fiml_task_seconds_count{code="ok",task="cleanup_expired_sessions"}')

    assert samples['fiml_task_seconds_count{code="ok",task="cleanup_expired_sessions"}'] == 1
    assert samples['fiml_task_sessions_total{outcome="archived",task="cleanup_expired_sessions"}'] == 0
    assert samples['fiml_engine_seconds_count{code="ok",engine="redis"}'] > 0
    assert [name for name in samples if name.startswith("fiml_build{")]


def _when_told(where: str, name: str) -> dict[str, float]:
    """The samples, once one is among them: a task's result is known before its process has counted it."""
    deadline = time.monotonic() + PATIENCE_S
    while name not in (samples := parse(fetch(where)[1])):
        assert time.monotonic() < deadline, samples
        time.sleep(0.05)
    return samples
