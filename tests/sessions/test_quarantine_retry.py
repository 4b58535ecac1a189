"""What becomes of a session in quarantine: it is archived after all, deleted, or damaged there."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.util import await_only

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, SessionNotFound
from fiml.sessions.backends.dumps import Dump
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import content, existing
from tests.support.damage import refusing
from tests.support.deployment import Deployment

Call = Callable[[SessionStore, UUID], Awaitable[object]]


@pytest.mark.parametrize("call", [SessionStore.get_quarantined, SessionStore.retry_quarantined])
@pytest.mark.parametrize("wrong", ["", "[]", "{"])
async def test_what_was_set_aside_and_damaged_since_is_a_corrupt_record(
    sqlite_settings: Settings, clock: FrozenClock, call: Call, wrong: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, title="refused", ttl_hours=1)
        clock.advance(hours=2)
        async with refusing(sqlite_settings, "refused"):
            await store.sweep()
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute("UPDATE session_quarantine SET record = ?", (wrong.encode(),))

        with pytest.raises(CorruptRecord, match="set aside"):
            await call(store, session.id)


@pytest.mark.parametrize("call", [SessionStore.get_session, SessionStore.delete_session])
async def test_a_session_that_is_archived_again_between_two_looks_is_found(
    deployment: Deployment, clock: FrozenClock, call: Call
) -> None:
    """PostgreSQL shows each statement what was committed before it."""
    settings = deployment.settings()
    async with SessionStore(settings) as store, SessionStore(settings) as other:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, title="refused", ttl_hours=1)
        clock.advance(hours=2)
        async with refusing(settings, "refused"):
            await store.sweep()

        @event.listens_for(store.session_maker.kw["bind"].sync_engine, "before_cursor_execute")
        def archive_before_the_look_at_the_quarantine(*args: Any) -> None:
            if "FROM session_quarantine" in args[2] and args[2].startswith("SELECT"):
                with suppress(SessionNotFound):
                    await_only(other.retry_quarantined(session.id))

        assert await call(store, session.id)


async def test_what_was_set_aside_before_sessions_had_a_trail_can_be_archived(
    sqlite_settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, title="refused", ttl_hours=1)
        await store.record_query(session.id, make_query(), context={"a": 1})
        session = await existing(store, session.id)
        clock.advance(hours=2)
        async with refusing(sqlite_settings, "refused"):
            await store.sweep()
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as file, file:
            [stored] = file.execute("SELECT record FROM session_quarantine").fetchone()
            file.execute("UPDATE session_quarantine SET record = ?", (as_before_the_trail(stored),))

        await store.retry_quarantined(session.id)

        assert content(await existing(store, session.id)) == content(session)
        assert await store.get_audit_trail(session.id) == []


def as_before_the_trail(stored: bytes) -> bytes:
    """A dump as fiml made it when there was no table of the trail, and nobody to share a session with."""
    dump = Dump.from_bytes(stored)
    with closing(sqlite3.connect(":memory:")) as tables:
        tables.executescript(";".join(dump.parts["tables"]))
        tables.executescript("DROP TABLE active_trail; ALTER TABLE active_sessions DROP COLUMN grants")
        dump.parts["tables"] = [sql for (sql,) in tables.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    del dump.parts["trail"], dump.parts["header"][0]["grants"]
    return dump.to_bytes()


async def test_a_session_that_is_being_deleted_from_the_quarantine_is_not_said_to_be_archived(
    deployment: Deployment, clock: FrozenClock
) -> None:
    settings = deployment.settings()
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, title="refused", ttl_hours=1)
        clock.advance(hours=2)
        async with refusing(settings, "refused"):
            assert (await store.sweep()).quarantined == 1
        deleting = await asyncpg.connect(deployment.database_url)
        async with deleting.transaction():
            await deleting.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", str(session.id))
            bury = "INSERT INTO session_tombstones (id, version, deleted_at) VALUES ($1, 1, now())"
            await deleting.execute(bury, session.id)
            await deleting.execute("DELETE FROM session_quarantine")
            retrying = asyncio.create_task(store.retry_quarantined(session.id))
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not retrying.done() and not await deleting.fetchval(waiting):
                pass
        await deleting.close()

        with pytest.raises(SessionNotFound):
            await retrying
