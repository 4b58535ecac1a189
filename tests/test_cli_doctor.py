"""`fiml doctor` and what it asks the databases."""

import asyncio
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import redis
import typer
from typer.testing import CliRunner, Result

from fiml import __version__
from fiml.cli.doctor import Check, Mark, doctor
from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, MissingExtra, Unavailable
from fiml.db import schema
from fiml.db.engines import postgres_engine
from fiml.db.health import SchemaState, can_write, postgres_facts, redis_facts, sqlite_facts
from fiml.sessions.backends.redis_keys import expiry_keys
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from tests.support.servers import postgres_server, valkey_server

ROOT = Path(__file__).parent.parent
PASSWORD = "hunter2"  # noqa: S105 - nobody's
AWAY = "127.0.0.1:1"


class Earlier:
    """Two hours ago."""

    def now(self) -> datetime:
        return clock.SystemClock().now() - timedelta(hours=2)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.upper().startswith("FIML_") and name != "FIML_MARKET_DATA":
            monkeypatch.delenv(name)
    folder = tmp_path / "sessions"
    monkeypatch.setenv("FIML_DATA_DIR", str(folder))
    return folder


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


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def create_schema(url: str) -> None:
    engine = postgres_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(schema.upgrade)
    await engine.dispose()


async def leave_expired_sessions(settings: Settings, count: int) -> None:
    async with SessionStore(settings) as store:
        with clock.using(Earlier()):
            for _ in range(count):
                await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        await store.create_session(["MSFT"], SessionType.EQUITY, ttl_hours=1)


def rewrite_revision(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"update {schema.VERSION_TABLE} set version_num = ?", [revision])  # noqa: S608 - a constant
        connection.commit()


def run(**variables: str) -> Result:
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, env=variables)


def line_about(subject: str, result: Result) -> str:
    [line] = [line for line in result.output.splitlines() if line[8:].startswith(f"{subject}: ")]
    return line


class TestCommand:
    def test_all_well_ends_with_0_and_says_so(self) -> None:
        result = run()

        assert result.exit_code == 0
        assert result.output.splitlines()[-1] == "no problems"

    def test_a_problem_ends_with_1_and_is_counted(self) -> None:
        result = run(FIML_NONSENSE="1")

        assert result.exit_code == 1
        assert result.output.splitlines()[-1] == "1 problem"

    def test_each_check_is_a_line_that_begins_with_its_mark(self) -> None:
        lines = run(FIML_NONSENSE="1").output.splitlines()[:-1]

        assert all(re.match(r"(ok|note|PROBLEM) +\S.*: \S", line) for line in lines)

    def test_the_versions_stand_first(self) -> None:
        python = ".".join(str(number) for number in sys.version_info[:3])

        assert run().output.splitlines()[0] == f"ok      fiml: {__version__} on Python {python}"

    def test_a_terminal_of_80_columns_is_wide_enough(self, folder: Path) -> None:
        ours, theirs = pty.openpty()
        code = "from fiml.cli.doctor import doctor; doctor()"
        environment = {
            **os.environ,
            "COLUMNS": "80",
            "PYTHONPATH": str(ROOT),
            "FIML_DATA_DIR": "/a",
            "FIML_REDIS_URL": f"redis://{AWAY}",
        }

        subprocess.run(
            [sys.executable, "-c", code], stdout=theirs, stderr=subprocess.DEVNULL, env=environment, check=False
        )

        text = os.read(ours, 1 << 16).decode()
        os.close(ours)
        os.close(theirs)
        assert "PROBLEM settings: FIML_DATABASE_URL is not set" in text
        assert max(len(line) for line in text.splitlines()) <= 80

    def test_a_message_of_several_lines_is_one(self) -> None:
        assert str(Check(Mark.PROBLEM, "PostgreSQL", "one\ntwo", "three")) == "PROBLEM PostgreSQL: one two; three"


class TestSettings:
    def test_a_misspelt_variable_is_a_problem_and_the_nearest_is_named(self) -> None:
        line = line_about("FIML_SESSION_RETENTION_DAY", run(FIML_SESSION_RETENTION_DAY="3"))

        assert line.startswith("PROBLEM")
        assert line.endswith("did you mean FIML_SESSION_RETENTION_DAYS?")

    def test_a_variable_like_no_other_is_to_be_unset(self) -> None:
        assert line_about("FIML_ZZZ", run(FIML_ZZZ="3")).endswith("unset it")

    def test_the_value_of_a_misspelt_variable_is_not_shown(self) -> None:
        assert PASSWORD not in run(FIML_REDIS_URI=f"redis://:{PASSWORD}@cache").output

    def test_a_wrong_setting_is_a_problem_and_the_rest_is_looked_at(self, folder: Path) -> None:
        result = run(FIML_SESSION_RETENTION_DAYS="-1", FIML_MARKET_DATA="live")

        assert "FIML_SESSION_RETENTION_DAYS" in line_about("settings", result)
        assert str(folder) in line_about("file", result)
        assert line_about("market data", result).endswith("(FIML_MARKET_DATA is live)")

    def test_one_url_alone_is_a_problem_and_its_server_is_looked_at(self, valkey: str, postgres: str) -> None:
        only_redis = run(FIML_REDIS_URL=valkey)
        only_postgres = run(FIML_DATABASE_URL=postgres)

        assert "FIML_DATABASE_URL is not set" in line_about("settings", only_redis)
        assert "Valkey" in line_about("Redis", only_redis)
        assert "FIML_REDIS_URL is not set" in line_about("settings", only_postgres)
        assert "is reachable" in line_about("PostgreSQL", only_postgres)

    def test_a_url_of_another_kind_is_a_problem_and_is_not_tried(self) -> None:
        result = run(FIML_REDIS_URL="http://cache", FIML_DATABASE_URL="mysql://db")

        assert "FIML_REDIS_URL: must begin with redis://" in line_about("settings", result)
        assert "Redis:" not in result.output
        assert "PostgreSQL:" not in result.output

    def test_sample_data_is_called_sample(self) -> None:
        assert line_about("market data", run()) == "ok      market data: sample (FIML_MARKET_DATA is sample)"

    def test_live_data_is_called_live_and_its_packages_are_not_loaded(self) -> None:
        report = "import sys; from fiml.cli import main; sys.argv = ['fiml', 'doctor']"
        loaded = "print('loaded', {'yfinance', 'ccxt', 'pandas'} & set(sys.modules))"
        program = f"{report}\ntry:\n    main()\nfinally:\n    {loaded}"

        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "FIML_MARKET_DATA": "auto"},
            capture_output=True,
            text=True,
            check=False,
        )

        assert "market data: live (FIML_MARKET_DATA is auto)" in done.stdout
        assert "loaded set()" in done.stdout

    def test_live_data_without_a_source_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fiml.market.providers.live.live_extras", list)

        line = line_about("market data", run(FIML_MARKET_DATA="live"))

        assert line.startswith("PROBLEM")
        assert "pip install 'fiml[yahoo]'" in line


class TestExtras:
    def test_extras_that_are_there_are_named(self) -> None:
        result = run()

        assert line_about("extra [server]", result).endswith("installed")
        assert line_about("extra [testing]", result).endswith("installed")

    def test_a_missing_extra_that_nothing_needs_is_no_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "asyncpg", None)
        monkeypatch.setitem(sys.modules, "hypothesis", None)

        result = run()

        assert line_about("extra [server]", result) == (
            "ok      extra [server]: not installed (asyncpg missing), and not needed here"
        )
        assert line_about("extra [testing]", result).startswith("ok")

    def test_a_missing_extra_that_the_settings_need_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forget_redis_py(monkeypatch)

        result = run(FIML_REDIS_URL=f"redis://{AWAY}", FIML_DATABASE_URL=f"postgresql://{AWAY}/fiml")

        assert "pip install 'fiml[server]'" in line_about("extra [server]", result)
        assert "pip install 'fiml[server]'" in line_about("Redis", result)
        assert line_about("extra [server]", result).startswith("PROBLEM")


class TestEmbedded:
    def test_a_file_that_is_not_there_is_no_problem_and_is_not_made(self, folder: Path) -> None:
        result = run()

        assert result.exit_code == 0
        assert line_about("deployment", result) == "ok      deployment: embedded, everything in one file"
        assert f"{folder / 'fiml.db'} is not there yet, it is made at first use" in line_about("file", result)
        assert not folder.exists()

    def test_a_file_is_told_with_its_size_and_schema(self, folder: Path) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 0))

        result = run()

        assert re.search(r"fiml\.db, 0\.\d MiB, SQLite 3\.", line_about("file", result))
        assert line_about("folder", result) == f"ok      folder: {folder} can be written"
        assert line_about("schema", result) == f"ok      schema: {schema.REVISIONS[-1]}, current"
        assert line_about("backlog", result).startswith("ok")

    def test_looking_changes_nothing(self, folder: Path) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 1))
        before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}

        run()

        assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before

    def test_expired_sessions_that_wait_are_counted_and_it_says_what_sweeps_them(self) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 3))

        line = line_about("backlog", run(FIML_SESSION_CLEANUP_INTERVAL_MINUTES="50"))

        assert line.startswith("note    backlog: 3 expired sessions")
        assert "`fiml serve` does it every 50 minutes" in line
        assert "`fiml sessions sweep`" in line

    def test_a_backlog_that_no_sweep_has_looked_at_grows(self) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 3))

        result = run(FIML_SESSION_CLEANUP_INTERVAL_MINUTES="5")

        line = line_about("backlog", result)
        assert re.search(r"3 expired sessions to be archived, the oldest for (59|60) minutes: no sweep has run", line)
        assert "see that `fiml serve` or a worker runs" in line
        assert result.exit_code == 0

    def test_an_outdated_schema_is_upgraded_at_next_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 0))
        [*_, current] = schema.REVISIONS
        monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9000"))

        line = line_about("schema", run())

        assert line == f"note    schema: {current} is outdated, this fiml needs 9000; it is upgraded at next use"

    def test_a_schema_of_a_later_version_is_a_problem(self, folder: Path) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 0))
        rewrite_revision(folder / "fiml.db", "9999")

        line = line_about("schema", run())

        assert line.startswith("PROBLEM schema: 9999 is later")
        assert line.endswith("install a newer fiml")

    def test_a_folder_that_can_not_be_written_is_a_problem(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file", encoding="utf-8")

        line = line_about("folder", run(FIML_DATA_DIR=str(tmp_path / "taken" / "sessions")))

        assert line.startswith("PROBLEM")
        assert "FIML_DATA_DIR" in line

    def test_a_file_that_is_no_database_is_a_problem(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "fiml.db").write_text("Dear diary, " * 100, encoding="utf-8")

        line = line_about("file", run())

        assert line.startswith("PROBLEM")
        assert "is no database of fiml" in line


class TestServer:
    def test_servers_that_are_there_are_told_with_version_and_schema(
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

    def test_an_empty_database_is_made_at_first_use(self, empty_redis: str, empty_database: str) -> None:
        result = run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database)

        assert line_about("schema", result) == "ok      schema: none yet, it is made at first use"

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
        assert line_about("Redis", result).startswith(f"PROBLEM Redis: Redis at redis://{AWAY}/0 is away")
        assert line_about("Redis", result).endswith("start it, or mend FIML_REDIS_URL")
        assert line_about("PostgreSQL", result).startswith(
            f"PROBLEM PostgreSQL: PostgreSQL at postgresql://{AWAY}/fiml is away"
        )
        assert PASSWORD not in result.output
        assert "fiml doctor" not in result.output, "nobody is sent in a circle"

    @pytest.mark.parametrize("url", [f"redis://:{PASSWORD}/x@{AWAY}", f"redis://:x?{PASSWORD}@{AWAY}"])
    def test_a_piece_of_a_password_is_not_taken_for_a_port_and_shown(self, url: str) -> None:
        result = run(FIML_REDIS_URL=url, FIML_DATABASE_URL=f"postgresql://{AWAY}/fiml")

        assert "FIML_REDIS_URL is no URL" in line_about("Redis", result)
        assert PASSWORD not in line_about("Redis", result)

    def test_a_policy_that_drops_sessions_is_noted(self, empty_database: str) -> None:
        with valkey_server() as server, redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")

            result = run(FIML_REDIS_URL=server.url, FIML_DATABASE_URL=empty_database)

        line = line_about("Valkey maxmemory-policy", result)
        assert line.startswith("note")
        assert "allkeys-lru may drop sessions" in line
        assert line.endswith("set maxmemory-policy to noeviction")

    def test_a_server_without_an_append_only_file_is_noted(self, empty_redis: str, empty_database: str) -> None:
        with valkey_server(append_only=True) as durable:
            on = run(FIML_REDIS_URL=durable.url, FIML_DATABASE_URL=empty_database)

        off = run(FIML_REDIS_URL=empty_redis, FIML_DATABASE_URL=empty_database)

        assert line_about("Valkey append-only file", on) == "ok      Valkey append-only file: on"
        assert line_about("Valkey append-only file", off).startswith("note    Valkey append-only file: off")

    def test_what_a_server_does_not_tell_is_unknown(self, empty_database: str) -> None:
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
            assert line_about(f"{server} clock", together) == f"ok      {server} clock: as ours"
            assert line_about(f"{server} clock", apart).startswith(
                f"note    {server} clock: 7200 seconds ahead of ours"
            )
        assert apart.exit_code == 0

    def test_replicas_are_told_of_where_some_are_expected(self, empty_database: str) -> None:
        with valkey_server() as primary, valkey_server() as replica, redis.Redis.from_url(replica.url) as client:
            variables = {"FIML_REDIS_URL": primary.url, "FIML_DATABASE_URL": empty_database}
            unasked = run(**variables)
            missing = run(**variables, FIML_EXPECTED_REPLICAS="1")
            client.replicaof("127.0.0.1", str(primary.port))
            while client.info("replication")["master_link_status"] != "up":
                client.ping()
            there = run(**variables, FIML_EXPECTED_REPLICAS="1")

        assert "replicas" not in unasked.output
        assert line_about("Valkey replicas", missing).startswith("note    Valkey replicas: 0, and FIML_EXPECTED_REP")
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

    async def test_a_database_that_is_not_there_is_misconfigured(self, postgres: str) -> None:
        with pytest.raises(Misconfigured, match='database "nowhere" does not exist'):
            await postgres_facts(postgres.replace("/postgres?", "/nowhere?"))

    async def test_a_parameter_that_the_driver_does_not_take_is_misconfigured(self, postgres: str) -> None:
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


def forget_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""
    monkeypatch.delitem(sys.modules, "fiml.db.redis_client", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "redis", None)
