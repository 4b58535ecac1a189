"""What the command line and the MCP server are wired from."""

import asyncio
import copy
import gc
import pickle
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from fiml.core.config import MarketData, Settings
from fiml.core.errors import InvalidInput, MissingExtra, Unavailable
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.mcp.server import build_server
from fiml.runtime import Runtime, maintaining, open_runtime
from fiml.sessions import store as stores
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore, get_session_store
from fiml.testing import FrozenClock

Result = TypeVar("Result")


async def test_a_running_server_archives_what_has_expired(clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiml.runtime.FIRST_LOOK_S", 0)
    async with open_runtime() as runtime:
        session = await (await runtime.store()).create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        clock.advance(hours=2)

        async with maintaining(runtime), asyncio.timeout(10):
            while not (await is_archived(runtime, str(session.id))):
                pass


async def test_a_server_that_is_cancelled_while_it_ends_the_maintenance_stays_cancelled() -> None:
    inside = asyncio.Event()

    async def serve() -> None:
        async with maintaining(Runtime(Settings())):
            inside.set()

    serving = asyncio.create_task(serve())
    await inside.wait()
    serving.cancel()
    await asyncio.wait({serving})

    assert serving.cancelled()


async def test_sessions_are_listed_without_a_market() -> None:
    async with open_runtime(Settings(market_data=MarketData.LIVE)) as runtime:
        assert await (await runtime.sessions()).list_user_sessions(None) == []


async def test_a_server_without_its_market_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiml.market.providers.live.live_extras", list)

    with pytest.raises(MissingExtra, match="live market data"):
        build_server(Runtime(Settings(market_data=MarketData.LIVE)))


class Stuck(SampleProvider):
    """A market that can't be closed."""

    async def aclose(self) -> None:
        raise OSError("stuck")


async def test_the_store_is_shut_down_though_the_market_cannot_be_closed() -> None:
    with pytest.raises(OSError, match="stuck"):
        async with open_runtime(market=MarketService(Stuck())) as runtime:
            store = await runtime.store()

    with pytest.raises(Unavailable, match="it is not open"):
        await store.list_user_sessions(None)


async def test_statistics_of_a_user_without_a_name_are_nobodys() -> None:
    async with open_runtime() as runtime:
        with pytest.raises(InvalidInput, match="user_id"):
            await runtime.stats("", None, 30)


async def test_a_runtime_that_is_closed_opens_no_store_again() -> None:
    async with open_runtime() as runtime:
        await runtime.store()

    with pytest.raises(Unavailable, match="the runtime is unavailable"):
        await runtime.store()


async def test_a_runtime_without_a_block_stays_open_until_it_is_closed() -> None:
    """As in a notebook, where each cell ends."""
    runtime = await open_runtime().__aenter__()
    store = await runtime.store()
    gc.collect()
    await asyncio.sleep(0)  # the loop closes now what became garbage

    assert await store.list_user_sessions(None) == []
    assert await runtime.store() is store

    await runtime.close()
    await runtime.close()


def test_each_run_of_a_program_closes_its_store() -> None:
    """As many programs do: one `asyncio.run` for each thing."""

    async def use() -> SessionStore:
        store = await get_session_store()
        await store.create_session(["AAPL"], "equity")
        return store

    for _ in range(3):
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            store = runner.run(use())
        assert store._opened is None
    assert sum(loop.is_closed() for loop in stores._stores) == 1  # the others were forgotten


def test_threads_that_run_loops_of_their_own_have_stores_of_their_own() -> None:
    async def use() -> None:
        await (await get_session_store()).create_session(["AAPL"], "equity")

    async def count() -> int:
        return len(await (await get_session_store()).list_user_sessions(None, limit=200))

    def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(work())

    with ThreadPoolExecutor(8) as threads:
        for thread in [threads.submit(run, use) for _ in range(40)]:
            thread.result()

    assert run(count) == 40


@pytest.mark.filterwarnings("default::ResourceWarning")
def test_a_store_that_nobody_closed_is_closed_once_nobody_has_it() -> None:
    async def forget() -> None:
        store = SessionStore()
        await store.initialize()

    def run() -> None:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(forget())
        gc.collect()

    before = threading.active_count()
    with pytest.warns(ResourceWarning, match="not closed"):
        run()
    for thread in threading.enumerate():
        if thread.name.startswith("fiml-sqlite"):
            thread.join(timeout=10)
    assert threading.active_count() == before


@pytest.mark.parametrize("given", ["sessions.db", {"data_dir": "folder"}, ""])
def test_a_store_or_runtime_takes_no_path_as_its_settings(given: Any) -> None:
    """Opening it failed, with an error about an attribute."""
    for open_one in (SessionStore, open_runtime):
        with pytest.raises(InvalidInput, match=r"give Settings\(data_dir=\.\.\.\)"):
            open_one(given)


async def test_a_store_is_not_sent_to_another_process(store: SessionStore) -> None:
    """As a pool of processes would; the copy of its parts broke in the middle, and its garbage complained."""
    for view in (store, store.as_principal("ann")):
        for send in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="open one in each process"):
                send(view)


async def test_the_store_of_a_process_is_one() -> None:
    first, second = await asyncio.gather(get_session_store(), get_session_store())

    assert first is second
    await first.shutdown()


async def is_archived(runtime: Runtime, session_id: str) -> bool:
    session = await (await runtime.store()).get_session(session_id)
    return session is not None and session.is_archived
