"""What callers of the tools and commands see while PostgreSQL is down or hangs: typed errors; live sessions work."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from mcp.shared.exceptions import MCPError
from typer.testing import CliRunner

from fiml.access.principals import Scope
from fiml.access.tokens import open_tokens
from fiml.cli import app
from fiml.core.errors import Unavailable
from fiml.runtime import open_runtime
from fiml.sessions.maintenance import JOBS, do_due_jobs
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.faults import CALL_S, PASSWORD, Archive, hanging, stopped
from tests.support.http_server import HttpServer, http_server
from tests.support.mcp_client import Caller, door
from tests.support.proxy import redis_proxy
from tests.support.servers import PostgresProcess

UNKNOWN = str(UUID(int=1))
LIST_TOOLS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()

# Calls of tools on a session that isn't live, or that the archive answers.
REFUSED: dict[str, dict[str, Any]] = {
    "get-session-info": {"sessionId": UNKNOWN},
    "extend-session": {"sessionId": UNKNOWN, "hours": 1},
    "get-session-analytics": {},
    "get-session-context": {"sessionId": UNKNOWN},
    "update-session-context": {"sessionId": UNKNOWN, "note": "n"},
    "resume-session": {"sessionId": UNKNOWN},
    "close-session": {"sessionId": UNKNOWN},
    "share-session": {"sessionId": UNKNOWN, "withUser": "bob"},
}
COMMANDS = (
    ("sessions", "show", UNKNOWN),
    ("sessions", "resume", UNKNOWN),
    ("sessions", "archive", UNKNOWN),
    ("sessions", "delete", "--yes", UNKNOWN),
    ("sessions", "trail", UNKNOWN),
    ("sessions", "quarantine", "list"),
    ("analytics", "show"),
    ("token", "list"),
    ("db", "upgrade"),
)


async def test_each_tool_answers_or_refuses_with_a_code_and_the_next_step(archive: Archive) -> None:
    async with door(archive.settings) as caller:
        session_id = await caller.create("AAPL")
        async with stopped(archive), asyncio.timeout(CALL_S):
            refusals = {tool: await caller.refusal(tool, **given) for tool, given in REFUSED.items()}
            listed = await caller.answer("list-sessions", includeArchived=True)
            live_only = await caller.answer("list-sessions")
            found = await caller.answer("search-sessions", symbol="AAPL")
            tracked = await caller.answer("search-by-symbol", symbol="AAPL", depth="quick", sessionId=session_id)
            untracked = await caller.answer("search-by-symbol", symbol="AAPL", depth="quick", sessionId=UNKNOWN)
            await _expect_prompt_and_resource(caller, session_id)

    assert {tool: refusal["code"] for tool, refusal in refusals.items()} == dict.fromkeys(REFUSED, "unavailable")
    assert all(refusal["next_step"] for refusal in refusals.values())
    assert (listed["partial"], live_only["partial"], found["partial"]) == (True, False, True)
    assert [[each["session_id"] for each in answer["sessions"]] for answer in (listed, live_only, found)] == [
        [session_id]
    ] * 3
    assert found["searched"] == ["live"]
    assert (tracked["tracked"], untracked["tracked"]) == (True, False)
    assert "is unavailable" in untracked["reason"]


async def test_statistics_that_the_archive_says_nothing_about_are_refused_in_words(archive: Archive) -> None:
    async with door(archive.settings) as caller:
        await caller.create("AAPL")
        async with hanging(archive), asyncio.timeout(CALL_S):
            refusal = await caller.refusal("get-session-analytics")

    assert "the database of ended sessions is unavailable (no answer in time)" in refusal["message"]


async def _expect_prompt_and_resource(caller: Caller, session_id: str) -> None:
    """They show a live session, and say that another one is unavailable."""
    assert (await caller.client.read_resource(f"fiml://session/{session_id}")).contents
    assert (await caller.client.get_prompt("continue-analysis", {"sessionId": session_id})).messages
    with pytest.raises(MCPError, match="is unavailable"):
        await caller.client.read_resource(f"fiml://session/{UNKNOWN}")
    with pytest.raises(MCPError, match="is unavailable"):
        await caller.client.get_prompt("continue-analysis", {"sessionId": UNKNOWN})


async def test_a_server_whose_archive_says_nothing_is_degraded_and_serves_whom_it_knows(
    archive: Archive, tmp_path: Path
) -> None:
    known, unused = await _new_tokens(archive)
    variables = {
        "FIML_REDIS_URL": str(archive.settings.redis_url),
        "FIML_DATABASE_URL": str(archive.settings.database_url),
        "FIML_AUTH_TOKENS": "true",
    }
    async with http_server(tmp_path / "data", **variables) as server, server.caller(token=known) as caller:
        session_id = await caller.create("AAPL")
        async with hanging(archive), asyncio.timeout(CALL_S):
            degraded, healthy, tracked, refusal, not_known = await asyncio.gather(
                server.get("/ready"),
                server.get("/health"),
                caller.answer("search-by-symbol", symbol="AAPL", depth="quick", sessionId=session_id),
                caller.refusal("get-session-info", sessionId=UNKNOWN),
                _list_tools(server, unused),
            )
        ready, let_in = await server.get("/ready"), await _list_tools(server, unused)

    assert (degraded.status_code, degraded.json()) == (200, {"status": "degraded"})
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    assert (tracked["tracked"], refusal["code"]) == (True, "unavailable")
    # Neither let in nor refused: whether the token is in order can't be told.
    assert (not_known.status_code, not_known.json()) == (503, {"error": "temporarily_unavailable"})
    assert not_known.headers["retry-after"]
    assert (ready.status_code, ready.json(), let_in.status_code) == (200, {"status": "ok"}, 200)


async def _new_tokens(archive: Archive) -> list[str]:
    async with SessionStore(archive.settings):  # makes the schema
        tokens = open_tokens(archive.settings)
        made = [(await tokens.issue("ann", scopes=list(Scope), days=1))[0] for _ in range(2)]
        await tokens.aclose()
        return made


async def _list_tools(server: HttpServer, token: str) -> Any:
    return await server.post(LIST_TOOLS, authorization=f"Bearer {token}")


def test_commands_end_with_an_error_that_says_what_is_unavailable(
    postgres: PostgresProcess, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIML_REDIS_URL", deployment.redis_url)
    monkeypatch.setenv("FIML_DATABASE_URL", postgres.url.replace("postgres@", f"postgres:{PASSWORD}@"))
    postgres.stop()
    try:
        ended = {command: CliRunner().invoke(app, list(command)) for command in COMMANDS}
        doctor = CliRunner().invoke(app, ["doctor"])
    finally:
        postgres.start()

    for command, result in ended.items():
        assert isinstance(result.exception, Unavailable), command
        assert "is unavailable" in str(result.exception)
        assert PASSWORD not in f"{result.exception} {result.output}"
    assert doctor.exit_code == 1
    assert "PROBLEM PostgreSQL" in doctor.output
    assert PASSWORD not in doctor.output


async def test_jobs_that_fail_while_the_archive_is_away_are_done_at_the_next_look(
    archive: Archive, clock: FrozenClock
) -> None:
    async with SessionStore(archive.settings) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=1)
        clock.advance(hours=2)

        async with stopped(archive):
            assert await do_due_jobs(store, "a holder") == {}
        done = await do_due_jobs(store, "another holder")

        assert done.keys() == {job.name for job in JOBS}
        assert done["cleanup_expired_sessions"]["archived"] == 1
        found = await store.get_session(session.id)
        assert found is not None
        assert found.is_archived


async def test_a_sweep_goes_on_when_an_archive_that_said_nothing_speaks_again(
    archive: Archive, clock: FrozenClock
) -> None:
    async with SessionStore(archive.settings) as store:
        for _ in range(20):
            await store.create_session(["AAPL"], "equity", ttl_hours=1)
        clock.advance(hours=2)

        archive.proxy.hang(after_replies=10)
        sweep = asyncio.create_task(store.cleanup_expired_sessions())
        await archive.proxy.wait_until_felt()
        live = await store.create_session(["MSFT"], "equity")
        archive.proxy.pass_on()

        assert await sweep == 20
        assert [each.id for each in await store.list_user_sessions(None)] == [live.id]


async def test_callers_of_a_store_that_cannot_be_opened_wait_together(archive: Archive) -> None:
    async with (
        redis_proxy(str(archive.settings.redis_url)) as (redis, url),
        open_runtime(archive.settings.model_copy(update={"redis_url": url})) as runtime,
    ):
        redis.hang()
        async with asyncio.timeout(CALL_S + 3):
            outcomes = await asyncio.gather(*(runtime.store() for _ in range(10)), return_exceptions=True)
        redis.pass_on()

        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert await (await runtime.store()).list_user_sessions(None) == []
