"""`fiml doctor` over servers, and what it asks the databases."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, MissingExtra, Unavailable
from fiml.db import schema
from fiml.db.health import SchemaState, can_write, postgres_facts, redis_facts, sqlite_facts
from fiml.sessions.backends.redis.keys import expiry_keys
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from tests.support.doctor import (
    AWAY,
    PASSWORD,
    Earlier,
    create_schema,
    embedded_in,
    execute,
    forget_redis_py,
    leave_expired_sessions,
    line_about,
    run,
)
from tests.support.proxy import postgres_proxy
from tests.support.servers import postgres_server, valkey_server


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return embedded_in(tmp_path / "sessions", monkeypatch)


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with valkey_server() as server:
        yield server.url


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as server:
        yield server.url


@pytest.fixture
def empty_database(postgres: str) -> str:
    """A database of its own for each test."""
    asyncio.run(execute(postgres, "drop database if exists own", "create database own"))
    return postgres.replace("/postgres?", "/own?")


@pytest.fixture
def empty_redis(valkey: str) -> Iterator[str]:
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
        yield valkey


class TestServer:
    def test_one_url_alone_is_a_problem_and_its_server_is_looked_at(self, valkey: str, postgres: str) -> None:
        only_redis = run(FIML_REDIS_URL=valkey)
        only_postgres = run(FIML_DATABASE_URL=postgres)

        assert "FIML_DATABASE_URL is not set" in line_about("settings", only_redis)
        assert "Valkey" in line_about("Redis", only_redis)
        assert "FIML_REDIS_URL is not set" in line_about("settings", only_postgres)
        assert "is reachable" in line_about("PostgreSQL", only_postgres)

    def test_reachable_servers_are_reported_with_version_and_schema(
        self, empty_redis: str, empty_database: str
    ) -> None:
        asyncio.run(create_schema(empty_database))

        result = run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database)

        assert result.exit_code == 0
        assert "live sessions in Redis" in line_about("deployment", result)
        assert re.search(r"is reachable, Valkey \d+\.\d+\.\d+, \d+\.\d ms$", line_about("Redis", result))
        assert re.search(r"is reachable, PostgreSQL \d+\.\d+, \d+\.\d ms$", line_about("PostgreSQL", result))
        assert line_about("schema", result) == f"ok      schema: {schema.REVISIONS[-1]}, current"
        assert line_about("Valkey maxmemory-policy", result).startswith("ok")

    def test_the_schema_of_an_empty_database_is_created_at_first_use(
        self, empty_redis: str, empty_database: str
    ) -> None:
        result = run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database)

        assert line_about("schema", result) == "ok      schema: none yet, it is created at first use"

    def test_an_outdated_schema_is_a_problem_with_its_command(
        self, empty_redis: str, empty_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asyncio.run(create_schema(empty_database))
        [*_, current] = schema.REVISIONS
        monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9000"))

        line = line_about("schema", run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database))

        assert line == f"PROBLEM schema: {current} is outdated, this fiml needs 9000; run `fiml db upgrade`"

    def test_servers_that_are_away_are_both_named_without_their_passwords(self) -> None:
        result = run(
            FIML_REDIS_URL=f"redis://:{PASSWORD}@{AWAY}/0",
            FIML_DATABASE_URL=f"postgresql://fiml:{PASSWORD}@{AWAY}/fiml",
        )

        assert result.exit_code == 1
        assert line_about("Redis", result).startswith(f"PROBLEM Redis: Redis at redis://{AWAY}/0 is unavailable")
        assert line_about("Redis", result).endswith("start it, or correct FIML_REDIS_URL")
        assert line_about("PostgreSQL", result).startswith(
            f"PROBLEM PostgreSQL: PostgreSQL at postgresql://{AWAY}/fiml is unavailable"
        )
        assert PASSWORD not in result.output
        assert "fiml doctor" not in result.output, "nobody is sent in a circle"

    def test_a_password_in_the_query_is_not_shown(self) -> None:
        result = run(
            FIML_REDIS_URL=f"redis://{AWAY}/0?username=me&password=x@{PASSWORD}",
            FIML_DATABASE_URL=f"postgresql://{AWAY}/fiml?user=me&password=x@{PASSWORD}",
        )

        assert "is unavailable" in line_about("Redis", result)
        assert "is unavailable" in line_about("PostgreSQL", result)
        assert PASSWORD not in result.output

    @pytest.mark.parametrize("url", [f"redis://:{PASSWORD}/x@{AWAY}", f"redis://:x?{PASSWORD}@{AWAY}"])
    def test_a_piece_of_a_password_is_not_taken_for_a_port_and_shown(self, url: str) -> None:
        result = run(FIML_REDIS_URL=url, FIML_DATABASE_URL=f"postgresql://{AWAY}/fiml")

        assert "FIML_REDIS_URL is not a URL" in line_about("Redis", result)
        assert PASSWORD not in line_about("Redis", result)

    def test_a_policy_that_evicts_sessions_is_noted(self, empty_database: str) -> None:
        with valkey_server() as server, redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")

            result = run(FIML_REDIS_URL=server.url, FIML_DATABASE_URL=empty_database)

        line = line_about("Valkey maxmemory-policy", result)
        assert line.startswith("note")
        assert "allkeys-lru may drop sessions" in line
        assert line.endswith("set maxmemory-policy to noeviction")

    def test_a_server_whose_memory_is_full_is_a_problem(self, empty_database: str) -> None:
        with valkey_server() as server, redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)

            result = run(FIML_REDIS_URL=server.url, FIML_DATABASE_URL=empty_database)

        line = line_about("Valkey memory", result)
        assert line.startswith("PROBLEM")
        assert "of maxmemory is used, so writes are refused; raise maxmemory" in line

    def test_a_server_without_an_append_only_file_is_noted(self, empty_redis: str, empty_database: str) -> None:
        with valkey_server(append_only=True) as durable:
            on = run(FIML_REDIS_URL=durable.url, FIML_DATABASE_URL=empty_database)

        off = run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database)

        assert line_about("Valkey append-only file", on) == "ok      Valkey append-only file: on"
        assert line_about("Valkey append-only file", off).startswith("note    Valkey append-only file: off")

    def test_what_a_server_does_not_report_is_unknown(self, empty_database: str) -> None:
        with valkey_server() as server, redis.Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-config", "-info")

            result = run(FIML_REDIS_URL=server.url.replace("//", "//limited:pw@"), FIML_DATABASE_URL=empty_database)

        assert "Redis of unknown version" in line_about("Redis", result)
        assert line_about("Redis maxmemory-policy", result).startswith("note    Redis maxmemory-policy: unknown")
        assert line_about("Redis append-only file", result).startswith("note    Redis append-only file: unknown")
        assert result.exit_code == 0

    def test_expired_sessions_that_wait_are_counted(self, empty_redis: str, empty_database: str) -> None:
        variables = {"FIML_REDIS_URL": empty_redis, "FIML_DATABASE_URL": empty_database}
        asyncio.run(leave_expired_sessions(Settings(redis_url=empty_redis, database_url=empty_database), 3))

        line = line_about("backlog", run(**variables))

        assert line.startswith("note    backlog: at most 3 expired sessions")
        assert "grows" not in line
        assert "grows" in line_about("backlog", run(**variables, FIML_SESSION_CLEANUP_INTERVAL_MINUTES="5"))

    def test_clocks_that_are_apart_are_noted(self, empty_redis: str, empty_database: str) -> None:
        variables = {"FIML_REDIS_URL": empty_redis, "FIML_DATABASE_URL": empty_database}

        together = run(**variables)
        with clock.using(Earlier()):
            apart = run(**variables)

        for server in ("Valkey", "PostgreSQL"):
            assert line_about(f"{server} clock", together) == f"ok      {server} clock: agrees with this machine's"
            assert line_about(f"{server} clock", apart).startswith(
                f"note    {server} clock: 7200 seconds ahead of this machine's"
            )
        assert apart.exit_code == 0

    def test_missing_replicas_are_reported_with_the_setting_that_waits_for_them(
        self, empty_redis: str, empty_database: str
    ) -> None:
        result = run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database, FIML_REDIS_WAIT_REPLICAS="1")

        assert "0, but FIML_REDIS_WAIT_REPLICAS is 1" in line_about("Valkey replicas", result)

    def test_replicas_are_reported_if_some_are_expected(self, empty_database: str) -> None:
        with valkey_server() as primary, valkey_server() as replica, redis.Redis.from_url(replica.url) as client:
            variables = {"FIML_REDIS_URL": primary.url, "FIML_DATABASE_URL": empty_database}
            unasked = run(**variables)
            missing = run(**variables, FIML_EXPECTED_REPLICAS="1")
            client.replicaof("127.0.0.1", str(primary.port))
            while client.info("replication")["master_link_status"] != "up":
                client.ping()
            there = run(**variables, FIML_EXPECTED_REPLICAS="1")

        assert "replicas" not in unasked.output
        assert line_about("Valkey replicas", missing).startswith("note    Valkey replicas: 0, but FIML_EXPECTED_REP")
        assert line_about("PostgreSQL replicas", missing).startswith("note    PostgreSQL replicas: 0")
        assert line_about("Valkey replicas", there) == "ok      Valkey replicas: 1"
        assert missing.exit_code == 0


class TestHealth:
    async def test_a_file_in_use_is_read_with_what_is_not_yet_in_it(self, folder: Path) -> None:
        async with SessionStore() as store:
            with clock.using(Earlier()):
                await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)

            facts = await sqlite_facts(folder / "fiml.db")

        assert facts is not None
        assert facts.waiting == 1
        assert facts.schema.state is SchemaState.CURRENT

    async def test_an_empty_file_has_no_schema_and_nothing_waits(self, tmp_path: Path) -> None:
        (tmp_path / "fiml.db").touch()

        facts = await sqlite_facts(tmp_path / "fiml.db")

        assert facts is not None
        assert facts.schema.revision is None
        assert facts.schema.state is SchemaState.NONE
        assert facts.waiting == 0

    async def test_a_folder_in_the_place_of_the_file_is_misconfigured(self, tmp_path: Path) -> None:
        (tmp_path / "fiml.db").mkdir()

        with pytest.raises(Misconfigured, match="can't be opened"):
            await sqlite_facts(tmp_path / "fiml.db")

    async def test_a_path_with_odd_characters_is_found(self, tmp_path: Path) -> None:
        folder = tmp_path / "a folder? #1 100%"
        settings = Settings(data_dir=folder)
        await leave_expired_sessions(settings, 1)

        facts = await sqlite_facts(settings.embedded_file)

        assert facts is not None
        assert facts.waiting == 1

    def test_a_file_can_be_made_in_a_folder_that_can_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        assert can_write(tmp_path / "new/folder/fiml.db")
        assert can_write(tmp_path / "file")
        assert not can_write(tmp_path / "file/fiml.db")

    async def test_asking_redis_writes_nothing(self, empty_redis: str) -> None:
        await redis_facts(at(empty_redis), expiry_keys=expiry_keys())

        with redis.Redis.from_url(empty_redis) as client:
            assert client.dbsize() == 0

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_redis_is_understood_in_both_protocols(self, empty_redis: str, protocol: int) -> None:
        facts = await redis_facts(at(f"{empty_redis}?protocol={protocol}"), expiry_keys=expiry_keys())

        assert (facts.name, facts.eviction_policy, facts.is_append_only) == ("Valkey", "noeviction", False)
        assert facts.most_waiting == 0
        assert facts.latency_ms > 0

    async def test_asking_postgres_writes_nothing(self, empty_database: str) -> None:
        facts = await postgres_facts(empty_database)

        assert facts.schema.state is SchemaState.NONE
        connection = await asyncpg.connect(empty_database)
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
        await connection.close()

    async def test_a_schema_of_a_later_version_is_newer(self, empty_database: str) -> None:
        await create_schema(empty_database)
        await execute(empty_database, f"update {schema.VERSION_TABLE} set version_num = '9999'")  # noqa: S608 - constant

        facts = await postgres_facts(empty_database)

        assert facts.schema.state is SchemaState.NEWER
        assert facts.schema.revision == "9999"

    async def test_sessions_in_quarantine_are_counted(self, empty_database: str) -> None:
        await create_schema(empty_database)
        await execute(
            empty_database,
            "insert into session_quarantine (id, reason, quarantined_at, record)"
            " values (gen_random_uuid(), 'damaged', now(), '')",
        )

        assert (await postgres_facts(empty_database)).quarantined == 1

    async def test_a_database_that_is_not_there_is_misconfigured(self, postgres: str) -> None:
        with pytest.raises(Misconfigured, match='database "nowhere" does not exist'):
            await postgres_facts(postgres.replace("/postgres?", "/nowhere?"))

    async def test_a_parameter_that_the_driver_does_not_accept_is_misconfigured(self, postgres: str) -> None:
        with pytest.raises(Misconfigured, match="nonsense"):
            await postgres_facts(f"{postgres}&nonsense=1")

    async def test_a_password_that_is_wrong_is_not_shown(self, empty_redis: str) -> None:
        with pytest.raises(Misconfigured) as caught:
            await redis_facts(at(empty_redis.replace("//", f"//me:{PASSWORD}@")), expiry_keys=expiry_keys())

        assert PASSWORD not in str(caught.value)

    async def test_servers_that_are_away_are_unavailable(self) -> None:
        with pytest.raises(Unavailable):
            await redis_facts(at(f"redis://{AWAY}"), expiry_keys=expiry_keys())
        with pytest.raises(Unavailable):
            await postgres_facts(f"postgresql://{AWAY}/fiml")

    async def test_a_driver_that_is_missing_is_a_missing_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forget_redis_py(monkeypatch)
        monkeypatch.setitem(sys.modules, "asyncpg", None)

        with pytest.raises(MissingExtra, match=r"fiml\[server\]"):
            await redis_facts(at(f"redis://{AWAY}"), expiry_keys=expiry_keys())
        with pytest.raises(MissingExtra, match=r"fiml\[server\]"):
            await postgres_facts(f"postgresql://{AWAY}/fiml")


def at(redis_url: str) -> Settings:
    """Of a server deployment whose database nobody asks."""
    return Settings(redis_url=redis_url, database_url=f"postgresql://{AWAY}/fiml")


@pytest.mark.parametrize("answered", [1, 3])
async def test_a_hanging_postgresql_is_given_up(postgres: str, answered: int) -> None:
    async with postgres_proxy(postgres) as (proxy, url):
        proxy.hang(after_replies=answered)

        async with asyncio.timeout(60):
            with pytest.raises(Unavailable):
                await postgres_facts(url)
