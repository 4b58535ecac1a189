"""Runs in the peers' own environment: reads what to time from standard input, line by line, and answers in JSON.

A request is {"peer", "operation", "history", "calls"}, an answer {"ms": [...]} or {"error": text}; an operation that a
peer lacks is {"ms": null}. It imports nothing of fiml.

    .peers/bin/python -m benchmarks.peer_process REDIS_URL POSTGRESQL_URL FOLDER
"""

import asyncio
import json
import sys
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from agents.extensions.memory import RedisSession, SQLAlchemySession
from google.adk.events import Event, EventActions
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.peer_rounds import Bench, Call

TEXT = json.dumps(
    {
        "id": str(uuid.uuid4()),
        "query_type": "technical",
        "parameters": {"symbol": "S1"},
        "result_summary": "S1: close 175.43 USD (+2.30%), 2024-12-20, source sample",
        "execution_time_ms": 12.5,
        "cache_hit": False,
        "figures": {"price": 175.43, "pe_ratio": 28.61, "rsi_14": 61.2, "n": 1.0},
    }
)
LISTED = 1000
PAGE = 50


def item() -> dict[str, str]:
    """A record of the size of ours, as a message."""
    return {"role": "user", "content": TEXT}


class OpenaiAgents:
    """A session of openai-agents, made by a function that takes its id."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    async def calls(self, history: int) -> dict[str, Call]:
        session = self._make(uuid.uuid4().hex)
        if history:
            await session.add_items([item() for _ in range(history)])
        return {
            "create": lambda: self._make(uuid.uuid4().hex).add_items([item()]),
            "track": lambda: session.add_items([item()]),
            "read": session.get_items,
            "recent": lambda: session.get_items(limit=5),
        }


class Langgraph:
    """The checkpointer: each step stores a checkpoint, and again each channel that changed."""

    def __init__(self, saver: AsyncPostgresSaver) -> None:
        self._saver = saver

    async def calls(self, history: int) -> dict[str, Call]:
        thread, step = uuid.uuid4().hex, iter(range(1, 10**9))
        messages = [item() for _ in range(history)]
        await self._put(thread, next(step), "messages", messages)

        async def track() -> None:
            messages.append(item())
            await self._put(thread, next(step), "messages", messages)

        async def update() -> None:
            kept = {"messages": _version(1)}
            await self._put(thread, next(step), "context", {"last_symbol": "AAPL"}, kept)

        async def page() -> None:
            async for _ in self._saver.alist(None, limit=PAGE):
                pass

        return {
            "create": lambda: self._put(uuid.uuid4().hex, 1, "messages", [item()]),
            "track": track,
            "read": lambda: self._saver.aget_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}}),
            "update": update,
            "page": page,
        }

    async def prepare_page(self) -> None:
        # It lists by sorting all that it has, in whichever thread.
        await self._saver.conn.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
        for _ in range(LISTED):
            await self._put(uuid.uuid4().hex, 1, "messages", [item()])

    async def _put(
        self, thread: str, step: int, channel: str, value: object, kept: dict[str, str] | None = None
    ) -> None:
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {channel: value}
        version = _version(step)
        checkpoint["channel_versions"] = {**(kept or {}), channel: version}
        config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
        metadata: Any = {"source": "loop", "step": step}
        await self._saver.aput(config, checkpoint, metadata, {channel: version})


def _version(step: int) -> str:
    return f"{step:032}.0"


class Adk:
    """The session service of google-adk."""

    def __init__(self, service: DatabaseSessionService) -> None:
        self._service = service

    async def calls(self, history: int) -> dict[str, Call]:
        session = await self._create()
        for _ in range(history):
            await self._service.append_event(session, self._event())
        named = {"app_name": "bench", "user_id": "analyst", "session_id": session.id}
        recent = GetSessionConfig(num_recent_events=5)
        return {
            "create": self._create,
            "track": lambda: self._service.append_event(session, self._event()),
            "read": lambda: self._service.get_session(**named),
            "recent": lambda: self._service.get_session(**named, config=recent),
            "update": lambda: self._service.append_event(session, self._event({"last_symbol": "AAPL"})),
            "page": lambda: self._service.list_sessions(app_name="bench", user_id="lister"),
        }

    async def prepare_page(self) -> None:
        for _ in range(LISTED):
            await self._create("lister")

    async def _create(self, user: str = "analyst") -> Any:
        return await self._service.create_session(app_name="bench", user_id=user)

    def _event(self, delta: dict[str, object] | None = None) -> Event:
        content = types.Content(role="user", parts=[types.Part(text=TEXT)])
        return Event(author="user", content=content, actions=EventActions(state_delta=delta or {}))


async def main(redis_url: str, postgres_url: str, folder: str) -> None:
    """Answer until the input ends."""
    async with AsyncExitStack() as stack:
        asyncpg_url = postgres_url.replace("postgresql://", "postgresql+asyncpg://")
        redis = Redis.from_url(redis_url, db=1)
        stack.push_async_callback(redis.aclose)
        engine, file = create_async_engine(asyncpg_url), create_async_engine(f"sqlite+aiosqlite:///{folder}/agents.db")
        stack.push_async_callback(engine.dispose)
        stack.push_async_callback(file.dispose)
        saver = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(postgres_url))
        await saver.setup()
        service = DatabaseSessionService(asyncpg_url)
        stack.push_async_callback(service.close)
        for each in (engine, file):
            await SQLAlchemySession("tables", engine=each, create_tables=True).get_items()
        bench = Bench(
            {
                "openai-agents RedisSession": OpenaiAgents(lambda key: RedisSession(key, redis_client=redis)),
                "openai-agents SQLAlchemySession": OpenaiAgents(lambda key: SQLAlchemySession(key, engine=engine)),
                "openai-agents SQLAlchemySession (SQLite)": OpenaiAgents(
                    lambda key: SQLAlchemySession(key, engine=file)
                ),
                "langgraph checkpointer": Langgraph(saver),
                "google-adk DatabaseSessionService": Adk(service),
            }
        )
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                answer: dict[str, Any] = {"ms": await bench.measure(json.loads(line))}
            except Exception as exc:  # noqa: BLE001 - whatever a peer raises is its answer
                answer = {"error": f"{type(exc).__name__}: {exc}"}
            sys.stdout.write(f"{json.dumps(answer)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
