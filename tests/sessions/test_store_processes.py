"""One store in several processes: they see each other's writes, lose none, and may be killed."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fiml.core.config import Settings
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance.suite import document, existing, listing
from tests.support.servers import postgres_server, valkey_server

ROOT = Path(__file__).parents[2]
WRITERS_OF_A_PROCESS = 50
KILLED_AFTER = 25

READ = """
import asyncio, json, sys
from fiml.sessions.store import SessionStore

async def main():
    async with SessionStore() as store:
        for session_id in sys.argv[1:]:
            print(json.dumps((await store.get_session(session_id)).to_dict()))

asyncio.run(main())
"""
WRITE_MANY = """
import asyncio, sys
from fiml.sessions.models import QueryRecord
from fiml.sessions.store import SessionStore

async def main(session_id, name, count):
    async with SessionStore() as store:
        print("ready", flush=True)
        input()
        writes = [store.record_query(session_id, QueryRecord(f"{name} {n}")) for n in range(int(count))]
        await asyncio.gather(*writes)

asyncio.run(main(*sys.argv[1:]))
"""
WRITE_UNTIL_KILLED = """
import asyncio, sys
from fiml.sessions.models import QueryRecord
from fiml.sessions.store import SessionStore

async def write(store, session_id):
    while True:
        query = QueryRecord("price", {"text": "x" * 1000})
        await store.record_query(session_id, query, context={str(query.id): True})
        print("query", query.id, flush=True)

async def move(store):
    while True:
        session = await store.create_session(["AAPL"], "equity", tags=["moved"])
        await store.record_query(session.id, QueryRecord("price"))
        print("session", session.id, flush=True)
        for _ in range(2):
            await store.archive_session(session.id)
            await store.resume_session(session.id)

async def main(session_id):
    async with SessionStore() as store:
        await asyncio.gather(*(write(store, session_id) for _ in range(4)), *(move(store) for _ in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""
FORK = """
import asyncio, os, sqlite3, sys
from fiml.core.config import Settings
from fiml.core.errors import Unavailable
from fiml.sessions.store import SessionStore

async def before():
    store = SessionStore()
    await store.initialize()
    session = await store.create_session(["AAPL"], "equity")
    await store.get_session(session.id)  # the access is noted later, by this process
    return store, session.id

async def in_the_child(store, session_id):
    for call in (store.get_session(session_id), store.initialize(), store.shutdown()):
        try:
            await call
        except Unavailable as exc:
            print("forked" if "forked" in str(exc) else exc)
    async with SessionStore() as own:
        print(len(await own.list_user_sessions(None)))

def accesses():
    with sqlite3.connect(Settings().embedded_file) as file:
        return file.execute("SELECT last_accessed_at FROM active_sessions").fetchall()

async def in_the_parent(store):
    print(len(await store.list_user_sessions(None)))
    await store.shutdown()

store, session_id = asyncio.run(before())
if os.fork() == 0:
    asyncio.run(in_the_child(store, session_id))
    sys.exit()
noted = accesses()
os.wait()
print("noted by the parent" if accesses() == noted else "noted by the child")
asyncio.run(in_the_parent(store))
print("noted by the parent" if accesses() != noted else "lost")
"""


@pytest.fixture(params=["sqlite", "valkey-postgresql"])
def durable_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Engines that keep what they acknowledged."""
    if request.param == "sqlite":
        yield Settings(data_dir=tmp_path)
        return
    with valkey_server(append_only=True) as valkey, postgres_server(durable=True) as postgres:
        yield Settings(redis_url=valkey.url, database_url=postgres.url)


def environment(settings: Settings) -> dict[str, str]:
    given = {
        "FIML_DATA_DIR": settings.data_dir,
        "FIML_REDIS_URL": settings.redis_url,
        "FIML_DATABASE_URL": settings.database_url,
    }
    room = {"FIML_SESSION_MAX_QUERIES_PER_SESSION": "1000000"}  # a fast machine writes many before it is killed
    return {"PYTHONPATH": str(ROOT)} | room | {name: str(value) for name, value in given.items() if value is not None}


@asynccontextmanager
async def running(program: str, *arguments: object, settings: Settings) -> AsyncIterator[Process]:
    """A process of a program; it has ended when the block has."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *map(str, arguments), env=environment(settings), stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_another_process_reads_what_one_wrote(backend_settings: Settings) -> None:
    async with SessionStore(backend_settings) as store:
        live = await store.create_session(["AAPL"], SessionType.EQUITY, title="Live")
        ended = await store.create_session(["AAPL"], SessionType.EQUITY, title="Ended")
        for session in (live, ended):
            await store.record_query(session.id, make_query(), context={"float": 1e23, "empty": [], "€": {}})
        await store.archive_session(ended.id)

        async with running(READ, live.id, ended.id, settings=backend_settings) as process:
            out, _ = await process.communicate()

        assert process.returncode == 0
        lines = out.decode().splitlines()
        for session, line in zip((live, ended), lines, strict=True):
            here = document(await existing(store, session.id), "last_accessed_at")
            there = json.loads(line)
            del there["last_accessed_at"]
            assert there == here


async def test_a_forked_process_is_told_to_open_a_store_of_its_own(sqlite_settings: Settings) -> None:
    """The thread of the file didn't come along: a call would wait for it forever."""
    async with running(FORK, settings=sqlite_settings) as process:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()

    assert process.returncode == 0
    noted = "noted by the parent"
    assert out.decode().splitlines() == ["forked", "forked", "forked", "1", noted, "1", noted]


async def test_a_hundred_writers_in_two_processes_lose_nothing(backend_settings: Settings) -> None:
    async with SessionStore(backend_settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        async with (
            running(WRITE_MANY, session.id, "one", WRITERS_OF_A_PROCESS, settings=backend_settings) as one,
            running(WRITE_MANY, session.id, "other", WRITERS_OF_A_PROCESS, settings=backend_settings) as other,
        ):
            for process in (one, other):
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            await asyncio.gather(*(process.communicate(b"\n") for process in (one, other)))

        assert (one.returncode, other.returncode) == (0, 0)
        found = await existing(store, session.id)
        assert found.state.history.get_query_types_summary() == {
            f"{name} {n}": 1 for name in ("one", "other") for n in range(WRITERS_OF_A_PROCESS)
        }


async def test_a_killed_process_loses_nothing_that_it_acknowledged(durable_settings: Settings) -> None:
    async with SessionStore(durable_settings) as store:
        written = await store.create_session(["AAPL"], SessionType.EQUITY)
        acknowledged: dict[str, set[str]] = {"query": set(), "session": set()}
        async with running(WRITE_UNTIL_KILLED, written.id, settings=durable_settings) as process:
            assert process.stdout is not None
            while min(map(len, acknowledged.values())) < KILLED_AFTER:
                kind, identity = (await process.stdout.readline()).decode().split()
                acknowledged[kind].add(identity)
            process.send_signal(signal.SIGKILL)
            rest, _ = await process.communicate()
        for line in rest.decode().splitlines(keepends=True):
            if line.endswith("\n"):
                kind, identity = line.split()
                acknowledged[kind].add(identity)

        assert process.returncode == -signal.SIGKILL
        found = await existing(store, written.id)
        kept = {str(query.id) for query in found.state.history.queries}
        assert acknowledged["query"] <= kept
        assert found.state.context.keys() == kept  # each query came with its entry, or neither did
        assert found.state.history.total_queries == len(found.state.history.queries) == len(kept)
        moved = await listing(store, None, tag="moved")
        assert len({summary.id for summary in moved}) == len(moved)
        assert acknowledged["session"] <= {str(summary.id) for summary in moved}
        for summary in moved:
            resumed = await store.resume_session(summary.id)
            assert resumed.state.history.total_queries == summary.total_queries
            assert summary.total_queries == 1 or str(summary.id) not in acknowledged["session"]
            await store.record_query(summary.id, make_query())


async def test_killed_servers_lose_nothing_that_was_acknowledged() -> None:
    with valkey_server(append_only=True) as valkey, postgres_server(durable=True) as postgres:
        settings = Settings(redis_url=valkey.url, database_url=postgres.url)
        async with SessionStore(settings) as store:
            live = await store.create_session(["AAPL"], SessionType.EQUITY)
            ended = await store.create_session(["AAPL"], SessionType.EQUITY)
            gone = await store.create_session(["AAPL"], SessionType.EQUITY)
            for session in (live, ended, gone):
                await store.record_query(session.id, make_query())
            await store.archive_session(ended.id)
            await store.delete_session(gone.id)

            for server in (valkey, postgres):
                server.kill()
                server.start()

            async with SessionStore(settings) as after:
                for session in (live, ended):
                    assert (await existing(after, session.id)).state.history.total_queries == 1
                assert await after.get_session(gone.id) is None
                assert (await after.resume_session(ended.id)).state.history.total_queries == 1
