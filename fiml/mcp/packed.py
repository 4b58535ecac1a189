"""A session's packed context as text, for prompts and resources."""

import json

from fiml.access.principals import Scope
from fiml.mcp.auth import current_principal
from fiml.mcp.tooling import sessions_of
from fiml.runtime import Runtime


async def packed_text(runtime: Runtime, session_id: str, *, max_tokens: int) -> str:
    """The context of a session as JSON, within a budget; errors are those of `pack_context`."""
    current_principal().check(Scope.SESSIONS_READ)
    pack = await (await sessions_of(runtime)).pack_context(session_id, max_tokens=max_tokens)
    return json.dumps(pack.to_dict(), ensure_ascii=False, separators=(",", ":"))
