"""Sharing through the MCP door, each caller with a token of its own. A call here that goes through is a break-in."""

from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fiml.core.clock import to_iso
from fiml.core.config import Settings
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.mcp.test_mcp_tokens import everything_on, guarded
from tests.support.issuer import Issuer
from tests.support.mcp_client import Caller, door

WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("update-session-context", {"note": "mine"}),
    ("extend-session", {"hours": 1}),
    ("resume-session", {}),
    ("close-session", {}),
    ("share-session", {"withUser": "eve"}),
    ("share-session", {}),
    ("share-session", {"withUser": "ann", "role": "none"}),
    ("share-session", {"revokeCode": "0"}),
)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


class Callers:
    """Clients of one server, by user."""

    def __init__(self, stack: AsyncExitStack, server: Any, issuer: Issuer) -> None:
        self._stack, self._server, self._issuer = stack, server, issuer

    async def get(self, user: str) -> Caller:
        caller: Caller = await self._stack.enter_async_context(self._server.caller(token=self._issuer.token(user)))
        return caller


async def test_a_viewer_reads_an_editor_writes_and_nobody_else_learns_of_it(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server, AsyncExitStack() as stack:
        callers = Callers(stack, server, issuer)
        ann, bob, eve = [await callers.get(user) for user in ("ann", "bob", "eve")]
        session_id = await ann.create("AAPL", title="secret")
        await ann.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)

        shared = await ann.answer("share-session", sessionId=session_id, withUser="bob")
        info = await bob.answer("get-session-info", sessionId=session_id)
        listed = await bob.answer("list-sessions")
        found = await bob.answer("search-sessions", text="secret")
        refusals = [await bob.refusal(tool, sessionId=session_id, **more) for tool, more in WRITES]
        untracked = await bob.answer("get-session-context", sessionId=session_id)
        asked = await bob.refusal("search-by-symbol", symbol="AAPL", sessionId=session_id)
        assert await everything_on(eve, session_id) == await everything_on(eve, str(uuid4()))

        await ann.answer("share-session", sessionId=session_id, withUser="bob", role="editor")
        tracked = await bob.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)
        noted = await bob.answer("update-session-context", sessionId=session_id, note="dear")
        not_owner = await bob.refusal("share-session", sessionId=session_id, withUser="eve")

        gone = await ann.answer("share-session", sessionId=session_id, withUser="bob", role="none")
        assert await everything_on(bob, session_id) == await everything_on(bob, str(uuid4()))

    assert shared["shares"] == [{"user_id": "bob", "role": "viewer"}]
    assert info["user_id"] == "ann"
    assert [each["session_id"] for each in listed["sessions"] + found["sessions"]] == [session_id] * 2
    assert {refusal["code"] for refusal in [*refusals, asked, not_owner]} == {"not_permitted"}
    assert untracked["total_queries"] == 1
    assert (tracked["tracked"], tracked["total_queries"]) == (True, 2)
    assert noted["written"]
    assert gone["shares"] == []


async def test_a_code_is_redeemed_by_one_caller_once(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server, AsyncExitStack() as stack:
        callers = Callers(stack, server, issuer)
        ann, bob, eve = [await callers.get(user) for user in ("ann", "bob", "eve")]
        session_id = await ann.create("AAPL")
        await ann.answer("close-session", sessionId=session_id)
        made = await ann.answer("share-session", sessionId=session_id, role="editor", codeHours=1)
        to_revoke = await ann.answer("share-session", sessionId=session_id)
        ids = {code["id"] for code in to_revoke["open_codes"]} - {code["id"] for code in made["open_codes"]}
        revoked = await ann.answer("share-session", sessionId=session_id, revokeCode=ids.pop())

        taken = await bob.answer("share-session", sessionId=session_id, redeemCode=made["share_code"])
        resumed = await bob.answer("resume-session", sessionId=session_id)
        refusals = [
            await eve.refusal("share-session", sessionId=session_id, redeemCode=code)
            for code in (made["share_code"], to_revoke["share_code"], "share_wrong")
        ]
        given_up = await bob.answer("share-session", sessionId=session_id, withUser="bob", role="none")

    assert taken["your_role"] == "editor"
    assert resumed["session_id"] == session_id
    assert {refusal["code"] for refusal in refusals} == {"session_not_found"}
    assert revoked["open_codes"] == made["open_codes"]
    assert given_up == {**given_up, "your_role": "none", "shares": [], "open_codes": []}


BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"withUser": "bob", "redeemCode": "share_x"}, "one thing at a time"),
    ({"role": "none"}, "no user is named"),
    ({"withUser": "bob", "role": "boss"}, "role"),
    ({"withUser": ""}, "withUser is empty"),
    ({"withUser": "ann"}, "withUser 'ann' owns the session"),
    ({"codeHours": 0}, "codeHours is 0"),
    ({"codeHours": True}, "codeHours"),
    ({"revokeCode": "0"}, "not the id of an open code"),
    ({"redeemCode": "x" * 101}, "redeemCode"),
    ({"redeemCode": "share_nonsense"}, "redeemCode is not an open code"),
]


async def test_bad_input_is_refused_and_shares_nothing(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server, server.caller(token=issuer.token("ann")) as ann:
        session_id = await ann.create("AAPL")
        for arguments, says in BAD_INPUT:
            refusal = await ann.refusal("share-session", sessionId=session_id, **arguments)
            assert refusal["code"] == "invalid_input", arguments
            assert says in refusal["message"], arguments
        state = await ann.answer("share-session", sessionId=session_id, withUser="eve")

    assert state["shares"] == [{"user_id": "eve", "role": "viewer"}]
    assert state["open_codes"] == []


async def test_an_owner_who_redeems_an_open_code_stays_the_owner(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await caller.create()
        made = await caller.answer("share-session", sessionId=session_id)
        redeemed = await caller.answer("share-session", sessionId=session_id, redeemCode=made["share_code"])

    assert (redeemed["your_role"], redeemed["open_codes"]) == ("owner", made["open_codes"])


async def test_the_trail_names_who_called_also_an_admin(tmp_path: Path, issuer: Issuer) -> None:
    folder = tmp_path / "data"
    async with guarded(folder, issuer) as server:
        async with server.caller(token=issuer.token("ann")) as ann:
            session_id = await ann.create("AAPL")
            await ann.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)
        async with server.caller(token=issuer.token("root", scope="admin")) as admin:
            await admin.answer("close-session", sessionId=session_id)
    async with SessionStore(Settings(data_dir=folder)) as store:
        trail = await store.get_audit_trail(session_id)

    assert [(each.by, each.did) for each in trail] == [("ann", "create"), ("ann", "record"), ("root", "archive")]


@pytest.mark.parametrize(("max_hours", "hours"), [(5, 5), (168, 24)])
async def test_hours_that_are_left_out_are_within_the_maximum(
    sqlite_settings: Settings, clock: FrozenClock, max_hours: int, hours: int
) -> None:
    settings = sqlite_settings.model_copy(update={"session_default_ttl_hours": 1, "session_max_ttl_hours": max_hours})
    async with door(settings) as caller:
        schemas = {tool.name: tool.input_schema["properties"] for tool in (await caller.client.list_tools()).tools}
        session_id = await caller.create()
        extended = await caller.answer("extend-session", sessionId=session_id)
        shared = await caller.answer("share-session", sessionId=session_id)
        code = await (await caller.runtime.store()).create_share_code(session_id)

    until = clock.now() + timedelta(hours=hours)
    assert schemas["extend-session"]["hours"]["default"] == hours
    assert schemas["share-session"]["codeHours"]["default"] == hours
    assert extended["time_remaining_hours"] == min(hours + 1, max_hours)
    assert [each["expires_at"] for each in shared["open_codes"]] == [to_iso(until)]
    assert code.expires_at == until
