"""Several Valkey servers that belong together: a Cluster, and a master with a replica behind Sentinels."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from tests.support.servers import PATIENCE_SECONDS, PORTS, SentinelProcess, ValkeyProcess, valkey_server
from tests.support.tls import Certificates, tls_before

MASTERS = 3
SENTINELS = 3
SERVICE = "sessions"
TLS_SERVICE = "sessions-with-tls"
DOWN_AFTER_MS = 500
NODE_TIMEOUT_MS = 1000
AT_ONCE = ["--repl-diskless-sync-delay", "0"]


@dataclass(frozen=True)
class ValkeyCluster:
    """Masters that share the slots, and for each a replica where there are some."""

    masters: Sequence[ValkeyProcess]
    replicas: Sequence[ValkeyProcess]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.masters)

    def empty(self) -> None:
        """Remove every key."""
        for server in self.masters:
            _ask(server, "FLUSHALL")

    def wait_until_whole(self) -> None:
        """Return when every server that runs takes commands."""
        running = [server for server in (*self.masters, *self.replicas) if server.is_running]
        size = len(self.masters) + len(self.replicas)
        wait_for(lambda: all(_is_whole(server, size) for server in running))

    def wait_until_reached_at(self, ports: Sequence[int]) -> None:
        """Return when every master names these ports as those of the masters."""

        def named(server: ValkeyProcess) -> set[int]:
            return {master[1] for _, _, master, *_ in _ask(server, "CLUSTER", "SLOTS")}

        wait_for(lambda: all(named(server) == set(ports) for server in self.masters))

    @contextmanager
    def joined_by_another(self) -> Iterator[ValkeyProcess]:
        """A master without a slot, which leaves again: give back what it got before."""
        with closing(ClusteredValkey(options=AT_ONCE)) as server:
            server.start()
            name = _id_of(server)
            _meet(self.masters[0], server)
            size = len(self.masters) + 1
            try:
                wait_for(lambda: all(_is_whole(each, size) for each in (*self.masters, server)))
                yield server
            finally:
                for each in self.masters:
                    _forget(each, name)

    def move_slot(self, slot: int, source: ValkeyProcess, target: ValkeyProcess) -> None:
        """Give a slot to another master, key by key, as tools do, and return when all agree whose it is."""
        self.begin_to_move(slot, source, target)
        self.move_keys(slot, source, target)
        self.have_moved(slot, target)
        self.wait_until_agreed()

    def begin_to_move(self, slot: int, source: ValkeyProcess, target: ValkeyProcess) -> None:
        """Both know of it; the keys are where they were."""
        self.wait_until_agreed()
        _ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", _id_of(source))
        _ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", _id_of(target))

    def move_keys(self, slot: int, source: ValkeyProcess, target: ValkeyProcess, *, count: int = 1000) -> None:
        """Send some of the keys over."""
        if keys := _ask(source, "CLUSTER", "GETKEYSINSLOT", slot, count):
            _ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def have_moved(self, slot: int, target: ValkeyProcess) -> None:
        """Every master is told whose slot it is."""
        for server in (target, *(master for master in self.masters if master is not target)):
            self.tell(server, slot, target)

    def tell(self, server: ValkeyProcess, slot: int, owner: ValkeyProcess) -> None:
        """Tell one master whose slot it is."""
        _ask(server, "CLUSTER", "SETSLOT", slot, "NODE", _id_of(owner))

    def owner_of(self, slot: int) -> ValkeyProcess:
        """Whose slot it is, as the first master has it."""
        ranges = _ask(self.masters[0], "CLUSTER", "SLOTS")
        port = next(port for first, last, (_, port, *_), *_ in ranges if first <= slot <= last)
        return next(server for server in self.masters if server.port == port)

    def wait_until_agreed(self) -> None:
        """Return when all masters know the same of all slots.

        A slot that is moved before all have heard of the move before can end up with each master sending to the other.
        """
        wait_for(lambda: len({_owners(server) for server in self.masters}) == 1)


@dataclass(frozen=True)
class Watched:
    """A master and its replica, watched by Sentinels."""

    servers: list[ValkeyProcess]
    sentinels: list[SentinelProcess]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    @property
    def master(self) -> ValkeyProcess:
        """The server that the first Sentinel names."""
        port = master_at(self.sentinels[0])
        return next(server for server in self.servers if server.port == port)

    def empty(self) -> None:
        """Remove every key."""
        _ask(self.master, "FLUSHALL")

    @contextmanager
    def behind_tls(self, certificates: Certificates) -> Iterator[str]:
        """The URL at which the Sentinels, and under another name the master, are reached with TLS."""
        with ExitStack() as stack:
            # The Sentinels themselves come without TLS, at the same address.
            master = stack.enter_context(tls_before(self.master.port, certificates, takes_plain=True))
            ports = [stack.enter_context(tls_before(each.port, certificates)) for each in self.sentinels]
            for sentinel in self.sentinels:
                _ask(sentinel, "SENTINEL", "MONITOR", TLS_SERVICE, "127.0.0.1", master, 2)
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            yield f"rediss+sentinel://{hosts}/{TLS_SERVICE}/0?ssl_ca_certs={certificates.file}"

    def wait_until_replicated(self) -> None:
        """Return when the master has its replica, and the Sentinels know each other."""
        wait_for(lambda: b"state=online" in _ask(self.master, "INFO", "replication"))
        known = f"sentinels={SENTINELS}".encode()
        wait_for(lambda: all(known in _ask(sentinel, "INFO") for sentinel in self.sentinels))


def master_at(sentinel: SentinelProcess) -> int:
    """The port of the master, as a Sentinel has it."""
    _, port = _ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
    return int(port)


@contextmanager
def valkey_cluster(*, has_replicas: bool = False) -> Iterator[ValkeyCluster]:
    """A Cluster of three masters that takes commands."""
    with ExitStack() as stack:
        started = []
        for _ in range(2 * MASTERS if has_replicas else MASTERS):
            server = stack.enter_context(closing(ClusteredValkey(options=AT_ONCE)))
            server.start()
            started.append(server)
        cluster = ValkeyCluster(started[:MASTERS], started[MASTERS:])
        _introduce(cluster)
        yield cluster


@contextmanager
def watched_valkeys() -> Iterator[Watched]:
    """A master with a replica, and three Sentinels, two of which decide who is the master."""
    with ExitStack() as stack:
        master = stack.enter_context(valkey_server(options=AT_ONCE))
        replica = stack.enter_context(valkey_server(options=[*AT_ONCE, "--replicaof", f"127.0.0.1 {master.port}"]))
        configured = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 2000",
        ]
        started = []
        for _ in range(SENTINELS):
            sentinel = stack.enter_context(closing(SentinelProcess(configured)))
            sentinel.start()
            started.append(sentinel)
        watched = Watched([master, replica], started)
        watched.wait_until_replicated()
        yield watched


class ClusteredValkey(ValkeyProcess):
    """A server that talks with the others at a second port."""

    def _prepare(self) -> None:
        super()._prepare()
        if not self._has_answered:
            self._bus_port = secrets.choice(PORTS)

    def _command(self) -> Sequence[str | Path]:
        clustered = ["--cluster-enabled", "yes", "--cluster-port", str(self._bus_port)]
        return [*super()._command(), *clustered, "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]


def _introduce(cluster: ValkeyCluster) -> None:
    masters = cluster.masters
    bounds = [SLOTS * number // len(masters) for number in range(len(masters) + 1)]
    for server, first, after in zip(masters, bounds, bounds[1:], strict=False):
        _ask(server, "CLUSTER", "ADDSLOTSRANGE", first, after - 1)
    for number, server in enumerate((*masters, *cluster.replicas)):
        _ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        _meet(masters[0], server)
    cluster.wait_until_whole()
    for master, replica in zip(masters, cluster.replicas, strict=False):
        wait_for(partial(_is_replica_of, replica, master))
    if cluster.replicas:
        wait_for(lambda: all(b"state=online" in _ask(master, "INFO", "replication") for master in masters))


def _meet(server: ValkeyProcess, other: ValkeyProcess) -> None:
    bus_port = _ask(other, "CONFIG", "GET", "cluster-port")[1].decode()
    _ask(server, "CLUSTER", "MEET", "127.0.0.1", other.port, bus_port)


def _is_replica_of(replica: ValkeyProcess, master: ValkeyProcess) -> bool:
    try:
        return bool(_ask(replica, "CLUSTER", "REPLICATE", _id_of(master)) == b"OK")
    except redis.ResponseError:  # it doesn't know the master yet
        return False


def _is_whole(server: ValkeyProcess, size: int) -> bool:
    told = _ask(server, "CLUSTER", "INFO")
    return b"cluster_state:ok" in told and f"cluster_known_nodes:{size}".encode() in told


def _owners(server: ValkeyProcess) -> frozenset[tuple[bytes, ...]]:
    """The name of each server with slots, the number of its last change, and the slots, as a master has them."""
    nodes = [line.split() for line in _ask(server, "CLUSTER", "NODES").splitlines()]
    return frozenset((name, epoch, *slots) for name, _, _, _, _, _, epoch, _, *slots in nodes if slots)


def _forget(server: ValkeyProcess, name: str) -> None:
    with suppress(redis.ResponseError):  # it didn't know it
        _ask(server, "CLUSTER", "FORGET", name)


def _id_of(server: ValkeyProcess) -> str:
    return str(_ask(server, "CLUSTER", "MYID").decode())


def _ask(server: ValkeyProcess, *command: str | int | bytes) -> Any:
    with redis.Redis(port=server.port, protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Return when it is so; servers find each other in time, or not at all."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError("the servers didn't find each other")
        time.sleep(0.05)
