"""An engine that can be stopped, killed and frozen, reached through a proxy that can disturb the connection."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import psutil
import pytest
import redis
from sqlalchemy import make_url

from fiml.core.config import Settings
from fiml.core.errors import Unavailable
from tests.support.deployment import EMPTY, Deployment, execute
from tests.support.proxy import Proxy, postgres_proxy, redis_proxy
from tests.support.servers import PostgresProcess, ServerProcess, ValkeyProcess, postgres_server, valkey_server

PASSWORD = "never-to-be-shown"  # noqa: S105  the server takes any
# Far beyond the bounds that are promised: a call that isn't over by then never is, or waits for something else.
CALL_S = 5
RETURN_S = 10
Result = TypeVar("Result")


@dataclass(frozen=True)
class Engine:
    """An engine of a server deployment, and the settings with which a store reaches it over the proxy."""

    server: ServerProcess
    proxy: Proxy
    settings: Settings


class Archive(Engine):
    """The archive."""

    async def fetch(self, query: str, *arguments: object) -> object:
        """A value, fetched around the proxy."""
        connection = await asyncpg.connect(self.server.url)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresProcess]:
    """A server for faults, which keeps what it acknowledged; who ends it starts it again."""
    with postgres_server(durable=True) as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyProcess]:
    """A server for faults, which keeps what it acknowledged; who ends it starts it again."""
    with valkey_server(append_only=True, password=PASSWORD) as server:
        yield server


@pytest.fixture
async def live(valkey: ValkeyProcess, deployment: Deployment) -> AsyncIterator[Engine]:
    """A Valkey with nothing in it, beside an empty archive."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    async with no_task_is_forgotten(), redis_proxy(valkey.url) as (proxy, url):
        yield Engine(valkey, proxy, Settings(redis_url=url, database_url=deployment.database_url))


@pytest.fixture
async def archive(postgres: PostgresProcess, deployment: Deployment) -> AsyncIterator[Archive]:
    """An empty archive, beside an empty Valkey."""
    if await _has_tables(postgres.url):
        await execute(postgres.url, EMPTY)
    url_with_password = make_url(postgres.url).set(password=PASSWORD).render_as_string(hide_password=False)
    async with no_task_is_forgotten(), postgres_proxy(url_with_password) as (proxy, url):
        yield Archive(postgres, proxy, Settings(redis_url=deployment.redis_url, database_url=url))


@asynccontextmanager
async def no_task_is_forgotten() -> AsyncIterator[None]:
    """Fails if a task or future had an error that nobody looked at."""
    forgotten: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: forgotten.append(context))
    yield
    gc.collect()
    assert forgotten == []


async def _has_tables(url: str) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT to_regclass('sessions')") is not None
    finally:
        await connection.close()


@asynccontextmanager
async def stopped(engine: Engine) -> AsyncIterator[None]:
    engine.server.stop()
    try:
        yield
    finally:
        engine.server.start()


@asynccontextmanager
async def killed(engine: Engine) -> AsyncIterator[None]:
    engine.server.kill()
    try:
        yield
    finally:
        engine.server.start()


@asynccontextmanager
async def frozen(engine: Engine) -> AsyncIterator[None]:
    """All processes of the server stand still."""
    with _suspended(psutil.Process(engine.server.pid)):
        yield


@contextmanager
def _suspended(server: psutil.Process) -> Iterator[None]:
    # The postmaster first: it starts none while the others are told.
    server.suspend()
    children = server.children()
    for child in children:
        child.suspend()
    try:
        yield
    finally:
        for process in (*children, server):
            process.resume()


@asynccontextmanager
async def refused(engine: Engine) -> AsyncIterator[None]:
    await engine.proxy.refuse()
    try:
        yield
    finally:
        await engine.proxy.accept()


@asynccontextmanager
async def hanging(engine: Engine) -> AsyncIterator[None]:
    """The server does what it is asked, but no reply gets through."""
    engine.proxy.hang()
    try:
        yield
    finally:
        engine.proxy.pass_on()


@asynccontextmanager
async def slow(engine: Engine) -> AsyncIterator[None]:
    """Each reply takes longer than a caller waits."""
    engine.proxy.delay(3)
    try:
        yield
    finally:
        engine.proxy.pass_on()


@asynccontextmanager
async def cut(engine: Engine) -> AsyncIterator[None]:
    """Each connection ends in the middle of the first reply."""
    engine.proxy.cut()
    try:
        yield
    finally:
        engine.proxy.pass_on()


FAULTS: dict[str, Callable[[Engine], AbstractAsyncContextManager[None]]] = {
    fault.__name__: fault for fault in (stopped, killed, frozen, refused, hanging, slow, cut)
}


async def until_back(call: Callable[[], Awaitable[Result]]) -> Result:
    """What a call returns as soon as it isn't `Unavailable`; a server that was frozen needs a moment."""
    async with asyncio.timeout(RETURN_S):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.05)
