"""What commands share: their runtime, which lives as long as they do, a session's id, and what a terminal is shown."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from fiml.runtime import open_runtime
from fiml.sessions.store import PrincipalStore

Result = TypeVar("Result")
SessionId = Annotated[str, typer.Argument(help="the session's id", metavar="ID")]


def with_sessions(work: Callable[[PrincipalStore], Awaitable[Result]]) -> Result:
    """What `work` returns, given the local user's sessions."""

    async def run() -> Result:
        async with open_runtime() as runtime:
            return await work(await runtime.sessions())

    return asyncio.run(run())


def plain(text: str) -> str:
    """Without what would steer a terminal: an assistant may have written it."""
    return "".join(character if character.isprintable() else "�" for character in text)
