"""Key rotation: everything is re-encrypted with the new key, once; by a command, in the maintenance, or by a task."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import CorruptRecord, NotEncrypted, NotSupported
from fiml.db import kept_copies
from fiml.sessions.keyring import KeyFile
from fiml.sessions.maintenance import JOBS, do_due_jobs, reencrypt_if_due
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import content, document, existing
from tests.support.backends import open_watched_store
from tests.support.encryption import MARKER, a_session, change_keys, reencrypt, with_keys
from tests.support.stored_bytes import stored_bytes

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def settings(plain_settings: Settings, keys: KeyFile) -> Settings:
    return with_keys(plain_settings, keys.path)


async def test_live_and_archived_sessions_come_under_the_new_key_as_they_were(
    store: SessionStore, keys: KeyFile
) -> None:
    sessions = [await a_session(store, is_archived=is_archived) for is_archived in (False, True)]
    assert await store.count_key_usage() == {"k1": 2}
    change_keys(keys, "k2")

    progress = await reencrypt(store)

    assert (progress.looked_at, progress.rewritten) == (2, 2)
    assert (progress.unreadable, progress.in_clear, progress.kept_copies) == (0, 0, [])
    assert await store.count_key_usage() == {"k2": 2}
    keys.path.write_text(keys.path.read_text().splitlines()[1])  # the old key may go now
    for session in sessions:
        assert document(await existing(store, session.id), "last_accessed_at") == document(session, "last_accessed_at")


async def test_a_key_that_is_not_current_yet_is_not_used(store: SessionStore, keys: KeyFile) -> None:
    """So that the file can be given to every machine before the change."""
    keys.add("k2")

    await a_session(store)

    assert await store.count_key_usage() == {"k1": 1}


async def test_the_maintenance_does_it_once_with_each_key(
    store: SessionStore, settings: Settings, keys: KeyFile, clock: FrozenClock
) -> None:
    sessions = [await a_session(store, is_archived=is_archived) for is_archived in (False, True)]
    assert "reencrypt:k1" in await do_due_jobs(store, "one")
    change_keys(keys, "k2")

    async with SessionStore(settings) as other:
        done = [await do_due_jobs(each, holder) for each, holder in ((store, "one"), (other, "other"))]

    result = done[0]["reencrypt:k2"]
    assert (result["rewritten"], result["unreadable"], result["in_clear"]) == (2, 0, 0)
    assert done[1] == {}
    clock.advance(days=2)
    assert "reencrypt:k2" not in await do_due_jobs(store, "one")
    assert await store.count_key_usage() == {"k2": len(sessions)}


async def test_the_maintenance_carries_on_with_what_a_killed_process_left(
    store: SessionStore, settings: Settings, keys: KeyFile, clock: FrozenClock
) -> None:
    sessions = [await a_session(store) for _ in range(4)]
    await do_due_jobs(store, "one")
    change_keys(keys, "k2")
    faults = Faults()
    async with open_watched_store(settings, faults.around) as crashing:
        faults.crash_at(5, is_reply_lost=False)
        with suppress(Crash):
            await do_due_jobs(crashing, "killed")
        faults.disarm()
    assert (await store.count_key_usage())["k1"] > 0
    assert await do_due_jobs(store, "too early") == {}
    clock.advance(minutes=6)

    assert "reencrypt:k2" in await do_due_jobs(store, "one")

    assert await store.count_key_usage() == {"k2": len(sessions)}


async def test_a_mistake_in_the_file_of_keys_stops_no_other_job(store: SessionStore, keys: KeyFile) -> None:
    keys.path.write_text("nonsense\n")

    assert list(await do_due_jobs(store, "one")) == [job.name for job in JOBS]


async def test_a_task_does_it_once_too(store: SessionStore, keys: KeyFile) -> None:
    await a_session(store)
    await reencrypt_if_due(store, "worker")
    change_keys(keys, "k2")

    results = [await reencrypt_if_due(store, "worker") for _ in range(2)]

    assert [result["rewritten"] for result in results] == [1, 0]


async def test_plaintext_sessions_are_encrypted_only_when_asked_for(
    plain_settings: Settings, settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(plain_settings) as plain:
        sessions = [await a_session(plain, is_archived=is_archived) for is_archived in (False, True)]
        assert len(await plain.search_sessions(None, MARKER)) == len(sessions)
    async with SessionStore(settings) as store:
        encrypted = await a_session(store)
        for session in sessions:
            with pytest.raises(NotEncrypted, match="fiml keys rotate --encrypt-plaintext"):
                await store.get_session(session.id)

        left = await reencrypt(store)
        assert (left.rewritten, left.in_clear) == (0, len(sessions))
        assert await store.count_key_usage() == {"k1": 1, "": len(sessions)}
        assert MARKER.encode() in await stored_bytes(settings)
        taken = await reencrypt(store, adopts_plaintext=True)

        assert (taken.rewritten, taken.in_clear, taken.unreadable) == (len(sessions), 0, 0)
        for session in (*sessions, encrypted):
            assert content(await existing(store, session.id)) == content(session)
        assert len(await store.search_sessions(None, tag="tech")) == len(sessions) + 1
        assert MARKER.encode() not in await stored_bytes(settings)
    assert MARKER.encode() not in await stored_bytes(settings)


async def test_copies_from_before_an_upgrade_are_named_when_plaintext_is_encrypted(
    tmp_path: Path, keys: KeyFile, clock: FrozenClock
) -> None:
    plain = Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF)
    async with SessionStore(plain) as store:
        await a_session(store)
    copy = kept_copies.keep(plain.embedded_file, found="older", needed="newer")
    async with SessionStore(Settings(data_dir=tmp_path / "data", encryption_keys=keys.path)) as store:
        assert (await reencrypt(store)).kept_copies == []
        assert (await reencrypt(store, adopts_plaintext=True)).kept_copies == [copy.name]


@pytest.mark.parametrize("key_id", ["k", "a_key.of-as-many-as_32_character"])
async def test_a_session_taken_over_has_the_size_that_it_had(
    plain_settings: Settings, tmp_path: Path, clock: FrozenClock, key_id: str
) -> None:
    keys = KeyFile(tmp_path / "own keys")
    keys.add(key_id)
    async with SessionStore(plain_settings) as plain:
        session = await a_session(plain)
        before, _ = await _sizes(plain)
    async with SessionStore(with_keys(plain_settings, keys.path)) as store:
        await reencrypt(store, adopts_plaintext=True)
        assert (await _sizes(store))[0] == before
        await store.remember(session.id, context={"more": 1, "most": "m"}, remove={"context": ["0"]})
        changed = await _sizes(store)
        await store.archive_session(session.id)
        await store.resume_session(session.id)
        assert await _sizes(store) == changed


async def _sizes(store: SessionStore) -> tuple[int, int]:
    """The bytes of the maps and of the history of the only session."""
    [header] = [each async for each in store.live_headers(user_id=None, session_type=None, since=LONG_AGO)]
    return header.maps_bytes, header.history_bytes


async def test_what_can_not_be_decrypted_is_counted_and_left(
    store: SessionStore, settings: Settings, tmp_path: Path
) -> None:
    theirs, other = await a_session(store, is_archived=True), KeyFile(tmp_path / "other")
    other.add("k9")
    changed = with_keys(settings, other.path)
    async with SessionStore(changed) as stranger:
        mine = await a_session(stranger)

        with capture_logs() as logs:
            progress = await reencrypt(stranger)

        assert (progress.looked_at, progress.unreadable, progress.rewritten) == (2, 1, 0)
        assert [entry["session_id"] for entry in logs] == [str(theirs.id)]  # once, in however many rounds
        assert content(await existing(stranger, mine.id)) == content(mine)
    assert content(await existing(store, theirs.id)) == content(theirs)


async def test_a_damaged_session_does_not_stop_the_others(
    store: SessionStore, settings: Settings, keys: KeyFile
) -> None:
    broken, whole = await a_session(store, is_archived=True), await a_session(store, is_archived=True)
    async with store.session_maker() as sql, sql.begin():
        connection = await sql.connection()
        session_id = broken.id.hex if settings.is_embedded else str(broken.id)
        await connection.exec_driver_sql(
            f"UPDATE sessions SET history_queries = '5' WHERE id = '{session_id}'"  # noqa: S608 - our own id
        )
    change_keys(keys, "k2")

    progress = await reencrypt(store)

    assert (progress.rewritten, progress.unreadable) == (1, 1)
    assert content(await existing(store, whole.id)) == content(whole)
    with pytest.raises(CorruptRecord):
        await store.get_session(broken.id)


async def test_without_encryption_there_is_nothing_to_change(plain_settings: Settings, clock: FrozenClock) -> None:
    async with SessionStore(plain_settings) as plain:
        with pytest.raises(NotSupported, match="FIML_ENCRYPTION_KEYS"):
            await reencrypt(plain)
        with pytest.raises(NotSupported, match="FIML_ENCRYPTION_KEYS"):
            await plain.count_key_usage()
