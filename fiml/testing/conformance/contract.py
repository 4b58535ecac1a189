"""What each verb promises about a session that exists."""

from datetime import timedelta
from typing import Any

import pytest

from fiml.core.errors import (
    InvalidSessionId,
    SessionConflict,
    SessionExpired,
    SessionFull,
)
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, OpenStore, Suite, content, document, existing, listing
from fiml.testing.samples import make_query, make_session

MALFORMED_IDS = [
    "",
    "x",
    "550e8400",
    "550e8400-e29b-41d4-a716-44665544000g",
    "*",
    "../etc",
    "1" * 37,
    5,
    None,
    b"x" * 16,
]


class ContractSuite(Suite):
    """Create, read, write, extend, resume and archive, one caller at a time."""

    async def test_a_created_session_has_what_it_was_given(self, store: SessionStore, clock: FrozenClock) -> None:
        session = await store.create_session(
            assets=["AAPL", "GOOGL"],
            session_type=SessionType.EQUITY,
            user_id=OWNER,
            ttl_hours=5,
            tags=["tech", "analysis"],
            title="Two of a kind",
        )

        assert (session.assets, session.tags) == (["AAPL", "GOOGL"], ["tech", "analysis"])
        assert (session.type, session.user_id, session.title) == (SessionType.EQUITY, OWNER, "Two of a kind")
        assert session.created_at == session.last_accessed_at == clock.now()
        assert session.expires_at == clock.now() + timedelta(hours=5)
        assert session.id.version == 4
        assert not session.is_archived

    async def test_a_session_needs_only_assets_and_a_type(self, store: SessionStore) -> None:
        session = await store.create_session(["BTC"], "crypto")

        assert (session.user_id, session.title, session.tags) == (None, None, [])
        assert session.type is SessionType.CRYPTO
        assert session.time_remaining == timedelta(hours=store.settings.session_default_ttl_hours)

    async def test_a_created_session_is_read_equal(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.MACRO, user_id=OWNER, tags=["a"], title="T")

        assert document(await existing(store, session.id)) == document(session)

    async def test_an_id_may_be_text(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)

        found = await store.get_session(str(session.id).upper())

        assert found is not None
        assert found.id == session.id

    @pytest.mark.parametrize(
        "verb",
        [
            "get_session",
            "update_session",
            "record_query",
            "extend_session",
            "resume_session",
            "archive_session",
            "delete_session",
        ],
    )
    async def test_a_malformed_id_is_refused(self, store: SessionStore, verb: str) -> None:
        more: dict[str, list[Any]] = {
            "update_session": [make_session()],
            "record_query": [make_query()],
            "extend_session": [1],
        }

        for malformed in MALFORMED_IDS:
            with pytest.raises(InvalidSessionId):
                await getattr(store, verb)(malformed, *more.get(verb, []))

    async def test_reading_moves_the_last_access_and_no_version(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        clock.advance(minutes=7)

        first = await existing(store, created.id)

        clock.advance(microseconds=1)
        second = await existing(store, created.id)
        assert first.last_accessed_at == created.created_at + timedelta(minutes=7)
        assert second.last_accessed_at == clock.now()
        assert second.version == first.version == created.version

    async def test_extending_and_resuming_are_accesses_too(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        clock.advance(minutes=7)

        extended = await store.extend_session(created.id, 1)

        assert extended.last_accessed_at == clock.now()
        clock.advance(minutes=7)
        assert (await store.resume_session(created.id)).last_accessed_at == clock.now()

    async def test_the_last_access_never_moves_back(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        clock.set(created.created_at - timedelta(minutes=5))

        await store.record_query(created.id, make_query())
        extended = await store.extend_session(created.id, 1)
        resumed = await store.resume_session(created.id)

        assert extended.last_accessed_at == resumed.last_accessed_at == created.created_at
        assert (await existing(store, created.id)).last_accessed_at == created.created_at
        await store.archive_session(created.id)
        assert (await store.resume_session(created.id)).last_accessed_at == created.created_at

    async def test_a_read_may_take_only_the_last_queries(self, store: SessionStore) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        queries = [make_query(f"type-{n % 2}", cache_hit=n % 2 == 0) for n in range(6)]
        for query in queries:
            await store.record_query(created.id, query)

        for n in (0, 1, 4, 6, 9):
            session = await store.get_session(created.id, recent_queries=n)
            assert session is not None
            history = session.state.history
            assert history.queries == queries[len(queries) - min(n, 6) :]
            assert (history.total_queries, history.cache_hit_rate) == (6, 0.5)
            assert history.get_query_types_summary() == {"type-0": 3, "type-1": 3}

    async def test_a_session_read_in_part_can_be_written(self, store: SessionStore) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        queries = [make_query() for _ in range(4)]
        for query in queries:
            await store.record_query(created.id, query)
        session = await store.get_session(created.id, recent_queries=1)
        assert session is not None
        added = make_query("technical")

        session.add_query(added)
        await store.update_session(session.id, session)

        assert session.state.history.total_queries == 5
        assert (await existing(store, created.id)).state.history.queries == [*queries, added]

    async def test_a_recorded_query_comes_back_as_it_was(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        query = make_query(
            "price",
            parameters={"symbol": "AAPL", "nested": [{"a": None}]},
            result_summary="AAPL: $175.43 (+2.3 %)",
            execution_time_ms=142.5,
            cache_hit=True,
            timestamp=clock.now() - timedelta(seconds=1, microseconds=3),
        )

        totals = await store.record_query(created.id, query)

        history = (await existing(store, created.id)).state.history
        assert history.queries == [query]
        assert (totals.total_queries, totals.cache_hit_rate, totals.query_types) == (1, 1.0, {"price": 1})
        assert totals.first_query_at == totals.last_query_at == query.timestamp
        assert history.totals == totals

    async def test_recording_a_query_again_appends_nothing(self, store: SessionStore) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        query = make_query()
        await store.record_query(created.id, query)

        totals = await store.record_query(created.id, query)
        await store.record_query(created.id, query, context={"set": "nevertheless"})

        session = await existing(store, created.id)
        assert totals.total_queries == 1
        assert session.state.context == {"set": "nevertheless"}
        session.add_query(query)
        await store.update_session(created.id, session)
        assert (await existing(store, created.id)).state.history.queries == [query]

    async def test_a_query_is_recorded_together_with_its_entries(self, store: SessionStore) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)

        await store.record_query(
            created.id, make_query(), context={"last": "AAPL"}, intermediate_results={"pe": {"ratio": 28.5}}
        )

        state = (await existing(store, created.id)).state
        assert state.get_context("last") == "AAPL"
        assert state.get_intermediate_result("pe") == {"ratio": 28.5}

    async def test_a_full_session_takes_no_query_and_keeps_what_it_has(self, open_store: OpenStore) -> None:
        async with open_store(session_max_queries_per_session=3) as store:
            created = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
            queries = [make_query() for _ in range(3)]
            for query in queries:
                await store.record_query(created.id, query)
            session = await existing(store, created.id)
            session.add_query(make_query())
            session.state.update_context("written", "by half")

            with pytest.raises(SessionFull):
                await store.record_query(created.id, make_query(), context={"written": "by half"})
            with pytest.raises(SessionFull):
                await store.update_session(created.id, session)

            repeated = await store.record_query(created.id, queries[0])
            kept = await existing(store, created.id)
            assert repeated.total_queries == 3
            assert kept.state.history.queries == queries
            assert kept.state.context == {}

    async def test_a_full_session_still_takes_entries(self, open_store: OpenStore) -> None:
        async with open_store(session_max_queries_per_session=1) as store:
            session = await store.create_session(["AAPL"], SessionType.EQUITY)
            session.add_query(make_query())
            session.state.update_context("a", 1)
            await store.update_session(session.id, session)

            session.state.update_context("b", 2)
            merged = await store.update_session(session.id, session)

            assert merged.state.context == {"a": 1, "b": 2}

    async def test_extending_adds_hours_to_the_expiry(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=24)
        await store.record_query(created.id, make_query())
        clock.advance(hours=23)

        extended = await store.extend_session(created.id, hours=10)

        assert extended.expires_at == created.expires_at + timedelta(hours=10)
        assert document(await existing(store, created.id)) == document(extended)

    async def test_an_extension_is_cut_at_the_maximum_from_now(self, store: SessionStore, clock: FrozenClock) -> None:
        longest = store.settings.session_max_ttl_hours
        created = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=longest)
        clock.advance(minutes=90)

        extended = await store.extend_session(created.id, hours=longest)

        assert extended.expires_at == clock.now() + timedelta(hours=longest)

    async def test_an_extension_ends_no_session_earlier(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(
            ["AAPL"], SessionType.EQUITY, ttl_hours=store.settings.session_max_ttl_hours
        )
        clock.advance(minutes=-30)  # as told by another machine

        extended = await store.extend_session(created.id, hours=1)

        assert extended.expires_at == created.expires_at

    async def test_the_sweeper_leaves_an_extended_session(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        await store.extend_session(created.id, hours=5)
        clock.advance(hours=2)

        assert await store.cleanup_expired_sessions() == 0
        assert not (await existing(store, created.id)).is_archived

        clock.advance(hours=4)
        assert await store.cleanup_expired_sessions() == 1
        assert (await existing(store, created.id)).is_archived

    async def test_an_expiry_in_the_past_ends_the_session(self, store: SessionStore, clock: FrozenClock) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
        session.expires_at = clock.now() - timedelta(seconds=1)

        merged = await store.update_session(session.id, session)

        assert merged.is_expired
        with pytest.raises(SessionExpired):
            await store.record_query(session.id, make_query())
        assert await store.cleanup_expired_sessions() == 1
        assert [found.is_archived for found in await listing(store)] == [True]

    async def test_an_earlier_expiry_is_swept_when_it_comes(self, store: SessionStore, clock: FrozenClock) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=24)
        session.expires_at = clock.now() + timedelta(hours=2)
        await store.update_session(session.id, session)

        clock.advance(hours=1)
        assert await store.cleanup_expired_sessions() == 0

        clock.advance(hours=1)
        assert await store.cleanup_expired_sessions() == 1

    async def test_a_sweep_moves_each_expired_session_whole(self, store: SessionStore, clock: FrozenClock) -> None:
        sessions = []
        for n in range(30):
            session = await store.create_session([f"A{n}"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1 + n % 2 * 9)
            await store.record_query(session.id, make_query(), context={"n": n})
            sessions.append(await existing(store, session.id))
        clock.advance(hours=1)

        moved = await store.cleanup_expired_sessions()

        assert moved == 15
        assert await store.cleanup_expired_sessions() == 0
        for n, session in enumerate(sessions):
            found = await existing(store, session.id)
            assert found.is_archived == (n % 2 == 0)
            assert content(found) == content(session)

    async def test_a_resumed_session_expires_again(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        for _ in range(3):
            clock.advance(hours=2)
            assert await store.cleanup_expired_sessions() == 1

            resumed = await store.resume_session(created.id, hours=1)

            assert resumed.expires_at == clock.now() + timedelta(hours=1)
            await store.record_query(created.id, make_query())
        assert (await existing(store, created.id)).state.history.total_queries == 3
        assert len(await listing(store)) == 1

    async def test_resuming_takes_the_default_life(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.archive_session(created.id)

        resumed = await store.resume_session(created.id)

        assert resumed.expires_at == clock.now() + timedelta(hours=store.settings.session_default_ttl_hours)

    async def test_the_version_only_rises(self, store: SessionStore, clock: FrozenClock) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        versions = [session.version]

        async def look() -> None:
            versions.append((await existing(store, session.id)).version)

        await store.record_query(session.id, make_query())
        await look()
        await store.extend_session(session.id, 1)
        await look()
        for _ in range(3):
            await store.archive_session(session.id)
            archived = await existing(store, session.id)
            assert archived.version >= versions[-1]
            await store.resume_session(session.id, hours=1)
            await look()
        clock.advance(hours=1)
        await store.resume_session(session.id)
        await look()

        assert all(isinstance(version, int) for version in versions)
        assert versions == sorted(set(versions))

    async def test_a_version_that_does_not_fit_is_a_conflict(self, store: SessionStore) -> None:
        mine = await store.create_session(["AAPL"], SessionType.EQUITY)
        theirs = await existing(store, mine.id)
        theirs.state.update_context("whose", "theirs")
        await store.update_session(theirs.id, theirs)
        before = await existing(store, mine.id)
        mine.state.update_context("whose", "mine")
        mine.add_query(make_query())

        with pytest.raises(SessionConflict) as raised:
            await store.update_session(mine.id, mine, expected_version=mine.version)

        assert (raised.value.expected, raised.value.actual) == (mine.version, before.version)
        assert document(await existing(store, mine.id)) == document(before)

    async def test_after_a_conflict_reading_again_helps(self, store: SessionStore) -> None:
        mine = await store.create_session(["AAPL"], SessionType.EQUITY)
        await store.record_query(mine.id, make_query())
        with pytest.raises(SessionConflict):
            await store.update_session(mine.id, mine, expected_version=mine.version)

        again = await existing(store, mine.id)
        again.title = "Mine"
        merged = await store.update_session(again.id, again, expected_version=again.version)

        assert (merged.title, merged.state.history.total_queries) == ("Mine", 1)

    async def test_an_object_written_with_a_version_can_be_written_again(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)

        for n in range(3):
            session.state.update_context("n", n)
            merged = await store.update_session(session.id, session, expected_version=session.version)

        assert merged.version == session.version
        assert merged.state.context == {"n": 2}

    async def test_another_store_finds_what_one_wrote(self, open_store: OpenStore) -> None:
        async with open_store() as first, open_store() as second:
            live = await first.create_session(["AAPL"], SessionType.EQUITY)
            ended = await first.create_session(["MSFT"], SessionType.EQUITY)
            await first.archive_session(ended.id)

            assert document(await existing(second, live.id)) == document(await existing(first, live.id))
            assert document(await existing(second, ended.id)) == document(await existing(first, ended.id))
