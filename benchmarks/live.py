"""Live sessions on Valkey: each verb beside a bare client that does the same to keys of its own, and the peers.

The bare client is redis-py as it comes.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from uuid import UUID

from benchmarks.engines import USER, Engines, looked_up
from benchmarks.peer_rounds import AFTER_FILLING
from benchmarks.peers import ADK, LANGGRAPH, REDIS, SQL
from benchmarks.raw import RawListing, RawSession, decode
from benchmarks.timing import OURS, Batch, Comparison, calls_of, in_turn
from fiml.sessions.models import Session

RAW = "raw engine"
PING = "one PING"
ALL_PEERS = (REDIS, SQL, LANGGRAPH, ADK)
UPDATED_HISTORY = 100
MOST_PEER_HISTORY = 1000  # google-adk takes minutes to make more
MOST_PEER_SESSIONS = 1000
_CREATED_AT_ONCE = 64


async def live(engines: Engines) -> AsyncIterator[Comparison]:
    """Create, track, read, update, extend."""
    yield await create(engines)
    for history in engines.plan.histories:
        yield await track(engines, history)
    for history in engines.plan.histories:
        yield await read(engines, history)
        yield await recent(engines, history)
    yield await update(engines)
    yield await extend(engines)


async def create(engines: Engines) -> Comparison:
    async def ours() -> Session:
        return await engines.store.create_session(["AAPL", "MSFT"], "equity", user_id=USER, tags=["tech"], title="One")

    ways = {OURS: calls_of(ours), RAW: calls_of(lambda: RawSession(engines.redis).create())}
    return await compared(engines, "create", ways | engines.peers.ways("create", *ALL_PEERS), limit=None)


async def track(engines: Engines, history: int) -> Comparison:
    """A query appended; each round to a session of its own, which begins with the history.

    Each is given what it appends: fiml a record, the others its text.
    """

    async def ours(calls: int) -> list[float]:
        session = await engines.session(history)
        queries = map(looked_up, itertools.count(history))
        ready = list(itertools.islice(queries, AFTER_FILLING + calls + 2))
        tracks = calls_of(lambda: engines.store.record_query(session.id, ready.pop()))
        await tracks(AFTER_FILLING)
        return await tracks(calls)

    async def raw(calls: int) -> list[float]:
        session = await RawSession(engines.redis).fill(history)
        tracks = calls_of(session.track)
        await tracks(AFTER_FILLING)
        return await tracks(calls)

    ways = {OURS: ours, RAW: raw, **peers_with(engines, "track", history, *ALL_PEERS)}
    return await compared(engines, f"track, history {history}", ways, limit=1.5)


async def read(engines: Engines, history: int) -> Comparison:
    session, bare = await engines.session(history), await RawSession(engines.redis).fill(history)
    ways = {
        OURS: calls_of(lambda: engines.store.get_session(session.id)),
        RAW: calls_of(bare.read),
        **peers_with(engines, "read", history, *ALL_PEERS),
    }
    note = "as full models, the raw engine and openai-agents and langgraph as plain dicts"
    return await compared(engines, f"read whole, history {history}", ways, limit=None, note=note)


async def recent(engines: Engines, history: int) -> Comparison:
    session = await engines.session(history)
    ways = {
        OURS: calls_of(lambda: engines.store.get_session(session.id, recent_queries=5)),
        PING: calls_of(lambda: _ping(engines)),
        **peers_with(engines, "recent", history, REDIS, SQL, ADK),
    }
    operation = f"header and last 5, history {history}"
    return await compared(engines, operation, ways, baseline=PING, limit=2.0)


async def update(engines: Engines) -> Comparison:
    """A session that was read, one entry set on it, and the whole merged session in return."""
    session, bare = await engines.session(UPDATED_HISTORY), await RawSession(engines.redis).fill(UPDATED_HISTORY)
    numbers = itertools.count()

    async def ours() -> None:
        session.state.context["last_symbol"] = f"S{next(numbers)}"
        await engines.store.update_session(session.id, session)

    ways = {
        OURS: calls_of(ours),
        RAW: calls_of(bare.update),
        **peers_with(engines, "update", UPDATED_HISTORY, LANGGRAPH, ADK),
    }
    note = "ours and the raw engine return the merged session, the peers don't"
    return await compared(engines, f"update one entry, history {UPDATED_HISTORY}", ways, limit=None, note=note)


async def extend(engines: Engines) -> Comparison:
    session, bare = await engines.session(UPDATED_HISTORY), await RawSession(engines.redis).fill(UPDATED_HISTORY)
    ways = {OURS: calls_of(lambda: engines.store.extend_session(session.id, 1)), RAW: calls_of(bare.extend)}
    return await compared(engines, f"extend, history {UPDATED_HISTORY}", ways, limit=None)


async def pages(engines: Engines) -> AsyncIterator[Comparison]:
    """A page of 50 among more and more sessions of one user."""
    made = 0
    for count in engines.plan.pages:
        await add_sessions(engines, count - made, user="lister")
        made = count
        bare = await RawListing(engines.redis).fill(count)
        peers = engines.peers.ways("page", LANGGRAPH, ADK) if count <= MOST_PEER_SESSIONS else {}
        ways = {OURS: calls_of(lambda: engines.store.list_user_sessions("lister")), RAW: calls_of(bare.page), **peers}
        note = "google-adk has no pages: it lists all 1,000"
        yield await compared(engines, f"list a page among {count:,}", ways, limit=None, note=note if peers else "")


async def add_sessions(engines: Engines, count: int, *, user: str) -> None:
    """Add this many sessions of a user."""
    for start in range(0, count, _CREATED_AT_ONCE):
        some = range(start, min(start + _CREATED_AT_ONCE, count))
        await asyncio.gather(
            *(engines.store.create_session(["AAPL"], "equity", user_id=user, ttl_hours=24) for _ in some)
        )


async def ended(engines: Engines) -> AsyncIterator[Comparison]:
    """One session archived, and one read in the archive."""
    yield await archive_one(engines)
    yield await read_archived(engines)


async def archive_one(engines: Engines) -> Comparison:
    """A session of 100 queries closed; the raw engine moves as many texts into a row, and deletes the keys."""
    await engines.connection.execute("CREATE TABLE IF NOT EXISTS raw_sessions (id uuid PRIMARY KEY, history jsonb)")

    async def ours(calls: int) -> list[float]:
        waiting = [(await engines.session(UPDATED_HISTORY)).id for _ in range(calls + 1)]
        return await calls_of(lambda: engines.store.archive_session(waiting.pop()))(calls)

    async def raw(calls: int) -> list[float]:
        waiting = [await RawSession(engines.redis).fill(UPDATED_HISTORY) for _ in range(calls + 1)]

        async def move() -> None:
            session = waiting.pop()
            history = b",".join(await session.texts())
            await engines.connection.execute(
                "INSERT INTO raw_sessions VALUES (gen_random_uuid(), $1::jsonb)", f"[{history.decode()}]"
            )
            await engines.redis.delete(session.header, session.queries)

        return await calls_of(move)(calls)

    operation = f"archive one, history {UPDATED_HISTORY}"
    note = "the raw engine moves the texts of the queries into one row: no metrics, no words, no audit trail"
    return await compared(engines, operation, {OURS: ours, RAW: raw}, limit=None, note=note)


async def read_archived(engines: Engines) -> Comparison:
    session = await engines.session(UPDATED_HISTORY)
    await engines.store.archive_session(session.id)

    async def raw() -> None:
        row = await engines.connection.fetchrow("SELECT * FROM sessions WHERE id = $1", UUID(str(session.id)))
        assert row is not None
        for value in row.values():
            if isinstance(value, str) and value.startswith(("{", "[")):
                decode(value)

    ways = {OURS: calls_of(lambda: engines.store.get_session(session.id)), RAW: calls_of(raw)}
    note = "ours looks among the live sessions first"
    return await compared(engines, f"read archived, history {UPDATED_HISTORY}", ways, limit=None, note=note)


async def compared(
    engines: Engines,
    operation: str,
    ways: dict[str, Batch],
    *,
    baseline: str = RAW,
    limit: float | None,
    note: str = "",
) -> Comparison:
    """The ways in turn, as often as the plan says."""
    measured = await in_turn(ways, rounds=engines.plan.rounds, calls=engines.plan.calls)
    return Comparison(operation, measured, baseline, limit, note)


def peers_with(engines: Engines, operation: str, history: int, *names: str) -> dict[str, Batch]:
    """The peers with a history that all of them can be given in time."""
    return engines.peers.ways(operation, *names, history=history) if history <= MOST_PEER_HISTORY else {}


async def _ping(engines: Engines) -> None:
    await engines.redis.ping()
