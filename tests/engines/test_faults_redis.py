"""Valkey stopped, killed, frozen, slow, cut off: typed errors soon, and full recovery afterwards, by itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import psutil
import pytest
import redis

from fiml.core.errors import Unavailable
from fiml.db.redis_client import RedisClient
from fiml.db.redis_node import MAX_CONNECTIONS
from fiml.sessions.backends.redis.tier import RedisTier
from fiml.sessions.backends.tiered.backend import SCRIPTS
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.faults import CALL_S, FAULTS, PASSWORD, Engine, until_back
from tests.support.wire import redis_wire

OWNER = "ann"
QUERIES = 3
SESSIONS = 8
ENOUGH = 100

Verb = Callable[[SessionStore, UUID], Awaitable[Any]]

VERBS: dict[str, Verb] = {
    "create": lambda store, _: store.create_session(["AAPL"], SessionType.EQUITY, user_id="somebody else"),
    "get": lambda store, live: store.get_session(live),
    "get an unknown one": lambda store, _: store.get_session(UUID(int=1)),
    "record": lambda store, live: store.record_query(live, make_query()),
    "extend": lambda store, live: store.extend_session(live, 1),
    "list": lambda store, _: store.list_user_sessions(OWNER),
    "delete": lambda store, _: store.delete_session(UUID(int=1)),
    "archive": lambda store, live: store.archive_session(live),
    "resume": lambda store, live: store.resume_session(live),
    "share": lambda store, live: store.share_session(live, "bob"),
    "trail": lambda store, live: store.get_audit_trail(live),
    "search": lambda store, _: store.search_sessions(OWNER, text="AAPL"),
}


async def made_session(store: SessionStore) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
    for n in range(QUERIES):
        await store.record_query(session.id, make_query(f"{n}"), context={f"{n}": n})
    return await existing(store, session.id)


async def at_once(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """What calls made at once return or raise, all of them in time."""
    async with asyncio.timeout(CALL_S):
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_verb_is_unavailable_in_time_and_comes_back(
    live: Engine, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with SessionStore(live.settings) as store:
        session = await made_session(store)

        async with FAULTS[fault](live):
            refused = await at_once([verb(store, session.id) for verb in VERBS.values()])

        assert dict(zip(VERBS, map(type, refused), strict=True)) == dict.fromkeys(VERBS, Unavailable)
        assert PASSWORD not in f"{refused} {capfd.readouterr()}"
        # What was asked for last may have been done, and nothing else.
        found = await until_back(lambda: store.resume_session(session.id))
        queries = found.state.history.queries
        assert [query.id for query in queries[:QUERIES]] == [query.id for query in session.state.history.queries]
        assert len(queries) <= QUERIES + 1
        assert found.state.context == session.state.context
        await store.record_query(session.id, make_query("after"))
        assert [summary.id for summary in await listing(store, OWNER)] == [session.id]


@pytest.mark.parametrize("after_replies", range(4))
async def test_no_reply_is_taken_for_another_one(live: Engine, after_replies: int) -> None:
    async with SessionStore(live.settings) as store:
        sessions = [await made_session(store) for _ in range(SESSIONS)]

        for _ in range(5):
            live.proxy.cut(after_replies=after_replies)
            calls = [store.get_session(session.id) for session in sessions]
            outcomes = await at_once([*calls, *(store.list_user_sessions(OWNER) for _ in range(3))])
            live.proxy.pass_on()
            for session, outcome in zip(sessions, outcomes, strict=False):
                assert isinstance(outcome, Unavailable) or content(outcome) == content(session)

        for session in sessions:
            found = await until_back(partial(store.get_session, session.id))
            assert found is not None
            assert content(found) == content(session)


async def test_a_slow_server_is_waited_for(live: Engine) -> None:
    async with SessionStore(live.settings) as store:
        sessions = [await made_session(store) for _ in range(SESSIONS)]

        live.proxy.delay(0.3)
        found = await at_once([store.get_session(session.id) for session in sessions])

    assert [content(each) for each in found] == [content(session) for session in sessions]


@pytest.mark.parametrize("fault", ["frozen", "hanging"])
async def test_more_callers_than_connections_are_all_answered_in_time_and_leave_the_pool_whole(
    live: Engine, fault: str
) -> None:
    async with SessionStore(live.settings) as store:
        session = await made_session(store)
        crowd = [session.id] * (2 * MAX_CONNECTIONS)
        before = await at_once([store.get_session(each) for each in crowd])

        async with FAULTS[fault](live):
            refused = await at_once([store.get_session(each) for each in crowd])

        await until_back(lambda: store.get_session(session.id))
        after = await at_once([store.get_session(each) for each in crowd])
        connections = len(psutil.Process(live.server.pid).net_connections())

    assert {each.id for each in before} == {each.id for each in after} == {session.id}
    assert {type(each) for each in refused} == {Unavailable}
    assert connections <= MAX_CONNECTIONS + 2  # and the one that listens, and one to look


async def test_connections_that_the_server_closed_meanwhile_cost_nobody_a_call(live: Engine) -> None:
    async with SessionStore(live.settings) as store:
        sessions = [await made_session(store) for _ in range(SESSIONS)]
        await at_once([store.get_session(session.id) for session in sessions])  # a connection each
        with redis.Redis.from_url(live.server.url) as client:
            assert client.client_kill_filter(_type="normal", skipme=True) >= SESSIONS
        await asyncio.sleep(0.1)  # until that is heard

        found = await at_once([store.get_session(session.id) for session in sessions])

    assert [content(each) for each in found] == [content(session) for session in sessions]


async def test_a_call_that_is_given_up_leaves_its_reply_to_nobody(live: Engine) -> None:
    async with SessionStore(live.settings) as store:
        sessions = [await made_session(store) for _ in range(SESSIONS)]
        live.proxy.delay(0.05)
        for _ in range(5):
            given_up = [asyncio.create_task(store.get_session(session.id)) for session in sessions]
            await asyncio.sleep(0.02)
            for task in given_up:
                task.cancel()
            found = await at_once([store.get_session(session.id) for session in reversed(sessions)])
            assert [each.id for each in found] == [session.id for session in reversed(sessions)]


async def test_what_a_write_returns_has_it_while_another_process_loads_the_scripts(live: Engine) -> None:
    """A server that was started again knows the scripts one by one."""
    async with SessionStore(live.settings) as store:
        session = await made_session(store)
        with redis.Redis.from_url(live.server.url) as client:
            for count in range(len(SCRIPTS)):
                client.script_flush()
                for script in SCRIPTS[:count]:
                    client.script_load(script.text)
                query = make_query()
                session.add_query(query)

                updated = await store.update_session(session.id, session)

                assert updated.state.history.queries[-1] == query, f"with the first {count}"
                client.script_flush()
                for script in SCRIPTS[:count]:
                    client.script_load(script.text)

                extended = await store.extend_session(session.id, 1)

                assert extended.expires_at > updated.expires_at, f"with the first {count}"


async def test_a_deletion_leaves_the_index_last_though_the_server_has_lost_the_scripts(live: Engine) -> None:
    """A crash in between leaves an entry without its session, never a session without an entry."""
    async with SessionStore(live.settings) as store:
        session = await made_session(store)
    async with redis_wire(live.server.url) as (wire, url):
        client = RedisClient.of(live.settings.model_copy(update={"redis_url": url}), SCRIPTS)
        tier = RedisTier(client)
        [place] = await tier.members_of(OWNER)
        await client.ask_all([("SCRIPT FLUSH",)])
        wire.clear()

        await tier.remove_for_good(session.id, place)
        await client.close()

    names = [command[0] for command in wire.commands]
    assert max(at for at, name in enumerate(names) if name == b"EVALSHA") < names.index(b"ZREM")


async def test_what_was_acknowledged_is_there_after_a_kill_and_a_restart(live: Engine) -> None:
    """The server writes each command to its file before it answers (`appendfsync always`)."""
    acknowledged: list[UUID] = []
    are_enough = asyncio.Event()

    async def write(store: SessionStore, session_id: UUID) -> None:
        while True:
            query = make_query(f"{len(acknowledged)}")
            await store.record_query(session_id, query)
            acknowledged.append(query.id)
            if len(acknowledged) == ENOUGH:
                are_enough.set()

    async with SessionStore(live.settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
        writers = [asyncio.create_task(write(store, session.id)) for _ in range(10)]
        await are_enough.wait()
        live.server.kill()
        outcomes = await at_once(writers)
        live.server.start()

        found = await until_back(lambda: store.get_session(session.id))

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert found is not None
    stored = [query.id for query in found.state.history.queries]
    assert set(acknowledged) <= set(stored)
    assert len(set(stored)) == len(stored)
    assert len(stored) <= len(acknowledged) + len(writers)
