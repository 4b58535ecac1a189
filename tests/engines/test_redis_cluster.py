"""A Cluster whose slots move, whose masters go, and a server that isn't one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from uuid import UUID, uuid4

import pytest
import redis
from redis.crc import key_slot

from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, Unavailable
from fiml.db.health import redis_facts
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.redis.keys import expiry_keys, session_keys
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing, listing
from tests.support.deployment import Deployment
from tests.support.faults import CALL_S, until_back
from tests.support.fleets import ValkeyCluster, valkey_cluster
from tests.support.servers import ValkeyProcess

OWNER = "ann"
SESSIONS = 30
_ENDPOINT = "cluster-preferred-endpoint-type"


@pytest.fixture(scope="module")
def started() -> Iterator[ValkeyCluster]:
    with valkey_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(started: ValkeyCluster) -> ValkeyCluster:
    started.empty()
    return started


@pytest.fixture
def settings(cluster: ValkeyCluster, deployment: Deployment) -> Settings:
    return Settings(redis_url=cluster.url, database_url=deployment.database_url)


def home_of(cluster: ValkeyCluster, session_id: UUID) -> ValkeyProcess:
    """The master of a session."""
    slot = key_slot(session_id.hex.encode())
    for server in cluster.masters:
        with redis.Redis(port=server.port) as client:
            if client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
                return server
    raise AssertionError("no master has the session")


async def made_sessions(store: SessionStore, count: int = SESSIONS) -> list[Session]:
    made = [await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER) for _ in range(count)]
    for session in made:
        await store.record_query(session.id, make_query("before"), context={"at": "first"})
    return [await existing(store, session.id) for session in made]


def commands_done(cluster: ValkeyCluster) -> list[int]:
    done = []
    for server in cluster.masters:
        with redis.Redis(port=server.port) as client:
            done.append(int(client.info("stats")["total_reads_processed"]))
    return done


async def test_each_master_is_asked_once_for_each_round_trip(settings: Settings, cluster: ValkeyCluster) -> None:
    async with SessionStore(settings) as store:
        await made_sessions(store)
        await store.list_user_sessions(None)  # there is a connection to each
        looking = [after - before for before, after in _pairs(commands_done(cluster), commands_done(cluster))]

        before = commands_done(cluster)
        page = await store.list_user_sessions(None)
        asked = [after - was - look for was, after, look in zip(before, commands_done(cluster), looking, strict=True)]

    assert len(page) == SESSIONS
    assert asked == [2, 2, 2]  # the indexes, then the headers


def _pairs(first: list[int], second: list[int]) -> list[tuple[int, int]]:
    return list(zip(first, second, strict=True))


async def test_sessions_are_spread_over_the_masters(settings: Settings, cluster: ValkeyCluster) -> None:
    async with SessionStore(settings) as store:
        homes = {home_of(cluster, session.id).port for session in await made_sessions(store)}

    assert homes == {server.port for server in cluster.masters}


@pytest.fixture
def elsewhere(cluster: ValkeyCluster) -> Iterator[str]:
    """The URL of a Cluster that is reached at an address it doesn't know: it sends nobody further than to a port."""
    for server in cluster.masters:
        _configure(server, ("bind", "127.0.0.1 127.0.0.2"), (_ENDPOINT, "unknown-endpoint"))
    yield cluster.url.replace("127.0.0.1", "127.0.0.2")
    for server in cluster.masters:
        _configure(server, ("bind", "127.0.0.1"), (_ENDPOINT, "ip"))


def _configure(server: ValkeyProcess, *options: tuple[str, str]) -> None:
    with redis.Redis(port=server.port) as client:
        for name, value in options:
            client.config_set(name, value)


async def test_a_server_that_names_only_a_port_is_meant_where_it_was_reached(
    settings: Settings, cluster: ValkeyCluster, elsewhere: str
) -> None:
    async with SessionStore(settings.model_copy(update={"redis_url": elsewhere})) as store:
        await expect_to_go_on_while_a_slot_moves(store, cluster)

        assert {address for server in cluster.masters for address in _addresses_of_scripts(server)} == {"127.0.0.2"}


def _addresses_of_scripts(server: ValkeyProcess) -> list[str]:
    """The address at which the last callers of a script connected."""
    with redis.Redis(port=server.port) as client:
        return [each["laddr"].partition(":")[0] for each in client.client_list() if each["cmd"] == "evalsha"]


async def test_a_session_goes_on_while_its_slot_moves(settings: Settings, cluster: ValkeyCluster) -> None:
    async with SessionStore(settings) as store:
        await expect_to_go_on_while_a_slot_moves(store, cluster)


async def expect_to_go_on_while_a_slot_moves(store: SessionStore, cluster: ValkeyCluster) -> None:
    [session] = await made_sessions(store, 1)
    slot, source = key_slot(session.id.hex.encode()), home_of(cluster, session.id)
    target = next(server for server in cluster.masters if server is not source)
    steps: list[Callable[[], None]] = [
        partial(cluster.begin_to_move, slot, source, target),
        partial(cluster.move_keys, slot, source, target),
        partial(cluster.have_moved, slot, target),
    ]
    for step in steps:
        step()
        await store.record_query(session.id, make_query("moving"), context={"at": "home"})
        assert [summary.id for summary in await listing(store, OWNER)] == [session.id]
    found = await existing(store, session.id)

    assert home_of(cluster, session.id) is target
    assert found.state.history.total_queries == 4
    cluster.move_slot(slot, target, source)


async def test_a_session_that_is_torn_by_a_move_is_unavailable_until_it_is_whole(
    settings: Settings, cluster: ValkeyCluster
) -> None:
    async with SessionStore(settings) as store:
        [session] = await made_sessions(store, 1)
        slot, source = key_slot(session.id.hex.encode()), home_of(cluster, session.id)
        target = next(server for server in cluster.masters if server is not source)
        cluster.begin_to_move(slot, source, target)
        cluster.move_keys(slot, source, target, count=2)

        with pytest.raises(Unavailable, match="during rehashing of slot"):
            async with asyncio.timeout(CALL_S):
                await store.record_query(session.id, make_query("torn"))

        cluster.move_keys(slot, source, target)
        cluster.have_moved(slot, target)
        await store.record_query(session.id, make_query("whole"))
        found = await existing(store, session.id)

    assert [query.result_summary for query in found.state.history.queries] == [
        make_query("before").result_summary,
        make_query("whole").result_summary,
    ]
    cluster.move_slot(slot, target, source)


async def test_what_an_update_returns_has_it_though_a_part_of_the_session_moved_first(
    settings: Settings, cluster: ValkeyCluster
) -> None:
    async with SessionStore(settings) as store:
        [session] = await made_sessions(store, 1)
        session = await existing(store, session.id)
        query = make_query("moving")
        session.add_query(query)
        slot, source = key_slot(session.id.hex.encode()), home_of(cluster, session.id)
        target = next(server for server in cluster.masters if server is not source)
        cluster.begin_to_move(slot, source, target)
        _, _, _, ids, _ = session_keys(session.id)
        with redis.Redis(port=source.port) as client:
            client.migrate("127.0.0.1", target.port, f"{settings.redis_prefix}:{ids}", 0, 5000)

        updating = asyncio.create_task(store.update_session(session.id, session))
        await asyncio.sleep(0.1)
        is_waiting = not updating.done()
        cluster.move_keys(slot, source, target)
        cluster.have_moved(slot, target)
        updated = await updating

    assert is_waiting
    assert updated.state.history.queries[-1] == query
    cluster.move_slot(slot, target, source)


async def test_a_session_of_which_not_all_is_there_waits_for_the_move(
    settings: Settings, cluster: ValkeyCluster
) -> None:
    """While a slot moves, a master can't tell what was never there from what has gone already."""
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
        slot, source = key_slot(session.id.hex.encode()), home_of(cluster, session.id)
        target = next(server for server in cluster.masters if server is not source)
        cluster.begin_to_move(slot, source, target)

        recorded = asyncio.create_task(store.record_query(session.id, make_query("moving")))
        await asyncio.sleep(0.1)
        is_waiting = not recorded.done()
        cluster.move_keys(slot, source, target)
        cluster.have_moved(slot, target)
        await recorded
        found = await existing(store, session.id)

    assert is_waiting
    assert found.state.history.total_queries == 1
    cluster.move_slot(slot, target, source)


@pytest.fixture
async def client(cluster: ValkeyCluster) -> AsyncIterator[RedisClient]:
    client = RedisClient(cluster.url)
    yield client
    await client.close()


async def test_nothing_is_done_twice_while_slots_move(cluster: ValkeyCluster, client: RedisClient) -> None:
    keys = [f"{{{uuid4().hex}}}:count" for _ in range(20)]

    for _ in range(3):
        for key in keys:
            slot = key_slot(key.encode())
            await client.run([("INCR", each) for each in keys])
            source = cluster.owner_of(slot)
            target = next(server for server in cluster.masters if server is not source)
            cluster.move_slot(slot, source, target)
    counts = await client.run([("GET", key) for key in keys])

    assert counts == [b"60"] * len(keys)


@pytest.fixture
def disputed(cluster: ValkeyCluster) -> Iterator[tuple[str, Callable[[], None]]]:
    """A key whose master and another each send to the other, and what settles it."""
    key = f"{{{uuid4().hex}}}:count"
    slot = key_slot(key.encode())
    owner = cluster.owner_of(slot)
    other = next(server for server in cluster.masters if server is not owner)

    def settle() -> None:
        cluster.have_moved(slot, owner)

    cluster.tell(owner, slot, other)
    yield key, settle
    settle()
    cluster.wait_until_agreed()


async def test_while_masters_disagree_about_a_slot_a_call_waits(
    client: RedisClient, disputed: tuple[str, Callable[[], None]]
) -> None:
    key, settle = disputed

    counting = asyncio.create_task(client.run([("INCR", key)]))
    await asyncio.sleep(0.3)
    is_waiting = not counting.done()
    settle()

    assert await counting == [1]
    assert is_waiting


async def test_masters_that_do_not_agree_are_unavailable(
    client: RedisClient, disputed: tuple[str, Callable[[], None]]
) -> None:
    key, _ = disputed

    with pytest.raises(Unavailable, match=r"its masters don't agree which of them has slot \d+"):
        async with asyncio.timeout(CALL_S):
            await client.run([("INCR", key)])


async def test_a_master_that_lost_the_scripts_gets_them_again(settings: Settings, cluster: ValkeyCluster) -> None:
    async with SessionStore(settings) as store:
        sessions = await made_sessions(store)
        for server in cluster.masters:
            with redis.Redis(port=server.port) as client:
                client.execute_command("SCRIPT", "FLUSH")

        await asyncio.gather(*(store.record_query(session.id, make_query("again")) for session in sessions))

        found = [await existing(store, session.id) for session in sessions]
    assert [session.state.history.total_queries for session in found] == [2] * SESSIONS


async def test_a_master_that_joins_gets_the_scripts_with_its_first_slot(
    settings: Settings, cluster: ValkeyCluster
) -> None:
    async with SessionStore(settings) as store:
        [session] = await made_sessions(store, 1)
        slot, source = key_slot(session.id.hex.encode()), home_of(cluster, session.id)
        with cluster.joined_by_another() as joined:
            cluster.begin_to_move(slot, source, joined)
            cluster.move_keys(slot, source, joined)
            await store.record_query(session.id, make_query("asked for"))
            cluster.have_moved(slot, joined)
            await store.record_query(session.id, make_query("moved"))
            cluster.move_slot(slot, joined, source)
        found = await existing(store, session.id)

    assert found.state.history.total_queries == 3


async def test_while_a_master_is_away_the_sessions_of_the_others_work(
    settings: Settings, cluster: ValkeyCluster, stays_up_in_part: Callable[[], None]
) -> None:
    stays_up_in_part()
    async with SessionStore(settings) as store:
        sessions = await made_sessions(store)
        away = cluster.masters[2]
        homes = {session.id: home_of(cluster, session.id) for session in sessions}

        away.kill()
        outcomes = await asyncio.gather(
            *(store.record_query(session.id, make_query("meanwhile")) for session in sessions), return_exceptions=True
        )
        with pytest.raises(Unavailable):
            await store.list_user_sessions(None)
        away.start()  # with nothing in it: it keeps no file
        cluster.wait_until_whole()
        [again] = await until_back(lambda: made_sessions(store, 1))

    assert again.state.history.total_queries == 1
    for session, outcome in zip(sessions, outcomes, strict=True):
        assert isinstance(outcome, Unavailable) == (homes[session.id] is away)


@pytest.fixture
def stays_up_in_part(cluster: ValkeyCluster) -> Callable[[], None]:
    """Lets the other masters answer for their slots while one is away."""

    def stay_up() -> None:
        for server in cluster.masters:
            with redis.Redis(port=server.port) as client:
                client.config_set("cluster-require-full-coverage", "no")

    return stay_up


async def test_the_masters_are_looked_at_as_one(settings: Settings, cluster: ValkeyCluster, clock: FrozenClock) -> None:
    with redis.Redis(port=cluster.masters[1].port) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    async with SessionStore(settings) as store:
        await made_sessions(store)
        clock.advance(days=8)
        figures = await store.figures()
    facts = await redis_facts(settings, expiry_keys=expiry_keys())
    with redis.Redis(port=cluster.masters[1].port) as client:
        client.config_set("maxmemory-policy", "noeviction")

    assert (figures.live, figures.waiting, figures.engines["redis"]) == (SESSIONS, SESSIONS, True)
    assert figures.redis is not None
    assert figures.redis.may_evict
    assert (facts.masters, facts.eviction_policy, facts.most_waiting, facts.replicas) == (3, "allkeys-lru", SESSIONS, 0)


async def test_a_server_that_is_not_a_cluster_is_reported_as_such(deployment: Deployment) -> None:
    url = deployment.redis_url.replace("redis://", "redis+cluster://").rpartition("/")[0]

    client = RedisClient(url)

    with pytest.raises(Misconfigured, match="not a Cluster; begin FIML_REDIS_URL with redis://"):
        await client.open()
    await client.close()


async def test_a_single_node_of_a_cluster_is_reported_as_such(cluster: ValkeyCluster, deployment: Deployment) -> None:
    settings = Settings(redis_url=cluster.masters[0].url, database_url=deployment.database_url)

    with pytest.raises(Misconfigured, match=r"part of a Cluster; begin FIML_REDIS_URL with redis\+cluster://"):
        async with SessionStore(settings) as store:
            await made_sessions(store)


async def test_a_cluster_none_of_which_answers_is_unavailable() -> None:
    client = RedisClient("redis+cluster://127.0.0.1:1,127.0.0.1:2")

    with pytest.raises(Unavailable, match="no server of the Cluster answers"):
        async with asyncio.timeout(CALL_S):
            await client.open()
    await client.close()
