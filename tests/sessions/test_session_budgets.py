"""Round trips are a budget: counted on the wire to Valkey and PostgreSQL, and in statements of SQLite."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from fiml.core.config import Settings
from fiml.core.errors import FimlError
from fiml.db.engines import driver
from fiml.sessions.backends.shapes import PageQuery
from fiml.sessions.backends.sql import archive
from fiml.sessions.backends.sqlite.backend import SqliteBackend
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing import FrozenClock, make_query, make_session, open_temporary_store
from tests.support.deployment import Deployment
from tests.support.wire import Wire, postgres_wire, redis_wire

OWNER, STRANGER = "ann", "eve"
LONG_HISTORY = 1000
Verb = Callable[[SessionVerbs, Session], Awaitable[object]]


async def updated(store: SessionVerbs, session: Session) -> Session:
    session.state.context["a"] = 1
    session.add_query(make_query())
    return await store.update_session(session.id, session)


VERBS: dict[str, Verb] = {
    "create": lambda store, _: store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, tags=["t"]),
    "track": lambda store, session: store.record_query(session.id, make_query()),
    "read": lambda store, session: store.get_session(session.id),
    "read the last 5": lambda store, session: store.get_session(session.id, recent_queries=5),
    "update": updated,
    "extend": lambda store, session: store.extend_session(session.id, 1),
    "page": lambda store, _: store.list_user_sessions(OWNER),
    "page of all": lambda store, _: store.list_user_sessions(None),
}
# With the triggers, and with the two settings around a wait for the lock.
MOST_STATEMENTS = dict.fromkeys(VERBS, 10) | {"track": 11, "update": 17}
ROUND_TRIPS = dict.fromkeys(VERBS, 1) | {"page": 2, "page of all": 2}
ON_ONE_SESSION: dict[str, Verb] = {
    "get": lambda store, session: store.get_session(session.id),
    "get the last 5": lambda store, session: store.get_session(session.id, recent_queries=5),
    "update": lambda store, session: store.update_session(session.id, session),
    "update at a version": lambda store, session: store.update_session(session.id, session, expected_version=1),
    "record": lambda store, session: store.record_query(session.id, make_query(id=UUID(int=1))),
    "extend": lambda store, session: store.extend_session(session.id, 1),
    "resume": lambda store, session: store.resume_session(session.id),
    "archive": lambda store, session: store.archive_session(session.id),
    "delete": lambda store, session: store.delete_session(session.id),
    "share": lambda store, session: store.share_session(session.id, "bob"),
    "unshare": lambda store, session: store.unshare_session(session.id, STRANGER),
    "redeem a code": lambda store, session: store.redeem_share_code(session.id, "share_wrong"),
    "look at the trail": lambda store, session: store.get_audit_trail(session.id),
    "hold": lambda store, session: store.hold(session.id, "why"),
}


class Wires:
    """A store on Valkey and PostgreSQL, and the wires it speaks over."""

    def __init__(self, store: SessionStore, redis: Wire, postgres: Wire) -> None:
        self.store = store
        self.redis = redis
        self.postgres = postgres

    async def listen(self, call: Awaitable[object]) -> object:
        """What the call returned or raised; the wires have heard only it."""
        self.redis.clear()
        self.postgres.clear()
        try:
            return await call
        except FimlError as exc:
            return exc


@pytest.fixture
async def wires(deployment: Deployment, clock: FrozenClock) -> AsyncIterator[Wires]:
    async with (
        redis_wire(deployment.redis_url) as (redis, redis_url),
        postgres_wire(deployment.database_url) as (postgres, database_url),
        SessionStore(Settings(redis_url=redis_url, database_url=database_url)) as store,
    ):
        yield Wires(store, redis, postgres)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_takes_its_round_trips_whatever_the_history(wires: Wires, verb: str) -> None:
    commands = []
    for queries in (0, LONG_HISTORY - 1):
        session = await a_session(wires.store, queries=queries)

        await wires.listen(VERBS[verb](wires.store, session))

        assert wires.redis.round_trips == ROUND_TRIPS[verb]
        assert wires.postgres.round_trips == 0
        commands.append(len(wires.redis.commands))
    assert commands[0] == commands[1] or verb.startswith("page")


async def test_an_archived_session_is_read_in_three_round_trips(wires: Wires) -> None:
    """A look among the live ones; whether the connection is still good; the row."""
    session = await a_session(wires.store, queries=3)
    await wires.store.archive_session(session.id)
    await wires.store.get_session(session.id)  # PostgreSQL prepares its statements once

    await wires.listen(wires.store.get_session(session.id))

    assert (wires.redis.round_trips, wires.postgres.round_trips) == (1, 2)


async def test_a_session_is_archived_in_twelve_round_trips(wires: Wires) -> None:
    """Three to read and remove it; nine: is the connection still good, begin, lock, five statements, end."""
    for _ in range(2):  # PostgreSQL prepares its statements once
        session = await a_session(wires.store, queries=3)
        await wires.listen(wires.store.archive_session(session.id))

    assert (wires.redis.round_trips, wires.postgres.round_trips) == (3, 9)


@pytest.mark.parametrize("user_id", [OWNER, None])
async def test_a_page_costs_the_same_with_10_and_with_2000_sessions(wires: Wires, user_id: str | None) -> None:
    heard = []
    for tens in (1, 199):
        for _ in range(tens):
            await asyncio.gather(*(a_session(wires.store) for _ in range(10)))
        page = await wires.listen(wires.store.list_user_sessions(user_id, limit=9))
        assert isinstance(page, list)
        assert len(page) == 9
        heard.append((wires.redis.round_trips, [command[0] for command in wires.redis.commands]))

    assert heard[0] == heard[1]
    assert heard[0][0] == 2


@pytest.mark.parametrize("user_id", [OWNER, None])
async def test_postgresql_reads_a_later_page_from_where_it_begins(
    deployment: Deployment, clock: FrozenClock, user_id: str | None
) -> None:
    """By its place in the index: the pages before it cost nothing. SQLite does so by itself."""
    later = PageQuery(limit=1, include_archived=True, user_id=user_id, after=(clock.now(), UUID(int=1)))

    def explain(connection: Connection) -> str:
        # What PostgreSQL plans for an empty table is not what it plans for many sessions.
        for node in ("seqscan", "bitmapscan", "sort"):
            connection.execute(text(f"SET LOCAL enable_{node} = off"))
        statement = archive._page_statement(connection, later)
        compiled = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})  # type: ignore[no-untyped-call]
        return "\n".join(line for (line,) in connection.execute(text(f"EXPLAIN {compiled}")))

    async with SessionStore(deployment.settings()) as store:
        plan = await store.keeping._transact(explain)

    assert re.search(r"Index Cond: .*created_at <=", plan), plan


@pytest.mark.parametrize("state", ["active", "expired", "archived"])
@pytest.mark.parametrize("verb", ON_ONE_SESSION)
async def test_anothers_session_is_on_the_wire_as_one_that_does_not_exist(
    wires: Wires, clock: FrozenClock, verb: str, state: str
) -> None:
    stranger = wires.store.as_principal(STRANGER)
    anothers = await a_session(wires.store, queries=3)
    if state != "active":
        clock.advance(hours=1)
    if state == "archived":
        await wires.store.archive_session(anothers.id)
    heard = []
    # The first one warms up: PostgreSQL prepares its statements once.
    for session_id in (uuid4(), uuid4(), anothers.id):
        session = make_session(id=session_id)

        outcome = await wires.listen(ON_ONE_SESSION[verb](stranger, session))

        said = repr(outcome).replace(str(session_id), "ID")
        heard.append((said, without_id(wires.redis, session_id), without_id(wires.postgres, session_id)))

    assert heard[2] == heard[1]


def without_id(wire: Wire, session_id: UUID) -> list[tuple[str, bytes]]:
    """All that was said, with the id taken out."""
    turns = wire.turns
    for form in (session_id.bytes, session_id.hex.encode(), str(session_id).encode()):
        turns = [(speaker, said.replace(form, b"ID")) for speaker, said in turns]
    return turns


async def a_session(store: SessionStore, *, queries: int = 0) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    for _ in range(queries):
        session.add_query(make_query())
    return await store.update_session(session.id, session) if queries else session


@pytest.fixture
async def embedded(tmp_path: Path, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with open_temporary_store(tmp_path) as store:
        yield store


@pytest.mark.parametrize("verb", VERBS)
async def test_sqlite_runs_as_many_statements_whatever_the_history(embedded: SessionStore, verb: str) -> None:
    counts = []
    for queries in (1, LONG_HISTORY - 1):
        session = await a_session(embedded, queries=queries)

        counts.append(len(await statements(embedded, VERBS[verb](embedded, session))))

    assert counts[0] == counts[1] <= MOST_STATEMENTS[verb]


async def test_sqlite_leaves_the_indexes_alone_when_a_query_is_tracked(embedded: SessionStore) -> None:
    """Each index that is written to is a page more on the disk."""
    session = await a_session(embedded)

    heard = await statements(embedded, VERBS["track"](embedded, session))

    [update] = {text for text in heard if text.startswith("UPDATE active_sessions")}  # with its triggers
    assert "version = " in update
    assert not [name for name in ("user_id", "created_at", "expires_at", "grants") if f"{name} = " in update]


async def statements(store: SessionStore, call: Awaitable[object]) -> list[str]:
    """The SQL that a call runs on the store's connection."""
    backend = store._opened
    assert isinstance(backend, SqliteBackend)
    heard: list[str] = []

    def trace(callback: Callable[[str], Any] | None) -> Callable[[Any], None]:
        return lambda connection: driver(connection).set_trace_callback(callback)

    await backend._file.transact(trace(heard.append))
    heard.clear()
    await call
    before_the_end = list(heard)
    await backend._file.transact(trace(None))
    return before_the_end


@pytest.mark.parametrize(("verb", "index"), [("page", "by_user"), ("page of all", "by_creation")])
async def test_sqlite_reads_a_page_by_its_index(embedded: SessionStore, verb: str, index: str) -> None:
    """Without a sort, a page costs the same however many sessions there are."""
    session = await a_session(embedded)
    [select] = [text for text in await statements(embedded, VERBS[verb](embedded, session)) if "SELECT" in text]

    plan = await plan_of(embedded, select)

    assert any(f"active_sessions_{index}" in step for step in plan)
    assert not any("TEMP B-TREE" in step for step in plan)


@pytest.mark.parametrize("include_archived", [False, True])
async def test_sqlite_finds_what_is_given_to_somebody_by_an_index_of_what_is_given_at_all(
    embedded: SessionStore, include_archived: bool
) -> None:
    """So a listing of a principal costs the more, the more is shared, not the more there is."""
    session = await a_session(embedded)
    await embedded.share_session(session.id, STRANGER)
    call = embedded.as_principal(STRANGER).list_user_sessions(None, include_archived)
    heard = await statements(embedded, call)

    plans = [await plan_of(embedded, each) for each in heard if "json_each(" in each]

    assert len(plans) == 1 + include_archived
    for plan, index in zip(plans, ("active_sessions_given", "sessions_given"), strict=False):
        assert any(index in step for step in plan), plan


async def plan_of(store: SessionStore, statement: str) -> list[str]:
    backend = store._opened
    assert isinstance(backend, SqliteBackend)

    def explain(connection: sqlite3.Connection) -> list[str]:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]

    return await backend._file.read(explain)
