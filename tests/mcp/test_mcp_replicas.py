"""Two replicas over one store: a session used through either answers the same, whatever the tool."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from mcp_types import ResourceTemplateReference

from tests.support.deployment import Deployment
from tests.support.http_server import http_server
from tests.support.mcp_client import TOOLS, Caller

# Each call moves these on.
MOVING = {"avg_duration_seconds", "last_accessed_at", "time_remaining_hours", "expires_at", "looked_at"}


def steady(value: Any) -> Any:
    """An answer without what moves on by itself."""
    if isinstance(value, dict):
        return {name: steady(each) for name, each in value.items() if name not in MOVING}
    return [steady(each) for each in value] if isinstance(value, list) else value


async def seen_through(caller: Caller, session_id: str) -> dict[str, Any]:
    """All that a replica shows of a session."""
    reading: dict[str, dict[str, Any]] = {
        "get-session-info": {"sessionId": session_id},
        "get-session-context": {"sessionId": session_id},
        "list-sessions": {"includeArchived": True},
        "get-session-analytics": {},
        "search-sessions": {"text": "shared", "includeArchived": True},
    }
    seen: dict[str, Any] = {tool: steady(await caller.answer(tool, **given)) for tool, given in reading.items()}
    seen["prompt"] = (await caller.client.get_prompt("session-report", {"sessionId": session_id})).model_dump()
    reference = ResourceTemplateReference(type="ref/resource", uri="fiml://session/{id}")
    seen["completion"] = (await caller.client.complete(reference, {"name": "id", "value": ""})).completion.values
    return seen


async def test_each_tool_works_through_one_replica_and_shows_through_both(
    deployment: Deployment, tmp_path: Path
) -> None:
    variables = {"FIML_REDIS_URL": deployment.redis_url, "FIML_DATABASE_URL": deployment.database_url}
    async with (
        http_server(tmp_path / "one", **variables) as one,
        http_server(tmp_path / "two", **variables) as two,
        one.caller() as first,
        two.caller() as second,
    ):
        session_id = await first.create("AAPL", "BTC", title="shared")
        writing: dict[str, dict[str, Any]] = {
            "search-by-symbol": {"symbol": "AAPL", "requestId": str(uuid4())},
            "search-by-coin": {"symbol": "BTC", "requestId": str(uuid4())},
            "update-session-context": {"note": "shared", "context": {"focus": "margins"}},
            "extend-session": {"hours": 5},
            "share-session": {"withUser": "bob"},
            "close-session": {},
            "resume-session": {},
        }
        used = {"create-analysis-session"}
        for number, (tool, given) in enumerate(writing.items()):
            writer = (second, first)[number % 2]
            await writer.answer(tool, sessionId=session_id, **given)
            through = [await seen_through(caller, session_id) for caller in (first, second)]
            assert through[0] == through[1], tool
            used |= through[0].keys() & set(TOOLS) | {tool}
        again = [
            steady(await caller.answer("search-by-symbol", sessionId=session_id, **writing["search-by-symbol"]))
            for caller in (first, second)
        ]

    assert used == set(TOOLS)
    assert again[0] == again[1]
    assert again[0]["total_queries"] == 2
