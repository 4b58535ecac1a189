"""The server as clients start it: a process of its own, spoken to over its standard input and output."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any
from uuid import UUID

import pytest

from fiml.core.clock import using
from fiml.core.config import Settings
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.mcp_client import ERAS, ROOT, SERVE, TOOLS, environment, stdio_caller, wire

CREATED = {"status", "session_id", "user_id", "type", "title", "assets", "tags", "expires_at", "ttl_hours"}
INFO = {
    "status",
    "session_id",
    "user_id",
    "type",
    "title",
    "assets",
    "tags",
    "created_at",
    "expires_at",
    "last_accessed_at",
    "is_expired",
    "is_archived",
    "time_remaining_hours",
    "total_queries",
    "cache_hit_rate",
    "query_types",
    "recent_queries",
}
SUMMARY = {
    "session_id",
    "user_id",
    "type",
    "title",
    "assets",
    "tags",
    "created_at",
    "expires_at",
    "last_accessed_at",
    "total_queries",
    "is_expired",
    "is_archived",
}
STATISTICS = {
    "total_sessions",
    "total_queries",
    "avg_queries_per_session",
    "avg_duration_seconds",
    "abandonment_rate",
    "top_assets",
    "query_type_distribution",
}
# `fiml serve`, except that the sweeper doesn't wait before its first round.
SERVE_AND_SWEEP_AT_ONCE = """
import sys
import fiml.runtime
from fiml.cli import main
fiml.runtime.FIRST_LOOK_S = 0
sys.argv = ["fiml", "serve"]
main()
"""

# `fiml serve`, whose log can't be written.
SERVE_WITHOUT_LOG = """
import os, sys
{}
os.environ["FIML_LOG_LEVEL"] = "debug"
os.execv(sys.executable, [sys.executable, "-m", "fiml", "serve"])
"""

ENDED_S = 30

every_era = pytest.mark.parametrize("era", ERAS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@every_era
async def test_the_seven_tools_are_there(folder: Path, era: str) -> None:
    async with stdio_caller(folder, era=era) as caller:
        listed = await caller.client.list_tools()

    assert {tool.name for tool in listed.tools} == set(TOOLS)


@every_era
async def test_the_examples_of_the_specification_work_word_for_word(folder: Path, era: str) -> None:
    async with stdio_caller(folder, era=era) as caller:
        created = await caller.answer(
            "create-analysis-session",
            assets=["AAPL", "GOOGL"],
            sessionType="comparative",
            userId="analyst_001",
            ttlHours=24,
            tags=["tech", "comparison"],
        )
        session_id = created["session_id"]
        found = await caller.answer(
            "search-by-symbol", symbol="AAPL", market="US", depth="standard", sessionId=session_id
        )
        info = await caller.answer("get-session-info", sessionId=session_id)
        page = await caller.answer("list-sessions", userId="analyst_001", includeArchived=False, limit=50)
        extended = await caller.answer("extend-session", sessionId=session_id, hours=24)
        stats = await caller.answer("get-session-analytics", userId="analyst_001", sessionType="equity", days=30)

    assert created.keys() == CREATED
    assert created["status"] == "success"
    assert str(UUID(session_id)) == session_id
    assert created["type"] == "comparative"
    assert created["assets"] == ["AAPL", "GOOGL"]
    assert created["ttl_hours"] == 24
    assert created["expires_at"].endswith("Z")
    assert (found["session_id"], found["tracked"], found["total_queries"]) == (session_id, True, 1)
    assert info.keys() == INFO
    assert (info["user_id"], info["tags"], info["total_queries"]) == ("analyst_001", ["tech", "comparison"], 1)
    assert info["query_types"] == {"technical": 1}
    [summary] = page["sessions"]
    assert summary.keys() == SUMMARY
    assert (summary["session_id"], page["next_cursor"]) == (session_id, None)
    assert extended.keys() == {"status", "session_id", "expires_at", "time_remaining_hours"}
    assert extended["expires_at"] > created["expires_at"]
    assert stats.keys() >= STATISTICS
    assert stats["total_sessions"] == 0, "the only session is comparative"


@every_era
async def test_a_symbol_that_the_sample_lacks_is_refused_with_what_it_has(folder: Path, era: str) -> None:
    async with stdio_caller(folder, era=era) as caller:
        refusals = {symbol: await caller.refusal("search-by-symbol", symbol=symbol) for symbol in ("GOOGL", "TSLA")}

    for symbol, refusal in refusals.items():
        assert refusal["code"] == "symbol_not_found"
        assert f"'{symbol}' is not in the sample data" in refusal["message"]
        assert "AAPL, AMD, AMZN" in refusal["message"]


@every_era
async def test_what_one_server_process_wrote_another_one_reads(folder: Path, era: str) -> None:
    async with stdio_caller(folder, era=era) as first:
        session_id = await first.create("BTC", sessionType="crypto", title="Coins")
        await first.answer("search-by-coin", symbol="BTC", depth="quick", sessionId=session_id)

    async with stdio_caller(folder, era=era) as second:
        again = await second.answer("search-by-coin", symbol="BTC", depth="quick", sessionId=session_id)
        info = await second.answer("get-session-info", sessionId=session_id)

    assert again["cache_hit"] is True
    assert (info["title"], info["total_queries"], info["cache_hit_rate"]) == ("Coins", 2, 0.5)


async def test_two_server_processes_write_to_one_session(folder: Path) -> None:
    async with stdio_caller(folder) as one, stdio_caller(folder) as other:
        session_id = await one.create("AAPL", "MSFT")
        await one.answer("search-by-symbol", symbol="AAPL", depth="quick", sessionId=session_id)
        await other.answer("search-by-symbol", symbol="MSFT", depth="quick", sessionId=session_id)

        info = await one.answer("get-session-info", sessionId=session_id)

    assert [query["parameters"]["symbol"] for query in info["recent_queries"]] == ["AAPL", "MSFT"]


async def test_standard_output_carries_nothing_but_the_protocol_while_logs_are_written(folder: Path) -> None:
    with using(FrozenClock()):
        async with SessionStore(Settings(data_dir=folder)) as store:
            await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)

    async with wire(folder, command=("-c", SERVE_AND_SWEEP_AT_ONCE)) as server:
        await server.log_has("job_done")
        await server.handshake()
        for symbol in ("AAPL", "GOOGL"):
            await server.ask("tools/call", search(symbol))
        await server.ask("no/such/method")
        for _ in range(3):
            await server.next_answer()
        await server.leave()

    messages = [json.loads(line) for line in server.lines]
    assert all(message["jsonrpc"] == "2.0" for message in messages)
    assert {message["id"] for message in messages} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param("os.close(2)", id="closed"),
        pytest.param("reader, writer = os.pipe(); os.dup2(writer, 2); os.close(reader)", id="nobody-reads"),
    ],
)
async def test_a_call_whose_log_line_can_not_be_written_is_answered(folder: Path, begin: str) -> None:
    async with wire(folder, command=("-c", SERVE_WITHOUT_LOG.format(begin))) as server:
        await server.handshake()
        asked = await server.ask("tools/call", {"name": "list-sessions", "arguments": {}})
        answer = await server.next_answer()

    assert answer is not None
    assert answer["id"] == asked
    assert answer["result"]["structuredContent"]["status"] == "success"


def test_a_server_whose_client_no_longer_reads_ends_in_order(folder: Path) -> None:
    reader, writer = os.pipe()
    server = subprocess.Popen(
        [sys.executable, *SERVE],
        cwd=ROOT, env={"PATH": os.defpath} | environment(folder), stdin=PIPE, stdout=writer, stderr=PIPE,
    )  # fmt: skip
    os.close(writer)
    os.close(reader)
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}

    _, said = server.communicate(f"{json.dumps(message)}\n".encode())

    assert server.returncode == 0
    assert said.count(b"\n") == 1
    assert b"client_gone" in said


@pytest.mark.parametrize("command", [["serve"], ["doctor"], ["sessions", "list"]])
def test_a_command_ends_in_order_whose_standard_streams_are_closed(folder: Path, command: list[str]) -> None:
    code = f"import os, sys; os.closerange(0, 2); os.execv(sys.executable, [sys.executable, '-m', 'fiml', *{command}])"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PATH": os.defpath} | environment(folder), stderr=PIPE, check=False
    )

    assert (done.returncode, done.stderr.decode()) == (0, "")


async def test_a_line_that_is_not_json_stops_nothing(folder: Path) -> None:
    async with wire(folder) as server:
        await server.handshake()
        for line in ("nonsense", '{"jsonrpc": "2.0"', "[]", '"text"', "\0", ""):
            await server.write(line)
        asked = await server.ask("tools/call", search("AAPL"))

        answers = [await server.next_answer() for _ in range(4)]

    found = {answer["id"]: answer for answer in answers if answer}
    assert [answer and answer["id"] for answer in answers].count(None) == 3
    assert found[None]["error"]["code"] == -32700
    assert found[asked]["result"]["structuredContent"]["symbol"] == "AAPL"


async def test_a_server_that_is_killed_has_every_query_that_it_answered(folder: Path) -> None:
    async with wire(folder) as server:
        await server.handshake()
        await server.ask("tools/call", {"name": "create-analysis-session", "arguments": CREATE})
        created = await server.next_answer()
        assert created is not None
        session_id = created["result"]["structuredContent"]["session_id"]
        for _ in range(60):
            await server.ask("tools/call", search("AAPL", sessionId=session_id))
        answers = [await server.next_answer() for _ in range(20)]

        server.process.kill()
        while (late := await server.next_answer()) is not None:
            answers.append(late)

    tracked = [answer["result"]["structuredContent"] for answer in answers if answer is not None]
    assert len(tracked) >= 20
    assert all(found["tracked"] for found in tracked)
    async with SessionStore(Settings(data_dir=folder)) as store:
        session = await store.get_session(session_id)
    assert session is not None
    history = session.state.history
    assert history.total_queries >= max(found["total_queries"] for found in tracked)
    assert len(history.queries) == history.total_queries


CREATE = {"assets": ["AAPL"], "sessionType": "equity"}


def search(symbol: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "search-by-symbol", "arguments": {"symbol": symbol, "depth": "quick"} | arguments}


async def test_an_interrupt_ends_the_server_while_its_input_is_open_and_loses_nothing(folder: Path) -> None:
    """As Ctrl-C in a terminal."""
    async with wire(folder) as server:
        await server.handshake()
        await server.ask("tools/call", {"name": "create-analysis-session", "arguments": CREATE})
        created = await server.next_answer()

        server.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(ENDED_S):
            await server.process.wait()

    assert created is not None
    async with stdio_caller(folder) as caller:
        listed = await caller.answer("list-sessions")
    assert [each["session_id"] for each in listed["sessions"]] == [created["result"]["structuredContent"]["session_id"]]
