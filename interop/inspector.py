"""Lists and calls fiml's tools with the MCP Inspector, a third-party client; run it with `make interop`.

Over stdio, and over HTTP with a token in both eras of the protocol. It runs in the environment that has Node, and takes
fiml's command as its argument: `inspector.py .venv/bin/fiml`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from programs import free_address, run_node, serving

ANSWERED, REFUSED = 0, 5
TOOLS = {
    "create-analysis-session",
    "get-session-info",
    "list-sessions",
    "extend-session",
    "get-session-analytics",
    "search-by-symbol",
    "search-by-coin",
    "get-session-context",
    "update-session-context",
    "resume-session",
    "close-session",
    "search-sessions",
    "share-session",
}


@dataclass
class Inspector:
    """The Inspector's command line, on the server that `target` names; counts the checks that passed and failed."""

    target: list[str]
    passed: int = 0
    failed: int = 0

    def list_tools(self) -> None:
        """All tools are there, and the Inspector accepts their schemas in its strict mode."""
        self._check("tools/list", ANSWERED, _are_all, "--method", "tools/list", "--strict")

    def call(self, tool: str, *, expect: Callable[[dict[str, Any]], bool], **arguments: Any) -> dict[str, Any]:
        """Call a tool that answers; the answer."""
        return self._check(tool, ANSWERED, expect, *_call(tool, arguments))

    def refused(self, tool: str, *, code: str, **arguments: Any) -> None:
        """Call a tool that refuses."""
        line = f"{tool} refuses: {code}"
        self._check(line, REFUSED, lambda content: content.get("code") == code, *_call(tool, arguments))

    def _check(
        self, line: str, exit_code: int, expect: Callable[[dict[str, Any]], bool], *options: str
    ) -> dict[str, Any]:
        done = run_node("mcp-inspector", "--cli", *self.target, *options, "--format", "json")
        content = _content(done.stdout)
        if done.returncode == exit_code and expect(content):
            self.passed += 1
            print(f"ok      {line}")  # noqa: T201 - the report
        else:
            self.failed += 1
            print(f"FAILED  {line}: exit {done.returncode}\n{done.stdout}{done.stderr}")  # noqa: T201 - the report
        return content


def _call(tool: str, arguments: dict[str, Any]) -> list[str]:
    pairs = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    return ["--method", "tools/call", "--tool-name", tool, *(part for pair in pairs for part in ("--tool-arg", pair))]


def _content(output: str) -> dict[str, Any]:
    """The structured content of a call, or the result itself."""
    if not output.strip():
        return {}
    result: dict[str, Any] = json.loads(output)["result"]
    content: dict[str, Any] = result.get("structuredContent", result)
    return content


def _are_all(result: dict[str, Any]) -> bool:
    return {tool["name"] for tool in result.get("tools", [])} == TOOLS


def _inspect(inspector: Inspector) -> None:
    inspector.list_tools()
    created = inspector.call(
        "create-analysis-session",
        assets=["AAPL", "MSFT"],
        sessionType="comparative",
        ttlHours=24,
        tags=["tech"],
        expect=lambda content: content.get("ttl_hours") == 24,
    )
    session_id = created.get("session_id", "")
    inspector.call(
        "search-by-symbol",
        symbol="AAPL",
        depth="deep",
        sessionId=session_id,
        expect=lambda content: content.get("total_queries") == 1,
    )
    inspector.call("search-by-coin", symbol="BTC", expect=lambda content: content.get("symbol") == "BTC")
    inspector.call("get-session-info", sessionId=session_id, expect=lambda content: content.get("total_queries") == 1)
    inspector.call("list-sessions", limit=5, expect=lambda content: len(content.get("sessions", [])) == 1)
    inspector.call("extend-session", sessionId=session_id, hours=24, expect=lambda content: "expires_at" in content)
    inspector.call("get-session-analytics", days=1, expect=lambda content: content.get("total_queries") == 1)
    inspector.call(
        "update-session-context",
        sessionId=session_id,
        conclusion="dear",
        expect=lambda content: len(content.get("written", [])) == 1,
    )
    inspector.call(
        "get-session-context", sessionId=session_id, expect=lambda content: len(content.get("lines", [])) >= 3
    )
    inspector.call("close-session", sessionId=session_id, expect=lambda content: content.get("was_live") is True)
    inspector.call("search-sessions", text="dear", expect=lambda content: len(content.get("sessions", [])) == 1)
    inspector.call("resume-session", sessionId=session_id, expect=lambda content: content.get("total_queries") == 1)
    inspector.refused("search-by-symbol", symbol="GOOGL", code="symbol_not_found")
    inspector.refused("get-session-info", sessionId="malformed", code="invalid_session_id")


def _on_stdio(fiml: str, folder: str) -> Inspector:
    print("on stdio")  # noqa: T201 - the report
    inspector = Inspector(["-e", f"FIML_DATA_DIR={folder}", "-e", "FIML_MARKET_DATA=sample", fiml, "serve"])
    _inspect(inspector)
    return inspector


def _on_http(fiml: str, folder: str, era: str) -> Inspector:
    print(f"on HTTP with a token, {era}")  # noqa: T201 - as above
    variables = {"FIML_DATA_DIR": folder, "FIML_MARKET_DATA": "sample", "FIML_AUTH_TOKENS": "true"}
    made = subprocess.run(  # noqa: S603 - our own program
        [fiml, "token", "new", "ann"], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    [token] = [word for word in made.stdout.split() if word.startswith("fiml_")]
    address = free_address()
    with serving(fiml, "serve", "--http", address, address=address, **variables) as url:
        bearer = ["--header", f"Authorization: Bearer {token}"]
        inspector = Inspector(["--server-url", url, "--transport", "http", *bearer, "--protocol-era", era])
        _inspect(inspector)
    return inspector


def main() -> int:
    """Print a line for each check and how many there were; 1 if one failed."""
    runs = []
    for inspect in (_on_stdio, partial(_on_http, era="legacy"), partial(_on_http, era="modern")):
        with tempfile.TemporaryDirectory(prefix="fiml-interop-") as folder:
            runs.append(inspect(sys.argv[1], folder))
    passed, failed = sum(run.passed for run in runs), sum(run.failed for run in runs)
    print(f"{passed} passed, {failed} failed")  # noqa: T201 - the report
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
