"""When the maintenance is done, and by whom."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from fiml.core.config import Maintenance, Settings, Synchronous
from fiml.core.errors import Unavailable
from fiml.db.tables import maintenance_jobs
from fiml.runtime import Runtime, maintaining
from fiml.sessions import maintenance
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.maintenance import JOBS, do_due_jobs
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing
from tests.support.deployment import Deployment

NAMES = [job.name for job in JOBS]


async def test_every_job_is_due_at_first_and_again_in_its_time(store: SessionStore, clock: FrozenClock) -> None:
    """The clock starts at 15:30; the daily jobs are due at 03:00."""
    assert list(await do_due_jobs(store, "one")) == NAMES
    assert await do_due_jobs(store, "one") == {}
    clock.advance(minutes=60)
    assert await do_due_jobs(store, "one") == {}
    clock.advance(seconds=1)
    assert list(await do_due_jobs(store, "other")) == ["cleanup_expired_sessions"]
    clock.advance(hours=11)

    assert list(await do_due_jobs(store, "one")) == NAMES
    clock.advance(minutes=10)
    assert await do_due_jobs(store, "one") == {}


async def test_the_jobs_say_what_they_did(store: SessionStore, clock: FrozenClock) -> None:
    for _ in range(3):
        session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    await store.hold(session.id, "why")
    clock.advance(hours=2)

    first = await do_due_jobs(store, "one")
    clock.advance(days=31)
    later = await do_due_jobs(store, "one")

    def counts(result: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in result.items() if name != "duration_seconds"}

    assert all(result["duration_seconds"] > 0 for result in first.values())
    assert counts(first["cleanup_expired_sessions"]) == {"archived": 3, "quarantined": 0, "postponed": 0, "dropped": 0}
    assert counts(first["generate_session_metrics"]) == {"written": 0, "days": 1}
    assert counts(later["delete_old_archived_sessions"]) == {"deleted": 2, "held": 1, "tombstones": 0}


async def test_of_several_processes_one_does_a_job(store: SessionStore, backend_settings: Settings) -> None:
    async with SessionStore(backend_settings) as other:
        done = await asyncio.gather(do_due_jobs(store, "one"), do_due_jobs(other, "other"))

    assert sorted(name for results in done for name in results) == sorted(NAMES)


async def test_a_job_in_hand_is_left_until_its_holder_is_given_up(store: SessionStore, clock: FrozenClock) -> None:
    async def claim(holder: str) -> bool:
        return await store.keeping.claim_job(
            "job", holder=holder, now=clock.now(), done_before=clock.now(), hold_for=maintenance.HOLD_FOR
        )

    assert await claim("one")
    assert not await claim("other")
    clock.advance(minutes=4)
    assert await store.keeping.keep_job("job", holder="one", until=clock.now() + maintenance.HOLD_FOR)
    clock.advance(minutes=4)
    assert not await claim("other")
    clock.advance(minutes=1)

    assert await claim("other")

    assert not await store.keeping.keep_job("job", holder="one", until=clock.now() + timedelta(days=1))
    await store.keeping.finish_job("job", now=clock.now(), result={"done": 1})
    assert not await claim("one")
    for holder in ("one", "other"):
        clock.advance(days=-1)  # a clock that jumps back: what lies far ahead tells nothing
        assert await claim(holder)


async def test_a_job_is_left_to_one_whose_clock_is_ahead(store: SessionStore, clock: FrozenClock) -> None:
    """As for one who read the time first, and then waited for its turn."""

    async def claim(holder: str) -> bool:
        return await store.keeping.claim_job(
            "job", holder=holder, now=clock.now(), done_before=clock.now(), hold_for=maintenance.HOLD_FOR
        )

    assert await claim("ahead")
    clock.advance(seconds=-1)
    assert not await claim("behind")
    await store.keeping.finish_job("job", now=clock.now() + timedelta(seconds=1), result={})
    assert not await claim("behind")
    clock.advance(seconds=2)

    assert await claim("behind")


async def test_a_job_that_fails_stops_no_other_and_is_left_to_the_next_who_looks(
    store: SessionStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = maintenance.Job("failing", lambda _store: _fail(), lambda _settings: clock.now())
    monkeypatch.setattr(maintenance, "JOBS", (failing, *JOBS))

    with capture_logs() as logged:
        done = [list(await do_due_jobs(store, holder)) for holder in ("one", "other")]

    assert done == [NAMES, []]
    assert [(line["event"], line["job"], line["exc_info"]) for line in logged if line["log_level"] == "error"] == [
        ("job_failed", "failing", True)
    ] * 2


async def test_a_job_that_somebody_else_has_taken_is_ended(
    store: SessionStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a machine that slept."""
    monkeypatch.setattr(maintenance, "_RENEW_S", 0.01)

    async def be_taken_over(store: SessionStore) -> maintenance.Result:
        clock.advance(minutes=6)
        assert await store.keeping.claim_job(
            "slow", holder="other", now=clock.now(), done_before=clock.now(), hold_for=maintenance.HOLD_FOR
        )
        await asyncio.sleep(30)
        return {}

    slow = maintenance.Job("slow", be_taken_over, lambda _settings: clock.now())
    monkeypatch.setattr(maintenance, "JOBS", (slow,))
    with capture_logs() as logged:
        assert await do_due_jobs(store, "one") == {}

    assert [line["event"] for line in logged] == ["job_taken_over"]
    assert await store.keeping.keep_job("slow", holder="other", until=clock.now())


async def test_a_job_is_held_on_to_after_its_database_was_away(
    store: SessionStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_RENEW_S", 0.01)

    async def lose_the_database(store: SessionStore) -> maintenance.Result:
        await store.shutdown()
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if logged:
                break
        await store.initialize()
        clock.advance(minutes=4)
        until = clock.now() + maintenance.HOLD_FOR
        tries = 0
        while await _held_until(store) != until and tries < 1000:
            tries += 1
        return {"is_held": await _held_until(store) == until}

    job = maintenance.Job("job", lose_the_database, lambda _settings: clock.now())
    monkeypatch.setattr(maintenance, "JOBS", (job,))
    with capture_logs() as logged:
        done = await do_due_jobs(store, "one")

    assert done == {"job": {"is_held": True}}
    assert {line["event"] for line in logged} == {"job_not_kept"}


async def _held_until(store: SessionStore) -> object:
    async with store.session_maker() as session:
        return await session.scalar(select(maintenance_jobs.c.held_until).where(maintenance_jobs.c.name == "job"))


async def test_a_job_whose_engine_is_away_stops_no_other(
    store: SessionStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = maintenance.Job("away", lambda _store: _be_away(), lambda _settings: clock.now())
    monkeypatch.setattr(maintenance, "JOBS", (away, *JOBS))

    assert list(await do_due_jobs(store, "one")) == NAMES


async def _be_away() -> maintenance.Result:
    raise Unavailable("the engine", "switched off")


async def _fail() -> maintenance.Result:
    raise ZeroDivisionError


async def test_a_server_leaves_the_maintenance_to_a_worker_if_told_to(
    clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiml.runtime.FIRST_LOOK_S", 0)
    before = asyncio.all_tasks()

    async with maintaining(Runtime(Settings(maintenance=Maintenance.WORKER))):
        assert asyncio.all_tasks() == before
    async with maintaining(Runtime(Settings())):
        assert len(asyncio.all_tasks() - before) == 1


@pytest.fixture(params=["sqlite", "valkey-postgresql"])
def fast_settings(request: pytest.FixtureRequest) -> Settings:
    if request.param == "sqlite":
        return Settings(sqlite_synchronous=Synchronous.OFF)
    deployment: Deployment = request.getfixturevalue("deployment")
    return deployment.settings()


async def test_ten_thousand_sessions_go_through_their_lives_and_none_is_lost(
    fast_settings: Settings, clock: FrozenClock
) -> None:
    """Counts in equal counts out at each stage, compared by digest."""
    count = 10_000
    async with SessionStore(fast_settings) as store:
        digests = {}
        for start in range(0, count, 500):
            created = [
                await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1, title=f"{n}")
                for n in range(start, start + 500)
            ]
            for session in created:
                await store.record_query(session.id, make_query(parameters={"of": str(session.id)}))
                digests[session.id] = f"{session.title} {session.id}"
        clock.advance(hours=2)
        assert await store.cleanup_expired_sessions() == count
        assert await digests_of(store, list(digests)[::10]) == {key: digests[key] for key in list(digests)[::10]}

        resumed = list(digests)[:1000]
        for session_id in resumed:
            await store.resume_session(session_id, hours=1)
        assert await count_of(store) == (1000, count)
        clock.advance(hours=2)
        assert await store.cleanup_expired_sessions() == 1000
        assert await store.cleanup_expired_sessions() == 0
        assert await count_of(store) == (0, count)
        assert await digests_of(store, resumed) == {key: digests[key] for key in resumed}

        clock.advance(days=30, hours=-1)
        assert await store.delete_old_archived_sessions() == count - 1000
        assert await count_of(store) == (0, 1000)
        assert await digests_of(store, resumed) == {key: digests[key] for key in resumed}
        clock.advance(hours=3)
        assert await store.delete_old_archived_sessions() == 1000
        assert await count_of(store) == (0, 0)
        stats = await (await _analytics(store)).get_session_stats(days=60)
        assert (stats["total_sessions"], stats["total_queries"]) == (count, count)


async def digests_of(store: SessionStore, session_ids: Sequence[UUID]) -> dict[UUID, str]:
    found = {}
    for session_id in session_ids:
        session = await existing(store, session_id)
        [query] = session.state.history.queries
        found[session_id] = f"{session.title} {query.parameters['of']}"
    return found


async def count_of(store: SessionStore) -> tuple[int, int]:
    """How many are live, and how many there are."""
    found, cursor, live = 0, None, 0
    while True:
        page = await store.list_user_sessions(None, include_archived=True, limit=200, cursor=cursor)
        found += len(page)
        live += sum(not summary.is_archived for summary in page)
        cursor = page.next_cursor
        if cursor is None:
            return live, found


async def _analytics(store: SessionStore) -> SessionAnalytics:
    return SessionAnalytics(store.session_maker, store)
