"""Many users on two replicas, one of which is killed and restarted: what they lose, and how long calls take.

python -m benchmarks.load --users 200 --seconds 60 --calls-per-second 60

Valkey and PostgreSQL are started for the run. Users retry what isn't answered, with the same `requestId`. Afterwards
the store is compared with what was acknowledged; exit code 1 on any error, loss or duplicate. Beside it, at the same
time, a tenth as many call two bare servers of the SDK with one tool.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import httpx2

from benchmarks.load_users import CALL_TIMEOUT_S, Acknowledged, Caller, Seen, User
from fiml.access.principals import USUAL_SCOPES
from fiml.access.tokens import open_tokens
from fiml.core.config import Settings
from fiml.sessions.store import SessionStore
from tests.support.http_server import free_port
from tests.support.servers import postgres_server, valkey_server

ROOT = Path(__file__).parent.parent
BARE_SERVER = ROOT / "interop" / "bare_server.py"
START_TRIES = 600
BARE_SHARE = 10
REPLICAS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How many users, for how long, and how many calls per second all of them make together."""

    users: int
    seconds: float
    calls_per_second: float

    @property
    def pause_s(self) -> float:
        """How long a user waits after a call, on average."""
        return self.users / self.calls_per_second


@dataclass
class Outcome:
    """The outcome of a run."""

    seen: Seen
    bare: Seen
    sessions: int = 0
    records: int = 0
    unacknowledged: int = 0
    faults: list[str] = field(default_factory=list)


class Replica:
    """A server process that keeps its address when it is killed and started again."""

    def __init__(self, *command: str, variables: dict[str, str] | None = None) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}/mcp"
        self._command = (*command, self.address)
        self._environment = {"PATH": os.defpath} | (variables or {})
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, cwd=ROOT, env=self._environment
        )
        async with httpx2.AsyncClient() as client:
            for _ in range(START_TRIES):
                try:
                    await client.get(f"http://{self.address}/health")
                except httpx2.TransportError:
                    await asyncio.sleep(0.1)
                else:
                    return
        raise RuntimeError(f"{' '.join(self._command)} doesn't answer")

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def replicas(*command: str, variables: dict[str, str] | None = None) -> AsyncIterator[list[Replica]]:
    """Servers until the end of the block."""
    made = [Replica(*command, variables=variables) for _ in range(REPLICAS)]
    try:
        await asyncio.gather(*(replica.start() for replica in made))
        yield made
    finally:
        await asyncio.gather(*(replica.kill() for replica in made))


async def run(plan: Plan, settings: Settings, folder: Path) -> Outcome:
    """Load the replicas, kill one in the middle, and compare the store with what was acknowledged."""
    variables = {
        "FIML_REDIS_URL": settings.redis_url or "",
        "FIML_DATABASE_URL": settings.database_url or "",
        "FIML_DATA_DIR": str(folder),
        "FIML_MARKET_DATA": "sample",
        "FIML_AUTH_TOKENS": "true",
        "FIML_HTTP_RATE_PER_MINUTE": "6000",
    }
    async with SessionStore(settings) as store:
        tokens = await _make_tokens(settings, plan.users)
        outcome = Outcome(Seen(), Seen())
        async with (
            replicas(sys.executable, "-m", "fiml", "serve", "--http", variables=variables) as servers,
            replicas(sys.executable, str(BARE_SERVER)) as bare,
        ):
            users, _ = await asyncio.gather(
                _load(plan, servers, tokens, outcome.seen), _load_bare(plan, bare, outcome.bare)
            )
        await compare(store, users, outcome)
    return outcome


async def _make_tokens(settings: Settings, count: int) -> list[str]:
    tokens = open_tokens(settings)
    try:
        return [(await tokens.issue(f"user {n}", scopes=USUAL_SCOPES, days=1))[0] for n in range(count)]
    finally:
        await tokens.aclose()


async def _load(plan: Plan, servers: list[Replica], tokens: list[str], seen: Seen) -> list[User]:
    urls = [server.url for server in servers]
    until = asyncio.get_running_loop().time() + plan.seconds
    async with _client() as client:
        users = [User(Caller(client, urls, token, seen), seen, number) for number, token in enumerate(tokens)]
        await asyncio.gather(
            *(user.work(until, plan.pause_s) for user in users), _crash_in_the_middle(servers[0], plan.seconds)
        )
    return users


async def _crash_in_the_middle(replica: Replica, seconds: float) -> None:
    await asyncio.sleep(seconds / 2)
    await replica.kill()
    await replica.start()


async def _load_bare(plan: Plan, servers: list[Replica], seen: Seen) -> None:
    """One caller for every ten users, at the same time, so that other load on the machine affects both."""
    until = asyncio.get_running_loop().time() + plan.seconds
    urls = [server.url for server in servers]
    async with _client() as client:
        callers = [Caller(client, urls, None, seen) for _ in range(max(1, plan.users // BARE_SHARE))]
        await asyncio.gather(*(_echo(caller, n, until, plan.pause_s) for n, caller in enumerate(callers)))


async def _echo(caller: Caller, number: int, until: float, pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    chance = random.Random(number)  # noqa: S311 - as the users have it
    await asyncio.sleep(chance.random() * pause_s)
    while loop.time() < until:
        await caller.call("bare", "echo", text="the same")
        await asyncio.sleep(chance.random() * 2 * pause_s)


def _client() -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(limits=limits, timeout=CALL_TIMEOUT_S)


async def compare(store: SessionStore, users: Sequence[User], outcome: Outcome) -> None:
    """Look up each session in the store, and any others of the users."""
    for number, user in enumerate(users):
        for session_id, kept in user.sessions.items():
            await _compare_session(store, session_id, kept, outcome)
        listed = await store.list_user_sessions(f"user {number}", include_archived=True, limit=200)
        outcome.unacknowledged += len({summary.id for summary in listed} - user.sessions.keys())
    if outcome.unacknowledged > len(outcome.seen.repeated["create"]):
        outcome.faults.append(f"{outcome.unacknowledged} sessions that nobody asked for")


async def _compare_session(store: SessionStore, session_id: UUID, kept: Acknowledged, outcome: Outcome) -> None:
    found = await store.get_session(session_id)
    if found is None:
        outcome.faults.append(f"session {session_id} is lost")
        return
    ids = [str(query.id) for query in found.state.history.queries]
    outcome.sessions += 1
    outcome.records += len(kept.records)
    if lost := kept.records - set(ids):
        outcome.faults.append(f"{session_id}: {len(lost)} records are lost")
    if len(ids) != len(set(ids)) or found.state.history.total_queries != len(ids):
        outcome.faults.append(f"{session_id}: records are double")
    if strange := set(ids) - kept.sent:
        outcome.faults.append(f"{session_id}: {len(strange)} records that nobody sent")
    if any(found.state.context.get(step) != value for step, value in kept.steps.items()):
        outcome.faults.append(f"{session_id}: what was written to the context is lost")


def report(outcome: Outcome) -> str:
    """The table, and what went wrong."""
    seen = outcome.seen
    everything = [took for each in seen.milliseconds.values() for took in each]
    repeated = [took for each in seen.repeated.values() for took in each]
    [bare] = outcome.bare.milliseconds.values()
    rows = [*sorted(seen.milliseconds.items()), ("all", everything), ("a bare tool", bare), ("repeated", repeated)]
    lines = [f"{'call':<14}{'calls':>8}{'p50 ms':>10}{'p99 ms':>10}{'most ms':>10}"]
    for name, took in rows:
        p50, p99, most = percentile(took, 50), percentile(took, 99), max(took, default=0)
        lines.append(f"{name:<14}{len(took):>8}{p50:>10.1f}{p99:>10.1f}{most:>10.1f}")
    lines += [
        f"p50 is {percentile(everything, 50) / max(percentile(bare, 50), 0.001):.2f} times a bare tool's",
        f"{outcome.sessions} sessions and {outcome.records} records acknowledged and compared, "
        f"{outcome.unacknowledged} sessions of calls that were repeated",
        f"{len(seen.errors)} errors, {len(outcome.faults)} losses or doubles",
    ]
    return "\n".join([*lines, *seen.errors[:10], *outcome.faults[:10]])


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which that percentage lies."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else 0.0


async def main() -> int:
    """Print the table; 1 on an error, a loss or a duplicate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--calls-per-second", type=float, default=60)
    given = parser.parse_args()
    async with AsyncExitStack() as stack:
        valkey = stack.enter_context(valkey_server(append_only=True))
        postgres = stack.enter_context(postgres_server(durable=True))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fiml-load-"))
        settings = Settings(redis_url=valkey.url, database_url=postgres.url)
        outcome = await run(Plan(given.users, given.seconds, given.calls_per_second), settings, Path(folder))
    print(report(outcome))
    return 1 if outcome.seen.errors or outcome.faults else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
