"""What a hold keeps, what retention ends, and that an erasure leaves only what is on hold."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from fiml.access.tokens import open_tokens
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, NotPermitted, SessionNotFound, SessionOnHold, Unavailable
from fiml.db import engines, kept_copies
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.backends.sql import metrics
from fiml.sessions.models import Session, SessionType
from fiml.sessions.records import header_of
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing, listing

OWNER = "ann"
THOUGHT = "a very private thought"
# An erasure that is killed: what it did stands in the log beside the copy.
KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("UPDATE active_sessions SET title = 'touched'")
connection.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


async def a_session(store: SessionStore, user_id: str = OWNER) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=user_id, ttl_hours=1, tags=["t"])
    await store.record_query(session.id, make_query(), context={"secret": THOUGHT})
    return session


async def issue_tokens(settings: Settings, *users: str) -> None:
    async with aclosing(open_tokens(settings)) as tokens:
        for user in users:
            await tokens.issue(user, scopes=["admin"], days=1)


async def users_with_tokens(settings: Settings) -> list[str]:
    async with aclosing(open_tokens(settings)) as tokens:
        return [token.user_id for token in await tokens.list_tokens()]


async def test_the_metrics_of_a_session_that_is_deleted_meanwhile_are_not_recorded(store: SessionStore) -> None:
    """By whoever read it before: they would name a user who was erased."""
    session = await a_session(store)
    read = await existing(store, session.id)
    await store.erase_user(OWNER)

    await SessionAnalytics(store.session_maker).record_session_metrics(read)

    assert (await SessionAnalytics(store.session_maker).get_session_stats())["total_sessions"] == 0


@pytest.mark.parametrize("state", ["live", "expired", "archived", "resumed"])
async def test_a_held_session_can_not_be_deleted_whatever_becomes_of_it(
    store: SessionStore, clock: FrozenClock, state: str
) -> None:
    session = await a_session(store)
    await store.hold(session.id, "inquiry 17")
    if state in ("expired", "archived", "resumed"):
        clock.advance(hours=2)
    if state in ("archived", "resumed"):
        await store.cleanup_expired_sessions()
    if state == "resumed":
        await store.resume_session(session.id)

    with pytest.raises(SessionOnHold, match="inquiry 17") as raised:
        await store.delete_session(session.id)

    assert (raised.value.session_id, raised.value.reason) == (session.id, "inquiry 17")
    assert (await existing(store, session.id)).state.context == {"secret": THOUGHT}
    assert await store.get_hold(session.id) == "inquiry 17"
    stranger = store.as_principal("eve")
    assert await stranger.get_hold(session.id) is None
    with pytest.raises(SessionNotFound):
        await stranger.release(session.id)
    assert await store.release(session.id)
    assert not await store.release(session.id)
    assert await store.delete_session(session.id)
    assert await store.get_session(session.id) is None


async def test_a_hold_needs_a_session_and_a_reason(store: SessionStore) -> None:
    session = await a_session(store)

    with pytest.raises(SessionNotFound):
        await store.hold(uuid4(), "why")
    with pytest.raises(SessionNotFound):
        await store.as_principal("eve").hold(session.id, "why")
    with pytest.raises(SessionNotFound):
        await store.release(uuid4())
    for reason in ("", "x" * 501, None):
        with pytest.raises(InvalidInput, match="reason"):
            await store.hold(session.id, reason)  # type: ignore[arg-type]
    assert await store.get_hold(session.id) is None


async def test_of_a_hold_and_a_deletion_at_once_one_comes_first(store: SessionStore) -> None:
    for _ in range(10):
        session = await a_session(store)

        outcomes = await asyncio.gather(
            store.delete_session(session.id), store.hold(session.id, "why"), return_exceptions=True
        )

        is_held = await store.get_hold(session.id) is not None
        assert (await store.get_session(session.id) is not None) == is_held
        assert isinstance(outcomes[0], SessionOnHold) if is_held else isinstance(outcomes[1], SessionNotFound)


async def test_retention_deletes_what_is_old_keeps_what_is_held_and_keeps_the_metrics(
    store: SessionStore, clock: FrozenClock
) -> None:
    old, held, resumed = [await a_session(store) for _ in range(3)]
    clock.advance(hours=2)
    assert await store.cleanup_expired_sessions() == 3
    await store.hold(held.id, "why")
    await store.resume_session(resumed.id)
    clock.advance(days=store.settings.session_retention_days)
    assert await store.delete_old_archived_sessions() == 0
    clock.advance(seconds=1)

    assert await store.delete_old_archived_sessions() == 1

    assert await store.delete_old_archived_sessions() == 0
    assert await store.count_held_past_retention() == 1
    assert await store.get_session(old.id) is None
    assert {summary.id for summary in await listing(store)} == {held.id, resumed.id}
    stats = await SessionAnalytics(store.session_maker, store).get_session_stats(days=60)
    assert (stats["total_sessions"], stats["total_queries"]) == (3, 3)
    await store.archive_session(resumed.id)
    await store.hold(resumed.id, "why")
    assert await store.count_held_past_retention() == 1


async def test_retention_goes_through_any_number_in_batches(
    store: SessionStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiml.sessions.upkeep._BATCH", 3)
    sessions = [await a_session(store) for _ in range(10)]
    clock.advance(hours=2)
    await store.cleanup_expired_sessions()
    for session in sessions[:4]:
        await store.hold(session.id, "why")
    clock.advance(days=31)

    assert await store.delete_old_archived_sessions() == 6

    assert len(await listing(store)) == 4


async def test_tombstones_are_forgotten_a_day_after_the_longest_task(
    store: SessionStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiml.sessions.upkeep._BATCH", 1)
    sessions = [await a_session(store) for _ in range(2)]
    for session in sessions:
        await store.delete_session(session.id)
    clock.advance(days=1, minutes=store.settings.task_time_limit_minutes)
    assert await store.purge_tombstones() == 0

    clock.advance(seconds=1)

    assert await store.purge_tombstones() == 2
    assert await store.purge_tombstones() == 0
    assert [await store.get_session(session.id) for session in sessions] == [None, None]


async def test_an_erasure_leaves_nothing_of_a_user(
    store: SessionStore, clock: FrozenClock, backend_settings: Settings
) -> None:
    others = await a_session(store, "bob")
    await issue_tokens(backend_settings, OWNER, "bob")
    archived = await a_session(store)
    clock.advance(hours=2)
    await store.cleanup_expired_sessions()
    live = await a_session(store)
    await store.roll_up()
    clock.advance(days=31)
    retained = await store.delete_old_archived_sessions()
    assert retained == 2
    analytics = SessionAnalytics(store.session_maker, store)

    receipt = await store.erase_user(OWNER)

    assert (receipt.user_id, receipt.held, receipt.metrics) == (OWNER, {}, 1)
    assert receipt.erased == [live.id]
    assert await listing(store) == []
    assert await store.get_session(archived.id) is None
    assert (await analytics.get_session_stats(user_id=OWNER, days=100))["total_sessions"] == 0
    assert (await analytics.get_session_stats(days=100))["total_sessions"] == 1
    assert (await store.erase_user(OWNER)).erased == []
    assert await users_with_tokens(backend_settings) == ["bob"]
    if backend_settings.is_embedded:
        folder = backend_settings.embedded_file.parent
        assert not [path for path in folder.iterdir() if OWNER.encode() in path.read_bytes()]
        assert b"bob" in backend_settings.embedded_file.read_bytes()
    assert others.user_id == "bob"


async def test_an_erasure_takes_the_metrics_of_any_number_of_sessions(store: SessionStore, clock: FrozenClock) -> None:
    """More than one statement has parameters for."""
    header = header_of(await a_session(store))
    rows = [metrics.row_of(replace(header, id=uuid4()), clock.now()) for _ in range(33_000)]
    async with store.session_maker() as session, session.begin():
        await (await session.connection()).run_sync(metrics.put, rows)

    receipt = await store.erase_user(OWNER)

    assert receipt.metrics == len(rows)
    assert (await store.erase_user(OWNER)).metrics == 0


async def test_a_hold_wins_over_an_erasure_and_is_in_the_receipt(store: SessionStore, clock: FrozenClock) -> None:
    held = await a_session(store)
    clock.advance(days=1)
    other = await a_session(store)
    clock.advance(hours=2)
    await store.cleanup_expired_sessions()
    await store.roll_up()
    await store.hold(held.id, "inquiry 17")

    receipt = await store.erase_user(OWNER)

    assert receipt.to_dict() == {
        "user_id": OWNER,
        "erased_at": "2024-12-24T17:30:00Z",
        "erased": [str(other.id)],
        "held": {str(held.id): "inquiry 17"},
        "metrics": 0,
        "kept_copies": [],
    }
    assert [summary.id for summary in await listing(store)] == [held.id]
    stats = await SessionAnalytics(store.session_maker, store).get_session_stats(user_id=OWNER)
    assert stats["total_sessions"] == 1


async def test_nobody_erases_somebody_else(store: SessionStore) -> None:
    session = await a_session(store)

    with pytest.raises(NotPermitted):
        await store.as_principal("eve").erase_user(OWNER)
    with pytest.raises(InvalidInput, match="user_id"):
        await store.erase_user(None)  # type: ignore[arg-type]

    assert await store.get_session(session.id) is not None


async def test_an_erasure_reaches_the_copy_that_an_upgrade_kept(clock: FrozenClock) -> None:
    settings = Settings()
    async with SessionStore(settings) as store:
        held, other = await a_session(store), await a_session(store)
        await store.hold(held.id, "why")
        await a_session(store, "bob")
        await issue_tokens(settings, OWNER)
        await store.remember(other.id, notes=["xylophone"])
        await store.search_sessions(None, "xylophone")  # which indexes the words
    copy = settings.embedded_file.with_name("fiml.db.before-9999")
    with closing(sqlite3.connect(settings.embedded_file)) as live, closing(sqlite3.connect(copy)) as target:
        live.backup(target)

    async with SessionStore(settings) as store:
        receipt = await store.erase_user(OWNER)

    assert (receipt.erased, receipt.kept_copies) == ([other.id], [copy.name])
    with closing(sqlite3.connect(copy)) as connection:
        left = connection.execute("SELECT user_id FROM active_sessions ORDER BY user_id").fetchall()
        tokens = connection.execute("SELECT * FROM access_tokens").fetchall()
    assert left == [(OWNER,), ("bob",)]
    assert tokens == []
    for file in (copy, settings.embedded_file):
        assert other.id.hex.encode() not in without_tombstones(file)
        assert b"xylophone" not in file.read_bytes()


async def test_an_erasure_that_was_killed_in_a_copy_is_finished_by_the_next(clock: FrozenClock) -> None:
    settings = Settings()
    async with SessionStore(settings) as store:
        await a_session(store)
    copy = kept_copies.keep(settings.embedded_file, found="0003", needed="0004_0.4.0")
    ended = _killed_in(copy)
    copy.with_name(f"{copy.name}.unfinished").write_text(THOUGHT)
    copy.with_name("fiml.db.before-removed-wal").write_text(THOUGHT)

    async with SessionStore(settings) as store:
        receipt = await store.erase_user(OWNER)

    assert ended == -signal.SIGKILL
    assert (len(receipt.erased), receipt.kept_copies) == (1, [copy.name])
    assert sorted(path.name for path in copy.parent.iterdir()) == ["fiml.db", copy.name]
    assert THOUGHT.encode() not in copy.read_bytes()


async def test_a_reader_of_the_file_keeps_no_user_in_its_copies(
    clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0)  # nobody waits for the reader
    settings = Settings()
    async with SessionStore(settings) as store:
        await a_session(store)
        copy = kept_copies.keep(settings.embedded_file, found="0003", needed="0004_0.4.0")
        with closing(sqlite3.connect(settings.embedded_file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM active_sessions").fetchone() == (1,)

            with pytest.raises(Unavailable, match="keeps removed data in it"):
                await store.erase_user(OWNER)

    assert THOUGHT.encode() not in copy.read_bytes()


def _killed_in(copy: Path) -> int:
    return subprocess.run([sys.executable, "-c", KILLED, copy], check=False).returncode


async def test_an_unreadable_copy_is_in_the_receipt_and_the_others_are_still_erased(
    clock: FrozenClock,
) -> None:
    settings = Settings()
    async with SessionStore(settings) as store:
        await a_session(store)
    good = kept_copies.keep(settings.embedded_file, found="0003", needed="0004_0.4.0")
    bad = good.with_name("fiml.db.before-0003")
    bad.write_bytes(b"no database" * 1000)

    async with SessionStore(settings) as store:
        receipt = await store.erase_user(OWNER)

    assert receipt.kept_copies == [f"{bad.name} (not cleaned: file is not a database; remove it)", good.name]
    assert THOUGHT.encode() not in good.read_bytes()


def without_tombstones(file: Path) -> bytes:
    """A file's bytes, but for the tombstones: they are what keeps an erased session away."""
    with closing(sqlite3.connect(file)) as connection, closing(sqlite3.connect(":memory:")) as memory:
        connection.backup(memory)
        memory.execute("DELETE FROM session_tombstones")
        memory.commit()
        memory.execute("VACUUM")
        return memory.serialize()
