"""The backup of the server deployment, as its page describes it, on real servers."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import redis

from fiml.core.config import Settings
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance.suite import existing
from tests.support.servers import postgres_server, valkey_server

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "back-up.md").read_text()


async def make_sessions(settings: Settings) -> tuple[UUID, UUID]:
    """One that is live and one that is archived, with a query each."""
    async with SessionStore(settings) as store:
        live, ended = [await store.create_session(["AAPL"], "equity", user_id="ann") for _ in range(2)]
        for session in (live, ended):
            await store.record_query(session.id, make_query(), context={"a": 1})
        await store.archive_session(ended.id)
        return live.id, ended.id


async def look(settings: Settings, session_ids: tuple[UUID, UUID]) -> list[tuple[bool, int, dict[str, object]]]:
    async with SessionStore(settings) as store:
        found = [await existing(store, session_id) for session_id in session_ids]
        assert len(await store.list_user_sessions("ann", include_archived=True)) == 2
        return [(each.is_archived, each.state.history.total_queries, each.state.context) for each in found]


def test_a_backup_of_both_engines_has_every_session(tmp_path: Path) -> None:
    assert all(step in PAGE for step in ("valkey-cli SAVE", "pg_dump --format=custom", "CONFIG SET appendonly yes"))
    database = tmp_path / "fiml.dump"
    with valkey_server(append_only=True) as valkey, postgres_server() as postgres:
        ids = asyncio.run(make_sessions(Settings(redis_url=valkey.url, database_url=postgres.url)))
        with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
            client.save()
            shutil.copy(Path(client.config_get("dir")["dir"]) / "dump.rdb", tmp_path)
        subprocess.run([postgres.program("pg_dump"), "--format=custom", f"--file={database}", postgres.url], check=True)

    with valkey_server(options=["--dir", str(tmp_path)]) as valkey, postgres_server() as postgres:
        with redis.Redis.from_url(valkey.url) as client:
            client.config_set("appendonly", "yes")
            while client.info("persistence")["aof_rewrite_in_progress"]:
                pass  # it would refuse to stop
        subprocess.run([postgres.program("pg_restore"), f"--dbname={postgres.url}", database], check=True)
        found = asyncio.run(look(Settings(redis_url=valkey.url, database_url=postgres.url), ids))

    assert found == [(False, 1, {"a": 1}), (True, 1, {"a": 1})]
