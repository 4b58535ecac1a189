"""Requests that the SDK can't parse as JSON: each is answered, and the server goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.mcp_client import HANDSHAKE, ROOT, SERVE

Exchange = Callable[..., list[dict[str, Any]]]
CALL = '{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"create-analysis-session","arguments":%s}}'
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """Sends lines of the wire to a server, and returns its answers, one to each. It's one server for all tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIML_")}
    environment |= {"FIML_DATA_DIR": str(tmp_path_factory.mktemp("unreadable")), "FIML_MARKET_DATA": "sample"}
    with subprocess.Popen(
        [sys.executable, *SERVE], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        sent, heard = server.stdin, server.stdout
        assert sent is not None
        assert heard is not None

        def exchange(*lines: str) -> list[dict[str, Any]]:
            answers = []
            for line in lines:
                sent.write(line + "\n")
                sent.flush()
                answers.append(json.loads(heard.readline()))
            return answers

        exchange(json.dumps(INITIALIZE))
        yield exchange
        sent.close()


@pytest.mark.parametrize(
    "arguments",
    [
        r'{"assets":["AAPL"],"sessionType":"equity","title":"\ud800"}',
        '{"assets":["AAPL"],"sessionType":"equity","ttlHours":1' + "0" * 5000 + "}",
        '{"assets":["AAPL"],"sessionType":"equity","title":' + "[" * 300 + "]" * 300 + "}",
        '{"assets":["AAPL"],"sessionType":"equity","title":' + "[" * 5000 + "]" * 5000 + "}",
        '{"assets":["AAPL"],"sessionType":"equity","context":' + '{"id":' * 5000 + "1" + "}" * 5000 + "}",
        '{"assets":["AAPL"],"sessionType":"equity",}',
        '{"assets":["AAPL"],"title":"\\"id\\":9, {[","sessionType":equity}',
    ],
    ids=[
        "half a character",
        "a very long integer",
        "deep nesting",
        "very deep nesting",
        "very deep objects",
        "a comma too many",
        "a bare word",
    ],
)
def test_a_call_that_cant_be_read_is_a_tool_error_and_the_server_goes_on(exchange: Exchange, arguments: str) -> None:
    readable = '{"assets":["AAPL"],"sessionType":"equity"}'

    refused, text_id, created = exchange(CALL % (7, arguments), CALL % ('"a"', arguments), CALL % (8, readable))

    assert refused["id"] == 7
    assert refused["result"]["isError"] is True
    assert refused["result"]["structuredContent"]["code"] == "invalid_input"
    assert "can't be read" in refused["result"]["structuredContent"]["message"]
    assert text_id["id"] == "a"
    assert created["id"] == 8
    assert created["result"]["structuredContent"]["status"] == "success"


def test_another_request_that_cant_be_read_is_a_parse_error(exchange: Exchange) -> None:
    [answer] = exchange(r'{"jsonrpc":"2.0","id":3,"method":"prompts/list","params":{"cursor":"\udc00"}}')

    assert answer["id"] == 3
    assert answer["error"]["code"] == -32700


DEEP = "[" * 2000 + "]" * 2000


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        ('{"jsonrpc":"2.0","id":3,"method":"prompts/list","params":{"cursor":' + DEEP + "}}", 3),
        ('{"jsonrpc":"2.0","method":"prompts/list","params":{"cursor":' + DEEP + '},"id":"a"}', "a"),
        ('{"jsonrpc":"2.0","id":3,"method":"prompts/list","params":{"id":4}', 3),
        ('{"jsonrpc":"2.0","method":"tools/call","params":{"id":4,}}', None),
        ('{"jsonrpc":"2.0","method":"tools/call","params":[{"id":4],"id":5}', None),
        ('{"jsonrpc":"2.0","id":"cut off', None),
        (r'{"jsonrpc":"2.0","id":"\ud800","method":"tools/call"}', None),
        ('{"jsonrpc":"2.0","id":1e999,"method":"tools/call",}', None),
        ("no JSON at all", None),
        ("{", None),
    ],
)
def test_what_is_not_json_is_a_parse_error_with_the_id_if_it_can_be_found(
    exchange: Exchange, line: str, request_id: object
) -> None:
    blank, pong = " ", '{"jsonrpc":"2.0","id":8,"method":"ping"}'

    answer, alive = exchange(line, f"{blank}\n{pong}")

    assert (answer["id"], answer["error"]["code"]) == (request_id, -32700)
    assert alive["id"] == 8
