"""How the cost grows with the history, users, concurrent writers and replicas."""

import asyncio
import itertools
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from uuid import UUID

from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from benchmarks.engines import Engines, looked_up
from benchmarks.live import add_sessions
from benchmarks.peer_rounds import AFTER_FILLING
from benchmarks.raw import RawSession
from benchmarks.report import Facts
from benchmarks.timing import Call, calls_of, figure_of, in_lockstep
from fiml.core import clock
from tests.support.http_server import http_server

CALLERS = 16
SESSIONS_IN_ALL = 2000
PAGE = 20


async def curves(engines: Engines) -> list[Facts]:
    """The curves, each as rows to plot."""
    return [await histories(engines), await users(engines), await writers(engines), await replicas(engines)]


async def histories(engines: Engines) -> Facts:
    """Short calls against the history: one of each with each length in turn, so that nothing else differs."""
    ways: dict[str, Call] = {}
    for history in engines.plan.histories:
        ways |= await _short_calls(engines, history)
    await in_lockstep(ways, times=AFTER_FILLING)
    times = engines.plan.rounds * engines.plan.calls
    measured = await in_lockstep(ways, times=times)
    medians = iter(statistics.median(each) for each in measured.values())
    facts = Facts(
        "Short calls, by the history",
        [
            *("queries in the history", "track, ms", "raw script, ms", "header and last 5, ms", "one PING, ms"),
            *("track to raw script", "last 5 to PING"),
        ],
        note=f"The history at the begin: {times + AFTER_FILLING} queries come to each. One call of each in turn.",
    )
    for history in engines.plan.histories:
        track, raw, recent, ping = islice(medians, 4)
        facts.rows.append([float(history), track, raw, recent, ping, track / raw, recent / ping])
    return facts


async def _short_calls(engines: Engines, history: int) -> dict[str, Call]:
    session, bare = await engines.session(history), await RawSession(engines.redis).fill(history)
    queries = map(looked_up, itertools.count(history))
    ready = list(islice(queries, engines.plan.rounds * engines.plan.calls + AFTER_FILLING))
    calls: list[Call] = [
        lambda: engines.store.record_query(session.id, ready.pop()),
        bare.track,
        lambda: engines.store.get_session(session.id, recent_queries=5),
        engines.redis.ping,
    ]
    return {f"{number} with {history}": call for number, call in enumerate(calls)}


async def users(engines: Engines) -> Facts:
    """A page of one user's sessions, and of everybody's, where the same sessions belong to more and more users."""
    facts = Facts(
        f"A page of {PAGE}, {SESSIONS_IN_ALL:,} sessions among so many users",
        ["users", "sessions of each", "one user's, ms", "all, ms"],
        note=f"One user's page is full only where each has {PAGE} sessions.",
    )
    for count in engines.plan.users:
        await engines.clear()
        for number in range(count):
            await add_sessions(engines, SESSIONS_IN_ALL // count, user=f"u{number}")
        one = await calls_of(lambda: engines.store.list_user_sessions("u0", limit=PAGE))(engines.plan.calls)
        everybody = await calls_of(lambda: engines.store.list_user_sessions(None, limit=PAGE))(engines.plan.calls)
        each = float(SESSIONS_IN_ALL // count)
        facts.rows.append([float(count), each, figure_of(one).median, figure_of(everybody).median])
    await engines.clear()
    return facts


async def writers(engines: Engines) -> Facts:
    """Queries tracked by more and more writers at once, each in a session of its own, and all in one."""
    facts = Facts(
        "Queries tracked by so many writers at once",
        ["writers", "own sessions, a second", "own, ms", "one session, a second", "one, ms"],
        note="One process of one thread, and the server beside it.",
    )
    for count in engines.plan.writers:
        row: list[str | float] = [float(count)]
        for shared in (False, True):
            sessions = [(await engines.session()).id for _ in range(1 if shared else count)]
            targets = sessions * count if shared else sessions
            row += await _throughput(engines, targets)
        facts.rows.append(row)
    return facts


async def _throughput(engines: Engines, targets: list[UUID]) -> list[float]:
    """Queries a second, and the median's milliseconds."""
    each = max(engines.plan.writes // len(targets), 1)
    measured: list[float] = []
    numbers = itertools.count()

    async def write(session_id: UUID) -> None:
        track = calls_of(lambda: engines.store.record_query(session_id, looked_up(next(numbers))))
        measured.extend(await track(each))

    rate = await _rate(len(targets) * (each + 1), lambda: asyncio.gather(*(write(target) for target in targets)))
    return [rate, statistics.median(measured)]


async def replicas(engines: Engines) -> Facts:
    """Calls from 16 clients on HTTP to one server, and spread over two, over the same engines."""
    facts = Facts(
        f"MCP calls from {CALLERS} clients to so many servers on HTTP",
        ["servers", "calls a second", "a call, ms"],
        note="Clients, servers and engines share the cores.",
    )
    for count in (1, 2):
        with tempfile.TemporaryDirectory(prefix="fiml-bench-") as folder:
            facts.rows.append([float(count), *await _served(engines, count, Path(folder))])
    return facts


async def _served(engines: Engines, count: int, folder: Path) -> list[float]:
    measured: list[float] = []
    each = max(engines.plan.replica_calls // CALLERS, 1)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(http_server(folder, **engines.urls)) for _ in range(count)]
        urls = [f"{servers[number % count].url}/mcp" for number in range(CALLERS)]
        clients = [await stack.enter_async_context(Client(streamable_http_client(url))) for url in urls]
        session_id = str((await engines.session()).id)

        async def call(client: Client) -> None:
            result = await client.call_tool("get-session-info", {"sessionId": session_id})
            assert not result.is_error, result

        async def calls(client: Client) -> None:
            measured.extend(await calls_of(lambda: call(client))(each))

        rate = await _rate(CALLERS * (each + 1), lambda: asyncio.gather(*(calls(client) for client in clients)))
    return [rate, statistics.median(measured)]


async def _rate(count: int, work: Callable[[], Awaitable[object]]) -> float:
    elapsed_ms = clock.stopwatch()
    await work()
    return count / elapsed_ms() * 1000
