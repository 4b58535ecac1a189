"""Connections that send little, slowly, or something ambiguous."""

import asyncio
import json
from pathlib import Path

from tests.support.http_server import HttpServer, http_server

# Short, so that the test needn't wait as long as a real server does.
HASTY = "import fiml.mcp.limits as limits; limits.HEADERS_WITHIN_S = limits.BODY_WITHIN_S = 0.3"
LIST_TOOLS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
USUAL = (
    "Content-Type: application/json",
    "Accept: application/json, text/event-stream",
    "MCP-Protocol-Version: 2025-11-25",
)


async def said_until_closed(server: HttpServer, *pieces: bytes) -> bytes:
    """What a connection receives that sends pieces and then nothing; all but the last get something back."""
    reader, writer = await server.connect()
    heard = b""
    for piece in pieces[:-1]:
        writer.write(piece)
        heard += await reader.read(65536)
    writer.write(b"".join(pieces[-1:]))
    heard += await reader.read()
    writer.close()
    return heard


async def test_a_caller_that_does_not_finish_its_request_is_disconnected(tmp_path: Path) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    begun = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(USUAL).encode()
    async with http_server(tmp_path / "data", before=HASTY) as server:
        silent, half, second = await asyncio.gather(
            said_until_closed(server),
            said_until_closed(server, b"POST /mcp HTTP/1.1\r\nHos"),
            said_until_closed(server, health, b"POST /mcp HTTP/1.1\r\nX-Slow:"),
        )
        declared, chunked = await asyncio.gather(
            said_until_closed(server, begun + b"\r\nContent-Length: 100\r\n\r\n{"),
            said_until_closed(server, begun + b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n"),
        )
        alive = await server.get("/health")

    assert (silent, half) == (b"", b"")
    assert second.startswith(b"HTTP/1.1 200")
    assert second.count(b"HTTP/1.1") == 1
    assert declared.startswith(b"HTTP/1.1 408")
    assert chunked.startswith(b"HTTP/1.1 408")
    assert alive.status_code == 200


async def test_an_answer_may_take_longer_than_its_question(tmp_path: Path) -> None:
    """The limit is on the request; a call in progress is not cut off."""
    slow = HASTY + "\nimport asyncio, fiml.mcp.http as http\nasync def ready(self):\n    await asyncio.sleep(1)\n"
    slow += "    return {'status': 'ok'}\nhttp._Probe._engines_answer = ready"
    async with http_server(tmp_path / "data", before=slow) as server:
        ready = await server.get("/ready")

    assert ready.status_code == 200


TWO_MEANINGS = (
    ("Host: localhost", f"Content-Length: {len(LIST_TOOLS)}", "Transfer-Encoding: chunked"),
    ("Host: localhost", f"Content-Length: {len(LIST_TOOLS)}", "Content-Length: 5"),
    ("Host: localhost", f"Content-Length: {len(LIST_TOOLS)}, 5"),
    ("Host: localhost", "Content-Length: -1"),
    ("Host: localhost", "Content-Length: +5"),
    ("Host: localhost", "Content-Length: 0x5"),
    ("Host: localhost", "Content-Length : 5"),
    ("Host: localhost", "Transfer-Encoding: identity"),
    ("Host: localhost", "Transfer-Encoding: chunked, identity"),
    ("Host: localhost", "Transfer-Encoding: xchunked"),
    ("Host: localhost", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Host: localhost", "Transfer-Encoding\t: chunked"),
    ("Host: localhost", "Host: evil.example", f"Content-Length: {len(LIST_TOOLS)}"),
    (f"Content-Length: {len(LIST_TOOLS)}",),
    ("Host: localhost", f"Content-Length: {len(LIST_TOOLS)}", "X-Null: a\0b"),
    ("Host: localhost", f"Content-Length: {len(LIST_TOOLS)}", "X-Return: a\rContent-Length: 0"),
    ("Host: localhost", f"Content-Length: {len(LIST_TOOLS)}", "Authorization: Bearer a", "Authorization: Bearer b"),
    (
        "Host: localhost",
        f"Content-Length: {len(LIST_TOOLS)}",
        "Origin: http://localhost",
        "Origin: http://evil.example",
    ),
    (
        "Host: localhost",
        f"Content-Length: {len(LIST_TOOLS)}",
        "Content-Type: application/json",
        "Content-Type: text/plain",
    ),
)
NO_CALLS = (
    "POST http://evil.example/mcp HTTP/1.1",
    "POST //evil.example/mcp HTTP/1.1",
    "POST /mcp/ HTTP/1.1",
    "POST /MCP HTTP/1.1",
    "POST /mcp/../health HTTP/1.1",
    "CONNECT evil.example:443 HTTP/1.1",
    "PRI * HTTP/2.0",
    "GET /mcp",
    "POST /mcp HTTP/1.1 HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "TRACE /mcp HTTP/1.1",
    "PUT /mcp HTTP/1.1",
    "GET /mcp HTTP/1.1",
    "DELETE /mcp HTTP/1.1",
)


async def test_an_ambiguous_request_is_refused(tmp_path: Path) -> None:
    """One reader would see a call in the body, another a second, hidden request."""
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    plain = LIST_TOOLS + hidden
    chunked = f"{len(LIST_TOOLS):x}\r\n".encode() + LIST_TOOLS + b"\r\n0\r\n\r\n" + hidden
    answers = {}
    async with http_server(tmp_path / "data") as server:
        for lines in TWO_MEANINGS:
            usual = [line for line in USUAL if not any(other.startswith(line.partition(":")[0]) for other in lines)]
            body = chunked if any("Transfer" in line for line in lines) else plain
            answers[lines] = await server.send("POST /mcp HTTP/1.1", *lines, *usual, body=body)

    accepted = {lines: answer for lines, answer in answers.items() if answer[9:12] not in {b"400", b"501"}}
    assert accepted == {}
    assert [lines for lines, answer in answers.items() if answer.count(b"HTTP/1.1") != 1] == []


async def test_what_is_not_an_mcp_call_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    usual = ("Host: localhost", *USUAL, f"Content-Length: {len(LIST_TOOLS)}", "Connection: close")
    websocket = ("Host: localhost", "Connection: upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    async with http_server(tmp_path / "data") as server:
        answers = {start: await server.send(start, *usual, body=LIST_TOOLS) for start in NO_CALLS}
        answers["websocket"] = await server.send(
            "GET /mcp HTTP/1.1", *websocket, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        )
        good = await server.send("POST /mcp HTTP/1.1", *usual, body=LIST_TOOLS)

    assert {start: answer for start, answer in answers.items() if not answer.startswith(b"HTTP/1.1 4")} == {}
    assert [
        start for start, answer in answers.items() if b"create-analysis" in answer or b"evil.example" in answer
    ] == []
    assert good.startswith(b"HTTP/1.1 200")
    assert b"create-analysis" in good
