"""What a model gets to read when a call can't be answered: a code, what was wrong, and the next step."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, TextContent
from pydantic import AliasChoices, ValidationError

from fiml.core.errors import FimlError, InvalidInput, SessionArchived, SessionExpired, SessionNotFound, echo

_log = structlog.get_logger()

_NEXT_STEPS: dict[type[FimlError], str] = {
    SessionNotFound: "call list-sessions to find the session, or create-analysis-session to begin one",
    SessionExpired: "create a new session with create-analysis-session, or let the user run `fiml sessions resume`",
    SessionArchived: "create a new session with create-analysis-session, or let the user run `fiml sessions resume`",
    InvalidInput: "mend the argument and call again",
}


def refuse(error: FimlError) -> CallToolResult:
    """The tool error of one of fiml's errors."""
    next_step = next((step for kind, step in _NEXT_STEPS.items() if isinstance(error, kind)), None)
    return _error(error.code, str(error), next_step)


def _error(code: str, message: str, next_step: str | None) -> CallToolResult:
    content = {"status": "error", "code": code, "message": message}
    if next_step is not None:
        content["next_step"] = next_step
    text = message if next_step is None else f"{message}. Next: {next_step}."
    return CallToolResult(
        content=[TextContent(type="text", text=f"{code}: {text}")], structured_content=content, is_error=True
    )


class ArgumentCheck:
    """Refuses arguments that a tool doesn't have, or that don't fit its schema, before the tool is called.

    The SDK drops an unknown argument without a word: `session` for `sessionId` would leave a query untracked.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method == "tools/call" and ctx.params is not None:
            refusal = self._check(ctx.params.get("name"), ctx.params.get("arguments") or {})
            if refusal is not None:
                return refusal
        return await call_next(ctx)

    def _check(self, name: object, arguments: object) -> CallToolResult | None:
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None or not isinstance(arguments, Mapping):
            return None  # the SDK has an answer for both
        accepted = _accepted_names(tool)
        for given in arguments:
            if given not in accepted:
                return _unknown_argument(given, list(tool.parameters["properties"]))
        if twice := _given_twice(arguments, accepted):
            return _error("invalid_input", f"{twice} is given under two names", "give it once")
        return _misfit(tool, dict(arguments))


def _accepted_names(tool: Tool) -> dict[str, str]:
    """Every name under which an argument is taken, with the name that the schema shows."""
    names: dict[str, str] = {}
    for field, info in tool.fn_metadata.arg_model.model_fields.items():
        names[field] = field
        if isinstance(info.validation_alias, AliasChoices):
            names |= {str(choice): field for choice in info.validation_alias.choices}
    return names


def _given_twice(arguments: Mapping[str, Any], accepted: Mapping[str, str]) -> str | None:
    seen: set[str] = set()
    for given in arguments:
        if accepted[given] in seen:
            return accepted[given]
        seen.add(accepted[given])
    return None


def _unknown_argument(given: str, known: list[str]) -> CallToolResult:
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    message = f"there is no argument {echo(given)}{hint}; the tool takes {', '.join(known)}"
    return _error("unknown_argument", message, "call again with the right names")


def _misfit(tool: Tool, arguments: dict[str, Any]) -> CallToolResult | None:
    try:
        tool.fn_metadata.validate_arguments(arguments)
    except ValidationError as exc:
        problems = [
            f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}{_given(error)}"
            for error in exc.errors(include_url=False, include_context=False)[:5]
        ]
        return _error("invalid_input", "; ".join(problems), _NEXT_STEPS[InvalidInput])
    return None


def _given(error: Mapping[str, Any]) -> str:
    return "" if error["type"] == "missing" else f" (it is {echo(error['input'])})"
