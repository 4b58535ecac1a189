"""An engine that refuses in the middle of a sweep, and what the sweep costs."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import Unavailable
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.redis.keys import session_keys
from fiml.sessions.maintenance import JOBS
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query, open_store_over
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.backends import watched_backend
from tests.support.deployment import Deployment
from tests.support.servers import valkey_server
from tests.support.wire import postgres_wire, redis_wire

ROOT = Path(__file__).parents[2]
OWNER = "ann"


@pytest.fixture(params=["sqlite", "valkey-postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF)
    deployment: Deployment = request.getfixturevalue("deployment")
    return deployment.settings()


class DiskFull(Exception):
    """As the drivers say it: SQLite's name for it, PostgreSQL's code."""

    sqlite_errorname = "SQLITE_FULL"
    sqlstate = "53100"


@asynccontextmanager
async def full_disk(backend: Any) -> AsyncIterator[None]:
    """Refuses, at the driver, every row for the archive."""
    engine = backend._file._engine if hasattr(backend, "_file") else backend._database.engine.sync_engine

    def refuse(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO sessions "):
            raise OperationalError(statement, None, DiskFull("database or disk is full"))

    event.listen(engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", refuse)


async def test_a_full_disk_sets_nothing_aside_and_loses_nothing(settings: Settings, clock: FrozenClock) -> None:
    backend = watched_backend(settings, _pass)
    async with open_store_over(backend, settings) as store:
        sessions = []
        for n in range(5):
            session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
            await store.record_query(session.id, make_query(), context={"n": n})
            sessions.append(await existing(store, session.id))
        clock.advance(hours=2)

        async with full_disk(backend):
            with pytest.raises(Unavailable, match="full"):
                await store.cleanup_expired_sessions()
            assert await store.list_quarantine() == []
            assert all(not summary.is_archived for summary in await listing(store))
        assert await store.cleanup_expired_sessions() == len(sessions)

        for session in sessions:
            assert content(await existing(store, session.id)) == content(session)


async def _pass(call: Any) -> Any:
    return await call()


async def test_a_sweeps_round_trips_do_not_grow_with_the_sessions_of_a_batch(
    deployment: Deployment, clock: FrozenClock
) -> None:
    """Eight looks at the index, and for those that hold something seven more: look, read, archive, remove, leave."""
    counts = []
    for count in (1, 40):
        async with (
            redis_wire(deployment.redis_url) as (redis, redis_url),
            postgres_wire(deployment.database_url) as (postgres, database_url),
            SessionStore(Settings(redis_url=redis_url, database_url=database_url)) as store,
        ):
            for _ in range(count):
                await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
            clock.advance(hours=2)
            redis.clear()
            postgres.clear()
            assert await store.cleanup_expired_sessions() == count
            counts.append((redis.round_trips, postgres.round_trips))

    groups = 8
    assert counts[0][0] <= groups + 5
    assert counts[1][0] <= groups + 5 * groups
    assert counts[1][1] <= counts[0][1] * groups


async def test_index_entries_without_a_session_are_dropped(deployment: Deployment, clock: FrozenClock) -> None:
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        client = RedisClient(deployment.redis_url, ())
        await client.run([("DEL", f"fiml:{key}") for key in session_keys(session.id)])
        clock.advance(hours=2)

        report = await store.sweep()

        assert (report.archived, report.dropped) == (0, 1)
        names = await client.run([("KEYS", f"fiml:*{OWNER}*"), ("KEYS", "fiml:expiry:*"), ("KEYS", "fiml:all:*")])
        assert names == [[], [], []]
        await client.close()


async def test_of_two_servers_on_one_file_one_keeps_it_in_order(tmp_path: Path) -> None:
    """`fiml serve` twice; both leave when their client does."""
    program = (
        "import fiml.runtime, sys; from fiml.cli import main; fiml.runtime.FIRST_LOOK_S = 0;"
        " fiml.runtime.LOOK_EVERY_S = 0.2;"
        " sys.argv = ['fiml', 'serve']; main()"
    )
    environment = {"FIML_DATA_DIR": str(tmp_path), "FIML_MARKET_DATA": "sample"}
    servers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, cwd=ROOT, env=environment, stdin=PIPE, stdout=DEVNULL, stderr=PIPE
        )
        for _ in range(2)
    ]
    lines: list[str] = []
    are_done = asyncio.Event()

    async def read(server: Process) -> None:
        assert server.stderr is not None
        async for line in server.stderr:
            lines.append(line.decode())
            if len(_done(lines)) == len(JOBS):
                are_done.set()

    reading = [asyncio.create_task(read(server)) for server in servers]
    async with asyncio.timeout(60):
        await are_done.wait()
    for server in servers:
        assert server.stdin is not None
        server.stdin.close()
    await asyncio.gather(*reading, *(server.wait() for server in servers))

    assert sorted(_done(lines)) == sorted(job.name for job in JOBS)
    assert [server.returncode for server in servers] == [0, 0]


def _done(lines: list[str]) -> list[str]:
    return [job.name for line in lines for job in JOBS if "job_done" in line and f"'{job.name}'" in line]


@pytest.mark.parametrize("refused", ["hmget", "exists"])
async def test_a_refusal_that_passes_sends_no_whole_session_to_quarantine(
    deployment: Deployment, clock: FrozenClock, refused: str
) -> None:
    """As a Cluster refuses during a failover. An ACL refuses the sweep's looks, or its reads; the dump is allowed."""
    with valkey_server() as server, redis.Redis.from_url(server.url) as client:
        async with SessionStore(deployment.settings().model_copy(update={"redis_url": server.url})) as store:
            session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
            clock.advance(hours=2)
            client.execute_command("ACL", "SETUSER", "default", f"-{refused}")
            with pytest.raises(Unavailable, match="permission"):
                await store.cleanup_expired_sessions()
            client.execute_command("ACL", "SETUSER", "default", "+@all")

            assert await store.list_quarantine() == []
            assert (await existing(store, session.id)).id == session.id
