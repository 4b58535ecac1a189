"""The tools about sessions, and how every tool refuses a session that can't take the call."""

from typing import Any
from uuid import uuid4

import pytest

from fiml.core.config import Settings
from fiml.testing import FrozenClock
from tests.support.mcp_client import door

SEARCHES = ("search-by-symbol", "search-by-coin")
NAMED_SESSION = ("get-session-info", "extend-session", *SEARCHES)


def arguments_of(tool: str, session_id: str) -> dict[str, Any]:
    """What a tool that takes a session is called with."""
    symbol = {"search-by-symbol": {"symbol": "AAPL"}, "search-by-coin": {"symbol": "BTC"}}.get(tool, {})
    return {"sessionId": session_id} | symbol


@pytest.mark.parametrize("tool", NAMED_SESSION)
async def test_an_unknown_session_is_refused_with_the_way_out(sqlite_settings: Settings, tool: str) -> None:
    async with door(sqlite_settings) as caller:
        refusal = await caller.refusal(tool, **arguments_of(tool, str(uuid4())))

    assert refusal["code"] == "session_not_found"
    assert "list-sessions" in refusal["next_step"]
    assert "create-analysis-session" in refusal["next_step"]


async def test_the_way_out_from_an_unknown_session_finds_one_that_has_ended(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create()
        await caller.answer("close-session", sessionId=session_id)

        refusal = await caller.refusal("get-session-info", sessionId=str(uuid4()))

        found = await caller.answer("list-sessions", includeArchived=True)
    assert "list-sessions with includeArchived" in refusal["next_step"]
    assert [each["session_id"] for each in found["sessions"]] == [session_id]


@pytest.mark.parametrize("tool", ["extend-session", *SEARCHES])
async def test_an_expired_session_is_refused_with_the_way_out(
    sqlite_settings: Settings, clock: FrozenClock, tool: str
) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create(ttlHours=1)
        clock.advance(hours=1)

        refusal = await caller.refusal(tool, **arguments_of(tool, session_id))

        info = await caller.answer("get-session-info", sessionId=session_id)
    assert refusal["code"] == "session_expired"
    assert "create-analysis-session" in refusal["next_step"]
    assert "resume" in refusal["next_step"]
    assert (info["is_expired"], info["is_archived"], info["total_queries"]) == (True, False, 0)


@pytest.mark.parametrize("tool", ["extend-session", *SEARCHES])
async def test_an_archived_session_is_refused_with_the_way_out(sqlite_settings: Settings, tool: str) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create()
        await (await caller.runtime.store()).archive_session(session_id)

        refusal = await caller.refusal(tool, **arguments_of(tool, session_id))

        info = await caller.answer("get-session-info", sessionId=session_id)
    assert refusal["code"] == "session_archived"
    assert "create-analysis-session" in refusal["next_step"]
    assert "resume" in refusal["next_step"]
    assert (info["is_archived"], info["total_queries"]) == (True, 0)


async def test_a_session_without_a_time_to_live_has_the_default_one(
    sqlite_settings: Settings, clock: FrozenClock
) -> None:
    async with door(sqlite_settings) as caller:
        created = await caller.answer("create-analysis-session", assets=["AAPL"], sessionType="equity")

    assert created["ttl_hours"] == 24
    assert created["expires_at"] == "2024-12-24T15:30:00Z"


async def test_an_extension_is_cut_at_the_maximum_from_now(sqlite_settings: Settings, clock: FrozenClock) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create(ttlHours=24)

        extended = await caller.answer("extend-session", sessionId=session_id, hours=168)

    assert extended["expires_at"] == "2024-12-30T15:30:00Z"
    assert extended["time_remaining_hours"] == 168


async def test_pages_of_a_listing_are_complete_and_newest_first(sqlite_settings: Settings, clock: FrozenClock) -> None:
    async with door(sqlite_settings) as caller:
        created = []
        for number in range(5):
            created.append(await caller.create("AAPL", title=f"Analysis {number}"))
            clock.advance(minutes=1)

        found: list[str] = []
        cursor = None
        while not found or cursor is not None:
            page = await caller.answer("list-sessions", limit=2, cursor=cursor)
            found += [session["session_id"] for session in page["sessions"]]
            cursor = page["next_cursor"]

    assert found == created[::-1]


async def test_ended_sessions_are_listed_only_when_they_are_asked_for(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create(userId="analyst_001")
        await (await caller.runtime.store()).archive_session(session_id)

        live = await caller.answer("list-sessions", userId="analyst_001")
        every = await caller.answer("list-sessions", userId="analyst_001", includeArchived=True)

    assert live["sessions"] == []
    assert [(found["session_id"], found["is_archived"]) for found in every["sessions"]] == [(session_id, True)]


async def test_without_a_user_listing_and_analytics_cover_everybody(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        await caller.create("AAPL")
        await caller.create("AAPL", "MSFT", userId="analyst_001")

        page = await caller.answer("list-sessions")
        stats = await caller.answer("get-session-analytics")

    assert sorted(str(session["user_id"]) for session in page["sessions"]) == ["None", "analyst_001"]
    assert stats["total_sessions"] == 2
    assert stats["top_assets"] == [{"symbol": "AAPL", "count": 2}, {"symbol": "MSFT", "count": 1}]


async def test_snake_case_arguments_are_taken_too(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        created = await caller.answer(
            "create-analysis-session", assets=["AAPL"], session_type="equity", user_id="analyst_001", ttl_hours=2
        )

        found = await caller.answer("search-by-symbol", symbol="AAPL", session_id=created["session_id"])

    assert (created["type"], created["user_id"], created["ttl_hours"]) == ("equity", "analyst_001", 2)
    assert (found["tracked"], found["total_queries"]) == (True, 1)


async def test_a_null_leaves_an_argument_out(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        created = await caller.answer(
            "create-analysis-session", assets=["AAPL"], sessionType="equity", ttlHours=None, tags=None, title=None
        )

        found = await caller.answer("search-by-symbol", symbol="AAPL", market=None, depth=None, requestId=None)
        coin = await caller.answer("search-by-coin", symbol="BTC", exchange=None, pair=None)
        extended = await caller.answer("extend-session", sessionId=created["session_id"], hours=None)
        page = await caller.answer("list-sessions", limit=None, includeArchived=None, cursor=None)

    assert (created["ttl_hours"], created["tags"]) == (24, [])
    assert (found["depth"], coin["quote"]["currency"], extended["status"]) == ("standard", "USD", "success")
    assert [session["session_id"] for session in page["sessions"]] == [created["session_id"]]
