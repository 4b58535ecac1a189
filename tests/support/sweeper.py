"""A sweeper that stops before each of its steps, in a process of its own, to be killed or paused there.

Run as a program it takes lines: `go TIME` forks a process that sweeps at that time; before each step the process says
`step NAME` and waits for a line. At its end, `ended STATUS` is said.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, event

from fiml.core import clock
from fiml.core.config import Settings
from fiml.sessions.backends.sqlite.backend import SqliteBackend
from fiml.sessions.backends.tiered.backend import TieredBackend
from fiml.testing import FrozenClock, open_store_over
from tests.support.backends import watched_backend

ROOT = Path(__file__).parent.parent.parent
Result = TypeVar("Result")


class Sweeper:
    """The process, seen from the test."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._pid = 0

    async def start(self, at: datetime) -> None:
        """Begin a sweep; it stops before its first step."""
        self._say(f"go {at.isoformat()}")
        self._pid = int((await self._hear()).removeprefix("pid "))

    async def next_step(self) -> str | None:
        """Before which step it stands, `None` when it has ended well."""
        line = await self._hear()
        if line.startswith("ended"):
            assert line == "ended 0"
            return None
        return line.removeprefix("step ")

    def go_on(self) -> None:
        """Let it do the step."""
        self._say("")

    async def finish(self) -> None:
        """Let it do all its steps from the one on that it stands before."""
        self.go_on()
        while await self.next_step() is not None:
            self.go_on()

    async def kill(self) -> None:
        """End it where it stands, by its process id."""
        os.kill(self._pid, signal.SIGKILL)
        assert await self._hear() == f"ended {signal.SIGKILL.value}"

    def _say(self, line: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n".encode())

    async def _hear(self) -> str:
        assert self._server.stdout is not None
        return (await self._server.stdout.readline()).decode().strip()


@asynccontextmanager
async def stepping_sweeper(settings: Settings) -> AsyncIterator[Sweeper]:
    """A sweeper over the data of the settings; its process has ended when the block has."""
    given = {
        "FIML_DATA_DIR": settings.data_dir,
        "FIML_REDIS_URL": settings.redis_url,
        "FIML_DATABASE_URL": settings.database_url,
        "FIML_SQLITE_SYNCHRONOUS": settings.sqlite_synchronous.value,
    }
    environment = {name: str(value) for name, value in given.items() if value is not None}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.sweeper", env=environment, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Sweeper(server)
    finally:
        server.terminate()
        await server.wait()


def _step(name: str) -> None:
    os.write(1, f"step {name}\n".encode())
    _read_line()


def _read_line() -> str:
    # Unbuffered: two processes read from the same pipe, one after the other.
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 1)
        if not read:
            sys.exit(0)
        line += read
    return line.decode().strip()


async def _around(call: Callable[[], Awaitable[Result]]) -> Result:
    _step("call")
    return await call()


async def _sweep(at: datetime) -> None:
    backend = watched_backend(Settings(), _quiet)
    async with open_store_over(backend, Settings()) as store:
        for part in (getattr(backend, "_client", None), getattr(backend, "_database", None)):
            if part is not None:
                part.around = _around
        _watch(_engine_of(backend))
        with clock.using(FrozenClock(at)):
            await store.cleanup_expired_sessions()
        for part in (getattr(backend, "_client", None), getattr(backend, "_database", None)):
            if part is not None:
                part.around = _quiet


async def _quiet(call: Callable[[], Awaitable[Result]]) -> Result:
    return await call()


def _engine_of(backend: Any) -> Engine:
    if isinstance(backend, SqliteBackend):
        return backend._file._engine
    assert isinstance(backend, TieredBackend)
    return backend._database.engine.sync_engine


def _watch(engine: Engine) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def before_statement(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        _step(" ".join(statement.split()[:3]))

    @event.listens_for(engine, "commit")
    def before_commit(_connection: Any) -> None:
        _step("commit")


def _serve() -> None:
    while True:
        at = datetime.fromisoformat(_read_line().removeprefix("go "))
        pid = os.fork()
        if pid == 0:
            asyncio.run(_sweep(at))
            os._exit(0)
        os.write(1, f"pid {pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"ended {status}\n".encode())


if __name__ == "__main__":
    _serve()
