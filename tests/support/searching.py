"""Sessions to search for, and what a search finds."""

from collections.abc import Iterable
from typing import Any

from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore


def looked_up(symbol: str, summary: str = "", **figures: float) -> QueryRecord:
    return QueryRecord("fundamentals", {"symbol": symbol}, summary or f"{symbol}: fine", figures=figures)


async def begin(store: SessionStore, *assets: str, queries: Iterable[QueryRecord] = (), **fields: Any) -> Session:
    session = await store.create_session(list(assets) or ["AAPL"], fields.pop("type", "equity"), **fields)
    for query in queries:
        await store.record_query(session.id, query)
    return session


async def found(
    store: SessionStore, words: str | None = None, *, user_id: str | None = None, **asked: Any
) -> list[str]:
    return [summary.title or "" for summary in await store.search_sessions(user_id, words, **asked)]
