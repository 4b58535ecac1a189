"""What a model gets to read when a call can't be answered: a code, what was wrong, and the next step."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any, get_args

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, TextContent
from opentelemetry.trace import get_current_span
from pydantic import AliasChoices, ValidationError

from fiml.core.errors import (
    FimlError,
    InvalidInput,
    NotPermitted,
    RateLimited,
    SessionArchived,
    SessionExpired,
    SessionNotFound,
    SymbolNotFound,
    Unavailable,
    Unconfirmed,
    echo,
)

MAX_VALUES = 1000
_MAX_NAME_CHARACTERS = 100  # a body has room for two million, which would take seconds to compare

_NEXT_STEPS: dict[type[FimlError], str] = {
    SessionNotFound: "call list-sessions with includeArchived to find the session, or create-analysis-session to begin"
    " one",
    SessionExpired: "call resume-session to continue it, or create-analysis-session to begin a new one",
    SessionArchived: "call resume-session to continue it, or create-analysis-session to begin a new one",
    RateLimited: "tell the user when to ask again, and continue with what the session knows",
    Unconfirmed: "check what was written (get-session-info, list-sessions) before you call again",
    Unavailable: "call again in a minute; if it still fails, tell the user what is unavailable",
    SymbolNotFound: "call again with one of these; coins: search-by-coin, others: search-by-symbol",
    InvalidInput: "correct the argument and call again",
    NotPermitted: "call again within what is permitted, or tell the user what is missing and whom to ask",
}

# The field in `session id`, `intermediate_results.peg` or `a key of intermediate_results`.
_FIELD = re.compile("^(a key of )?([a-z_ ]+)")


def refuse(error: FimlError, arguments: Mapping[str, str]) -> CallToolResult:
    """The tool error of one of fiml's errors. `arguments` has the tool's arguments by what the library calls them."""
    message = _about_argument(error, arguments) if isinstance(error, InvalidInput) else str(error)
    return _error(error.code, message, next_step_of(error))


def _about_argument(error: InvalidInput, arguments: Mapping[str, str]) -> str:
    """The error's message, with the name that the field has in the tool."""
    field = _FIELD.sub(
        lambda found: (found[1] or "") + arguments.get(found[2].replace(" ", "_"), found[2]), error.field
    )
    return f"{field} {error.problem}; {error.valid}"


def next_step_of(error: FimlError) -> str | None:
    """What a model can do about an error; `None` if nothing in particular."""
    return next((step for kind, step in _NEXT_STEPS.items() if isinstance(error, kind)), None)


def refuse_unreadable(problem: str) -> CallToolResult:
    """The tool error for a call that isn't valid JSON."""
    return _error("invalid_input", f"the call can't be read: {problem}", _NEXT_STEPS[InvalidInput])


@contextmanager
def protocol_errors() -> Iterator[None]:
    """Turn fiml's errors into errors of the protocol, for what has no tool errors: prompts and completions."""
    try:
        yield
    except FimlError as exc:
        raise MCPError(INVALID_PARAMS, str(exc), {"code": exc.code}) from exc


def _error(code: str, message: str, next_step: str | None) -> CallToolResult:
    content = {"status": "error", "code": code, "message": message}
    if next_step is not None:
        content["next_step"] = next_step
    text = message if next_step is None else f"{message}. Next: {next_step}."
    return CallToolResult(
        content=[TextContent(type="text", text=f"{code}: {text}")], structured_content=content, is_error=True
    )


def with_refusals(answer_schema: dict[str, Any]) -> dict[str, Any]:
    """A tool's output schema, from the schema of its answers, extended so that refusals match it too.

    Clients also validate the structured content of errors. If it doesn't match, the model sees the client's own error.
    """
    refused = {"code": {"type": "string"}, "message": {"type": "string"}, "next_step": {"type": "string"}}
    return {
        **{name: part for name, part in answer_schema.items() if name != "required"},
        "properties": answer_schema["properties"] | {"status": {"enum": ["success", "error"]}} | refused,
        "anyOf": [{"required": ["status", *answer_schema["required"]]}, {"required": ["status", "code", "message"]}],
    }


class CountCheck:
    """Refuses a message with far more values than any needs, apart from the arguments of a tool.

    A body has room for a million. The SDK describes each one that is wrong, and the server answers nobody meanwhile.
    """

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        params = dict(ctx.params or {})
        if ctx.method == "tools/call":
            params.pop("arguments", None)
        if _has_many(list(params.values())):
            raise MCPError(INVALID_PARAMS, f"the message has more than {MAX_VALUES} values; send fewer")
        return await call_next(ctx)


def _has_many(values: list[Any]) -> bool:
    """Whether values have more than `MAX_VALUES` others in them, at any depth. Adds these to `values`."""
    for value in values:  # grows meanwhile
        if len(values) > MAX_VALUES:
            return True
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
    return len(values) > MAX_VALUES


class ArgumentCheck:
    """Refuses unknown arguments, and those that don't match a tool's schema, before the tool is called.

    The SDK silently drops unknown arguments: with `session` for `sessionId`, a query would not be tracked.
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
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            return None  # the SDK refuses both
        tool = self._tools.get(name)
        if tool is None:
            _forget_the_name()
            message = f"there is no tool {echo(name)}; there are {', '.join(self._tools)}"
            return _error("unknown_tool", message, "call one of these")
        accepted = _accepted_names(tool)
        for given in arguments:
            if given not in accepted:
                return _unknown_argument(given, list(tool.parameters["properties"]))
        if twice := _given_twice(arguments, accepted):
            return _error("invalid_input", f"{twice} is given under two names", "give it once")
        return _misfit(tool, dict(arguments), accepted)


def _forget_the_name() -> None:
    """Remove an unknown tool's name from the trace, where the SDK has put it: the caller may have written anything."""
    span = get_current_span()
    span.update_name("tools/call")
    span.set_attribute("gen_ai.tool.name", "unknown")


def _accepted_names(tool: Tool) -> dict[str, str]:
    """Every accepted name of an argument, with the name in the schema."""
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
    near = difflib.get_close_matches(given[:_MAX_NAME_CHARACTERS], known, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    message = f"there is no argument {echo(given)}{hint}; the tool takes {', '.join(known)}"
    return _error("unknown_argument", message, "call again with the right names")


def _misfit(tool: Tool, arguments: dict[str, Any], accepted: Mapping[str, str]) -> CallToolResult | None:
    try:
        taken = tool.fn_metadata.validate_arguments(arguments)
    except ValidationError as exc:
        problems = [
            f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}{_given(error)}"
            for error in exc.errors(include_url=False, include_context=False)[:5]
        ]
        return _error("invalid_input", "; ".join(problems), _NEXT_STEPS[InvalidInput])
    fields = tool.fn_metadata.arg_model.model_fields
    for given, value in arguments.items():
        # A model may write "null" to leave an argument out. As a text it would name a user or a tag that doesn't exist;
        # if the argument isn't a text, the SDK parses it as JSON, and accepts it for any type.
        is_optional = NoneType in get_args(fields[accepted[given]].annotation)
        if isinstance(value, str) and (taken[accepted[given]] is None or (is_optional and value.strip() == "null")):
            return _error("invalid_input", f"{given} is the text 'null'", "leave the argument out, or give a value")
    return None


def _given(error: Mapping[str, Any]) -> str:
    return "" if error["type"] == "missing" else f" (it is {echo(error['input'])})"
