"""Turns a method into a tool, with its result as compact JSON and fiml's errors as tool errors."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel

from fiml.access.principals import Scope
from fiml.core.errors import FimlError
from fiml.mcp.arguments import snake_case
from fiml.mcp.auth import current_principal
from fiml.mcp.refusals import refuse, with_refusals
from fiml.runtime import Runtime
from fiml.sessions.store import PrincipalStore

_Answer = Callable[..., Awaitable[CallToolResult]]
Kind = Literal["reads", "adds", "asks"]
_SCOPES = {"reads": Scope.SESSIONS_READ, "adds": Scope.SESSIONS_WRITE, "asks": Scope.MARKET_READ}


def make_tool(
    method: Callable[..., Awaitable[BaseModel]],
    title: str,
    description: str,
    *,
    kind: Kind,
    is_destructive: bool = False,
    is_idempotent: bool = False,
    is_open_world: bool = False,
    defaults: Mapping[str, int] = MappingProxyType({}),
    called: Mapping[str, str] = MappingProxyType({}),
) -> Tool:
    """The tool for a method, named after it; `is_open_world` if it may ask a market provider.

    `is_destructive` where it can overwrite something or take it away, so that a client may ask its user first;
    `is_idempotent` where it writes, but a second call like the first one changes nothing more.

    `defaults` of arguments, which settings bound, take the place of those in the method's signature.
    `called` has the arguments by what the library calls them, where it isn't their name in snake_case.
    """
    arguments = {snake_case(name): name for name in inspect.signature(method).parameters}
    tool = Tool.from_function(
        _with_defaults(_answering(method, _SCOPES[kind], arguments | dict(called)), defaults),
        name=method.__name__.replace("_", "-"),
        title=title,
        description=description,
        annotations=ToolAnnotations(
            read_only_hint=kind == "reads",
            destructive_hint=is_destructive,
            idempotent_hint=kind == "reads" or is_idempotent,
            open_world_hint=is_open_world,
        ),
    )
    tool.fn_metadata = _TextsAsGiven(**dict(tool.fn_metadata))
    assert tool.fn_metadata.output_schema is not None  # noqa: S101 - every method returns a model
    tool.fn_metadata.output_schema = with_refusals(tool.fn_metadata.output_schema)
    return tool


class _TextsAsGiven(FuncMetadata):
    """Leaves text arguments as they are: the SDK would parse a note that happens to be JSON.

    It parses lists and objects, which some clients send as JSON in a text; those given in snake_case too. An argument
    that may be left out is left out where it is null, as other clients send those they don't use.
    """

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        data = {self._names.get(name, name): value for name, value in data.items()}
        data = {name: value for name, value in data.items() if value is not None or name not in self._optional}
        return super().pre_parse_json(data) | {name: data[name] for name in self._texts & data.keys()}

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        return {snake_case(name): name for name in self.arg_model.model_fields}

    @functools.cached_property
    def _optional(self) -> set[str]:
        return {name for name, field in self.arg_model.model_fields.items() if not field.is_required()}

    @functools.cached_property
    def _texts(self) -> set[str]:
        return {name for name, field in self.arg_model.model_fields.items() if field.annotation == str | None}


async def sessions_of(runtime: Runtime) -> PrincipalStore:
    """The sessions that the caller sees."""
    principal = current_principal()
    return await runtime.sessions(principal.owner, name=principal.user_id)


def _with_defaults(answer: _Answer, defaults: Mapping[str, int]) -> _Answer:
    signature = inspect.signature(answer)
    changed = [each.replace(default=defaults.get(each.name, each.default)) for each in signature.parameters.values()]
    answer.__signature__ = signature.replace(parameters=changed)  # type: ignore[attr-defined]  # what inspect reads
    return answer


def _answering(method: Callable[..., Awaitable[BaseModel]], scope: Scope, arguments: Mapping[str, str]) -> _Answer:
    """The method with its result as compact JSON, and fiml's errors as tool errors."""

    @functools.wraps(method)
    async def answer(*positional: Any, **named: Any) -> CallToolResult:
        try:
            current_principal().check(scope)
            result = await method(*positional, **named)
        except FimlError as exc:
            return refuse(exc, arguments)
        return CallToolResult(
            content=[TextContent(type="text", text=result.model_dump_json())],
            structured_content=result.model_dump(mode="json"),
        )

    return answer
