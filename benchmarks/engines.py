"""The servers of a run, a store over them, and clients that speak to them without fiml."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from redis.asyncio import Redis

from benchmarks.peers import Peers, open_peers
from benchmarks.plan import Plan
from fiml.core.config import Settings
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore
from tests.support.servers import postgres_server, valkey_server

USER = "analyst"
FIGURES = {"price": 175.43, "pe_ratio": 28.61, "rsi_14": 61.2}


@dataclass
class Engines:
    """A store over a Valkey and a PostgreSQL that write as in production, and bare clients of both."""

    plan: Plan
    settings: Settings
    store: SessionStore
    redis: Redis
    connection: "asyncpg.Connection[Any]"
    peers: Peers

    @property
    def urls(self) -> dict[str, str]:
        """The variables that lead a server process to these engines."""
        redis_url, database_url = self.settings.redis_url, self.settings.database_url
        assert redis_url is not None
        assert database_url is not None
        return {"FIML_REDIS_URL": str(redis_url), "FIML_DATABASE_URL": str(database_url)}

    async def session(self, queries: int = 0, *, user: str = USER) -> Session:
        """A new session with a history of so many queries."""
        session = await self.store.create_session(["AAPL", "MSFT"], "equity", user_id=user, tags=["tech"], title="One")
        session.state.context["last_symbol"] = "AAPL"
        for number in range(queries):
            session.add_query(looked_up(number))
        return await self.store.update_session(session.id, session)

    async def clear(self) -> None:
        """Remove every session, live or ended."""
        await self.redis.flushdb()
        await self.connection.execute("TRUNCATE sessions, session_search, session_metrics, rollup_marks")


def looked_up(number: int) -> QueryRecord:
    """A record of about 300 bytes."""
    symbol = f"S{number % 50}"
    summary = f"{symbol}: close 175.43 USD (+2.30%), 2024-12-20, source sample"
    return QueryRecord("technical", {"symbol": symbol}, summary, 12.5, figures={**FIGURES, "n": float(number)})


@asynccontextmanager
async def open_engines(plan: Plan) -> AsyncIterator[Engines]:
    """Servers of our own, ended at the end of the block."""
    with valkey_server() as valkey, postgres_server(durable=True) as postgres:
        settings = Settings(redis_url=valkey.url, database_url=postgres.url, session_max_queries_per_session=100_000)
        connection = await asyncpg.connect(postgres.url)
        redis = Redis.from_url(valkey.url)
        try:
            # google-adk has a table `sessions` too.
            await connection.execute("CREATE DATABASE peers")
            peers_url = urlunsplit(urlsplit(postgres.url)._replace(path="/peers"))
            async with SessionStore(settings) as store, open_peers(valkey.url, peers_url) as peers:
                yield Engines(plan, settings, store, redis, connection, peers)
        finally:
            await redis.aclose()
            await connection.close()
