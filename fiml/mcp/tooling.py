"""How a method becomes a tool: its result as compact JSON, fiml's errors as tool errors."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel

from fiml.access.principals import Scope
from fiml.core.errors import FimlError
from fiml.mcp.auth import current_principal
from fiml.mcp.refusals import refuse, with_refusals
from fiml.runtime import Runtime
from fiml.sessions.store import PrincipalStore

Kind = Literal["reads", "adds", "asks"]
_SCOPES = {"reads": Scope.SESSIONS_READ, "adds": Scope.SESSIONS_WRITE, "asks": Scope.MARKET_READ}


def make_tool(
    method: Callable[..., Awaitable[BaseModel]],
    title: str,
    description: str,
    *,
    kind: Kind,
    is_open_world: bool = False,
) -> Tool:
    """The tool named after a method; `is_open_world` where it may ask a market's provider."""
    tool = Tool.from_function(
        _answering(method, _SCOPES[kind]),
        name=method.__name__.replace("_", "-"),
        title=title,
        description=description,
        annotations=ToolAnnotations(
            read_only_hint=kind == "reads",
            destructive_hint=False,
            idempotent_hint=kind == "reads",
            open_world_hint=is_open_world,
        ),
    )
    assert tool.fn_metadata.output_schema is not None  # noqa: S101 - every method returns a model
    tool.fn_metadata.output_schema = with_refusals(tool.fn_metadata.output_schema)
    return tool


async def sessions_of(runtime: Runtime) -> PrincipalStore:
    """The sessions that the caller sees."""
    principal = current_principal()
    return await runtime.sessions(principal.owner, name=principal.user_id)


def _answering(method: Callable[..., Awaitable[BaseModel]], scope: Scope) -> Callable[..., Awaitable[CallToolResult]]:
    """The method with its result as compact JSON, and fiml's errors as tool errors."""

    @functools.wraps(method)
    async def answer(*positional: Any, **named: Any) -> CallToolResult:
        try:
            current_principal().check(scope)
            result = await method(*positional, **named)
        except FimlError as exc:
            return refuse(exc)
        return CallToolResult(
            content=[TextContent(type="text", text=result.model_dump_json())],
            structured_content=result.model_dump(mode="json"),
        )

    return answer
