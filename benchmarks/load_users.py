"""Users of the load run: each calls the tools as an assistant does, and keeps what was acknowledged."""

import asyncio
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx2

from fiml.core import clock

SYMBOLS = ("AAPL", "MSFT", "GOOG", "NVDA")
COINS = ("BTC", "ETH")
# Of hundred calls so many are each.
MIX = {"search": 45, "info": 15, "list": 10, "context": 10, "update": 15, "create": 5}
CALL_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.2
GIVE_UP_AFTER = 150
HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


class Refused(Exception):
    """A server answered, but not with what was asked for."""


@dataclass
class Seen:
    """What all users saw: how long calls took, those that were answered at once and the others; what went wrong."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    repeated: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)


@dataclass
class Acknowledged:
    """What the servers acknowledged for a session, and what else was sent to it."""

    sent: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)


class Caller:
    """Calls tools on replicas in turn. A call whose answer doesn't come is made again, at the next one."""

    def __init__(self, client: httpx2.AsyncClient, urls: list[str], token: str | None, seen: Seen) -> None:
        self._client = client
        self._urls = urls
        self._headers = HEADERS if token is None else {**HEADERS, "authorization": f"Bearer {token}"}
        self._seen = seen
        self._turn = random.randrange(len(urls))  # noqa: S311 - no secret

    async def call(self, kind: str, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured content of an answer."""
        params = {"name": tool, "arguments": arguments}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        elapsed_ms = clock.stopwatch()
        answer, tries = await self._until_answered(kind, body)
        taken = self._seen.milliseconds if tries == 1 else self._seen.repeated
        taken[kind].append(elapsed_ms())
        if answer.status_code != 200:
            raise Refused(f"{tool}: {answer.status_code} {answer.text[:200]}")
        result = answer.json().get("result", {})
        if result.get("isError", True):
            raise Refused(f"{tool}: {answer.text[:300]}")
        content: dict[str, Any] = result["structuredContent"]
        return content

    async def _until_answered(self, kind: str, body: bytes) -> tuple[httpx2.Response, int]:
        for tries in range(1, GIVE_UP_AFTER):
            self._turn = (self._turn + 1) % len(self._urls)
            try:
                return await self._client.post(self._urls[self._turn], content=body, headers=self._headers), tries
            except httpx2.TransportError:
                await asyncio.sleep(RETRY_PAUSE_S)
        raise Refused(f"{kind}: no replica answers")


class User:
    """One user with sessions of its own."""

    def __init__(self, caller: Caller, seen: Seen, number: int) -> None:
        self._caller = caller
        self._seen = seen
        self._random = random.Random(number)  # noqa: S311 - the same mix in each run
        self.sessions: dict[UUID, Acknowledged] = {}

    async def work(self, until: float, pause_s: float) -> None:
        """Call until a moment of the loop's clock, with a pause after each call."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._random.random() * pause_s)
        while loop.time() < until:
            [kind] = self._random.choices(list(MIX), list(MIX.values()))
            try:
                await self._do(kind if self.sessions else "create")
            except Refused as exc:
                self._seen.errors.append(str(exc))
            await asyncio.sleep(self._random.random() * 2 * pause_s)

    async def _do(self, kind: str) -> None:
        if kind == "create":
            made = await self._caller.call("create", "create-analysis-session", assets=["AAPL"], sessionType="equity")
            self.sessions[UUID(made["session_id"])] = Acknowledged()
        elif kind == "list":
            await self._caller.call("list", "list-sessions", limit=10)
        else:
            session_id = self._random.choice(list(self.sessions))
            await getattr(self, f"_{kind}")(str(session_id), self.sessions[session_id])

    async def _search(self, session_id: str, kept: Acknowledged) -> None:
        is_coin = self._random.random() < 0.3
        request_id = str(uuid4())
        kept.sent.add(request_id)
        answer = await self._caller.call(
            "search",
            "search-by-coin" if is_coin else "search-by-symbol",
            symbol=self._random.choice(COINS if is_coin else SYMBOLS),
            depth=self._random.choice(("quick", "standard")),
            sessionId=session_id,
            requestId=request_id,
        )
        if not answer["tracked"]:
            raise Refused(f"not tracked: {answer['reason']}")
        kept.records.add(answer["record_id"])

    async def _info(self, session_id: str, kept: Acknowledged) -> None:
        known = len(kept.records)
        answer = await self._caller.call("info", "get-session-info", sessionId=session_id)
        if answer["total_queries"] < known:
            raise Refused(f"an answer has {answer['total_queries']} queries, {known} were acknowledged")

    async def _context(self, session_id: str, _kept: Acknowledged) -> None:
        await self._caller.call("context", "get-session-context", sessionId=session_id)

    async def _update(self, session_id: str, kept: Acknowledged) -> None:
        step = f"step {len(kept.steps)}"
        await self._caller.call(
            "update", "update-session-context", sessionId=session_id, context={step: len(kept.steps)}
        )
        kept.steps[step] = len(kept.steps)
