"""Many callers at once: acknowledged writes are kept, exactly once, and a deletion wins."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack
from copy import deepcopy
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from fiml.core.errors import (
    SessionArchived,
    SessionConflict,
    SessionExpired,
    SessionFull,
    SessionNotFound,
)
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, OpenStore, Suite, content, existing, listing
from fiml.testing.samples import make_query

ROUNDS = 15
ENDED = (SessionExpired, SessionArchived)


class RacesSuite(Suite):
    """Every race runs over two stores on the same data, as two processes would."""

    @pytest_asyncio.fixture
    async def stores(self, open_store: OpenStore, clock: FrozenClock) -> AsyncIterator[list[SessionStore]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(open_store()) for _ in range(2)]

    @pytest.mark.parametrize(("writers", "each"), [(100, 1), (10, 10)])
    async def test_every_recorded_query_is_kept_once_and_in_order(
        self, stores: list[SessionStore], writers: int, each: int
    ) -> None:
        session = await stores[0].create_session(["AAPL"], SessionType.EQUITY)

        async def record(writer: int) -> None:
            for n in range(each):
                await stores[writer % 2].record_query(session.id, make_query(f"{writer}", parameters={"n": n}))

        await asyncio.gather(*map(record, range(writers)))

        history = (await existing(stores[0], session.id)).state.history
        assert history.total_queries == len(history.queries) == writers * each
        assert history.get_query_types_summary() == {f"{writer}": each for writer in range(writers)}
        for writer in range(writers):
            written = [query.parameters["n"] for query in history.queries if query.query_type == f"{writer}"]
            assert written == list(range(each))

    async def test_every_updated_object_is_kept(self, stores: list[SessionStore]) -> None:
        session = await stores[0].create_session(["AAPL"], SessionType.EQUITY)
        objects = [await existing(stores[0], session.id) for _ in range(40)]

        async def update(n: int) -> None:
            objects[n].add_query(make_query(f"{n}"))
            objects[n].state.context[f"{n}"] = n
            objects[n].tags.append(f"{n}")
            await stores[n % 2].update_session(session.id, objects[n])

        await asyncio.gather(*map(update, range(40)))

        merged = await existing(stores[1], session.id)
        expected = {f"{n}" for n in range(40)}
        assert Counter(query.query_type for query in merged.state.history.queries) == Counter(expected)
        assert merged.state.context.keys() == set(merged.tags) == expected
        assert merged.version == session.version + 40

    async def test_a_query_repeated_in_a_storm_is_kept_once(self, stores: list[SessionStore]) -> None:
        session = await stores[0].create_session(["AAPL"], SessionType.EQUITY)
        query = make_query()

        await asyncio.gather(*(stores[n % 2].record_query(session.id, query) for n in range(30)))

        assert (await existing(stores[0], session.id)).state.history.queries == [query]

    async def test_one_of_many_with_the_same_expected_version_writes(self, stores: list[SessionStore]) -> None:
        session = await stores[0].create_session(["AAPL"], SessionType.EQUITY)
        objects = [await existing(stores[0], session.id) for _ in range(20)]
        for n, each in enumerate(objects):
            each.state.context["winner"] = n

        outcomes = await _all(
            stores[n % 2].update_session(session.id, each, expected_version=session.version)
            for n, each in enumerate(objects)
        )

        [winner] = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Session)]
        assert sum(isinstance(outcome, SessionConflict) for outcome in outcomes) == 19
        assert (await existing(stores[0], session.id)).state.context == {"winner": winner}

    async def test_a_session_is_filled_exactly(self, open_store: OpenStore) -> None:
        async with open_store(session_max_queries_per_session=25) as store:
            session = await store.create_session(["AAPL"], SessionType.EQUITY)

            outcomes = await _all(store.record_query(session.id, make_query()) for _ in range(40))

            assert sum(isinstance(outcome, SessionFull) for outcome in outcomes) == 15
            history = (await existing(store, session.id)).state.history
            assert history.total_queries == len(history.queries) == 25

    async def test_extensions_add_up(self, stores: list[SessionStore]) -> None:
        session = await stores[0].create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)

        await asyncio.gather(*(stores[n % 2].extend_session(session.id, 2) for n in range(20)))

        assert (await existing(stores[0], session.id)).expires_at == session.expires_at + timedelta(hours=40)

    async def test_two_sweepers_move_each_session_once(self, stores: list[SessionStore], clock: FrozenClock) -> None:
        ids = [await _session(stores[0]) for _ in range(250)]
        alive = await _session(stores[0], ttl_hours=5)
        clock.advance(hours=1)

        moved = await asyncio.gather(*(store.cleanup_expired_sessions() for store in stores))

        assert sum(moved) == len(ids)
        found = await listing(stores[0])
        assert Counter(summary.id for summary in found) == Counter([*ids, alive])
        assert {summary.id for summary in found if not summary.is_archived} == {alive}

    async def test_one_of_many_archives_a_session(self, stores: list[SessionStore]) -> None:
        for _ in range(ROUNDS):
            session_id = await _session(stores[0])

            outcomes = await asyncio.gather(*(stores[n % 2].archive_session(session_id) for n in range(6)))

            assert sorted(outcomes) == [False] * 5 + [True]
            await _assert_found_once(stores, session_id, is_archived=True)
            await stores[0].delete_session(session_id)

    async def test_all_resumes_find_the_same_session(self, stores: list[SessionStore]) -> None:
        for _ in range(ROUNDS):
            session_id = await _session(stores[0])
            before = await existing(stores[0], session_id)
            await stores[0].archive_session(session_id)

            resumed = await asyncio.gather(*(stores[n % 2].resume_session(session_id) for n in range(6)))

            assert {session.version for session in resumed} == {before.version + 1}
            assert all(content(session) == content(before) for session in resumed)
            await _assert_found_once(stores, session_id, is_archived=False)
            await stores[0].delete_session(session_id)

    async def test_no_acknowledged_write_is_lost_to_an_archiving(self, stores: list[SessionStore]) -> None:
        for _ in range(ROUNDS):
            session_id = await _session(stores[0])
            writer = _Writer(stores, await existing(stores[0], session_id))

            await asyncio.gather(
                *(writer.record(n) for n in range(4)),
                *(writer.update(n) for n in range(4)),
                writer.extend(),
                writer.archive(),
            )

            writer.check(await existing(stores[0], session_id))
            await _assert_found_once(stores, session_id, is_archived=True)
            await stores[0].delete_session(session_id)

    @pytest.mark.parametrize("writers", [1, 5])
    async def test_a_session_is_archived_although_others_write_to_it_without_a_pause(
        self, stores: list[SessionStore], writers: int
    ) -> None:
        for _ in range(3):
            session_id = await _session(stores[0])
            writer = _Writer(stores, await existing(stores[0], session_id))

            async with asyncio.TaskGroup() as group:
                for n in range(writers):
                    group.create_task(writer.record_until_refused(n))
                await writer.record(0)
                assert await stores[1].archive_session(session_id)

            writer.check(await existing(stores[0], session_id))
            await _assert_found_once(stores, session_id, is_archived=True)

    async def test_no_acknowledged_write_is_lost_between_the_tiers(
        self, stores: list[SessionStore], clock: FrozenClock
    ) -> None:
        """The writer resumes the session whenever it has ended, while a sweeper and an archiver try to end it."""
        session_id = await _session(stores[0])
        written = [query.id for query in (await existing(stores[0], session_id)).state.history.queries]

        async def write(store: SessionStore) -> None:
            for _ in range(ROUNDS):
                query = make_query()
                while query.id not in written:
                    try:
                        await store.record_query(session_id, query)
                        written.append(query.id)
                    except ENDED:
                        await store.resume_session(session_id, hours=1)

        async def end(store: SessionStore, writing: asyncio.Task[None]) -> None:
            while not writing.done():
                clock.advance(minutes=20)
                await store.cleanup_expired_sessions()
                await store.archive_session(session_id)

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write(stores[0]))
            group.create_task(end(stores[1], writing))

        history = (await existing(stores[0], session_id)).state.history
        assert [query.id for query in history.queries] == written
        assert len(await listing(stores[0])) == 1

    async def test_a_resume_against_a_sweeper_wins(self, stores: list[SessionStore], clock: FrozenClock) -> None:
        ids = [await _session(stores[0]) for _ in range(ROUNDS)]
        clock.advance(hours=1)

        resumed, _, _ = await asyncio.gather(
            asyncio.gather(*(stores[0].resume_session(session_id) for session_id in ids)),
            stores[0].cleanup_expired_sessions(),
            stores[1].cleanup_expired_sessions(),
        )

        for session in resumed:
            await _assert_found_once(stores, session.id, is_archived=False)
            await stores[0].record_query(session.id, make_query())
        assert await stores[0].cleanup_expired_sessions() == 0
        assert all(not summary.is_archived for summary in await listing(stores[0]))

    @pytest.mark.parametrize("begins_archived", [False, True])
    async def test_a_delete_wins(self, stores: list[SessionStore], begins_archived: bool) -> None:  # noqa: FBT001
        first, second = stores
        for _ in range(ROUNDS):
            session_id = await _session(first)
            stale = await existing(first, session_id)
            stale.state.context["late"] = True
            if begins_archived:
                await first.archive_session(session_id)

            deleted, *_ = await _all(
                [
                    first.delete_session(session_id),
                    second.archive_session(session_id),
                    second.resume_session(session_id),
                    second.record_query(session_id, make_query()),
                    second.update_session(session_id, stale),
                    second.cleanup_expired_sessions(),
                    first.resume_session(session_id),
                ]
            )

            assert deleted is True
            for store in stores:
                assert await store.get_session(session_id) is None
                assert await listing(store) == []
                with pytest.raises(SessionNotFound):
                    await store.resume_session(session_id)

    async def test_a_deleted_session_was_deleted_by_somebody(self, stores: list[SessionStore]) -> None:
        for _ in range(ROUNDS):
            session_id = await _session(stores[0])

            outcomes = await asyncio.gather(*(stores[n % 2].delete_session(session_id) for n in range(4)))

            assert any(outcomes)
            assert await stores[0].get_session(session_id) is None

    @pytest.mark.parametrize("begins_archived", [False, True])
    async def test_a_session_on_the_move_is_always_found(
        self,
        stores: list[SessionStore],
        begins_archived: bool,  # noqa: FBT001  a case of the test
    ) -> None:
        for _ in range(ROUNDS):
            session_id = await _session(stores[0])
            if begins_archived:
                await stores[0].archive_session(session_id)
            move = stores[0].resume_session if begins_archived else stores[0].archive_session

            found, _ = await asyncio.gather(
                asyncio.gather(*(existing(stores[1], session_id) for _ in range(8))), move(session_id)
            )

            assert [len(session.state.history.queries) for session in found] == [2] * 8
            await stores[0].delete_session(session_id)

    async def test_creations_do_not_meet(self, stores: list[SessionStore]) -> None:
        ids = await asyncio.gather(*(_session(stores[n % 2]) for n in range(50)))

        assert {summary.id for summary in await listing(stores[0], limit=7)} == set(ids)


class _Writer:
    """Writes to one session, and remembers what was acknowledged."""

    def __init__(self, stores: list[SessionStore], session: Session) -> None:
        self._stores = stores
        self._session = session
        self._queries: set[UUID] = set()
        self._refused: set[UUID] = set()
        self._context: set[str] = set()
        self._hours = 0

    async def record(self, n: int) -> None:
        query = make_query()
        await self._try(self._stores[n % 2].record_query(self._session.id, query), query)

    async def record_until_refused(self, n: int) -> None:
        while not self._refused:
            await self.record(n)

    async def update(self, n: int) -> None:
        session = deepcopy(self._session)
        query = make_query()
        session.add_query(query)
        session.state.context[f"{n}"] = n
        if await self._try(self._stores[n % 2].update_session(session.id, session), query):
            self._context.add(f"{n}")

    async def extend(self) -> None:
        try:
            await self._stores[0].extend_session(self._session.id, 3)
            self._hours += 3
        except ENDED:
            pass

    async def archive(self) -> None:
        """Archive the session after a few turns of the event loop, which differ from round to round."""
        for _ in range(self._session.id.int % 7):
            await asyncio.sleep(0)
        assert await self._stores[1].archive_session(self._session.id)

    def check(self, session: Session) -> None:
        found = [query.id for query in session.state.history.queries]
        before = {query.id for query in self._session.state.history.queries}
        assert Counter(found) == Counter(before | self._queries)
        assert not self._refused & set(found)
        assert session.state.context.keys() == self._session.state.context.keys() | self._context
        assert session.expires_at == self._session.expires_at + timedelta(hours=self._hours)

    async def _try(self, call: Awaitable[Any], query: QueryRecord) -> bool:
        try:
            await call
        except ENDED:
            self._refused.add(query.id)
            return False
        self._queries.add(query.id)
        return True


async def _session(store: SessionStore, *, ttl_hours: int = 1) -> UUID:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=ttl_hours)
    for _ in range(2):
        await store.record_query(session.id, make_query(), context={"kept": True})
    return session.id


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Run the calls at once; what each returned or raised."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def _assert_found_once(stores: list[SessionStore], session_id: UUID, *, is_archived: bool) -> None:
    for store in stores:
        session = await existing(store, session_id)
        assert session.is_archived == is_archived
        listed = [summary for summary in await listing(store) if summary.id == session_id]
        assert [summary.is_archived for summary in listed] == [is_archived]
