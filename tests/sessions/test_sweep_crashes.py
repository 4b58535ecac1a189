"""A sweeper that is killed or paused at any step of archiving loses nothing and duplicates nothing."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import Unavailable
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.deployment import Deployment
from tests.support.sweeper import Sweeper, stepping_sweeper

OWNER = "ann"
SESSIONS = 3
MOST_STEPS = 80
Meanwhile = Callable[[SessionStore, Session], Awaitable[object]]


@pytest.fixture(params=["sqlite", "valkey-postgresql"])
def settings(request: pytest.FixtureRequest) -> Settings:
    if request.param == "sqlite":
        return Settings(sqlite_synchronous=Synchronous.OFF)
    deployment: Deployment = request.getfixturevalue("deployment")
    return deployment.settings()


@pytest.fixture
async def sweeper(settings: Settings, store: SessionStore) -> AsyncIterator[Sweeper]:
    environment = {"data_dir": os.environ["FIML_DATA_DIR"]} if settings.is_embedded else {}
    async with stepping_sweeper(Settings(**settings.model_dump(exclude_unset=True) | environment)) as process:
        yield process


async def expired_sessions(store: SessionStore, clock: FrozenClock) -> list[Session]:
    sessions = []
    for n in range(SESSIONS):
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1, title=f"{n}")
        for kind in ("first", "second"):
            await store.record_query(session.id, make_query(kind), context={kind: [n]})
        sessions.append(await existing(store, session.id))
    clock.advance(hours=2)
    return sessions


async def assert_found_once_and_whole(store: SessionStore, sessions: list[Session]) -> None:
    listed = [summary.id for summary in await listing(store)]
    assert sorted(listed) == sorted(session.id for session in sessions)
    for session in sessions:
        assert content(await existing(store, session.id)) == content(session)


async def step_to(sweeper: Sweeper, number: int) -> bool:
    """Let it do so many steps; `False` where it ended before."""
    for _ in range(number):
        if await sweeper.next_step() is None:
            return False
        sweeper.go_on()
    return await sweeper.next_step() is not None


async def test_a_sweeper_that_is_killed_before_any_of_its_steps_loses_nothing(
    store: SessionStore, sweeper: Sweeper, clock: FrozenClock
) -> None:
    for number in range(MOST_STEPS):
        sessions = await expired_sessions(store, clock)
        await sweeper.start(clock.now())
        if not await step_to(sweeper, number):
            break
        await sweeper.kill()

        await assert_found_once_and_whole(store, sessions)
        await store.cleanup_expired_sessions()

        await assert_found_once_and_whole(store, sessions)
        assert all([(await existing(store, session.id)).is_archived for session in sessions])
        assert await store.cleanup_expired_sessions() == 0
        for session in sessions:
            await store.delete_session(session.id)
    assert 6 < number < MOST_STEPS - 1


async def resume(store: SessionStore, session: Session) -> None:
    await store.resume_session(session.id)


async def resume_and_grow(store: SessionStore, session: Session) -> None:
    await store.resume_session(session.id)
    await store.record_query(session.id, make_query("third"))


async def resume_grow_and_archive(store: SessionStore, session: Session) -> None:
    await resume_and_grow(store, session)
    await store.archive_session(session.id)


async def delete(store: SessionStore, session: Session) -> None:
    assert await store.delete_session(session.id)


async def erase(store: SessionStore, session: Session) -> None:
    await store.erase_user(OWNER)


async def sweep(store: SessionStore, session: Session) -> None:
    await store.cleanup_expired_sessions()


@pytest.mark.parametrize(
    "meanwhile",
    [resume, resume_and_grow, resume_grow_and_archive, delete, erase, sweep],
    ids=lambda each: each.__name__,
)
async def test_what_others_do_while_a_sweeper_stands_still_counts(
    store: SessionStore, sweeper: Sweeper, clock: FrozenClock, meanwhile: Meanwhile
) -> None:
    for number in range(MOST_STEPS):
        sessions = await expired_sessions(store, clock)
        await sweeper.start(clock.now())
        if not await step_to(sweeper, number):
            break
        # Where the sweeper has the session in a transaction, the others wait for it.
        doing = asyncio.create_task(_repeated(meanwhile, store, sessions[0]))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(doing), timeout=0.1)
        await sweeper.finish()
        await doing

        gone = meanwhile in (delete, erase)
        left = [] if meanwhile is erase else sessions[1:] if gone else sessions
        assert sorted(each.id for each in await listing(store)) == sorted(each.id for each in left)
        if gone:
            assert await store.get_session(sessions[0].id) is None
        else:
            found = await existing(store, sessions[0].id)
            expected = ["first", "second"] + (
                ["third"] if meanwhile in (resume_and_grow, resume_grow_and_archive) else []
            )
            assert [query.query_type for query in found.state.history.queries] == expected
            assert found.is_archived == (meanwhile in (resume_grow_and_archive, sweep))
        clock.advance(days=2)
        await store.cleanup_expired_sessions()
        assert sorted(each.id for each in await listing(store)) == sorted(each.id for each in left)
        assert all(each.is_archived for each in await listing(store))
        for session in left:
            await store.delete_session(session.id)
    assert number > 6


async def _repeated(meanwhile: Meanwhile, store: SessionStore, session: Session) -> None:
    """As a caller does who is told to try again."""
    for _ in range(5):
        try:
            await meanwhile(store, session)
        except Unavailable:
            continue
        return
    raise AssertionError("it never got through")


async def test_two_sweepers_of_which_one_stands_still_archive_each_session_once(
    store: SessionStore, sweeper: Sweeper, clock: FrozenClock
) -> None:
    sessions = await expired_sessions(store, clock)
    await sweeper.start(clock.now())
    await step_to(sweeper, 5)
    other = asyncio.create_task(store.cleanup_expired_sessions())
    await asyncio.sleep(0)
    await sweeper.finish()
    await other
    await store.cleanup_expired_sessions()

    await assert_found_once_and_whole(store, sessions)
    assert all(summary.is_archived for summary in await listing(store))


async def test_a_clock_that_jumps_back_loses_nothing(store: SessionStore, clock: FrozenClock) -> None:
    sessions = await expired_sessions(store, clock)
    await store.cleanup_expired_sessions()
    clock.advance(hours=-3)

    assert await store.cleanup_expired_sessions() == 0
    await assert_found_once_and_whole(store, sessions)
    resumed = await store.resume_session(sessions[0].id, hours=1)
    assert not resumed.is_expired
    clock.advance(hours=1)
    assert await store.cleanup_expired_sessions() == 1
    await assert_found_once_and_whole(store, sessions)
