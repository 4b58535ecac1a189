"""Readers of the embedded file never wait for writers, and the access is noted when it can be."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest

from fiml.core.clock import to_micros
from fiml.core.config import Settings
from fiml.core.errors import SessionArchived
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.models import Session
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing

OWNER = "ann"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Settings(data_dir=tmp_path).embedded_file


@pytest.fixture
async def store(clock: FrozenClock, tmp_path: Path) -> AsyncIterator[SessionStore]:
    async with SessionStore(Settings(data_dir=tmp_path)) as opened:
        yield opened


@pytest.fixture
async def live(store: SessionStore) -> Session:
    return await made(store)


@pytest.fixture
async def ended(store: SessionStore) -> Session:
    created = await made(store)
    assert await store.archive_session(created.id)
    return created


async def made(store: SessionStore) -> Session:
    created = await store.create_session(["AAPL"], "equity", user_id=OWNER)
    await store.record_query(created.id, make_query("one"), context={"said": "before"})
    return created


@contextmanager
def written_to(file: Path) -> Iterator[None]:
    """Another connection has the file in hand."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE active_sessions SET title = 'never committed'")
        yield
        other.execute("ROLLBACK")


def noted_access(file: Path, session_id: UUID) -> int:
    """The last access as the file has it, in microseconds."""
    with closing(sqlite3.connect(file)) as other:
        [moment] = other.execute(
            "SELECT last_accessed_at FROM active_sessions WHERE id = ?", (session_id.hex,)
        ).fetchone()
    return int(moment)


async def access_noted(file: Path, session_id: UUID, *, after: int) -> None:
    async with asyncio.timeout(10):
        while noted_access(file, session_id) == after:  # noqa: ASYNC110 - another connection sees it
            await asyncio.sleep(0.01)


async def test_every_reading_verb_answers_while_another_process_writes(
    store: SessionStore, file: Path, live: Session, ended: Session
) -> None:
    await store.search_sessions(OWNER, "one")  # what changed is indexed by the next search
    with written_to(file):
        async with asyncio.timeout(10):
            assert {found.id for found in await store.search_sessions(OWNER, "one")} == {live.id, ended.id}
            assert (await existing(store, live.id)).state.context == {"said": "before"}
            assert (await existing(store, ended.id)).is_archived
            assert await store.get_session(UUID(int=1)) is None
            assert [line.id for line in await store.list_user_sessions(OWNER)] == [live.id]
            assert {line.id for line in await store.list_user_sessions(OWNER, include_archived=True)} == {
                live.id,
                ended.id,
            }
            assert (await store.pack_context(live.id)).total_queries == 1
            for session in (live, ended):
                assert await store.list_shares(session.id) == []
                assert await store.get_audit_trail(session.id)
                assert await store.get_hold(session.id) is None
            assert list(await store.list_quarantine()) == []
            assert (await store.figures()).live == 1


async def test_a_store_opens_while_another_process_writes(store: SessionStore, file: Path, live: Session) -> None:
    with written_to(file):
        async with asyncio.timeout(10), SessionStore(store.settings) as second:
            assert (await existing(second, live.id)).title is None


async def test_an_access_is_noted_without_a_further_call(
    store: SessionStore, file: Path, live: Session, clock: FrozenClock
) -> None:
    before = noted_access(file, live.id)
    clock.advance(minutes=1)
    assert (await existing(store, live.id)).last_accessed_at == clock.now()

    await access_noted(file, live.id, after=before)
    assert noted_access(file, live.id) == before + 60_000_000


async def test_an_access_that_could_not_be_noted_is_noted_later(
    store: SessionStore, file: Path, live: Session, clock: FrozenClock
) -> None:
    clock.advance(minutes=1)
    with written_to(file):
        read = await existing(store, live.id)
        await store.list_user_sessions(OWNER)  # it would note it first

    [line] = await store.list_user_sessions(OWNER)
    assert line.last_accessed_at == read.last_accessed_at == clock.now()


async def test_an_access_is_noted_when_the_store_is_closed(
    file: Path, tmp_path: Path, live: Session, clock: FrozenClock
) -> None:
    before = noted_access(file, live.id)
    clock.advance(minutes=1)
    async with SessionStore(Settings(data_dir=tmp_path)) as second:
        await existing(second, live.id)
    assert noted_access(file, live.id) == before + 60_000_000


async def test_an_access_is_noted_where_the_store_is_never_closed(file: Path, tmp_path: Path) -> None:
    code = f"""
import asyncio
from fiml.core.config import Settings
from fiml.core.errors import SessionArchived
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.store import SessionStore

async def main():
    store = SessionStore(Settings(data_dir={str(tmp_path)!r}))
    await store.initialize()
    session = await store.create_session(["AAPL"], "equity")
    await store.get_session(session.id)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
    with closing(sqlite3.connect(file)) as other:
        [was_accessed] = other.execute("SELECT last_accessed_at > created_at FROM active_sessions").fetchone()
    assert was_accessed


@pytest.mark.parametrize("is_read_again", [True, False])
def test_a_store_whose_loop_was_left_goes_on_on_another(file: Path, tmp_path: Path, *, is_read_again: bool) -> None:
    store = SessionStore(Settings(data_dir=tmp_path))

    async def read_anew() -> Session:
        await store.initialize()
        return await existing(store, (await store.create_session(["AAPL"], "equity")).id)

    async def go_on(session: Session) -> None:
        if is_read_again:
            again = await existing(store, session.id)
            await access_noted(file, session.id, after=to_micros(session.created_at))
            assert noted_access(file, session.id) == to_micros(again.last_accessed_at)
        await store.shutdown()

    left, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    session = left.run_until_complete(read_anew())
    left.close()
    other.run_until_complete(go_on(session))
    other.close()
    assert noted_access(file, session.id) >= to_micros(session.last_accessed_at)


async def test_many_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    code = f"""
import asyncio
from fiml.core.config import Settings
from fiml.core.errors import SessionArchived
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.store import SessionStore

async def main():
    async with SessionStore(Settings(data_dir={str(tmp_path / "new")!r})) as store:
        await store.create_session(["AAPL"], "equity")

asyncio.run(main())
"""
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", code) for _ in range(6)]
    assert [await process.wait() for process in processes] == [0] * 6
    async with SessionStore(Settings(data_dir=tmp_path / "new")) as store:
        assert len(await store.list_user_sessions(None)) == 6


async def test_what_moves_to_the_archive_has_its_last_access(
    store: SessionStore, live: Session, clock: FrozenClock
) -> None:
    clock.advance(minutes=1)
    await existing(store, live.id)
    accessed = clock.now()
    clock.advance(minutes=1)
    assert await store.archive_session(live.id)
    assert (await existing(store, live.id)).last_accessed_at == accessed


async def test_a_late_note_moves_nothing_back(store: SessionStore, live: Session, clock: FrozenClock) -> None:
    clock.advance(minutes=1)
    await existing(store, live.id)
    clock.advance(minutes=1)
    await store.record_query(live.id, make_query("two"))  # before the note
    [line] = await store.list_user_sessions(OWNER)
    assert line.last_accessed_at == clock.now()


@pytest.mark.parametrize("hours", [-1, 2])
async def test_a_read_before_an_access_or_after_the_end_takes_nothing_from_it(
    store: SessionStore, clock: FrozenClock, hours: int
) -> None:
    """A clock may be set back, and reading an expired session is no access."""
    session = await store.create_session(["AAPL"], "equity", user_id=OWNER, ttl_hours=1)
    clock.advance(minutes=1)
    await existing(store, session.id)
    accessed = clock.now()
    clock.advance(hours=hours)
    await existing(store, session.id)  # before the access is noted
    [line] = await store.list_user_sessions(OWNER)
    assert line.last_accessed_at == accessed


async def test_an_access_that_is_noted_after_another_store_archived_the_session_is_not_lost(
    store: SessionStore, tmp_path: Path, live: Session, clock: FrozenClock
) -> None:
    """Nor in its metrics, nor in the rollups that were made of them."""
    analytics = SessionAnalytics(store.session_maker)
    async with SessionStore(Settings(data_dir=tmp_path)) as second:
        clock.advance(minutes=1)
        await existing(store, live.id)
        accessed = clock.now()
        clock.advance(minutes=1)
        assert await second.archive_session(live.id)
        await second.roll_up()

    assert await store.roll_up() == 1  # notes it first
    ended = await existing(store, live.id)
    assert (ended.is_archived, ended.last_accessed_at) == (True, accessed)
    assert (await analytics.get_session_stats())["avg_duration_seconds"] == 60


@pytest.mark.parametrize("is_resumed", [True, False])
async def test_a_note_about_an_older_version_leaves_the_archive_alone(
    store: SessionStore, tmp_path: Path, live: Session, clock: FrozenClock, *, is_resumed: bool
) -> None:
    """Where the clocks of two processes differ, the note may be the later one."""
    accessed = clock.now()
    async with SessionStore(Settings(data_dir=tmp_path)) as second:
        clock.advance(minutes=1)
        await existing(store, live.id)
        clock.set(accessed)
        if is_resumed:
            await second.archive_session(live.id)
            await second.resume_session(live.id)
        else:
            await second.record_query(live.id, make_query("two"))
        assert await second.archive_session(live.id)
    await store.list_user_sessions(OWNER)  # notes it first
    assert (await existing(store, live.id)).last_accessed_at == accessed


async def test_a_session_that_is_archived_and_resumed_all_the_time_is_never_missed(store: SessionStore) -> None:
    """The callers of one store take turns, so that each look of one may follow a move of another."""
    session_id = (await made(store)).id

    async def move() -> None:
        for _ in range(30):
            await store.archive_session(session_id)
            await store.resume_session(session_id)

    async def use() -> None:
        query = make_query()
        for _ in range(15):
            session = await existing(store, session_id)
            session.title = "used"
            with suppress(SessionArchived):
                await store.record_query(session_id, query)
            with suppress(SessionArchived):
                await store.extend_session(session_id, 1)
            with suppress(SessionArchived):
                await store.update_session(session_id, session)

    await asyncio.gather(move(), move(), use())

    assert not (await existing(store, session_id)).is_archived
