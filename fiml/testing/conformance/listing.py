"""Listings: order, filters, and one cursor over both tiers."""

import asyncio
import random
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from fiml.core.errors import InvalidInput
from fiml.sessions.models import Session, SessionSummary, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, STRANGER, Suite, existing, listing
from fiml.testing.samples import make_query

MALFORMED_CURSORS = ["", "x", "0", "ä", "e30", "W10", "WzEsMl0", "=" * 8, "A" * 5000]


class ListingSuite(Suite):
    """Complete, in order and without duplicates, whatever happens between the pages."""

    async def test_a_summary_tells_what_the_session_does(self, store: SessionStore, clock: FrozenClock) -> None:
        created = await store.create_session(
            ["AAPL", "MSFT"], SessionType.COMPARATIVE, user_id=OWNER, tags=["a", "b"], title="T", ttl_hours=1
        )
        await store.record_query(created.id, make_query())
        session = await existing(store, created.id)

        assert await listing(store) == [_summary(session)]

        clock.advance(hours=1)
        assert await listing(store, include_archived=False) == [_summary(session, is_expired=True)]

        await store.cleanup_expired_sessions()
        assert await listing(store) == [_summary(session, is_expired=True, is_archived=True)]

    async def test_the_newest_come_first_over_both_tiers(self, store: SessionStore, clock: FrozenClock) -> None:
        ids = []
        for _ in range(12):
            ids.append((await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)).id)
            clock.advance(microseconds=1)
        for session_id in ids[::3]:
            await store.archive_session(session_id)

        assert [found.id for found in await listing(store, limit=5)] == ids[::-1]

    @pytest.mark.parametrize("limit", [1, 7, 20, 39, 40, 41])
    async def test_sessions_of_one_moment_come_by_id(self, store: SessionStore, limit: int) -> None:
        ids = await _create(store, 40)
        for session_id in ids[::2]:
            await store.archive_session(session_id)

        found = await listing(store, limit=limit)

        assert [summary.id for summary in found] == sorted(ids, key=str)

    async def test_the_archived_are_left_out_unless_asked_for(self, store: SessionStore) -> None:
        live, ended = await _create(store, 2)
        await store.archive_session(ended)

        page = await store.list_user_sessions(OWNER)

        assert [summary.id for summary in page] == [live]
        assert {summary.id for summary in await store.list_user_sessions(OWNER, include_archived=True)} == {live, ended}

    async def test_nothing_is_an_empty_page(self, store: SessionStore) -> None:
        await store.create_session(["AAPL"], SessionType.EQUITY, user_id=STRANGER)

        page = await store.list_user_sessions(OWNER, include_archived=True)

        assert page == []
        assert page.next_cursor is None

    async def test_the_last_page_has_no_cursor(self, store: SessionStore) -> None:
        await _create(store, 4)

        first = await store.list_user_sessions(OWNER, limit=2)
        second = await store.list_user_sessions(OWNER, limit=2, cursor=first.next_cursor)

        assert (len(first), len(second)) == (2, 2)
        assert first.next_cursor is not None
        assert second.next_cursor is None

    async def test_without_a_user_all_are_listed(self, store: SessionStore) -> None:
        for user in (OWNER, STRANGER, None):
            session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=user)
            await store.archive_session(session.id)
            await store.create_session(["AAPL"], SessionType.EQUITY, user_id=user)

        assert len(await listing(store, None, limit=1)) == 6
        assert len(await listing(store, STRANGER, limit=1)) == 2

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            ({"type": SessionType.EQUITY}, "ab"),
            ({"type": "crypto"}, "c"),
            ({"type": "macro"}, ""),
            ({"tag": "x"}, "ac"),
            ({"tag": "X"}, ""),
            ({"tag": "q\"uo'te %_\\"}, "b"),
            ({"asset": "AAPL"}, "ab"),
            ({"asset": "AAP"}, ""),
            ({"asset": "x"}, ""),
            ({"type": "equity", "tag": "x", "asset": "AAPL"}, "a"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("archived", ["", "ab", "abc"], ids=len)
    async def test_filters_hold_in_both_tiers(
        self, store: SessionStore, filters: dict[str, Any], names: str, archived: str
    ) -> None:
        sessions = {
            "a": await store.create_session(["AAPL"], "equity", user_id=OWNER, tags=["x"], title="a"),
            "b": await store.create_session(
                ["AAPL", "MSFT"], "equity", user_id=OWNER, tags=["y", "q\"uo'te %_\\"], title="b"
            ),
            "c": await store.create_session(["BTC"], "crypto", user_id=OWNER, tags=["z", "x"], title="c"),
        }
        for name in archived:
            await store.archive_session(sessions[name].id)

        found = await listing(store, **filters)

        assert {summary.title for summary in found} == set(names)

    async def test_a_filtered_page_is_as_full_as_any(self, store: SessionStore, clock: FrozenClock) -> None:
        rare = []
        for n in range(45):
            tags = ["rare"] if n % 9 == 0 else []
            session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, tags=tags)
            rare += [session.id] if tags else []
            clock.advance(seconds=n % 2)

        page = await store.list_user_sessions(OWNER, limit=3, tag="rare")

        assert len(page) == 3
        assert {summary.id for summary in await listing(store, limit=3, tag="rare")} == set(rare)

    async def test_changed_fields_are_filtered_as_they_are_now(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, tags=["old"])
        session.tags, session.assets, session.type = ["new"], ["MSFT"], SessionType.MACRO
        await store.update_session(session.id, session)

        for _ in range(2):
            assert await listing(store, tag="old") == []
            assert await listing(store, asset="AAPL") == []
            assert len(await listing(store, tag="new", asset="MSFT", type="macro")) == 1
            await store.archive_session(session.id)

    @pytest.mark.parametrize("cursor", MALFORMED_CURSORS)
    async def test_a_malformed_cursor_is_refused(self, store: SessionStore, cursor: str) -> None:
        with pytest.raises(InvalidInput, match="cursor"):
            await store.list_user_sessions(OWNER, cursor=cursor)

    @pytest.mark.parametrize("limit", [0, -1, 201, 1.5, "10", True, None])
    async def test_a_page_has_1_to_200_sessions(self, store: SessionStore, limit: Any) -> None:
        with pytest.raises(InvalidInput, match="limit"):
            await store.list_user_sessions(OWNER, limit=limit)

        assert await store.list_user_sessions(OWNER, limit=1) == await store.list_user_sessions(OWNER, limit=200) == []

    @pytest.mark.parametrize("seed", range(4))
    async def test_pages_are_complete_while_sessions_move_between_them(
        self, store: SessionStore, clock: FrozenClock, seed: int
    ) -> None:
        chance = random.Random(seed)  # noqa: S311  not for secrets
        kept = await _create(store, 15, clock) + await _create(store, 10)
        doomed = await _create(store, 5)
        seen: list[UUID] = []
        page = await store.list_user_sessions(OWNER, include_archived=True, limit=3)
        while True:
            seen += [summary.id for summary in page]
            if page.next_cursor is None:
                break
            for _ in range(4):
                await _churn(store, clock, chance, kept)
            if doomed:
                await store.delete_session(doomed.pop())
            page = await store.list_user_sessions(OWNER, include_archived=True, limit=3, cursor=page.next_cursor)

        assert len(seen) == len(set(seen))
        assert set(kept) <= set(seen)

    async def test_a_page_misses_nothing_that_moves_meanwhile(self, store: SessionStore) -> None:
        ids = await _create(store, 24)
        for session_id in ids[::2]:
            await store.archive_session(session_id)

        pages, _, _ = await asyncio.gather(
            asyncio.gather(*(listing(store) for _ in range(6))),
            asyncio.gather(*(store.resume_session(session_id) for session_id in ids[::2])),
            asyncio.gather(*(store.archive_session(session_id) for session_id in ids[1::2])),
        )

        for page in (*pages, await listing(store)):
            assert [summary.id for summary in page] == sorted(ids, key=str)


def _summary(session: Session, *, is_expired: bool = False, is_archived: bool = False) -> SessionSummary:
    return SessionSummary(
        id=session.id,
        user_id=session.user_id,
        type=session.type,
        title=session.title,
        assets=session.assets,
        tags=session.tags,
        created_at=session.created_at,
        expires_at=session.expires_at,
        last_accessed_at=session.last_accessed_at,
        total_queries=session.state.history.total_queries,
        is_expired=is_expired,
        is_archived=is_archived,
    )


async def _create(store: SessionStore, count: int, clock: FrozenClock | None = None) -> list[UUID]:
    """Sessions created at the same moment; at different moments if a clock is given."""
    ids = []
    for n in range(count):
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1 + n % 5)
        ids.append(session.id)
        if clock is not None:
            clock.advance(seconds=1)
    return ids


async def _churn(store: SessionStore, clock: FrozenClock, chance: random.Random, ids: list[UUID]) -> None:
    """Do something to one of the sessions, and create a new one now and then."""
    session_id = chance.choice(ids)
    match chance.randrange(6):
        case 0:
            await store.archive_session(session_id)
        case 1:
            await store.resume_session(session_id, hours=1)
        case 2:
            await store.get_session(session_id)
        case 3:
            await store.create_session(["NEW"], SessionType.EQUITY, user_id=OWNER)
        case 4:
            clock.set(clock.now() + timedelta(minutes=20))
            await store.cleanup_expired_sessions()
        case _:
            session = await store.resume_session(session_id)
            session.title = "Moved"
            await store.update_session(session_id, session)
