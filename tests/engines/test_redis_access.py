"""How Redis is reached: by URLs of all kinds, with TLS, as a user with few rights, beside another installation."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio.connection import UnixDomainSocketConnection

from fiml.access.rates import Rate, SharedAllowances
from fiml.cache.l1_cache import RedisL1Cache
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, Unavailable
from fiml.db.health import redis_facts
from fiml.db.redis_client import RedisClient
from fiml.db.redis_node import connect
from fiml.db.redis_url import Kind, parse_redis_url
from fiml.sessions.backends.redis.keys import expiry_keys
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing, listing
from tests.support.deployment import Deployment
from tests.support.fleets import SERVICE, valkey_cluster, watched_valkeys
from tests.support.servers import ValkeyProcess, valkey_server
from tests.support.tls import Certificates, tls_before

ROOT = Path(__file__).parents[2]
OWNER = "ann"
PASSWORD = "never:to/be@shown"  # noqa: S105  nobody's
ENCODED = "never%3Ato%2Fbe%40shown"
# As docs/how-to/redis-cluster-and-sentinel.md has it.
MAY = (
    *("+ping", "+hello", "+client|setinfo", "+select", "+script|load", "+evalsha", "+wait"),
    *("+zadd", "+zrem", "+zrange", "+zcard", "+zcount", "+zscore"),
    *("+hset", "+hsetnx", "+hget", "+hmget", "+hgetall", "+hdel", "+hkeys", "+hexists", "+hincrby"),
    *("+rpush", "+lrange", "+sadd", "+sismember", "+smembers"),
    *("+exists", "+type", "+get", "+set", "+del", "+dump"),
)


async def work_with(settings: Settings, clock: FrozenClock) -> None:
    """What an installation does in Redis: sessions, sharing, search, the sweep, the cache and the rates."""
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, tags=["t"], ttl_hours=1)
        other = await store.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER)
        await store.record_query(session.id, make_query("one"), context={"a": 1})
        await store.extend_session(session.id, 1)
        await store.share_session(session.id, "bob")
        await store.unshare_session(session.id, "bob")
        assert len(await store.search_sessions(OWNER, symbol="AAPL")) == 1
        assert await store.archive_session(other.id)
        await store.resume_session(other.id)
        assert await store.delete_session(other.id)
        clock.advance(hours=3)
        assert (await store.sweep()).archived == 1
        assert (await existing(store, session.id)).state.history.total_queries == 1
        assert [summary.id for summary in await listing(store, OWNER)] == [session.id]
    cache = RedisL1Cache(RedisClient.of(settings))
    assert await cache.get("a") is None
    await cache.aclose()
    allowances = SharedAllowances(settings, Rate(per_minute=1, burst=1))
    assert not await allowances.take(OWNER)
    await allowances.aclose()


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyProcess]:
    with valkey_server() as server:
        yield server


@pytest.fixture
def empty(valkey: ValkeyProcess) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


async def test_calls_that_are_still_connecting_when_the_client_is_closed_leave_no_connection(
    valkey: ValkeyProcess,
) -> None:
    node = connect(parse_redis_url(valkey.url))
    calls = [asyncio.create_task(node.send([("PING",)])) for _ in range(10)]
    await asyncio.sleep(0)  # each begins to connect

    await node.close()
    await asyncio.gather(*calls, return_exceptions=True)

    assert node._idle == []


async def test_after_a_write_that_a_replica_refuses_the_next_call_connects_anew() -> None:
    """A name that moves from one server to another at a failover would otherwise never reach the new master."""
    with valkey_server() as server, redis.Redis.from_url(server.url) as admin:
        client = RedisClient(server.url)
        [before] = await client.run([("CLIENT ID",)])
        admin.replicaof("127.0.0.1", "1")

        with pytest.raises(Unavailable, match="read only replica"):
            await client.write([("SET", "key", "value")])

        assert await client.run([("CLIENT ID",)]) != [before]
        await client.close()


async def test_two_installations_in_one_redis_do_not_see_each_other(
    valkey: ValkeyProcess, empty: "redis.Redis", deployment: Deployment, clock: FrozenClock
) -> None:
    first, second = (
        Settings(redis_url=valkey.url, database_url=deployment.database_url, redis_prefix=prefix)
        for prefix in ("desk-1", "desk-2")
    )
    async with SessionStore(first) as one, SessionStore(second) as two:
        session = await one.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        await two.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER)
        clock.advance(hours=2)

        assert [summary.id for summary in await listing(one, OWNER)] == [session.id]
        assert await two.get_session(session.id) is None
        assert (await two.sweep()).archived == 0

    assert {key.partition(b":")[0] for key in empty.scan_iter("*", count=1000)} == {b"desk-1", b"desk-2"}


async def test_a_user_who_may_only_touch_the_prefix_with_few_commands_can_do_everything(
    valkey: ValkeyProcess, empty: "redis.Redis", deployment: Deployment, clock: FrozenClock
) -> None:
    allow(empty, *MAY)
    url = valkey.url.replace("//", f"//fiml:{ENCODED}@")
    settings = Settings(redis_url=url, database_url=deployment.database_url, redis_prefix="desk")

    await work_with(settings, clock)
    facts = await redis_facts(settings, expiry_keys=expiry_keys())

    assert facts.eviction_policy is None  # it isn't told
    with pytest.raises(Unavailable, match="No permissions to access a key"):
        async with SessionStore(settings.model_copy(update={"redis_prefix": "other"})) as store:
            await store.create_session(["AAPL"], SessionType.EQUITY)


async def test_on_a_cluster_it_may_ask_where_a_slot_is_too(deployment: Deployment, clock: FrozenClock) -> None:
    with valkey_cluster() as cluster:
        for server in cluster.masters:
            with redis.Redis(port=server.port) as client:
                allow(client, *MAY, "+cluster|slots", "+asking")
        url = cluster.url.replace("//", f"//fiml:{ENCODED}@")

        await work_with(Settings(redis_url=url, database_url=deployment.database_url, redis_prefix="desk"), clock)


def allow(client: "redis.Redis", *commands: str) -> None:
    """Make an account for one prefix."""
    client.acl_setuser("fiml", reset=True, enabled=True, passwords=[f"+{PASSWORD}"], keys=["desk:*"], commands=commands)


def test_what_scripts_run_is_among_what_that_user_may() -> None:
    scripts = [path.read_text() for path in (ROOT / "fiml").glob("*/lua/*.lua")]
    called = {name.lower() for script in scripts for name in re.findall(r"redis\.p?call\('(\w+)'", script)}

    page = (ROOT / "docs/how-to/redis-cluster-and-sentinel.md").read_text()
    assert [name for name in MAY if f" {name}" not in page] == []
    assert len(called) > 20
    assert {f"+{name}" for name in called} <= set(MAY)


async def test_a_wrong_password_is_misconfigured_and_is_not_shown(valkey: ValkeyProcess, empty: "redis.Redis") -> None:
    client = RedisClient(valkey.url.replace("//", f"//fiml:{ENCODED}x@"))

    with pytest.raises(Misconfigured, match="check FIML_REDIS_URL") as caught:
        await client.open()
    await client.close()

    assert "never" not in str(caught.value)


class TestTls:
    @pytest.fixture
    def certificates(self, tmp_path: Path) -> Certificates:
        return Certificates(tmp_path)

    async def test_a_server_behind_tls_is_reached(
        self,
        valkey: ValkeyProcess,
        empty: "redis.Redis",
        deployment: Deployment,
        certificates: Certificates,
        clock: FrozenClock,
    ) -> None:
        with tls_before(valkey.port, certificates) as port:
            url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificates.file}"

            await work_with(Settings(redis_url=url, database_url=deployment.database_url), clock)

    async def test_a_cluster_behind_tls_is_reached(
        self, deployment: Deployment, certificates: Certificates, clock: FrozenClock
    ) -> None:
        with valkey_cluster() as cluster, ExitStack() as stack:
            ports = [stack.enter_context(tls_before(server.port, certificates)) for server in cluster.masters]
            for server, port in zip(cluster.masters, ports, strict=True):
                with redis.Redis(port=server.port) as client:
                    client.config_set("cluster-announce-port", port)
            cluster.wait_until_reached_at(ports)
            url = f"rediss+cluster://127.0.0.1:{ports[0]}?ssl_ca_certs={certificates.file}"

            await work_with(Settings(redis_url=url, database_url=deployment.database_url), clock)

    async def test_sentinels_and_their_master_behind_tls_are_reached(
        self, deployment: Deployment, certificates: Certificates, clock: FrozenClock
    ) -> None:
        with watched_valkeys() as watched, watched.behind_tls(certificates) as url:
            await work_with(Settings(redis_url=url, database_url=deployment.database_url), clock)

    async def test_a_certificate_of_an_unknown_authority_is_refused(
        self, valkey: ValkeyProcess, certificates: Certificates, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        other = Certificates(tmp_path / "other")
        with tls_before(valkey.port, certificates) as port:
            client = RedisClient(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={other.file}")
            with pytest.raises(Unavailable, match="certificate verify failed"):
                await client.open()
            await client.close()

    async def test_a_server_without_tls_is_unavailable(self, valkey: ValkeyProcess) -> None:
        client = RedisClient(valkey.url.replace("redis://", "rediss://"))
        with pytest.raises(Unavailable):
            await client.open()
        await client.close()


async def test_a_socket_and_an_account_are_named_as_other_tools_do(tmp_path: Path) -> None:
    with valkey_server(password=PASSWORD, options=["--unixsocket", str(tmp_path / "socket")]) as valkey:
        for url in (
            f"unix://{tmp_path}/socket?db=1&password={ENCODED}",
            f"unix://:{ENCODED}@{tmp_path}/socket?db=1",
            f"redis://127.0.0.1:{valkey.port}/1?username=default&password={ENCODED}&client_name=desk&max_connections=2"
            "&decode_responses=true&health_check_interval=30&retry_on_timeout=true",
        ):
            client = RedisClient(url)
            replies = await asyncio.gather(*(client.run([("SET", f"{n}", n), ("GET", f"{n}")]) for n in range(5)))
            [name], [clients] = await client.run([("CLIENT GETNAME",)]), await client.run([("CLIENT LIST",)])
            await client.close()

            assert [value for _, value in replies] == [b"0", b"1", b"2", b"3", b"4"]
            assert "client_name" not in url or (name, len(clients)) == ("desk", 2)


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "kind", "hosts", "service", "options"),
        [
            ("redis://h/2", Kind.SERVER, [], "", {"host": "h", "db": 2}),
            ("redis+cluster://a,b:7000", Kind.CLUSTER, [("a", 6379), ("b", 7000)], "", {"db": 0}),
            ("redis+cluster://[::1]:7000,[::2]", Kind.CLUSTER, [("::1", 7000), ("::2", 6379)], "", {"db": 0}),
            (
                f"redis+sentinel://u:{ENCODED}@a,b:7000/main/3",
                Kind.SENTINEL,
                [("a", 26379), ("b", 7000)],
                "main",
                {"username": "u", "password": PASSWORD, "db": 3},
            ),
            (
                f"unix:///run/s?db=1&username=u&password={ENCODED}&decode_responses=1",
                Kind.SERVER,
                [],
                "",
                {
                    "path": "/run/s",
                    "db": 1,
                    "username": "u",
                    "password": PASSWORD,
                    "connection_class": UnixDomainSocketConnection,
                },
            ),
            ("redis+sentinel://a/main?db=4", Kind.SENTINEL, [("a", 26379)], "main", {"db": 4}),
        ],
    )
    def test_it_says_where_and_with_what(
        self, url: str, kind: Kind, hosts: list[Any], service: str, options: dict[str, Any]
    ) -> None:
        address = parse_redis_url(url)

        assert (address.kind, list(address.hosts), address.service) == (kind, hosts, service)
        assert address.options == options
        assert PASSWORD not in f"{address!r} {address.name}"

    def test_sentinels_may_have_a_password_of_their_own(self) -> None:
        address = parse_redis_url(f"redis+sentinel://:p@a/main?sentinel_password={ENCODED}&sentinel_username=s")

        assert address.sentinel_options == {"username": "s", "password": PASSWORD}
        assert address.options == {"password": "p", "db": 0}
        assert PASSWORD not in f"{address!r} {address.name}"

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("localhost:6379", "must begin with redis://"),
            ("redis+socket://h", "must begin with redis://"),
            ("redis://h/sessions", "is not a URL; write redis://host:6379/0"),
            ("redis+cluster://", "is not a URL; write redis\\+cluster://"),
            ("redis+cluster://a:x", "is not a URL"),
            ("redis+cluster://a,,b", "is not a URL"),
            ("redis+cluster://a/1", "names database 1; a Cluster has only database 0"),
            ("redis+sentinel://a", "lacks the name that the Sentinels have for the master"),
            ("redis+sentinel://a/main/x", "is not a URL; write redis\\+sentinel://"),
            ("redis+cluster://a?sentinel_password=p", "has a parameter that is not known"),
            ("redis://h?nonsense=1", "has the parameter 'nonsense'; valid here are client_name, db,"),
            ("redis://h?max_connections=0", "has max_connections=0; give 1 or more"),
            ("redis://h?password=a&never=b", "has a parameter that is not known"),
            ("redis://h?ssl_ca_certs=x", "has the parameter ssl_ca_certs, which needs TLS; begin the URL with rediss"),
            ("rediss+cluster://h?ssl_cert_reqs=x", "has a parameter whose value can't be used"),
            ("rediss+sentinel://h/main?ssl_cert_reqs=x", "has a parameter whose value can't be used"),
            ("redis://h?protocol=9", "has a parameter whose value can't be used"),
            ("rediss://h?ssl_ca_certs=/no/file.pem", "has ssl_ca_certs='/no/file.pem', which can't be used"),
            (f"rediss+cluster://h?ssl_ca_certs={__file__}", "has ssl_ca_certs=.* which can't be used"),
            (f"rediss://h?ssl_certfile={__file__}", "has ssl_certfile=.* which can't be used"),
            (
                f"rediss://h?ssl_certfile={__file__}&ssl_keyfile=/no/key.pem",
                "has ssl_keyfile='/no/key.pem', which can't",
            ),
            ("rediss://h?ssl_keyfile=/key.pem", "has ssl_keyfile, which belongs to a certificate; add ssl_certfile"),
        ],
    )
    def test_what_a_url_cannot_express_is_misconfigured(self, url: str, problem: str) -> None:
        with pytest.raises(Misconfigured, match=problem) as caught:
            RedisClient(url.replace("//", f"//u:{ENCODED}@"))

        assert "never" not in str(caught.value)


async def test_all_sentinels_stay_known_when_many_connect_at_once() -> None:
    with watched_valkeys() as watched:
        client = RedisClient(watched.url)
        for stopped in watched.sentinels:
            stopped.stop()  # a different one each time is the first that answers
            for _ in range(3):
                await asyncio.gather(*(client.run([("SET", f"{n}", n)]) for n in range(30)))
                await client.close()
            stopped.start()
        for stopped in watched.sentinels[1:]:
            stopped.stop()
        await client.run([("SET", "the last one", 1)])
        await client.close()


async def test_a_service_that_the_sentinels_do_not_know_is_misconfigured() -> None:
    with watched_valkeys() as watched:
        client = RedisClient(watched.url.replace(f"/{SERVICE}/", "/nobody/"))
        with pytest.raises(Misconfigured) as caught:
            await client.open()
        await client.close()

    assert str(caught.value) == (
        f"the Sentinels of FIML_REDIS_URL know no master 'nobody'; they know {SERVICE}; "
        "put the right name after their addresses"
    )


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://127.0.0.1:{port}/99", "has no database of that number; end FIML_REDIS_URL with one that it has"),
        ("redis+sentinel://127.0.0.1:{port}/main", "is not a Sentinel; begin FIML_REDIS_URL with redis://"),
    ],
)
async def test_an_address_that_the_server_does_not_serve_is_misconfigured(
    valkey: ValkeyProcess, url: str, problem: str
) -> None:
    client = RedisClient(url.format(port=valkey.port))
    with pytest.raises(Misconfigured, match=problem):
        await client.open()
    await client.close()
