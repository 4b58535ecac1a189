"""After a process dies at any call to an engine, every session is still found exactly once, and complete."""

from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from typing import Protocol, TypeVar

import pytest

from fiml.core.errors import SessionNotFound, Unavailable
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, Suite, content, existing, listing
from fiml.testing.samples import make_query

MOST_CALLS = 60
STRANDED = 3  # sessions a sweep moves in one go
Result = TypeVar("Result")


class Crash(BaseException):
    """The end of a process. Like a SIGKILL, it must not be caught."""


class Faults:
    """Counts calls to the engines, and ends the process at one of them: before it was made, or before its reply."""

    def __init__(self) -> None:
        self.calls = 0
        self._crash_at: int | None = None
        self._is_reply_lost = False
        self._error: BaseException = Crash()

    def crash_at(self, call: int, *, is_reply_lost: bool) -> None:
        """End the process at one of the following calls; the first is 1."""
        self.calls, self._crash_at, self._is_reply_lost = 0, call, is_reply_lost
        self._error = Crash()

    def be_away(self, *, is_reply_lost: bool, error: BaseException | None = None) -> None:
        """Let the engines be away from the next call on, before or after it takes effect; or let it fail otherwise."""
        self.crash_at(1, is_reply_lost=is_reply_lost)
        self._error = error or Unavailable("the engine", "it is away in this test")

    def disarm(self) -> None:
        """Let all calls pass from now on, like those of a new process."""
        self._crash_at = None

    async def around(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Make a call to an engine; your backend makes each of its calls through this."""
        self.calls += 1
        is_last = self._crash_at is not None and self.calls >= self._crash_at
        if is_last and not (self._is_reply_lost and self.calls == self._crash_at):
            raise self._error
        result = await call()
        if is_last:
            raise self._error
        return result


class OpenCrashingStore(Protocol):
    """The fixture `open_crashing_store`: opens stores on the data of `open_store` that make calls through `Faults`."""

    def __call__(self, faults: Faults) -> AbstractAsyncContextManager[SessionStore]: ...


class CrashSuite(Suite):
    """Also needs the fixture `open_crashing_store`. `store` is the process that comes afterwards."""

    async def test_archiving(self, store: SessionStore, open_crashing_store: OpenCrashingStore) -> None:
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)

            with suppress(Crash):
                await crashing.archive_session(session.id)

            await _assert_found_once(store, session)
            await store.archive_session(session.id)
            assert (await _assert_found_once(store, session)).is_archived
            await _assert_can_go_on(store, session)

    @pytest.mark.parametrize("lost", ["call", "reply"])
    @pytest.mark.parametrize("error", [None, CancelledError()], ids=["away", "cancelled"])
    async def test_what_is_taken_back_after_an_update_of_unknown_outcome_is_gone(
        self, store: SessionStore, open_crashing_store: OpenCrashingStore, error: BaseException | None, lost: str
    ) -> None:
        faults = Faults()
        async with open_crashing_store(faults) as troubled:
            session = await _a_session(store)
            theirs = await existing(store, session.id)
            before = content(session)
            session.state.context["draft"] = 1
            session.title, session.type = "Draft", SessionType.MACRO
            session.tags.append("draft")
            session.assets.remove("AAPL")
            session.assets.append("DRAFT")
            faults.be_away(is_reply_lost=lost == "reply", error=error)
            for _ in range(2):
                with pytest.raises(type(error) if error else Unavailable):
                    await troubled.update_session(session.id, session)
            faults.disarm()
            theirs.tags.append("theirs")
            await store.update_session(theirs.id, theirs)

            del session.state.context["draft"]
            session.title, session.type = before["title"], before["type"]
            session.tags.remove("draft")
            session.assets[:] = before["assets"]
            merged = await troubled.update_session(session.id, session)

        assert content(merged) == before | {"tags": [*before["tags"], "theirs"]}
        assert content(await existing(store, session.id)) == content(merged)

    async def test_sweeping(
        self,
        store: SessionStore,
        clock: FrozenClock,
        open_crashing_store: OpenCrashingStore,
    ) -> None:
        async for crashing in _crashes(open_crashing_store):
            sessions = [await _a_session(store) for _ in range(STRANDED)]
            clock.advance(hours=1)

            with suppress(Crash):
                await crashing.cleanup_expired_sessions()

            for session in sessions:
                await _assert_found_once(store, session)
            await store.cleanup_expired_sessions()
            assert await store.cleanup_expired_sessions() == 0
            for session in sessions:
                assert (await _assert_found_once(store, session)).is_archived
                await _assert_can_go_on(store, session)

    @pytest.mark.parametrize("tier", ["live", "archived"])
    async def test_resuming(
        self,
        store: SessionStore,
        clock: FrozenClock,
        open_crashing_store: OpenCrashingStore,
        tier: str,
    ) -> None:
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            clock.advance(hours=1)
            if tier == "archived":
                await store.archive_session(session.id)

            with suppress(Crash):
                await crashing.resume_session(session.id)

            left = await _assert_found_once(store, session)
            resumed = await store.resume_session(session.id)
            assert resumed.version == session.version + 1 >= left.version
            assert not (await _assert_found_once(store, session)).is_archived
            await _assert_can_go_on(store, session)

    async def test_a_session_left_half_resumed_can_be_archived_again(
        self, store: SessionStore, open_crashing_store: OpenCrashingStore
    ) -> None:
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            await store.archive_session(session.id)
            with suppress(Crash):
                await crashing.resume_session(session.id)
            if not (await existing(store, session.id)).is_archived:
                await store.record_query(session.id, make_query("later"))
                session = await existing(store, session.id)

            await store.archive_session(session.id)

            assert (await _assert_found_once(store, session)).is_archived
            await _assert_can_go_on(store, session)

    @pytest.mark.parametrize("tier", ["live", "archived"])
    async def test_deleting(self, store: SessionStore, open_crashing_store: OpenCrashingStore, tier: str) -> None:
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            if tier == "archived":
                await store.archive_session(session.id)

            with suppress(Crash):
                await crashing.delete_session(session.id)

            if await store.get_session(session.id) is not None:
                await _assert_found_once(store, session)
            await store.delete_session(session.id)
            await _assert_gone(store, session)

    @pytest.mark.parametrize("ended_by", ["sweep", "archive"])
    async def test_a_session_left_half_deleted_never_comes_back(
        self,
        store: SessionStore,
        clock: FrozenClock,
        open_crashing_store: OpenCrashingStore,
        ended_by: str,
    ) -> None:
        """Once a deletion has taken effect, neither its end nor a resume brings the session back for good."""
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            with suppress(Crash):
                await crashing.delete_session(session.id)

            if ended_by == "archive":
                is_moved = await store.archive_session(session.id)
            else:
                clock.advance(hours=2)
                is_moved = await store.cleanup_expired_sessions() == 1

            found = await store.get_session(session.id)
            assert is_moved == (found is not None)
            assert len(await listing(store)) == (found is not None)
            if found is not None:
                assert (await _assert_found_once(store, session)).is_archived
                await _assert_can_go_on(store, session)
            await store.delete_session(session.id)
            await _assert_gone(store, session)

    async def test_a_session_left_half_deleted_is_gone_when_its_deletion_is_forgotten(
        self,
        store: SessionStore,
        clock: FrozenClock,
        open_crashing_store: OpenCrashingStore,
    ) -> None:
        """Also if it would live on for longer than the deletion is remembered."""
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            await store.extend_session(session.id, 150)
            session = await existing(store, session.id)
            with suppress(Crash):
                await crashing.delete_session(session.id)
            clock.advance(days=3)

            if not await store.purge_tombstones():
                await _assert_found_once(store, session)
                assert await store.delete_session(session.id)
                clock.advance(days=3)
                assert await store.purge_tombstones() == 1

            await _assert_gone(store, session)

    async def test_creating(self, store: SessionStore, open_crashing_store: OpenCrashingStore) -> None:
        async for crashing in _crashes(open_crashing_store):
            with suppress(Crash):
                await crashing.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)

            for summary in await listing(store):
                assert (await existing(store, summary.id)).assets == ["AAPL"]
                await store.delete_session(summary.id)
            assert await listing(store) == []

    async def test_ending_by_an_expiry_in_the_past(
        self,
        store: SessionStore,
        clock: FrozenClock,
        open_crashing_store: OpenCrashingStore,
    ) -> None:
        """A session that was ended is swept, whatever the process did after it."""
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            session.expires_at = clock.now() - timedelta(seconds=1)

            with suppress(Crash):
                await crashing.update_session(session.id, session)

            left = await _assert_found_once(store, session)
            assert await store.cleanup_expired_sessions() == left.is_expired
            assert (await _assert_found_once(store, session)).is_archived == left.is_expired
            await store.delete_session(session.id)

    async def test_writing(self, store: SessionStore, open_crashing_store: OpenCrashingStore) -> None:
        async for crashing in _crashes(open_crashing_store):
            session = await _a_session(store)
            before = content(session)
            session.state.context["more"] = 1
            session.add_query(make_query("more"))
            session.tags.append("more")

            with suppress(Crash):
                await crashing.update_session(session.id, session)

            assert content(await existing(store, session.id)) in (before, content(session))
            merged = await store.update_session(session.id, session)
            assert content(merged) == content(session)
            await store.delete_session(session.id)


async def _crashes(open_crashing_store: OpenCrashingStore) -> AsyncIterator[SessionStore]:
    """A store that crashes at its first call, then one that crashes at its second, and so on, until none does."""
    for call in range(1, MOST_CALLS):
        for is_reply_lost in (False, True):
            faults = Faults()
            async with _opened(open_crashing_store, faults) as crashing:
                faults.crash_at(call, is_reply_lost=is_reply_lost)
                yield crashing
        if faults.calls < call:
            assert call > 1, "no call to an engine was counted: send each through Faults.around"
            return
    raise AssertionError(f"still not done after {MOST_CALLS} calls to the engines")


@asynccontextmanager
async def _opened(open_crashing_store: OpenCrashingStore, faults: Faults) -> AsyncIterator[SessionStore]:
    async with open_crashing_store(faults) as crashing:
        try:
            yield crashing
        finally:
            faults.disarm()


async def _a_session(store: SessionStore) -> Session:
    session = await store.create_session(
        ["AAPL", "MSFT"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1, tags=["tech"], title="Whole"
    )
    for n in range(3):
        await store.record_query(session.id, make_query(f"{n}"), context={f"{n}": [n]})
    return await existing(store, session.id)


async def _assert_found_once(store: SessionStore, expected: Session) -> Session:
    found = await existing(store, expected.id)
    assert content(found) == content(expected)
    assert found.version >= expected.version
    [listed] = [summary for summary in await listing(store) if summary.id == expected.id]
    assert (listed.is_archived, listed.is_expired) == (found.is_archived, found.is_expired)
    return found


async def _assert_can_go_on(store: SessionStore, session: Session) -> None:
    """Resume, write, archive and delete work as if nothing had happened."""
    await store.resume_session(session.id)
    await store.record_query(session.id, make_query("after"))
    assert await store.archive_session(session.id)
    found = await existing(store, session.id)
    assert found.state.history.queries[:-1] == session.state.history.queries
    assert found.state.history.queries[-1].query_type == "after"
    assert await store.delete_session(session.id)
    await _assert_gone(store, session)


async def _assert_gone(store: SessionStore, session: Session) -> None:
    assert await store.get_session(session.id) is None
    assert session.id not in [summary.id for summary in await listing(store)]
    assert not await store.delete_session(session.id)
    with pytest.raises(SessionNotFound):
        await store.resume_session(session.id)
