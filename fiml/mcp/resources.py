"""Sessions as resources, and the completion of their ids."""

from typing import Any

from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from fiml.access.principals import Scope
from fiml.core.errors import FimlError, InvalidSessionId, SessionNotFound, echo
from fiml.mcp.auth import current_principal
from fiml.mcp.packed import packed_text
from fiml.mcp.refusals import protocol_errors
from fiml.mcp.tooling import sessions_of
from fiml.runtime import Runtime

_RESOURCE_TOKENS = 4000
_MAX_COMPLETED = 20
_LOOKED_AT = 200
_NAMES = {"id", "sessionId"}
_MAX_ADDRESS_CHARACTERS = 80  # a session's has 51


def add_resources(server: MCPServer[Any], runtime: Runtime) -> None:
    """Add to a server the resource of a session, and the completion of session ids."""

    @server.resource(
        "fiml://session/{id}",
        name="session",
        title="Analysis session",
        description="What a session knows: assets, conclusions, notes and records with their figures, as JSON.",
        mime_type="application/json",
    )
    async def session(id: str) -> str:  # noqa: A002 - the name in the address
        try:
            return await packed_text(runtime, id, max_tokens=_RESOURCE_TOKENS)
        except (SessionNotFound, InvalidSessionId) as exc:
            raise ResourceNotFoundError(str(exc)) from exc
        except FimlError as exc:
            raise ResourceError(str(exc)) from exc

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # as the SDK has it
    async def complete(
        _reference: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        _context: CompletionContext | None,
    ) -> Completion | None:
        if argument.name not in _NAMES or not current_principal().may(Scope.SESSIONS_READ):
            return None
        with protocol_errors():
            sessions = await sessions_of(runtime)
            page = await sessions.list_user_sessions(None, include_archived=True, limit=_LOOKED_AT)
        ids = [str(summary.id) for summary in page]
        found = [each for each in ids if each.startswith(argument.value.strip().lower())]
        is_all = page.next_cursor is None
        return Completion(
            values=found[:_MAX_COMPLETED],
            total=len(found) if is_all else None,
            has_more=not is_all or len(found) > _MAX_COMPLETED,
        )


class AddressCheck:
    """Refuses an address that is too long for a resource, which the SDK would send back whole."""

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method == "resources/read" and ctx.params is not None:
            address = ctx.params.get("uri")
            if isinstance(address, str) and len(address) > _MAX_ADDRESS_CHARACTERS:
                raise MCPError(INVALID_PARAMS, f"there is no resource {echo(address)}; a session is fiml://session/ID")
        return await call_next(ctx)
