"""While PostgreSQL is away, live sessions work, archived ones don't seem missing, and recovery is automatic."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psutil
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from fiml.cli import app
from fiml.core.config import Settings
from fiml.core.errors import SchemaOutdated, Unavailable
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing, listing
from tests.support.deployment import Deployment
from tests.support.http_server import http_server
from tests.support.servers import PostgresProcess, postgres_server, valkey_server

PATIENCE_S = 10
Verb = Callable[[SessionStore, UUID], Awaitable[object]]
ON_LIVE: dict[str, Verb] = {
    "create": lambda store, _: store.create_session(["KO"], SessionType.EQUITY),
    "get": lambda store, session_id: store.get_session(session_id),
    "record": lambda store, session_id: store.record_query(session_id, make_query()),
    "remember": lambda store, session_id: store.remember(session_id, notes=["n"]),
    "pack": lambda store, session_id: store.pack_context(session_id),
    "extend": lambda store, session_id: store.extend_session(session_id, 1),
    "resume": lambda store, session_id: store.resume_session(session_id),
    "share": lambda store, session_id: store.share_session(session_id, "bob"),
    "trail": lambda store, session_id: store.get_audit_trail(session_id),
    "list": lambda store, _: store.list_user_sessions(None),
}
OF_THE_ARCHIVE: dict[str, Verb] = {
    "archive": lambda store, session_id: store.archive_session(session_id),
    "delete": lambda store, session_id: store.delete_session(session_id),
    "hold": lambda store, session_id: store.hold(session_id, "why"),
    "erase": lambda store, _: store.erase_user("ann"),
}
NOT_ON_ONE = ("create", "list", "erase", "archive")
ON_ANY: dict[str, Verb] = {n: verb for n, verb in (ON_LIVE | OF_THE_ARCHIVE).items() if n not in NOT_ON_ONE}


class Engines:
    """A server deployment whose PostgreSQL can be taken away."""

    def __init__(self, redis_url: str, postgres: PostgresProcess) -> None:
        self.postgres = postgres
        self.settings = Settings(redis_url=redis_url, database_url=postgres.url)

    @contextmanager
    def away(self, how: str) -> Iterator[None]:
        """PostgreSQL is stopped, killed, or stands still."""
        if how == "hanging":
            parent = psutil.Process(self.postgres.pid)
            processes = [parent, *parent.children(recursive=True)]
            for process in processes:
                process.suspend()
            try:
                yield
            finally:
                for process in processes:
                    process.resume()
            return
        (self.postgres.stop if how == "stopped" else self.postgres.kill)()
        try:
            yield
        finally:
            self.postgres.start()


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with valkey_server() as valkey, postgres_server(durable=True) as postgres:
        yield Engines(valkey.url, postgres)


@pytest.fixture
async def store(engines: Engines, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(engines.settings) as opened:
        yield opened


@pytest.mark.parametrize("how", ["stopped", "killed", "hanging"])
async def test_live_sessions_work_and_archived_ones_are_not_taken_for_absent(
    store: SessionStore, engines: Engines, clock: FrozenClock, how: str
) -> None:
    live = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")
    ended = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")
    await store.archive_session(ended.id)

    async with asyncio.timeout(120):
        with engines.away(how):
            for name, verb in ON_LIVE.items():
                assert await refusal(verb(store, live.id)) is None, name
            for name, verb in OF_THE_ARCHIVE.items():
                assert await refusal(verb(store, live.id)) is Unavailable, name
            for session_id in (ended.id, uuid4()):
                outcomes = await asyncio.gather(*(refusal(verb(store, session_id)) for verb in ON_ANY.values()))
                assert set(outcomes) == {Unavailable}
            assert await store.away() == ["archive"]

        assert (await existing(store, live.id)).state.history.total_queries == 1
        assert (await existing(store, ended.id)).is_archived
        assert await store.get_session(uuid4()) is None
        assert await store.away() == []
        assert await store.archive_session(live.id)
        await store.erase_user("ann")


async def test_a_listing_and_all_that_its_cursor_leads_to_are_partial(
    store: SessionStore, engines: Engines, clock: FrozenClock
) -> None:
    """Otherwise a caller would think that there were no archived sessions before the cursor."""
    ids = []
    for n in range(6):
        clock.advance(seconds=1)
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="lis", tags=["t"])
        ids.append(session.id)
        if n % 2:
            await store.archive_session(session.id)

    with engines.away("stopped"):
        first = await store.list_user_sessions("lis", include_archived=True, limit=2)
        live = await store.list_user_sessions("lis", limit=2)
        found = await store.search_sessions("lis", tag="t", limit=2)
    second = await store.list_user_sessions("lis", include_archived=True, limit=2, cursor=first.next_cursor)
    more = await store.search_sessions("lis", tag="t", limit=2, cursor=found.next_cursor)

    assert [each.id for each in first] == [each.id for each in found] == [ids[4], ids[2]]
    assert (first.partial, second.partial, found.partial, more.partial) == (True, True, True, True)
    assert (live.partial, found.searched) == (False, ("live",))
    assert [each.id for each in await listing(store, "lis")] == ids[::-1]
    assert not (await store.list_user_sessions("lis", include_archived=True)).partial


async def test_a_store_opens_without_the_archive_and_uses_it_when_it_is_there(
    engines: Engines, clock: FrozenClock
) -> None:
    with engines.away("stopped"):
        store = SessionStore(engines.settings)
        await store.initialize()
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        with pytest.raises(Unavailable):
            await store.archive_session(session.id)

    assert await store.archive_session(session.id)
    assert (await existing(store, session.id)).is_archived
    await store.shutdown()


async def test_an_outdated_schema_is_refused_when_the_archive_is_back(clock: FrozenClock) -> None:
    with valkey_server() as valkey, postgres_server() as postgres:
        engines = Engines(valkey.url, postgres)
        async with SessionStore(engines.settings) as store, store.session_maker.begin() as session:
            await session.execute(text("UPDATE fiml_schema_version SET version_num = '0001'"))
        with engines.away("stopped"):
            store = SessionStore(engines.settings)
            await store.initialize()

        with pytest.raises(SchemaOutdated):
            await store.get_session(uuid4())
        await store.shutdown()


async def test_a_sweep_without_the_archive_loses_nothing_and_the_next_one_ends(
    store: SessionStore, engines: Engines, clock: FrozenClock
) -> None:
    ids = [(await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)).id for _ in range(20)]
    clock.advance(hours=2)

    with engines.away("killed"), pytest.raises(Unavailable):
        await store.cleanup_expired_sessions()

    assert await store.cleanup_expired_sessions() == 20
    for session_id in ids:
        assert (await existing(store, session_id)).is_archived


async def test_a_caller_who_leaves_in_the_middle_leaves_the_pool_whole(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    await store.archive_session(session.id)

    for round_ in range(60):
        task = asyncio.create_task(store.get_session(session.id))
        await asyncio.sleep(0.0002 * round_)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*(store.get_session(session.id) for _ in range(100)))
    assert all(each is not None for each in found)


async def test_a_server_is_ready_while_only_the_archive_is_away(engines: Engines, tmp_path: Path) -> None:
    variables = {
        "FIML_REDIS_URL": str(engines.settings.redis_url),
        "FIML_DATABASE_URL": str(engines.settings.database_url),
    }
    async with AsyncExitStack() as stack:
        with engines.away("stopped"):
            server = await stack.enter_async_context(http_server(tmp_path / "data", **variables))
            caller = await stack.enter_async_context(server.caller())
            session_id = await caller.create("AAPL")
            tracked = await caller.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)
            unknown = await caller.refusal("get-session-info", sessionId=str(uuid4()))
            listed = await caller.answer("list-sessions", includeArchived=True)
            closed = await caller.refusal("close-session", sessionId=session_id)
            degraded = await server.get("/ready")
        ready = await server.get("/ready")
        closed_now = await caller.answer("close-session", sessionId=session_id)

    assert tracked["tracked"]
    assert closed_now["was_live"]
    assert (unknown["code"], closed["code"]) == ("unavailable", "unavailable")
    assert listed["partial"]
    # Sessions of the other tests may be waiting for a sweep.
    assert (degraded.status_code, degraded.json(), ready.json()["status"]) == (200, {"status": "degraded"}, "ok")


async def test_the_first_look_at_a_server_that_starts_while_the_archive_hangs_finds_it_degraded(
    engines: Engines, tmp_path: Path
) -> None:
    variables = {
        "FIML_REDIS_URL": str(engines.settings.redis_url),
        "FIML_DATABASE_URL": str(engines.settings.database_url),
    }
    with engines.away("hanging"):
        async with http_server(tmp_path / "data", **variables) as server:
            first = await server.get("/ready")

    assert (first.status_code, first.json()) == (200, {"status": "degraded"})


def test_the_command_line_says_that_a_listing_is_partial(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIML_REDIS_URL", str(engines.settings.redis_url))
    monkeypatch.setenv("FIML_DATABASE_URL", str(engines.settings.database_url))
    with engines.away("stopped"):
        result = CliRunner().invoke(app, ["sessions", "list", "--archived"])

    assert result.exit_code == 0
    assert "archived sessions are missing: the archive is unavailable" in result.stdout


async def refusal(call: Awaitable[object]) -> type[Exception] | None:
    """The error of a call, which ends in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await call
    except Unavailable as exc:
        return type(exc)
    return None


async def test_a_listing_with_a_filter_and_an_erasure_have_as_long_as_a_search(
    deployment: Deployment, clock: FrozenClock
) -> None:
    """PostgreSQL looks through much for them; here, it waits for somebody who locks the sessions."""
    filters: list[dict[str, Any]] = [{"type": "equity"}, {"tag": "tech"}, {"asset": "AAPL"}]
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, tags=["tech"])
        erased = await store.create_session(["MSFT"], SessionType.MACRO, user_id="bob")
        for each in (session, erased):
            await store.archive_session(each.id)
        locking = await asyncpg.connect(deployment.database_url)
        async with locking.transaction():
            await locking.execute("LOCK TABLE sessions")
            filtered = [
                asyncio.create_task(store.list_user_sessions(None, include_archived=True, **each)) for each in filters
            ]
            erasing = asyncio.create_task(store.erase_user("bob"))
            whole = await store.list_user_sessions(None, include_archived=True)
        await locking.close()

        assert whole.partial
        for page in await asyncio.gather(*filtered):
            assert [summary.id for summary in page] == [session.id]
        assert (await erasing).erased == [erased.id]
