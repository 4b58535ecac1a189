"""MCP over HTTP on loopback: both eras, replicas, and what is refused."""

import asyncio
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp_types import INVALID_PARAMS

from fiml.core.clock import now
from fiml.core.config import Settings, variable
from fiml.core.errors import InvalidInput, Misconfigured
from fiml.mcp.http import MAX_BODY_BYTES, build_app, parse_address
from fiml.runtime import open_runtime
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.http_server import http_server
from tests.support.mcp_client import ERAS, TOOLS
from tests.support.servers import valkey_server

LIST_TOOLS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_of_either_era_works_over_http(tmp_path: Path, era: str) -> None:
    async with http_server(tmp_path / "data") as server, server.caller(era=era) as caller:
        tools = [tool.name for tool in (await caller.client.list_tools()).tools]
        session_id = await caller.create("AAPL", title="over HTTP")
        answer = await caller.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)
        context = await caller.answer("get-session-context", sessionId=session_id)
        refusal = await caller.refusal("get-session-info", sessionId="malformed")
        prompt = await caller.client.get_prompt("continue-analysis", {"sessionId": session_id})
        resource = await caller.client.read_resource(f"fiml://session/{session_id}")

    assert set(tools) == set(TOOLS)
    assert answer["tracked"] is True
    assert len(context["lines"]) > 1
    assert refusal["code"] == "invalid_session_id"
    assert prompt.messages
    assert resource.contents


async def test_health_and_ready_tell_the_state_and_no_data(deployment: Deployment, tmp_path: Path) -> None:
    with valkey_server() as valkey:
        variables = {"FIML_REDIS_URL": valkey.url, "FIML_DATABASE_URL": deployment.database_url}
        async with http_server(tmp_path / "data", **variables) as server:
            healthy, ready = await server.get("/health"), await server.get("/ready")
            valkey.stop()
            still_healthy, not_ready = await server.get("/health"), await server.get("/ready")
            valkey.start()
            back = await server.get("/ready")

    assert [each.status_code for each in (healthy, ready, still_healthy, not_ready, back)] == [200, 200, 200, 503, 200]
    assert (ready.json(), not_ready.json()) == ({"status": "ok"}, {"status": "unavailable"})


async def test_ready_tells_of_a_backlog_that_nobody_sweeps(backend_settings: Settings, tmp_path: Path) -> None:
    async with SessionStore(backend_settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        session.expires_at = now() - timedelta(hours=3)
        await store.update_session(session.id, session)
        variables = {
            variable(name): str(value) for name, value in backend_settings.model_dump(exclude_unset=True).items()
        }
        async with http_server(tmp_path / "data", **variables, FIML_MAINTENANCE="worker") as server:
            waiting = await server.get("/ready")
        await store.sweep()
        async with http_server(tmp_path / "data", **variables, FIML_MAINTENANCE="worker") as server:
            swept = await server.get("/ready")

    assert (waiting.status_code, waiting.json()) == (200, {"status": "ok", "backlog": True})
    assert swept.json() == {"status": "ok"}


async def test_ready_looks_for_a_backlog_after_the_clock_was_set_back(
    sqlite_settings: Settings, clock: FrozenClock
) -> None:
    async with open_runtime(sqlite_settings) as runtime:
        transport = httpx2.ASGITransport(build_app(runtime, "127.0.0.1"))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            before = await client.get("/ready")
            clock.advance(days=-1)
            store = await runtime.store()
            session = await store.create_session(["AAPL"], SessionType.EQUITY)
            session.expires_at = clock.now() - timedelta(hours=3)
            await store.update_session(session.id, session)
            after = await client.get("/ready")

    assert (before.json(), after.json()) == ({"status": "ok"}, {"status": "ok", "backlog": True})


async def test_ready_answers_in_time_where_an_engine_hangs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with http_server(folder) as server, server.caller() as caller:
        await caller.create("AAPL")

    async with http_server(folder) as server:
        with closing(sqlite3.connect(folder / "fiml.db", isolation_level=None)) as other:
            # Such a lock lets not even a reader in: opening the file waits for it.
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            stuck = await server.get("/ready")
            healthy = await server.get("/health")
        later = [(await server.get("/ready")).status_code for _ in range(5)]

    assert (stuck.status_code, healthy.status_code, later[-1]) == (503, 200, 200)


async def test_a_page_of_another_site_does_not_get_in(tmp_path: Path) -> None:
    async with http_server(tmp_path / "data") as server:
        host = await server.post(LIST_TOOLS, host="evil.example")
        origin = await server.post(LIST_TOOLS, origin="https://evil.example")
        nobody = await server.post(LIST_TOOLS, host="127.0.0.1.evil.example:80")

    assert [answer.status_code for answer in (host, origin, nobody)] == [421, 403, 421]
    assert not [answer.text for answer in (host, origin, nobody) if "create-analysis" in answer.text]


async def test_a_page_of_this_machine_gets_in(tmp_path: Path) -> None:
    origins = ("http://localhost:3000", "https://localhost:3000", "https://127.0.0.1", "http://[::1]:8080")
    async with http_server(tmp_path / "data") as server:
        answers = [await server.post(LIST_TOOLS, origin=origin) for origin in origins]

    assert {answer.status_code for answer in answers} == {200}


async def test_a_server_is_reached_under_a_name_that_the_settings_write_in_capitals(tmp_path: Path) -> None:
    async with http_server(tmp_path / "data", FIML_HTTP_HOSTS="Fiml.Example") as server:
        named = await server.post(LIST_TOOLS, host="fiml.example", origin="https://fiml.example")

    assert named.status_code == 200


async def test_a_server_is_reached_at_whatever_address_it_serves_on(tmp_path: Path) -> None:
    async with http_server(tmp_path / "data", host="127.0.0.2") as server, server.caller() as caller:
        created = await caller.create("AAPL")

    assert created


async def test_bodies_that_are_too_large_or_not_messages_are_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    async with http_server(tmp_path / "data") as server:
        large = await server.post(b" " * (MAX_BODY_BYTES + 1))
        broken = [await server.post(body) for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"jsonrpc": "2.0"}')]
        text = await server.post(LIST_TOOLS, content_type="text/plain")
        async with server.caller() as caller:
            created = await caller.create("AAPL")

    assert large.status_code == 413
    assert {answer.status_code for answer in (*broken, text)} <= {400, 406, 415}
    assert created


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"icons": [1] * 2000}}),
        ("completion/complete", {"context": {"arguments": dict.fromkeys(map(str, range(2000)), 1)}}),
        ("tools/call", {"name": "list-sessions", "arguments": {}, "inputResponses": {"a": [[1]] * 1000}}),
        ("tools/list", dict.fromkeys(map(str, range(2000)), 1)),
    ],
)
async def test_a_message_of_too_many_values_is_refused_before_each_is_looked_at(
    tmp_path: Path, method: str, params: dict[str, Any]
) -> None:
    async with http_server(tmp_path / "data") as server:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        refusal = (await server.post(body, mcp_protocol_version="2025-11-25")).json()

    assert refusal["error"] == {"code": INVALID_PARAMS, "message": "the message has more than 1000 values; send fewer"}


async def test_a_server_that_is_told_to_stop_finishes_a_call_under_way(tmp_path: Path) -> None:
    create = {"name": "create-analysis-session", "arguments": {"assets": ["AAPL"], "sessionType": "equity"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": create}).encode()
    async with http_server(tmp_path / "data") as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /mcp HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            "accept: application/json, text/event-stream\r\nmcp-protocol-version: 2025-11-25\r\n"
            f"expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        # The call waits for its body: it is under way.
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        writer.write(body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        await server.process.wait()

    assert b"200 OK" in answer
    [session_id] = set(re.findall(rb'session_id[\\":]+([0-9a-f-]{36})', answer))
    async with http_server(tmp_path / "data") as server, server.caller() as caller:
        info = await caller.answer("get-session-info", sessionId=session_id.decode())
    assert info["assets"] == ["AAPL"]


def test_a_port_that_is_taken_is_said_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "fiml", "serve", "--http", address], capture_output=True, text=True, check=False
        )

    assert done.returncode == 1
    assert done.stderr.startswith(f"fiml: --http {address}: can't listen there")
    assert "address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("address", ["127.0.0.1:8765", "localhost:1", "[::1]:65535"])
def test_loopback_addresses_are_taken(address: str) -> None:
    host, port = parse_address(address)

    assert f":{port}" in address
    assert host in address


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "192.168.1.5:80", "example.com:80", "127.0.0.1.evil:80"])
def test_an_address_that_others_reach_is_refused_and_says_why(address: str) -> None:
    with pytest.raises(Misconfigured, match="without authentication, every caller") as refused:
        parse_address(address)

    assert str(refused.value).startswith(f"--http {address} is not")


@pytest.mark.parametrize("address", ["", "8765", ":8765", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        parse_address(address)
