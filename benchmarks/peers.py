"""The peers, timed by a process in their own environment over the same servers. Without it they are left out."""

import asyncio
import json
import os
import subprocess
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.timing import Batch

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".peers" / "bin" / "python"
MISSING = "the peers are missing: `make bench-peers` installs them"
REDIS = "openai-agents RedisSession"
SQL = "openai-agents SQLAlchemySession"
SQLITE = "openai-agents SQLAlchemySession (SQLite)"
LANGGRAPH = "langgraph checkpointer"
ADK = "google-adk DatabaseSessionService"
PACKAGES = ("openai-agents", "langgraph-checkpoint-postgres", "google-adk")
_MAX_LINE_BYTES = 1 << 20


class PeerFailed(Exception):
    """A peer raised an exception, which the message names."""


class Peers:
    """What the peers take for an operation."""

    def __init__(self, process: Process | None) -> None:
        self._process = process

    def ways(self, operation: str, *names: str, history: int = 0) -> dict[str, Batch]:
        """Those of the named peers that are there, each as a way of doing an operation."""
        if self._process is None:
            return {}
        return {name: self._batch(name, operation, history) for name in names}

    def _batch(self, name: str, operation: str, history: int) -> Batch:
        async def batch(calls: int) -> list[float]:
            request = {"peer": name, "operation": operation, "history": history, "calls": calls}
            answer = await self._ask(request)
            if "error" in answer:
                raise PeerFailed(f"{name}, {operation}: {answer['error']}")
            measured: list[float] = answer["ms"]
            return measured

        return batch

    async def _ask(self, request: dict[str, object]) -> dict[str, list[float]]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{json.dumps(request)}\n".encode())
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise PeerFailed("the peers' process has ended; its last words are above")
        answer: dict[str, list[float]] = json.loads(line)
        return answer


@asynccontextmanager
async def open_peers(redis_url: str, postgres_url: str) -> AsyncIterator[Peers]:
    """The peers' process, ended at the end of the block; none where they aren't installed."""
    if not PYTHON.exists():
        print(MISSING)
        yield Peers(None)
        return
    with tempfile.TemporaryDirectory(prefix="fiml-peers-") as folder:
        command = (str(PYTHON), "-m", "benchmarks.peer_process", redis_url, postgres_url, folder)
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=PIPE, stdout=PIPE, env={"PATH": os.defpath}, limit=_MAX_LINE_BYTES
        )
        try:
            yield Peers(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


def versions() -> dict[str, str]:
    """The peers' packages and their versions; empty where they aren't installed."""
    if not PYTHON.exists():
        return {}
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found: dict[str, str] = json.loads(subprocess.check_output([PYTHON, "-c", code, *PACKAGES], text=True))
    return found
