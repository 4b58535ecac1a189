"""Sessions on their way between the tiers when PostgreSQL goes away: none is lost, none is duplicated."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from fiml.core.errors import SessionNotFound, Unavailable
from fiml.db.engines import MAX_CONNECTIONS
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query, open_store_over
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.backends import watched_backend
from tests.support.faults import CALL_S, Archive, until_back

OWNER = "ann"
BACKLOG = 12
MOST_REPLIES = 100
ROUNDS = 3

CALLERS = 60
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

Move = Callable[[SessionStore, UUID], Awaitable[Any]]

MOVES: dict[str, Move] = {
    "archive": lambda store, session_id: store.archive_session(session_id),
    "resume": lambda store, session_id: store.resume_session(session_id),
    "share an archived one": lambda store, session_id: store.share_session(session_id, "bob"),
    "delete": lambda store, session_id: store.delete_session(session_id),
    "delete from the archive": lambda store, session_id: store.delete_session(session_id),
}
FROM_THE_ARCHIVE = ("resume", "share an archived one", "delete from the archive")
REMOVALS = ("delete", "delete from the archive")


async def prepared(store: SessionStore, move: str) -> Session:
    """A session that is where a move begins."""
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
    await store.record_query(session.id, make_query(), context={"key": 1e23})
    if move in FROM_THE_ARCHIVE:
        await store.archive_session(session.id)
    return await existing(store, session.id)


async def expect_moved(archive: Archive, store: SessionStore, move: str, session: Session) -> None:
    """After a move that was repeated until it was done, the session is where it belongs, once and whole."""
    everybodys = await listing(store)
    figures = await SessionAnalytics(store.session_maker, store).get_session_stats()
    assert figures["total_sessions"] == len(everybodys)
    assert figures["archived_sessions"] == len([summary for summary in everybodys if summary.is_archived])
    summaries = [summary for summary in everybodys if summary.id == session.id]
    rows = await archive.fetch("SELECT count(*) FROM sessions WHERE id = $1", session.id)
    if move in REMOVALS:
        assert (summaries, rows, await store.get_session(session.id)) == ([], 0, None)
        with pytest.raises(SessionNotFound):
            await store.resume_session(session.id)
        return
    [summary] = summaries
    assert summary.is_archived == (move != "resume")
    assert rows == 1 or move == "resume"  # one that went unseen stays until the session is archived again
    assert content(await existing(store, session.id)) == content(session)
    resumed = await store.resume_session(session.id)
    await store.record_query(session.id, make_query("later"))
    await store.archive_session(session.id)
    ended = await existing(store, session.id)
    assert (ended.is_archived, ended.state.history.total_queries) == (True, 2)
    assert ended.version > resumed.version
    assert await archive.fetch("SELECT count(*) FROM session_metrics WHERE session_id = $1", session.id) == 1


@pytest.mark.parametrize("move", MOVES)
async def test_a_reply_that_is_cut_anywhere_loses_and_doubles_nothing(archive: Archive, move: str) -> None:
    async with SessionStore(archive.settings) as store:
        for replies in range(MOST_REPLIES):
            session = await prepared(store, move)
            archive.proxy.cut(after_replies=replies)
            try:
                async with asyncio.timeout(CALL_S):
                    await MOVES[move](store, session.id)
            except Unavailable:
                archive.proxy.pass_on()
                await MOVES[move](store, session.id)
            else:
                archive.proxy.pass_on()
                break
            finally:
                await expect_moved(archive, store, move, session)

        assert 3 < replies < MOST_REPLIES - 1


@pytest.mark.parametrize("move", ["archive", "resume", "delete"])
async def test_a_caller_who_leaves_in_the_middle_of_a_statement_leaves_the_pool_whole(
    archive: Archive, move: str
) -> None:
    async with SessionStore(archive.settings) as store:
        for replies in range(MOST_REPLIES):
            session = await prepared(store, move)
            archive.proxy.hang(after_replies=replies)
            call = asyncio.ensure_future(MOVES[move](store, session.id))
            meets_a_fault = asyncio.create_task(archive.proxy.wait_until_felt())
            await asyncio.wait({call, meets_a_fault}, return_when=asyncio.FIRST_COMPLETED)
            is_over = call.done()
            call.cancel()
            meets_a_fault.cancel()
            await asyncio.wait({call, meets_a_fault})
            archive.proxy.pass_on()
            if not is_over:
                await MOVES[move](store, session.id)
            await expect_moved(archive, store, move, session)
            if is_over:
                break

        assert 3 < replies < MOST_REPLIES - 1
        found = await asyncio.gather(*(store.get_session(session.id) for _ in range(CALLERS)))
        assert len({one and one.id for one in found}) == 1
        assert await archive.fetch(CONNECTIONS) == MAX_CONNECTIONS


async def backlog(store: SessionStore, clock: FrozenClock) -> list[Session]:
    """Sessions that have expired and wait for a sweep."""
    sessions = []
    for n in range(BACKLOG):
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        await store.record_query(session.id, make_query(f"{n}"), context={"n": n})
        sessions.append(await existing(store, session.id))
    clock.advance(hours=2)
    return sessions


async def expect_swept(archive: Archive, store: SessionStore, sessions: list[Session]) -> None:
    """Each session is in the archive, once and whole, and nowhere else."""
    summaries = {summary.id: summary for summary in await listing(store)}
    assert all(summaries[session.id].is_archived for session in sessions)
    for session in sessions:
        assert content(await existing(store, session.id)) == content(session)
    assert await archive.fetch("SELECT count(*) FROM sessions") == len(summaries)
    assert await archive.fetch("SELECT count(*) FROM session_metrics") == len(summaries)
    assert await store.list_user_sessions(OWNER) == []
    assert await store.list_quarantine() == []


async def test_a_sweep_whose_replies_are_cut_anywhere_is_finished_by_the_next(
    archive: Archive, clock: FrozenClock
) -> None:
    async with SessionStore(archive.settings) as store:
        for replies in count(step=4):
            sessions = await backlog(store, clock)
            archive.proxy.cut(after_replies=replies)
            try:
                moved = await store.cleanup_expired_sessions()
            except Unavailable:
                archive.proxy.pass_on()
                await store.cleanup_expired_sessions()
                await expect_swept(archive, store, sessions)
            else:
                archive.proxy.pass_on()
                assert moved == BACKLOG
                await expect_swept(archive, store, sessions)
                break

        assert replies > 6


@pytest.mark.parametrize("transaction", [1, 3])
async def test_a_server_that_is_killed_in_a_sweep_leaves_it_to_the_next(
    archive: Archive, clock: FrozenClock, transaction: int
) -> None:
    calls = count(1)

    async def around(call: Callable[[], Awaitable[Any]]) -> Any:
        if archive_is_called(call) and next(calls) == transaction:
            under_way = asyncio.ensure_future(call())
            await asyncio.sleep(0.002)  # wherever it is then
            archive.server.kill()
            return await under_way
        return await call()

    backend = watched_backend(archive.settings, around)
    async with open_store_over(backend, archive.settings) as store:
        sessions = await backlog(store, clock)
        calls = count(1)

        with pytest.raises(Unavailable):
            await store.cleanup_expired_sessions()
        archive.server.start()
        await store.cleanup_expired_sessions()

        await expect_swept(archive, store, sessions)


def archive_is_called(call: Callable[[], Awaitable[Any]]) -> bool:
    return call.__name__ == "transact"


class Writers:
    """Create, record, archive and resume sessions, repeat what was `Unavailable`, and know what was acknowledged."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.acknowledged: dict[UUID, int] = {}
        """How many queries each session has."""
        self.is_over = False

    async def write(self) -> None:
        while not self.is_over:
            session_id = (await self._store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)).id
            await self._record(session_id)
            await until_back(lambda: self._store.archive_session(session_id))  # noqa: B023  called at once
            await until_back(lambda: self._store.resume_session(session_id))  # noqa: B023
            await self._record(session_id)
            await until_back(lambda: self._store.archive_session(session_id))  # noqa: B023

    async def _record(self, session_id: UUID) -> None:
        query = make_query()
        totals = await self._store.record_query(session_id, query, context={str(query.id): True})
        self.acknowledged[session_id] = totals.total_queries


async def test_writers_lose_nothing_that_was_acknowledged_while_the_server_is_killed_again_and_again(
    archive: Archive,
) -> None:
    async with SessionStore(archive.settings) as store, asyncio.timeout(60):
        writers = Writers(store)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(writers.write())
            for _ in range(ROUNDS):
                await asyncio.sleep(0.1)  # wherever they are then
                await asyncio.to_thread(archive.server.kill)
                await asyncio.to_thread(archive.server.start)
            writers.is_over = True

        assert {summary.id for summary in await listing(store)} == writers.acknowledged.keys()
        for session_id in writers.acknowledged:
            found = await existing(store, session_id)
            assert found.is_archived
            assert {str(query.id) for query in found.state.history.queries} == found.state.context.keys()
            assert found.state.history.total_queries == len(found.state.history.queries) == 2
        assert set(writers.acknowledged.values()) == {2}
        for table in ("sessions", "session_metrics"):
            assert await archive.fetch(f"SELECT count(*) FROM {table}") == len(writers.acknowledged)  # noqa: S608
