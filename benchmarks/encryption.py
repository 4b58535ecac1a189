"""What encryption at rest costs: tracking, and reading by the length of the history, compared with no encryption.

Both stores are embedded and don't wait for the disk, or with `--servers` on Valkey and PostgreSQL; rounds in turn,
medians. The ratio is with encryption over without.

    python -m benchmarks.encryption --rounds 200 --queries 1000
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from fiml.core import clock
from fiml.core.config import Settings, Synchronous
from fiml.sessions.keyring import KeyFile
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore
from tests.support.servers import postgres_server, valkey_server

FIGURES = {"price": 175.43, "change_percent": 2.3, "pe_ratio": 29.5, "market_cap": 2.7e12}

Act = Callable[[SessionStore, Session], Awaitable[object]]


def a_query() -> QueryRecord:
    return QueryRecord(
        "price", {"symbol": "AAPL", "market": "US", "depth": "quick"}, "AAPL: close 175.43 USD", 12.5, figures=FIGURES
    )


async def begin(store: SessionStore, queries: int) -> Session:
    """A session with so many queries, and some entries."""
    session = await store.create_session(["AAPL"], "equity")
    for _ in range(queries):
        session.add_query(a_query())
    for n in range(10):
        session.state.context[f"answer:{n}"] = {"figures": FIGURES, "summary": "AAPL: close 175.43 USD"}
    return await store.update_session(session.id, session)


async def compare(what: str, rounds: int, stores: list[SessionStore], queries: int, act: Act) -> None:
    """Print the medians without and with encryption, and their ratio."""
    sessions = [await begin(store, queries) for store in stores]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for store, session, taken in zip(stores, sessions, times, strict=True):
            elapsed_ms = clock.stopwatch()
            await act(store, session)
            taken.append(elapsed_ms())
    without, with_it = (statistics.median(taken) for taken in times)
    print(f"{what:<32} without {without:8.3f} ms  with {with_it:8.3f} ms  ratio {with_it / without:5.2f}")


async def run(stores: list[SessionStore], rounds: int, queries: int) -> None:
    async def track(store: SessionStore, session: Session) -> None:
        await store.record_query(session.id, a_query(), context={"last": FIGURES})

    async def read(store: SessionStore, session: Session) -> None:
        await store.get_session(session.id)

    async def read_last(store: SessionStore, session: Session) -> None:
        await store.get_session(session.id, recent_queries=10)

    reads = max(1, rounds // 10)
    await compare("track a query with an entry", rounds, stores, 10, track)
    await compare("read, 10 queries", rounds, stores, 10, read)
    await compare(f"read the last 10 of {queries}", rounds, stores, queries, read_last)
    await compare(f"read, {queries} queries", reads, stores, queries, read)


async def main(rounds: int, queries: int, *, on_servers: bool) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = folder / "keys"
        KeyFile(keys).add()
        if on_servers:
            valkey, postgres = stack.enter_context(valkey_server()), stack.enter_context(postgres_server())
            common = {"redis_url": valkey.url, "database_url": postgres.url}
            settings = [Settings(**common), Settings(**common, encryption_keys=keys)]
        else:
            off = Synchronous.OFF
            settings = [
                Settings(data_dir=folder / "without", sqlite_synchronous=off),
                Settings(data_dir=folder / "with", sqlite_synchronous=off, encryption_keys=keys),
            ]
        stores = [await stack.enter_async_context(SessionStore(each)) for each in settings]
        await run(stores, rounds, queries)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--servers", action="store_true", help="on Valkey and PostgreSQL")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.queries, on_servers=arguments.servers))
