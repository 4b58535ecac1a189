"""A Redis or Valkey client that sends scripts and commands in pipelines: one call, one round trip."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fiml.core.config import without_secrets
from fiml.core.errors import Misconfigured, Unavailable, echo
from fiml.core.observe import Timed, observed_call

MAX_CONNECTIONS = 64
CONNECT_TIMEOUT_S = 2
REPLY_TIMEOUT_S = 2
POOL_TIMEOUT_S = 5

_URL_PARAMETERS = {
    "db",
    "protocol",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}

Argument = str | bytes | int | float
Command = tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, known to the server by its digest."""

    text: str
    digest: str

    @classmethod
    def load(cls, package: str, *names: str) -> "Script":
        """The script `lua/<name>.lua` of a package; of several names, one file after the other."""
        text = "".join(files(package).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8") for name in names)
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

    def __call__(self, keys: Sequence[str], *arguments: Argument) -> Command:
        """The command that runs the script."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)


class RedisClient:
    """A pooled client. No command is sent twice on its own account: not all of them may be.

    Raises:
        Unavailable: from every call, when the server is away or refuses.
    """

    def __init__(self, url: str, scripts: Sequence[Script]) -> None:
        self._name = without_secrets(url)
        self._scripts = scripts
        self._redis = Redis.from_pool(_pool(url))

    async def open(self) -> None:
        """Reach the server and give it the scripts."""
        await self.run([("SCRIPT", "LOAD", script.text) for script in self._scripts])

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip; their replies, in order.

        A server that lost the scripts gets them again, and then only the commands that it didn't know.
        """
        replies = await self.run_each(commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._refused(reply) from reply
        return replies

    async def run_each(self, commands: Sequence[Command]) -> list[Any]:
        """As `run`, with the `ResponseError` of a command that the server refused in the place of its reply."""
        replies = await self._send(commands)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self.open()
            again = await self._send([commands[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return replies

    @observed_call(Timed.ENGINE, "redis")
    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        try:
            if len(commands) == 1:
                return [await self._single(commands[0])]
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)
        except AuthenticationError as exc:
            raise Misconfigured(f"Redis at {self._name} refuses ({exc}); check FIML_REDIS_URL") from exc
        except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
            # The server went: the idle connections went with it, and each would fail a call of its own.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            raise Unavailable(f"Redis at {self._name}", str(exc) or type(exc).__name__) from exc
        except RedisError as exc:
            raise self._refused(exc) from exc

    async def _single(self, command: Command) -> Any:
        try:
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]  # as redis-py has it
        except ResponseError as exc:
            return exc

    def _refused(self, exc: Exception) -> Unavailable:
        return Unavailable(f"Redis at {self._name}", f"it refused: {exc}")


def _pool(url: str) -> BlockingConnectionPool:
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=POOL_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # Its message may hold a piece of the password.
        raise Misconfigured(
            "FIML_REDIS_URL is no URL; valid is redis://host:6379/0, with reserved characters of a password "
            "percent-encoded"
        ) from None
    given = set(parse_qs(urlsplit(url).query))
    if unknown := sorted(given - _URL_PARAMETERS):
        raise Misconfigured(
            f"FIML_REDIS_URL has the parameter {echo(unknown[0])}; known here are {', '.join(sorted(_URL_PARAMETERS))}"
        )
    return pool
