"""How the peers are timed. It runs in their environment and in ours, and imports nothing of either."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

Call = Callable[[], Awaitable[Any]]
WRITES = {"track", "update"}
# What a process does after it has made a long history is slower for a while, which says nothing of the call.
AFTER_FILLING = 20


class Peer(Protocol):
    """Another implementation of sessions."""

    async def calls(self, history: int) -> Mapping[str, Call]:
        """What it can do, by the name of the operation, with a new session that has a history of so many queries."""
        ...


class Bench:
    """The peers, and the sessions of theirs that are read."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._peers = peers
        self._read: dict[tuple[str, int], Mapping[str, Call]] = {}
        self._listed: set[str] = set()

    async def measure(self, request: Mapping[str, Any]) -> list[float] | None:
        """One round: the milliseconds of each call, `None` where the peer lacks the operation."""
        name, history, operation = request["peer"], request["history"], request["operation"]
        if operation == "page":
            await self._list(name)
        if operation in WRITES:
            call = (await self._peers[name].calls(history)).get(operation)
            return None if call is None else await timed(call, request["calls"], before=AFTER_FILLING + 1)
        if (name, history) not in self._read:
            self._read[name, history] = await self._peers[name].calls(history)
        call = self._read[name, history].get(operation)
        return None if call is None else await timed(call, request["calls"])

    async def _list(self, name: str) -> None:
        """Make the sessions that are listed, once."""
        prepare = getattr(self._peers[name], "prepare_page", None)
        if prepare is not None and name not in self._listed:
            self._listed.add(name)
            self._read.clear()  # what there was may be gone
            await prepare()


async def timed(call: Call, count: int, *, before: int = 1) -> list[float]:
    """The milliseconds of this many calls, after some that aren't counted."""
    for _ in range(before):
        await call()
    measured = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        measured.append((time.perf_counter() - began) * 1000)
    return measured
