"""A Redis or Valkey client that sends scripts and commands in pipelines: each call is one round trip."""

from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from typing import Any, NoReturn, Protocol, Self

from redis.exceptions import MovedError, NoScriptError, ResponseError

from fiml.core.config import Settings
from fiml.core.deadlines import Deadlines
from fiml.core.errors import Misconfigured, Unavailable, Unconfirmed
from fiml.core.observe import Timed, observed_call
from fiml.db.redis_cluster import Cluster
from fiml.db.redis_commands import SCRIPT_COMMAND, Command, Script, with_prefix
from fiml.db.redis_node import Node, connect
from fiml.db.redis_url import Kind, parse_redis_url

CALL_S = 2.0
MAINTENANCE_S = 60.0
# How a refusal begins that is about what keys hold: a key's type, or a script's own error.
_OF_DAMAGE = ("WRONGTYPE", "user_script:", "Error running script")


class Servers(Protocol):
    """The server or servers behind the client."""

    keeps_order: bool
    """Whether commands sent at once are executed in order, whatever their keys."""

    async def send(self, commands: Sequence[Command], confirmed_by: list[int] | None = None) -> list[Any]: ...

    async def send_to_all(self, commands: Sequence[Command]) -> list[list[Any]]: ...

    async def suspect(self) -> None: ...

    async def close(self) -> None: ...


class _One:
    """A single server, or the master that Sentinels name."""

    keeps_order = True

    def __init__(self, node: Node) -> None:
        self.send = node.send
        self.suspect = node.suspect
        self.close = node.close

    async def send_to_all(self, commands: Sequence[Command]) -> list[list[Any]]:
        return [await self.send(commands)]


class RedisClient:
    """A pooled client. It sends a command again only if the server refused it, since not every command may be repeated.

    Each round trip ends within two seconds, whatever it waits for.

    Args:
        url: a server, Sentinels or a Cluster, in the form of `FIML_REDIS_URL`.
        scripts: the scripts that commands will run.
        prefix: put before each key of a command, with a colon, unless it is empty.
        replicas: how many replicas must have what `write` wrote.

    Raises:
        Misconfigured: the URL can't be used.
        Unavailable: from every call, when a server is away or refuses.
    """

    def __init__(self, url: str, scripts: Sequence[Script] = (), *, prefix: str = "", replicas: int = 0) -> None:
        address = parse_redis_url(url)
        self._name = address.name
        self._scripts = scripts
        self._prefix = prefix and f"{prefix}:"
        self._replicas = replicas
        self.within_s = CALL_S
        self._deadlines = Deadlines()
        is_cluster = address.kind is Kind.CLUSTER
        self._servers: Servers = (
            Cluster(address, replicas=replicas) if is_cluster else _One(connect(address, replicas=replicas))
        )

    @classmethod
    def of(cls, settings: Settings, scripts: Sequence[Script] = ()) -> Self:
        """The client of a server deployment."""
        assert settings.redis_url is not None  # noqa: S101  the settings have both or neither
        return cls(settings.redis_url, scripts, prefix=settings.redis_prefix, replicas=settings.redis_wait_replicas)

    def patient(self) -> Self:
        """This client for maintenance, whose round trips may be long: each ends within a minute."""
        other = copy(self)
        other.within_s = MAINTENANCE_S
        return other

    async def open(self) -> None:
        """Connect to the servers and load the scripts there."""
        await self.ask_all([("SCRIPT LOAD", script.text) for script in self._scripts] or [("PING",)])

    async def close(self) -> None:
        """Close all connections."""
        await self._servers.close()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip and return their replies, in order. Commands on one slot run in order.

        If a server has lost the scripts, they are loaded again, and the commands that failed for it are repeated.
        """
        return self._none_refused(await self._run(commands))

    async def run_each(self, commands: Sequence[Command]) -> list[Any]:
        """As `run`, but a command that failed because of what its keys hold has its `ResponseError` as the reply."""
        replies = await self._run(commands)
        refusals = [reply for reply in replies if isinstance(reply, ResponseError)]
        self._none_refused([refusal for refusal in refusals if not str(refusal).startswith(_OF_DAMAGE)])
        return replies

    async def run_in_order(self, *stages: Sequence[Command]) -> list[Any]:
        """As `run`, but each stage ends before the next one begins.

        One round trip; on a Cluster, one for each stage that isn't empty. Scripts belong in the last stage: a single
        server that has lost them runs all other commands first.
        """
        return await self._run_stages(stages)

    async def write(
        self, *stages: Sequence[Command], was_done: Callable[[list[Any]], bool] = lambda _: True
    ) -> list[Any]:
        """As `run_in_order`, for writes that must not get lost.

        If scripts may refuse a write, `was_done` tells from their replies whether they did it.

        Raises:
            Unconfirmed: the write was done, but reached too few replicas.
        """
        if not self._replicas:
            return await self._run_stages(stages)
        confirmed_by: list[int] = []
        replies = await self._run_stages(stages, confirmed_by)
        if confirmed_by and min(confirmed_by) < self._replicas and was_done(replies):
            raise Unconfirmed(f"Redis at {self._name}", min(confirmed_by), self._replicas)
        return replies

    @observed_call(Timed.ENGINE, "redis")
    async def ask_all(self, commands: Sequence[Command]) -> list[list[Any]]:
        """The replies of each server (on a Cluster, each master) to commands without a key."""
        told = await self._within(self._servers.send_to_all(commands))
        return [self._none_refused(replies) for replies in told]

    async def _run_stages(
        self, stages: Sequence[Sequence[Command]], confirmed_by: list[int] | None = None
    ) -> list[Any]:
        assert not any(command[0] == SCRIPT_COMMAND for stage in stages[:-1] for command in stage)  # noqa: S101  see `run_in_order`
        if self._servers.keeps_order:
            stages = ([command for stage in stages for command in stage],)
        replies = []
        for stage in stages:
            if stage:
                replies += self._none_refused(await self._run(stage, confirmed_by))
        return replies

    async def _run(self, commands: Sequence[Command], confirmed_by: list[int] | None = None) -> list[Any]:
        if self._prefix:
            commands = [with_prefix(command, self._prefix) for command in commands]
        replies = await self._send(commands, confirmed_by)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self.open()
            again = await self._send([commands[index] for index in unknown], confirmed_by)
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return replies

    @observed_call(Timed.ENGINE, "redis")
    async def _send(self, commands: Sequence[Command], confirmed_by: list[int] | None = None) -> list[Any]:
        return await self._within(self._servers.send(commands, confirmed_by))

    async def _within(self, call: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        try:
            return await self._deadlines.within(self.within_s, call)
        except TimeoutError as exc:
            await self._servers.suspect()
            raise Unavailable(f"Redis at {self._name}", f"no answer within {self.within_s:.0f} seconds") from exc

    def _none_refused(self, replies: list[Any]) -> list[Any]:
        for reply in replies:
            if isinstance(reply, ResponseError):
                self._refuse(reply)
        return replies

    def _refuse(self, reply: ResponseError) -> NoReturn:
        if isinstance(reply, MovedError):
            if self._servers.keeps_order:
                raise Misconfigured(
                    f"Redis at {self._name} is part of a Cluster; begin FIML_REDIS_URL with redis+cluster://"
                )
            why = f"its masters don't agree which of them has slot {reply.slot_id}"
            raise Unavailable(f"Redis at {self._name}", why) from reply
        raise Unavailable(f"Redis at {self._name}", f"it refused: {reply}") from reply
