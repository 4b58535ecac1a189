"""What commands share: a runtime for the time of a command, the argument for a session's id, and output."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from fiml.runtime import open_runtime
from fiml.sessions.queries import SESSION_LAYER, QueryRecord
from fiml.sessions.store import PrincipalStore

Result = TypeVar("Result")
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text")]
SessionId = Annotated[str, typer.Argument(help="the session's id", metavar="ID")]


def with_sessions(work: Callable[[PrincipalStore], Awaitable[Result]]) -> Result:
    """Run `work` with the local user's sessions, and return its result."""

    async def run() -> Result:
        async with open_runtime() as runtime:
            return await work(await runtime.sessions())

    return asyncio.run(run())


def plain(text: str) -> str:
    """A text without control characters for the terminal, since an assistant may have written it."""
    return "".join(character if character.isprintable() else "�" for character in text)


def shown_json(value: object) -> str:
    """Indented JSON without control characters for the terminal: they are escaped, also those that JSON may have."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(line if line.isprintable() else _escaped(line) for line in lines)


def hit_of(query: QueryRecord) -> str:
    """Where a query's answer came from, if no provider was asked for it."""
    if not query.cache_hit:
        return ""
    return ", from the session" if query.layer == SESSION_LAYER else ", from a cache"


def _escaped(line: str) -> str:
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in line)


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many}"
