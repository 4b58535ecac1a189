"""Runs the verbs of a command on a runtime that lives as long as the command."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fiml.runtime import open_runtime
from fiml.sessions.store import PrincipalStore

Result = TypeVar("Result")


def with_sessions(work: Callable[[PrincipalStore], Awaitable[Result]]) -> Result:
    """What `work` returns, given the local user's sessions."""

    async def run() -> Result:
        async with open_runtime() as runtime:
            return await work(await runtime.sessions())

    return asyncio.run(run())


def plain(text: str) -> str:
    """Without what would steer a terminal: an assistant may have written it."""
    return "".join(character if character.isprintable() else "�" for character in text)


def run_plain(work: Coroutine[Any, Any, Result]) -> Result:
    """What a coroutine returns."""
    return asyncio.run(work)
