"""PostgreSQL stopped, killed, frozen, slow, cut off: typed errors soon, and full recovery afterwards, by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest

from fiml.core.errors import Unavailable
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.faults import CALL_S, FAULTS, PASSWORD, Archive, until_back

OWNER = "ann"
UNKNOWN = UUID(int=1)
CALLERS = 60  # three times what the pool holds

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

Verb = Callable[[SessionStore, UUID], Awaitable[Any]]

# Each needs the archive. Those that change something may have been done when they are `Unavailable`.
VERBS: dict[str, Verb] = {
    "get": lambda store, ended: store.get_session(ended),
    "get an unknown one": lambda store, _: store.get_session(UNKNOWN),
    "record": lambda store, ended: store.record_query(ended, make_query()),
    "extend": lambda store, ended: store.extend_session(ended, 1),
    "delete an unknown one": lambda store, _: store.delete_session(UNKNOWN),
    "resume an unknown one": lambda store, _: store.resume_session(UNKNOWN),
    "share an unknown one": lambda store, _: store.share_session(UNKNOWN, "bob"),
    "hold": lambda store, ended: store.hold(ended, "a lawsuit"),
    "get a hold": lambda store, ended: store.get_hold(ended),
    "quarantine": lambda store, _: store.list_quarantine(),
    "trail": lambda store, ended: store.get_audit_trail(ended),
    "pack": lambda store, ended: store.pack_context(ended),
    "erase": lambda store, _: store.erase_user("somebody else"),
}


async def made_session(store: SessionStore) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
    for n in range(2):
        await store.record_query(session.id, make_query(f"{n}"), context={f"{n}": n})
    return await existing(store, session.id)


async def ended_session(store: SessionStore) -> Session:
    session = await made_session(store)
    await store.archive_session(session.id)
    return await existing(store, session.id)


async def at_once(*calls: Awaitable[Any]) -> list[Any]:
    """What calls made at once return or raise, all of them in time."""
    async with asyncio.timeout(CALL_S):
        return await asyncio.gather(*calls, return_exceptions=True)


async def crowd(store: SessionStore, session_id: UUID) -> set[Any]:
    """What many callers at once get for a session: its id, or a kind of error; one of them asks for statistics."""
    statistics = SessionAnalytics(store.session_maker, store).get_session_stats()
    stats, *outcomes = await at_once(statistics, *(store.get_session(session_id) for _ in range(CALLERS)))
    assert isinstance(stats, dict) or type(stats) is type(outcomes[0])
    return {outcome.id if isinstance(outcome, Session) else type(outcome) for outcome in outcomes}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_needs_the_archive_is_unavailable_in_time_while_live_sessions_work(
    archive: Archive, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with SessionStore(archive.settings) as store:
        live, ended = await made_session(store), await ended_session(store)

        async with FAULTS[fault](archive):
            refused, _ = await asyncio.gather(
                at_once(*(verb(store, ended.id) for verb in VERBS.values())), expect_live_sessions_work(store, live)
            )

        assert dict(zip(VERBS, map(type, refused), strict=True)) == dict.fromkeys(VERBS, Unavailable)
        assert PASSWORD not in f"{refused} {capfd.readouterr()}"
        found = await until_back(lambda: store.get_session(ended.id))
        assert found is not None
        assert content(found) == content(ended)
        assert await store.get_session(UNKNOWN) is None
        assert (await store.resume_session(ended.id)).state.history.total_queries == 2
        assert len({summary.id for summary in await listing(store)}) == len(await listing(store)) == 3


async def expect_live_sessions_work(store: SessionStore, session: Session) -> None:
    async with asyncio.timeout(CALL_S):
        created = await store.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER)
        await asyncio.gather(*(store.record_query(created.id, make_query(f"{n}")) for n in range(20)))
        session.state.update_context("key", "value")
        assert (await store.update_session(session.id, session)).state.context["key"] == "value"
        await store.extend_session(session.id, 1)
        await store.resume_session(session.id)
        await store.share_session(session.id, "bob")
        assert (await store.get_audit_trail(session.id))[-1].did == "share"
        assert (await existing(store, created.id)).state.history.total_queries == 20
        assert len(await store.list_user_sessions(OWNER)) == 2


@pytest.mark.parametrize("fault", ["frozen", "hanging"])
async def test_more_callers_than_connections_are_all_answered_in_time_and_leave_the_pool_whole(
    archive: Archive, fault: str
) -> None:
    async with SessionStore(archive.settings) as store:
        ended = await ended_session(store)
        await crowd(store, ended.id)  # the pool is full of connections

        async with FAULTS[fault](archive):
            assert await crowd(store, ended.id) == {Unavailable}

        await until_back(lambda: store.get_session(ended.id))
        assert await crowd(store, ended.id) == {ended.id}


async def test_silently_lost_connections_are_given_up(archive: Archive) -> None:
    """As when an address moves to another machine: the old connections never say anything again."""
    async with SessionStore(archive.settings) as store:
        ended = await ended_session(store)
        await crowd(store, ended.id)

        archive.proxy.lose()

        await crowd(store, ended.id)
        await until_back(lambda: store.get_session(ended.id))
        assert await crowd(store, ended.id) == {ended.id}


async def test_after_a_restart_no_call_fails(archive: Archive) -> None:
    async with SessionStore(archive.settings) as store:
        ended = await ended_session(store)
        await crowd(store, ended.id)

        archive.server.stop()
        archive.server.start()

        assert await crowd(store, ended.id) == {ended.id}


async def test_the_server_recovers_from_a_crash_of_one_of_its_processes(archive: Archive) -> None:
    async with SessionStore(archive.settings) as store:
        ended = await ended_session(store)
        pid = await archive.fetch(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        assert isinstance(pid, int)

        psutil.Process(pid).kill()

        found = await until_back(lambda: store.get_session(ended.id))
        assert found is not None
        assert content(found) == content(ended)


async def test_a_call_that_was_given_up_waits_for_no_lock_any_more(archive: Archive) -> None:
    async with SessionStore(archive.settings) as store:
        ended = await ended_session(store)
        connection = await asyncpg.connect(archive.server.url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")

            assert await crowd(store, ended.id) == {Unavailable}

            async with asyncio.timeout(CALL_S):
                while await connection.fetchval(WAITING):  # noqa: ASYNC110  the server has no event for it
                    await asyncio.sleep(0.05)
        await connection.close()

        assert await crowd(store, ended.id) == {ended.id}


async def test_statistics_that_a_store_is_closed_under_leave_no_connection(archive: Archive) -> None:
    store = SessionStore(archive.settings)
    await store.initialize()
    analytics = SessionAnalytics(store.session_maker, store)
    connection = await asyncpg.connect(archive.server.url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE session_metrics IN ACCESS EXCLUSIVE MODE")
        computing = asyncio.create_task(analytics.get_session_stats())
        async with asyncio.timeout(CALL_S):
            while not await connection.fetchval(WAITING):  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.05)
        await store.shutdown()
    await asyncio.wait([computing])

    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    async with asyncio.timeout(CALL_S):
        while await connection.fetchval(others):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.05)
    await connection.close()


async def test_a_server_that_only_reads_refuses_writes_and_keeps_them_out_of_both_tiers(archive: Archive) -> None:
    """As after a failover to a standby that wasn't promoted yet."""
    async with SessionStore(archive.settings) as store:
        live, ended = await made_session(store), await ended_session(store)
    await _let_write(archive, is_allowed=False)
    try:
        async with SessionStore(archive.settings) as store:
            refused = await at_once(
                store.archive_session(live.id), store.delete_session(live.id), store.hold(ended.id, "a lawsuit")
            )
            assert [type(outcome) for outcome in refused] == [Unavailable] * 3
            assert content(await existing(store, ended.id)) == content(ended)
            assert content(await existing(store, live.id)) == content(live)
    finally:
        await _let_write(archive, is_allowed=True)

    async with SessionStore(archive.settings) as store:
        assert await store.archive_session(live.id)


async def _let_write(archive: Archive, *, is_allowed: bool) -> None:
    connection = await asyncpg.connect(archive.server.url)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER ROLE postgres SET default_transaction_read_only = {'off' if is_allowed else 'on'}")
    await connection.close()


@pytest.mark.parametrize("fault", ["frozen", "hanging"])
async def test_a_store_is_closed_in_time_while_its_archive_says_nothing(archive: Archive, fault: str) -> None:
    """With connections in use and idle ones; who waits for one hears that the store was closed."""
    store = SessionStore(archive.settings)
    await store.initialize()
    ended = await ended_session(store)
    await crowd(store, ended.id)
    async with FAULTS[fault](archive):
        calls = [asyncio.ensure_future(store.get_session(ended.id)) for _ in range(10)]
        await asyncio.sleep(0.1)  # wherever they are then
        async with asyncio.timeout(CALL_S):
            await store.shutdown()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
