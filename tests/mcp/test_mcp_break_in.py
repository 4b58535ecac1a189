"""Attempts to get at another's sessions over HTTP. A row here that passes is a break-in."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from fiml.core import clock
from fiml.core.config import Settings
from fiml.mcp.http import MAX_BODY_BYTES
from fiml.mcp.tools import session_tools
from fiml.runtime import open_runtime
from fiml.sessions.listing import Cursor, encode_cursor
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import open_temporary_store
from tests.support.deployment import Deployment
from tests.support.http_server import HttpServer, http_server
from tests.support.issuer import USUAL, Issuer

UUID_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
GUESSES = 10_000
LIST_TOOLS: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
BODY = json.dumps(LIST_TOOLS).encode()


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


def message(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def tool_call(name: str, **arguments: Any) -> bytes:
    return message("tools/call", name=name, arguments=arguments)


def everything_on(session_id: str, record_id: str, created_at: str) -> list[bytes]:
    """Each way in which a caller may name a session, or a record of it."""
    tools: dict[str, dict[str, Any]] = {
        "get-session-info": {},
        "get-session-context": {"maxTokens": 300},
        "update-session-context": {"note": "mine", "cites": [record_id], "context": {"a": 1}},
        "extend-session": {"hours": 1},
        "resume-session": {"hours": 1},
        "close-session": {},
        "search-by-symbol": {"symbol": "AAPL", "depth": "deep", "requestId": record_id},
        "search-by-coin": {"symbol": "BTC", "requestId": record_id},
    }
    reference = {"type": "ref/resource", "uri": "fiml://session/{id}"}
    prompt = {"type": "ref/prompt", "name": "continue-analysis"}
    return [
        *(tool_call(name, sessionId=session_id, **more) for name, more in tools.items()),
        *(tool_call(name, session_id=session_id, **more) for name, more in tools.items()),
        *(
            message("prompts/get", name=name, arguments={"sessionId": session_id})
            for name in ("continue-analysis", "session-report")
        ),
        message("resources/read", uri=f"fiml://session/{session_id}"),
        message("resources/read", uri=f"fiml://session/{session_id.upper()}"),
        message("resources/subscribe", uri=f"fiml://session/{session_id}"),
        message("completion/complete", ref=reference, argument={"name": "id", "value": session_id[:8]}),
        message("completion/complete", ref=prompt, argument={"name": "sessionId", "value": session_id}),
        tool_call("list-sessions", includeArchived=True, cursor=created_at),
        tool_call("search-sessions", text=session_id),
        tool_call("search-sessions", text="secret", includeArchived=True),
    ]


async def heard(server: HttpServer, token: str, bodies: list[bytes]) -> list[str]:
    """What the server answers, status and bytes, with ids taken out."""
    said = []
    async with httpx2.AsyncClient() as client:
        for body in bodies:
            answer = await client.post(
                f"{server.url}/mcp",
                content=body,
                headers={
                    "authorization": f"Bearer {token}",
                    "content-type": "application/json",
                    "accept": "application/json, text/event-stream",
                    "mcp-protocol-version": "2025-11-25",
                },
            )
            headers = [(name, value) for name, value in answer.headers.items() if name not in {"date", "x-request-id"}]
            said.append(UUID_TEXT.sub("ID", f"{answer.status_code} {headers} {answer.text}".lower()))
    return said


async def anns_sessions(store: SessionStore) -> dict[str, Session]:
    """One of Ann's sessions in each state, with a record."""
    made = {}
    for state in ("live", "expired", "archived"):
        session = await store.create_session(["KO"], SessionType.EQUITY, user_id="ann", title="secret")
        await store.record_query(session.id, QueryRecord("price", {"symbol": "KO"}))
        found = await store.get_session(session.id)
        assert found is not None
        made[state] = found
    made["expired"].expires_at = clock.now() - timedelta(seconds=1)
    await store.update_session(made["expired"].id, made["expired"])
    await store.archive_session(made["archived"].id)
    return made


async def test_anothers_session_looks_byte_for_byte_like_one_that_does_not_exist(
    deployment: Deployment, tmp_path: Path, issuer: Issuer
) -> None:
    variables = issuer.variables(tmp_path / "keys.json") | {
        "FIML_REDIS_URL": deployment.redis_url,
        "FIML_DATABASE_URL": deployment.database_url,
        "FIML_MAINTENANCE": "worker",  # nobody archives what has expired
    }
    async with SessionStore(deployment.settings()) as store, http_server(tmp_path / "data", **variables) as server:
        made = await anns_sessions(store)
        eve = issuer.token("eve")
        at = made["live"].created_at
        nobodys = str(uuid4()), str(uuid4())
        unknown = await heard(server, eve, everything_on(*nobodys, encode_cursor(Cursor((at, UUID(nobodys[0]))))))
        for state, session in made.items():
            [record] = session.state.history.queries
            attempts = everything_on(str(session.id), str(record.id), encode_cursor(Cursor((at, session.id))))
            assert await heard(server, eve, attempts) == unknown, state
        left = [await store.get_session(session.id) for session in made.values()]
        to_ann = await heard(server, issuer.token("ann"), attempts)

    assert "session_not_found" in unknown[0]
    assert not [said for said in unknown if "secret" in said]
    assert [(each.version, each.state.context) for each in left if each] == [
        (each.version, {}) for each in made.values()
    ]
    assert sum(hers != nobodys for hers, nobodys in zip(to_ann, unknown, strict=True)) > len(unknown) // 2


@contextmanager
def acting_as(user_id: str) -> Iterator[None]:
    """Calls in the block are made as those of a token's bearer."""
    token = AccessToken(token="", client_id="fiml", scopes=USUAL.split(), subject=user_id)
    held = auth_context_var.set(AuthenticatedUser(token))
    try:
        yield
    finally:
        auth_context_var.reset(held)


async def test_ten_thousand_guesses_of_ids_are_answered_alike(tmp_path: Path) -> None:
    """Ann's own ids are among them, and ids that differ from hers by one digit."""
    settings = Settings(data_dir=tmp_path / "data")
    async with open_temporary_store(tmp_path / "data") as store:
        hers = [session.id for session in (await anns_sessions(store)).values()]
    near = [UUID(int=each.int ^ (1 << bit)) for each in hers for bit in range(128)]
    guesses = [*hers, *near, *(uuid4() for _ in range(GUESSES - len(near) - len(hers)))]
    async with open_runtime(settings) as runtime:
        [info] = [tool for tool in session_tools(runtime) if tool.name == "get-session-info"]
        with acting_as("eve"):
            answers = {(await guessed(info.fn, each)) for each in guesses}
        with acting_as("ann"):
            hers_to_her = [await guessed(info.fn, each) for each in hers]

    assert len(answers) == 1
    assert "session_not_found" in answers.pop()
    assert all('"status":"success"' in answer for answer in hers_to_her)


async def guessed(call: Any, session_id: UUID) -> str:
    return str((await call(sessionId=str(session_id))).model_dump_json()).replace(str(session_id), "ID")


async def test_guessing_over_http_is_soon_rate_limited(tmp_path: Path, issuer: Issuer) -> None:
    variables = issuer.variables(tmp_path / "keys.json") | {
        "FIML_HTTP_RATE_PER_MINUTE": "1",
        "FIML_HTTP_RATE_BURST": "20",
    }
    async with http_server(tmp_path / "data", **variables) as server:
        guesses = [tool_call("get-session-info", sessionId=str(uuid4())) for _ in range(100)]
        answers = await heard(server, issuer.token("eve"), guesses)

    assert [answer[:3] for answer in answers] == ["200"] * 20 + ["429"] * 80
    assert len(set(answers[:20])) == 1


@asynccontextmanager
async def guarded(tmp_path: Path, issuer: Issuer) -> AsyncIterator[HttpServer]:
    variables = issuer.variables(tmp_path / "keys.json") | {"FIML_HTTP_HOSTS": "fiml.example"}
    async with http_server(tmp_path / "data", **variables) as server:
        yield server


async def test_a_token_counts_only_where_it_belongs(tmp_path: Path, issuer: Issuer) -> None:
    good, bad = issuer.token(), issuer.strange_token()
    usual = (
        *("POST /mcp HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"),
        *("Accept: application/json, text/event-stream", f"Content-Length: {len(BODY)}"),
    )
    rows = {
        "twice": (f"Authorization: Bearer {good}", f"Authorization: Bearer {good}"),
        "a bad one behind a good one": (f"Authorization: Bearer {good}", f"Authorization: Bearer {bad}"),
        "a good one behind a bad one": (f"Authorization: Bearer {bad}", f"authorization: bearer {good}"),
        "two in one": (f"Authorization: Bearer {bad}, Bearer {good}",),
        "folded into another header": ("X-Any: a", f" Authorization: Bearer {good}"),
        "another header": (f"X-Authorization: Bearer {good}", f"Proxy-Authorization: Bearer {good}"),
        "a cookie": (f"Cookie: authorization=Bearer {good}",),
        "a name with a blank": (f"Authorization : Bearer {good}",),
        "a name with an underscore": (f"HTTP_Authorization: Bearer {good}",),
        "a carriage return before": (f"X-Any: a\rAuthorization: Bearer {good}",),
        "a nought within": (f"Authorization: Bearer {good}\0",),
        "no blank": (f"Authorization: Bearer{good}",),
        "other words": (f"Authorization: Basic Bearer {good}",),
        "in a list": (f'Authorization: ["Bearer {good}"]',),
        "a trailer": ("Trailer: Authorization",),
    }
    async with guarded(tmp_path, issuer) as server:
        answers = {name: await server.send(*usual, *lines, body=BODY) for name, lines in rows.items()}
        allowed = await server.send(*usual, f"Authorization: Bearer {good}", body=BODY)

    assert {name: answer[9:12] for name, answer in answers.items() if answer[9:12] not in {b"400", b"401"}} == {}
    assert allowed.startswith(b"HTTP/1.1 200")


async def test_a_request_that_hides_behind_a_good_one_has_no_token(tmp_path: Path, issuer: Issuer) -> None:
    hidden = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    begun = ("POST /mcp HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    bearer = (f"Authorization: Bearer {issuer.token()}", "Accept: application/json, text/event-stream")
    async with guarded(tmp_path, issuer) as server:
        behind = await server.send(
            *(*begun, *bearer, f"Content-Length: {len(BODY)}"),
            body=BODY + hidden.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
        )
        two_lengths = await server.send(
            *(*begun, *bearer, f"Content-Length: {len(hidden) + 5}", "Transfer-Encoding: chunked"),
            body=b"0\r\n\r\n" + hidden,
        )

    assert behind.count(b"HTTP/1.1 200") == 1
    assert b"HTTP/1.1 401" in behind
    assert two_lengths.startswith(b"HTTP/1.1 400")
    assert two_lengths.count(b"HTTP/1.1") == 1


async def test_a_rebound_dns_name_does_not_get_in_even_with_a_token(tmp_path: Path, issuer: Issuer) -> None:
    bearer = f"Bearer {issuer.token()}"
    hosts = (
        *("evil.example", "fiml.example.evil.example", "evilfiml.example", "127.0.0.1.nip.example", "localhost.evil"),
        *("127.0.0.1@evil.example", "fiml.example@evil.example", "[::1].evil.example", "2130706433", "127.1", ""),
    )
    origins = (
        *("https://evil.example", "http://evil.example", "null", "https://fiml.example.evil.example", "file://"),
        *("http://127.0.0.1.evil.example", "https://fiml.example@evil.example", "http://fiml.example", "*"),
    )
    async with guarded(tmp_path, issuer) as server:
        by_host = {host: await server.post(BODY, authorization=bearer, host=host) for host in hosts}
        by_origin = {origin: await server.post(BODY, authorization=bearer, origin=origin) for origin in origins}
        named = await server.post(BODY, authorization=bearer, host="fiml.example", origin="https://fiml.example")

    assert {host: answer.status_code for host, answer in by_host.items()} == dict.fromkeys(hosts, 421)
    assert {origin: answer.status_code for origin, answer in by_origin.items()} == dict.fromkeys(origins, 403)
    assert named.status_code == 200


def bodies() -> dict[str, bytes]:
    """Bodies that aren't calls, by what is wrong with them."""
    many = json.dumps({"assets": ["A"] * 100_000})
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list-sessions", "arguments": {}}}
    return {
        "too large": b" " * (MAX_BODY_BYTES + 1),
        "nothing": b"",
        "cut off": BODY[:-1],
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "a deep argument": json.dumps(call)[:-3].encode() + b'{"a":' * 5000 + b"1" + b"}" * 5003,
        "a number of a million digits": b'{"jsonrpc": "2.0", "id": ' + b"9" * 1_000_000 + b', "method": "ping"}',
        "not a number": b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}',
        "no UTF-8": b'{"jsonrpc": "2.0", "id": 1, "method": "\xff\xfe"}',
        "half a surrogate": b'{"jsonrpc": "2.0", "id": 1, "method": "\\ud800"}',
        "UTF-16": json.dumps(LIST_TOOLS).encode("utf-16"),
        "a batch": json.dumps([LIST_TOOLS] * 3).encode(),
        "an empty batch": b"[]",
        "null": b"null",
        "a text": b'"tools/list"',
        "a method that is a list": json.dumps(LIST_TOOLS | {"method": ["tools/list"]}).encode(),
        "parameters that are a list": json.dumps(LIST_TOOLS | {"params": [1]}).encode(),
        "an id that is an object": json.dumps(LIST_TOOLS | {"id": {"a": 1}}).encode(),
        "an unknown method": json.dumps(LIST_TOOLS | {"method": "fiml/admin"}).encode(),
        "an unknown tool": json.dumps(call | {"params": {"name": "delete-session", "arguments": {}}}).encode(),
        "arguments that are a text": json.dumps(
            call | {"params": {"name": "list-sessions", "arguments": "a"}}
        ).encode(),
        "a hundred thousand assets": tool_call("create-analysis-session", **json.loads(many), sessionType="equity"),
        "a response": b'{"jsonrpc": "2.0", "id": 1, "result": {}}',
    }


async def test_no_body_crashes_the_server_and_none_is_read_without_a_token(tmp_path: Path, issuer: Issuer) -> None:
    bearer = f"Bearer {issuer.token()}"
    async with guarded(tmp_path, issuer) as server:
        answers = {name: await server.post(body, authorization=bearer) for name, body in bodies().items()}
        strangers = {(await server.post(body)).text for body in bodies().values() if len(body) < MAX_BODY_BYTES}
        zipped = await server.post(BODY, authorization=bearer, content_encoding="gzip")
        alive = await server.post(BODY, authorization=bearer)

    assert {name: answer.status_code for name, answer in answers.items() if answer.status_code >= 500} == {}
    assert answers["too large"].status_code == 413
    assert len(strangers) == 1
    assert "Traceback" not in "".join(answer.text for answer in answers.values())
    assert "session_id" not in "".join(answer.text for answer in answers.values())
    assert zipped.status_code < 500
    assert alive.status_code == 200
