"""A Redis or Valkey Cluster: which master has which slot, and one exchange with each master concerned."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from fiml.core.errors import Misconfigured, Unavailable
from fiml.db.redis_commands import Command, key_of
from fiml.db.redis_node import Node, connect
from fiml.db.redis_url import RedisAddress

LEARN_S = 0.5
_NEXT_TRY_S = 0.02
# Together less than the two seconds of a call: the reason of a refusal tells more than a timeout.
_MAX_TRIES = 80

Host = tuple[str, int]


class Cluster:
    """Sends each command to the master of its slot: one pipeline for each master, all masters at once.

    redis-py's own client for a Cluster repeats a command without knowing whether it was executed. Here a command is
    only repeated after a refusal: its slot is elsewhere (`MOVED`, `ASK`) or is being moved (`TRYAGAIN`).
    """

    keeps_order = False

    def __init__(self, address: RedisAddress, *, replicas: int = 0) -> None:
        self._address = address
        self._replicas = replicas
        self._nodes: dict[Host, Node] = {}
        self._masters: list[Host | None] = [None] * SLOTS
        self._asked: set[Host] = set()
        self._is_known = False
        self._learned_at: float | None = None
        self._learning = asyncio.Lock()
        self._node(address.hosts[0])  # raises if the options are not valid

    async def send(self, commands: Sequence[Command], confirmed_by: list[int] | None = None) -> list[Any]:
        """As `Node.send`. Commands on one slot run in order, others in any order."""
        await self._learn()
        replies: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        asked: dict[int, Host] = {}
        for attempt in range(_MAX_TRIES):
            await self._exchange(commands, waiting, asked, replies, confirmed_by)
            waiting = [index for index in waiting if isinstance(replies[index], MovedError | AskError | TryAgainError)]
            if not waiting:
                break
            asked = self._redirected(replies, waiting)
            # A slot is torn by a move, or masters send to each other until they have agreed on it.
            if attempt or any(isinstance(replies[index], TryAgainError) for index in waiting):
                await asyncio.sleep(_NEXT_TRY_S)
        return replies

    async def send_to_all(self, commands: Sequence[Command]) -> list[list[Any]]:
        """The replies of each master to commands without a key, even of one that is just getting its first slot."""
        await self._learn()
        return await self._gathered([self._node(host).send(commands) for host in sorted(self._all_masters())])

    async def suspect(self) -> None:
        """Another server may be the master by now: learn the masters again before the next call."""
        self._is_known = False
        await asyncio.gather(*(node.suspect() for node in self._nodes.values()))

    async def close(self) -> None:
        """Close all connections."""
        nodes, self._nodes, self._is_known = self._nodes, {}, False
        await asyncio.gather(*(node.close() for node in nodes.values()))

    async def _exchange(
        self,
        commands: Sequence[Command],
        indexes: Sequence[int],
        asked: dict[int, Host],
        replies: list[Any],
        confirmed_by: list[int] | None,
    ) -> None:
        of_hosts: dict[Host, list[int]] = defaultdict(list)
        for index in indexes:
            of_hosts[asked[index] if index in asked else self._master(commands[index])].append(index)

        async def exchange(host: Host, wanted: list[int]) -> None:
            sent: list[Command] = []
            for index in wanted:
                sent += [("ASKING",), commands[index]] if index in asked else [commands[index]]
            answers = await self._node(host).send(sent, confirmed_by)
            for index in reversed(wanted):
                reply = replies[index] = answers.pop()
                # redis-py's MovedError is an AskError. A server that doesn't know its own host name sends only a port.
                if isinstance(reply, AskError) and not reply.host:
                    reply.host = host[0]
                if index in asked:
                    answers.pop()

        await self._gathered([exchange(*each) for each in of_hosts.items()])

    async def _gathered(self, calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """The results of all calls; all have ended when this returns."""
        try:
            if len(calls) == 1:
                return [await calls[0]]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        except Unavailable:
            self._is_known = False
            raise
        return outcomes

    def _redirected(self, replies: Sequence[Any], waiting: Sequence[int]) -> dict[int, Host]:
        """Where to send commands this one time (`ASK`). Slots that have moved for good (`MOVED`) are remembered."""
        asked = {}
        for index in waiting:
            reply = replies[index]
            if isinstance(reply, MovedError):
                # If one slot has moved, others may have: the next call learns all of them again.
                self._masters[reply.slot_id], self._is_known = (reply.host, reply.port), False
            elif isinstance(reply, AskError):
                asked[index] = (reply.host, reply.port)
                self._asked.add(asked[index])
        return asked

    def _master(self, command: Command) -> Host:
        slot = key_slot(key_of(command).encode())
        host = self._masters[slot]
        if host is None:
            raise Unavailable(f"Redis at {self._address.name}", f"no master of the Cluster has slot {slot}")
        return host

    def _all_masters(self) -> set[Host]:
        return {host for host in self._masters if host is not None} | self._asked

    def _node(self, host: Host) -> Node:
        if host not in self._nodes:
            self._nodes[host] = connect(self._address, host, replicas=self._replicas)
        return self._nodes[host]

    async def _learn(self) -> None:
        if not self._is_due():
            return
        async with self._learning:
            if not self._is_due():
                return
            hosts = self._all_masters() | set(self._address.hosts)
            for host in random.sample(sorted(hosts), len(hosts)):
                if (ranges := await self._told(host)) is not None:
                    self._take(host, ranges)
                    self._is_known, self._learned_at = True, asyncio.get_running_loop().time()
                    return
        if self._learned_at is None:
            raise Unavailable(f"Redis at {self._address.name}", "no server of the Cluster answers")

    def _is_due(self) -> bool:
        if self._is_known:
            return False
        if self._learned_at is None:
            return True
        # While a master is away, every call fails and would ask again.
        return asyncio.get_running_loop().time() >= self._learned_at + LEARN_S

    async def _told(self, host: Host) -> list[Any] | None:
        try:
            async with asyncio.timeout(LEARN_S):
                [told] = await self._node(host).send([("CLUSTER", "SLOTS")])
        except (Unavailable, TimeoutError):
            return None
        if isinstance(told, ResponseError):
            if "cluster support disabled" in str(told):
                raise Misconfigured(
                    f"Redis at {self._address.name} is not a Cluster; begin FIML_REDIS_URL with redis://"
                )
            return None
        return told or None

    def _take(self, asked: Host, ranges: Sequence[Any]) -> None:
        masters: list[Host | None] = [None] * SLOTS
        for first, last, (name, port, *_), *_ in ranges:
            # As with MOVED, the host name may be missing.
            host = (name.decode() if name else asked[0], int(port))
            masters[first : last + 1] = [host] * (last + 1 - first)
        self._masters, self._asked = masters, set()
