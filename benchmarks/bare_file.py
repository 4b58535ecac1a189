"""SQLite without fiml: a bare connection of the standard library, and one hop to a thread and back."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fiml.core.config import Synchronous

Result = TypeVar("Result")


def bare_connection(path: Path, level: Synchronous = Synchronous.FULL, *, wait_s: float = 5) -> sqlite3.Connection:
    """A connection that any thread may use, and that begins no transaction by itself."""
    bare = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=wait_s)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute(f"PRAGMA synchronous={level.value}")
    return bare


async def hop(thread: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    """Run it in the thread."""
    return await asyncio.get_running_loop().run_in_executor(thread, work)
