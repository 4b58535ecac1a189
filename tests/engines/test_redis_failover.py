"""A master is killed while many write, and its replica takes over: acknowledged writes that are lost are counted."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import Unavailable, Unconfirmed
from fiml.sessions.models import SessionType
from fiml.sessions.queries import QueryRecord
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from tests.support.deployment import Deployment
from tests.support.faults import until_back
from tests.support.fleets import master_at, valkey_cluster, wait_for, watched_valkeys
from tests.support.servers import SentinelProcess, ValkeyProcess, valkey_server

WRITERS = 20
BEFORE = 2000
AFTER = 200
FAILOVER_S = 60


@dataclass
class Told:
    """What writers were told about what they wrote, in the order in which they wrote it."""

    acknowledged: dict[UUID, list[UUID]] = field(default_factory=dict)
    refusals: Counter[type] = field(default_factory=Counter)
    count: int = 0
    grew: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def has_grown_to(self, count: int) -> None:
        async with self.grew:
            await self.grew.wait_for(lambda: self.count >= count)


async def write(store: SessionStore, session_id: UUID, told: Told) -> None:
    """Record queries one after the other, each as often as it takes."""
    while True:
        query = make_query(f"{told.count}")
        await record(store, session_id, query, told)
        told.acknowledged[session_id].append(query.id)
        async with told.grew:
            told.count += 1
            told.grew.notify_all()


async def record(store: SessionStore, session_id: UUID, query: QueryRecord, told: Told) -> None:
    while True:
        try:
            await store.record_query(session_id, query)
        except Unavailable as exc:  # no other error is let through
            told.refusals[type(exc)] += 1
            await asyncio.sleep(0.05)
        else:
            return


@dataclass(frozen=True)
class Fleet:
    """A master that is killed, and the replica that takes over."""

    url: str
    master: ValkeyProcess
    replica: ValkeyProcess
    sentinels: list[SentinelProcess] = field(default_factory=list)

    async def fail_over(self) -> None:
        """Kill the master; when it has been replaced it comes back, empty, and becomes a replica.

        When all know of it: one that comes back before then is the master for those that don't.
        """
        self.master.kill()
        await asyncio.to_thread(wait_for, self._is_replaced)
        self.master.start()

    def _is_replaced(self) -> bool:
        return _is_master(self.replica) and all(master_at(each) == self.replica.port for each in self.sentinels)


def _is_master(server: ValkeyProcess) -> bool:
    with redis.Redis(port=server.port) as client:
        return bool(client.execute_command("ROLE")[0] == b"master")


@contextmanager
def watched_fleet() -> Iterator[Fleet]:
    with watched_valkeys() as watched:
        master, replica = watched.servers
        yield Fleet(watched.url, master, replica, watched.sentinels)


@contextmanager
def clustered_fleet() -> Iterator[Fleet]:
    with valkey_cluster(has_replicas=True) as cluster:
        yield Fleet(cluster.url, cluster.masters[0], cluster.replicas[0])


FLEETS = {"sentinels": watched_fleet, "cluster": clustered_fleet}


async def written_through_a_failover(settings: Settings, fleet: Fleet) -> Told:
    """What writers were told that went on through it; their sessions are on the replica before they begin."""
    told = Told()
    async with SessionStore(settings.model_copy(update={"redis_wait_replicas": 1})) as store:
        for _ in range(WRITERS):
            told.acknowledged[(await store.create_session(["AAPL"], SessionType.EQUITY)).id] = []
    async with SessionStore(settings) as store, asyncio.timeout(FAILOVER_S), asyncio.TaskGroup() as group:
        writers = [group.create_task(write(store, session_id, told)) for session_id in told.acknowledged]
        await told.has_grown_to(BEFORE)
        await fleet.fail_over()
        await told.has_grown_to(told.count + AFTER)
        for writer in writers:
            writer.cancel()
    return told


async def lost_of(store: SessionStore, told: Told) -> int:
    """How many acknowledged queries aren't there; those that are there are whole, once, and in order."""
    lost = 0
    for session_id, acknowledged in told.acknowledged.items():
        found = await until_back(partial(store.get_session, session_id))
        stored = [] if found is None else [query.id for query in found.state.history.queries]
        assert [each for each in stored if each in acknowledged] == [each for each in acknowledged if each in stored]
        lost += len(set(acknowledged) - set(stored))
    return lost


@pytest.mark.parametrize("fleet", ["sentinels", pytest.param("cluster", marks=pytest.mark.soak)])
@pytest.mark.parametrize("replicas", [0, pytest.param(1, marks=pytest.mark.soak)])
async def test_writers_go_on_after_a_failover(
    deployment: Deployment, fleet: str, replicas: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with FLEETS[fleet]() as started:
        settings = Settings(redis_url=started.url, database_url=deployment.database_url, redis_wait_replicas=replicas)
        told = await written_through_a_failover(settings, started)
        async with SessionStore(settings) as store:
            lost = await lost_of(store, told)

    with capsys.disabled():
        sys.stdout.write(f"\n{fleet}, {replicas} confirming: {lost} of {told.count} lost, {dict(told.refusals)}\n")
    assert set(told.refusals) <= {Unavailable, Unconfirmed}
    # Without a replica that confirms, what it didn't have yet is lost: the last moments of seconds of writing.
    assert lost == 0 if replicas else lost < told.count / 2


@pytest.mark.soak
async def test_a_process_that_is_killed_has_written_what_it_acknowledged(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `everysec` too: the file has it before the answer goes out. What the disk lacks is lost in a power cut."""
    with valkey_server(options=["--appendonly", "yes", "--appendfsync", "everysec"]) as server:
        settings = Settings(redis_url=server.url, database_url=deployment.database_url)
        told = Told()
        async with SessionStore(settings) as store, asyncio.timeout(FAILOVER_S), asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                told.acknowledged[(await store.create_session(["AAPL"], SessionType.EQUITY)).id] = []
            writers = [group.create_task(write(store, session_id, told)) for session_id in told.acknowledged]
            for _ in range(3):
                await told.has_grown_to(told.count + BEFORE)
                server.kill()
                server.start()
            for writer in writers:
                writer.cancel()
        async with SessionStore(settings) as store:
            lost = await lost_of(store, told)

    with capsys.disabled():
        sys.stdout.write(f"\neverysec, killed 3 times: {lost} of {told.count} lost\n")
    assert lost == 0
