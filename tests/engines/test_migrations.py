"""Schemas: the migrations build what the tables say, and every other database is refused or upgraded."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import FimlError, Misconfigured, SchemaOutdated, SchemaTooNew, Unavailable
from fiml.db import schema
from fiml.db.engines import postgres_engine, sqlite_engine
from fiml.db.tables import embedded, server, shared
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.backends import upgrade_schema
from fiml.sessions.store import SessionStore
from tests.support.deployment import Deployment, execute, new_database

ROOT = Path(__file__).parents[2]
INDEXES = {
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
}
OPEN_AND_CREATE = """
import asyncio
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.backends import upgrade_schema
from fiml.sessions.store import SessionStore

async def main():
    async with SessionStore() as store:
        print((await store.create_session(["AAPL"], "equity")).id)

input()
asyncio.run(main())
"""


def tables_of(connection: Connection) -> dict[str, Any]:
    """Everything about the tables, in a form that can be compared."""
    found = inspect(connection)
    names = [name for name in found.get_table_names() if name != schema.VERSION_TABLE]
    return {
        name: {
            "columns": {
                column["name"]: (
                    str(column["type"]),
                    column["nullable"],
                    column["default"],
                    column.get("autoincrement"),
                )
                for column in found.get_columns(name)
            },
            "order": [column["name"] for column in found.get_columns(name)],
            "primary key": found.get_pk_constraint(name)["constrained_columns"],
            "unique": sorted(
                (each["name"] or "", *each["column_names"]) for each in found.get_unique_constraints(name)
            ),
            "foreign keys": found.get_foreign_keys(name),
            "checks": found.get_check_constraints(name),
        }
        for name in sorted(names)
    }


def indexes_of(connection: Connection) -> dict[str, str]:
    found = connection.execute(text(INDEXES[connection.dialect.name]))
    return {name: " ".join(definition.split()) for name, definition in found if schema.VERSION_TABLE not in name}


def describe(connection: Connection) -> tuple[dict[str, Any], dict[str, str]]:
    return tables_of(connection), indexes_of(connection)


def create(connection: Connection, *described: MetaData) -> None:
    for metadata in described:
        metadata.create_all(connection)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner


@pytest.fixture
def empty_database(servers: Deployment, runner: asyncio.Runner) -> Iterator[str]:
    with new_database(servers.database_url, runner) as url:
        yield url


@pytest.fixture
def other_database(servers: Deployment, runner: asyncio.Runner) -> Iterator[str]:
    with new_database(servers.database_url, runner) as url:
        yield url


@pytest.fixture
async def engine(empty_database: str) -> AsyncIterator[AsyncEngine]:
    engine = postgres_engine(empty_database)
    yield engine
    await engine.dispose()


def test_the_migrations_build_on_sqlite_what_the_tables_say(tmp_path: Path) -> None:
    described = []
    for name in ("migrated", "created"):
        engine = sqlite_engine(tmp_path / name, Synchronous.OFF)
        with engine.begin() as connection:
            if name == "migrated":
                schema.upgrade(connection)
            else:
                create(connection, shared, embedded)
            described.append(describe(connection))

    assert described[0] == described[1]
    tables = {name for name in described[0][0] if not name.startswith("session_fts")}
    assert tables == {*shared.tables, *embedded.tables}
    assert len(described[0][1]) >= 5


async def test_the_migrations_build_on_postgresql_what_the_tables_say(engine: AsyncEngine, other_database: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(schema.upgrade)
        migrated = await connection.run_sync(describe)
    other = postgres_engine(other_database)
    async with other.begin() as connection:
        await connection.run_sync(create, shared, server)
        created = await connection.run_sync(describe)
    await other.dispose()

    assert migrated == created
    assert set(migrated[0]) == {*shared.tables, *server.tables}


def test_the_known_revisions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))

    scripts = list(ScriptDirectory.from_config(config).walk_revisions())

    assert tuple(script.revision for script in reversed(scripts)) == schema.REVISIONS


def test_upgrading_twice_changes_nothing(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "a folder with % and ü.db", Synchronous.OFF)
    described = []
    for _ in range(2):
        with engine.begin() as connection:
            schema.upgrade(connection)
            described.append((describe(connection), schema.revision(connection)))

    assert described[0] == described[1]
    assert described[0][1] == schema.REVISIONS[-1]


def test_a_migration_that_is_rolled_back_leaves_an_empty_database(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "fiml.db", Synchronous.OFF)

    with engine.connect() as connection:
        transaction = connection.begin()
        schema.upgrade(connection)
        transaction.rollback()

    with engine.begin() as connection:
        assert tables_of(connection) == {}
        assert schema.revision(connection) is None


async def test_a_later_file_is_refused_and_left_alone(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings):
        pass
    set_revision(sqlite_settings.embedded_file, "9999")
    before = sqlite_settings.embedded_file.read_bytes()

    with pytest.raises(SchemaTooNew, match="9999"):
        await SessionStore(sqlite_settings).initialize()

    assert sqlite_settings.embedded_file.read_bytes() == before


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [("9999", SchemaTooNew, "newer fiml"), ("0000", SchemaOutdated, "fiml db upgrade")],
)
async def test_another_revision_on_postgresql_is_refused(
    servers: Deployment,
    empty_database: str,
    monkeypatch: pytest.MonkeyPatch,
    found: str,
    error: type[FimlError],
    words: str,
) -> None:
    settings = Settings(redis_url=servers.redis_url, database_url=empty_database)
    async with SessionStore(settings):
        pass
    await execute(empty_database, f"UPDATE {schema.VERSION_TABLE} SET version_num = '{found}'")  # noqa: S608  constants
    monkeypatch.setattr(schema, "REVISIONS", ("0000", *schema.REVISIONS))

    with pytest.raises(error, match=words):
        await SessionStore(settings).initialize()


async def test_another_programs_postgresql_database_is_refused(servers: Deployment, empty_database: str) -> None:
    await execute(empty_database, "CREATE TABLE sessions (secret TEXT)")

    with pytest.raises(Misconfigured, match="FIML_DATABASE_URL"):
        await SessionStore(Settings(redis_url=servers.redis_url, database_url=empty_database)).initialize()

    await execute(empty_database, "SELECT secret FROM sessions")


@pytest.mark.parametrize("deployment_name", ["sqlite", "postgresql"])
async def test_processes_may_open_one_empty_database_at_once(
    deployment: Deployment, empty_database: str, tmp_path: Path, deployment_name: str
) -> None:
    environment = {"FIML_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    if deployment_name == "postgresql":
        environment |= {"FIML_REDIS_URL": deployment.redis_url, "FIML_DATABASE_URL": empty_database}
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OPEN_AND_CREATE,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]

    # All have started and wait for a line.
    outcomes = await asyncio.gather(*(process.communicate(b"\n") for process in processes))

    assert [process.returncode for process in processes] == [0] * 2, outcomes
    ids = {out.decode().strip() for out, _ in outcomes}
    settings = Settings(
        data_dir=tmp_path,
        redis_url=environment.get("FIML_REDIS_URL"),
        database_url=environment.get("FIML_DATABASE_URL"),
    )
    async with SessionStore(settings) as store:
        assert {str(summary.id) for summary in await store.list_user_sessions(None)} == ids
        assert len(ids) == 2


async def test_a_file_that_is_no_database_is_refused_and_left_alone(sqlite_settings: Settings) -> None:
    sqlite_settings.embedded_file.parent.mkdir()
    sqlite_settings.embedded_file.write_bytes(b"a letter to my bank\n" * 500)

    with pytest.raises(Misconfigured, match="FIML_DATA_DIR"):
        await SessionStore(sqlite_settings).initialize()

    assert sqlite_settings.embedded_file.read_bytes() == b"a letter to my bank\n" * 500


async def test_a_folder_in_the_place_of_the_file_is_refused(sqlite_settings: Settings) -> None:
    sqlite_settings.embedded_file.mkdir(parents=True)

    with pytest.raises(Misconfigured, match="FIML_DATA_DIR"):
        await SessionStore(sqlite_settings).initialize()


async def test_a_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match="FIML_DATA_DIR"):
        await SessionStore(Settings(data_dir=tmp_path / "file" / "data")).initialize()


@pytest.mark.parametrize("folder", ["fiml", "1"])
async def test_a_folder_that_can_not_be_written_is_refused(folder: str) -> None:
    """Nobody can write to /proc, not even root; on a system without it, it can't be made."""
    with pytest.raises(Misconfigured, match="FIML_DATA_DIR"):
        await SessionStore(Settings(data_dir=Path("/proc") / folder)).initialize()


async def test_another_programs_database_is_left_alone(sqlite_settings: Settings) -> None:
    file = sqlite_settings.embedded_file
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE sessions (secret TEXT)")
        connection.execute("INSERT INTO sessions VALUES ('kept')")
        connection.commit()

    with pytest.raises(FimlError):
        await SessionStore(sqlite_settings).initialize()

    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT * FROM sessions").fetchall() == [("kept",)]
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchall() == [(1,)]


async def test_a_store_that_was_refused_can_be_tried_again(sqlite_settings: Settings) -> None:
    sqlite_settings.embedded_file.mkdir(parents=True)
    store = SessionStore(sqlite_settings)
    with pytest.raises(Misconfigured):
        await store.initialize()
    sqlite_settings.embedded_file.rmdir()

    async with store:
        assert await store.list_user_sessions(None) == []


def set_revision(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'")  # noqa: S608  constants
        connection.commit()
        connection.execute("PRAGMA journal_mode=WAL")


async def test_an_older_postgresql_is_upgraded_on_demand_and_counts_what_was_there(
    servers: Deployment, empty_database: str, engine: AsyncEngine
) -> None:
    """At the first revision, with a session that ended then."""
    first = schema.REVISIONS[0]

    def build_first(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(schema.MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, first)
        connection.execute(text(OLD_METRICS))

    async with engine.begin() as connection:
        await connection.run_sync(build_first)
    settings = Settings(redis_url=servers.redis_url, database_url=empty_database)
    with pytest.raises(SchemaOutdated, match="fiml db upgrade"):
        await SessionStore(settings).initialize()

    assert await upgrade_schema(settings) == schema.REVISIONS[-1]
    assert await upgrade_schema(settings) == schema.REVISIONS[-1]

    async with SessionStore(settings) as store:
        analytics = SessionAnalytics(store.session_maker)
        before = await analytics.get_session_stats(days=3650)
        assert await store.roll_up() == 1
        assert await analytics.get_session_stats(days=3650) == before
    assert (before["total_sessions"], before["total_queries"], before["top_assets"]) == (1, 3, [("AAPL", 1)])


async def test_an_upgrade_of_postgresql_does_not_wait_for_ever(
    servers: Deployment, empty_database: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(redis_url=servers.redis_url, database_url=empty_database)
    await upgrade_schema(settings)
    await execute(empty_database, f"UPDATE {schema.VERSION_TABLE} SET version_num = '{schema.REVISIONS[-2]}'")  # noqa: S608
    monkeypatch.setattr(schema, "LOCK_TIMEOUT_S", 1)

    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1 FROM sessions"))
        with pytest.raises(Unavailable, match="lock timeout"):
            await upgrade_schema(settings)

    async with engine.connect() as connection:
        assert await connection.run_sync(schema.revision) == schema.REVISIONS[-2]


OLD_METRICS = """
INSERT INTO session_metrics (session_id, user_id, session_type, created_at, duration_seconds, total_queries,
    cache_hit_rate, assets_analyzed, query_type_summary, completed_normally, abandoned, ended_at)
VALUES ('550e8400-e29b-41d4-a716-446655440000', 'ann', 'equity', '2024-12-23T23:30:00-03:00', 60, 3, 0.5,
    '["AAPL"]', '{"price": 3}', TRUE, FALSE, '2024-12-24T23:30:00Z')
"""
