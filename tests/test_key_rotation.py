"""Key rotation: everything is re-encrypted with the new key while others write, even if the rotation is interrupted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import redis

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import CorruptRecord, NotEncrypted, NotSupported, Unavailable
from fiml.db import kept_copies
from fiml.sessions.backends.reencryption import Progress
from fiml.sessions.keyring import KeyFile
from fiml.sessions.maintenance import JOBS, do_due_jobs, reencrypt_if_due
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import content, document, existing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen
from tests.support.stored_bytes import stored_bytes

MARKER = "physalis"
Result = TypeVar("Result")
MOST_CALLS = 100
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    file = KeyFile(tmp_path / "keys")
    file.add("k1")
    return file


@pytest.fixture(params=["sqlite", "valkey-postgresql"])
def plain_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A deployment that encrypts nothing."""
    if request.param == "valkey-postgresql":
        deployment: Deployment = request.getfixturevalue("deployment")
        return deployment.settings()
    return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF)


@pytest.fixture
def settings(plain_settings: Settings, keys: KeyFile) -> Settings:
    return Settings(**plain_settings.model_dump(exclude_unset=True) | {"encryption_keys": keys.path})


@pytest.fixture
async def store(settings: Settings, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(settings) as opened:
        yield opened


def change_keys(keys: KeyFile, key_id: str) -> None:
    keys.add(key_id)
    keys.advance()


async def reencrypt(store: SessionStore, **how: Any) -> Progress:
    [*_, last] = [progress async for progress in store.reencrypt_sessions(**how)]
    return last


async def a_session(store: SessionStore, *, is_archived: bool = False) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, tags=["tech"])
    for n in range(3):
        query = make_query(f"{n}", result_summary=f"{MARKER} {n}", figures={"n": n + 0.5})
        await store.record_query(session.id, query, context={f"{n}": f"{MARKER} {n}"})
    if is_archived:
        await store.archive_session(session.id)
    return await existing(store, session.id)


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


async def test_a_running_server_reads_and_writes_with_a_new_key_at_once(store: SessionStore, keys: KeyFile) -> None:
    old, new = await a_session(store), await a_session(store, is_archived=True)
    change_keys(keys, "k2")

    await store.resume_session(new.id)
    await store.record_query(new.id, make_query("later"))

    assert content(await existing(store, old.id)) == content(old)
    assert len((await existing(store, new.id)).state.history.queries) == 4
    assert await store.count_key_usage() == {"k1": 2, "k2": 1}  # one of them has values under both


async def test_what_is_written_with_the_old_key_after_the_pass_is_found_by_a_last_look(
    store: SessionStore, settings: Settings, keys: KeyFile, tmp_path: Path
) -> None:
    """As a call does that began before the change."""
    session = await a_session(store)
    before = _with_a_copy_of(keys, settings, tmp_path)
    change_keys(keys, "k2")

    async with SessionStore(before) as late:
        rounds = [progress.rewritten async for progress in _with_late_writes(store, late, session.id, at=[2])]

    assert rounds == [1, 1, 2, 2, 2, 2]
    assert await store.count_key_usage() == {"k2": 1}


async def test_a_change_of_keys_is_not_done_while_somebody_writes_with_the_old_one(
    store: SessionStore, settings: Settings, keys: KeyFile, tmp_path: Path
) -> None:
    session = await a_session(store)
    before = _with_a_copy_of(keys, settings, tmp_path)
    change_keys(keys, "k2")

    async with SessionStore(before) as late:
        with pytest.raises(Unavailable, match="the key rotation"):
            _ = [progress async for progress in _with_late_writes(store, late, session.id, at=range(MOST_CALLS))]


def _with_a_copy_of(keys: KeyFile, settings: Settings, folder: Path) -> Settings:
    """Of a process that doesn't hear of a change of keys."""
    copy = folder / "old"
    copy.write_bytes(keys.path.read_bytes())
    copy.chmod(0o600)
    return Settings(**settings.model_dump(exclude_unset=True) | {"encryption_keys": copy})


async def _with_late_writes(
    store: SessionStore, late: SessionStore, session_id: UUID, *, at: Container[int]
) -> AsyncIterator[Progress]:
    number = 0
    async for progress in store.reencrypt_sessions():
        number += 1
        if number in at:
            await late.remember(session_id, context={"late": number})
        yield progress


async def test_a_key_that_is_not_current_yet_is_not_used(store: SessionStore, keys: KeyFile) -> None:
    """So that the file can be given to every machine before the change."""
    keys.add("k2")

    await a_session(store)

    assert await store.count_key_usage() == {"k1": 1}


async def test_a_change_of_keys_can_be_cut_short_at_any_call_and_begun_again(
    store: SessionStore, settings: Settings, keys: KeyFile
) -> None:
    sessions = [await a_session(store, is_archived=is_archived) for is_archived in (False, True, False)]
    crashes = 0
    for call in range(1, MOST_CALLS):
        change_keys(keys, f"k{call + 1}")
        faults = Faults()
        async with open_watched_store(settings, faults.around) as crashing:
            faults.crash_at(call, is_reply_lost=call % 2 == 0)
            try:
                await reencrypt(crashing)
                break
            except Crash:
                crashes += 1
            finally:
                faults.disarm()
        for session in sessions:
            assert content(await existing(store, session.id)) == content(session)

    assert crashes >= len(sessions)
    assert await store.count_key_usage() == {f"k{crashes + 2}": len(sessions)}


async def test_nothing_that_others_write_meanwhile_is_lost(
    store: SessionStore, settings: Settings, keys: KeyFile
) -> None:
    sessions = [await a_session(store, is_archived=n % 2 == 0) for n in range(6)]

    async def write(server: SessionStore, session: Session) -> None:
        for n in range(10):
            await server.resume_session(session.id)
            await server.record_query(session.id, make_query(f"w{n}"), context={f"w{n}": n})
            if n % 3 == 0:
                await server.extend_session(session.id, 1)
        await server.archive_session(session.id)

    async with SessionStore(settings) as server:
        change_keys(keys, "k2")
        await asyncio.gather(reencrypt(store), *(write(server, session) for session in sessions))
        await reencrypt(store)

        for session in sessions:
            found = await existing(server, session.id)
            assert found.state.context == session.state.context | {f"w{n}": n for n in range(10)}
            asked = [query.query_type for query in found.state.history.queries]
            assert asked == ["0", "1", "2", *(f"w{n}" for n in range(10))]
    assert await store.count_key_usage() == {"k2": len(sessions)}


async def test_a_session_that_is_constantly_written_to_comes_under_the_new_key_too(
    store: SessionStore, settings: Settings, keys: KeyFile
) -> None:
    session = await a_session(store)
    change_keys(keys, "k2")
    writes = 0

    async def around(call: Callable[[], Awaitable[Result]]) -> Result:
        """Somebody writes before each call to an engine."""
        nonlocal writes
        writes += 1
        await store.record_query(session.id, make_query(f"w{writes}"), context={"0": writes})
        return await call()

    async with open_watched_store(settings, around) as watched:
        await reencrypt(watched)

    found = await existing(store, session.id)
    assert found.state.context == session.state.context | {"0": writes}
    asked = [query.query_type for query in found.state.history.queries]
    assert asked == ["0", "1", "2", *(f"w{n}" for n in range(1, writes + 1))]
    assert await store.count_key_usage() == {"k2": 1}


CHANGES: dict[str, Callable[[SessionStore, UUID], Awaitable[object]]] = {
    "replaced": lambda store, session_id: store.remember(session_id, context={"0": "newer"}),
    "removed": lambda store, session_id: store.remember(session_id, remove={"context": ["0"]}),
    "recorded": lambda store, session_id: store.record_query(session_id, make_query("newer")),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_another_changes_before_any_of_its_steps_stays(
    store: SessionStore, settings: Settings, keys: KeyFile, change: str
) -> None:
    for step in count(1):
        session = await a_session(store)
        change_keys(keys, f"k{step + 1}")
        states: list[dict[str, Any]] = []

        async def meanwhile(session_id: UUID = session.id, states: list[dict[str, Any]] = states) -> None:
            await CHANGES[change](store, session_id)
            states.append(content(await existing(store, session_id)))

        frozen = Frozen(meanwhile, does_die=False)
        async with open_watched_store(settings, frozen.around) as watched:
            frozen.freeze_at(step)
            await reencrypt(watched)

        if not frozen.has_thawed:
            break
        assert [content(await existing(store, session.id))] == states
        assert await store.count_key_usage() == {f"k{step + 1}": 1}
        await store.delete_session(session.id)
    assert step > 4


async def test_a_session_that_a_later_fiml_writes_to_before_any_of_its_steps_is_left_to_it(
    deployment: Deployment, keys: KeyFile
) -> None:
    settings = deployment.settings(encryption_keys=keys.path)
    async with SessionStore(settings) as store:
        for step in count(1):
            session = await a_session(store)
            change_keys(keys, f"k{step + 1}")
            with redis.Redis.from_url(deployment.redis_url) as client:
                header = f"fiml:{{{session.id.hex}}}:header"

                async def meanwhile(client: redis.Redis = client, header: str = header) -> None:
                    client.hset(header, "format", 1000)

                frozen = Frozen(meanwhile, does_die=False)
                async with open_watched_store(settings, frozen.around) as watched:
                    frozen.freeze_at(step)
                    await reencrypt(watched)

                if not frozen.has_thawed:
                    break
                assert client.hget(header, "format") == b"1000"
            await store.delete_session(session.id)
    assert step > 4


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


async def test_a_session_taken_over_has_the_size_that_it_had(
    plain_settings: Settings, settings: Settings, clock: FrozenClock
) -> None:
    async with SessionStore(plain_settings) as plain:
        session = await a_session(plain)
        before, _ = await _sizes(plain)
    async with SessionStore(settings) as store:
        await reencrypt(store, adopts_plaintext=True)
        assert (await _sizes(store))[0] == before
        await store.remember(session.id, context={"more": 1}, remove={"context": ["0"]})
        changed = await _sizes(store)
        await store.archive_session(session.id)
        await store.resume_session(session.id)
        assert await _sizes(store) == changed


async def _sizes(store: SessionStore) -> tuple[int, int]:
    """The bytes of the maps and of the history of the only session."""
    [header] = [each async for each in store.live_headers(user_id=None, session_type=None, since=LONG_AGO)]
    return header.maps_bytes, header.history_bytes


async def test_what_can_not_be_decrypted_is_counted_and_left(
    store: SessionStore, settings: Settings, keys: KeyFile, tmp_path: Path
) -> None:
    theirs, other = await a_session(store, is_archived=True), KeyFile(tmp_path / "other")
    other.add("k9")
    changed = Settings(**settings.model_dump(exclude_unset=True) | {"encryption_keys": other.path})
    async with SessionStore(changed) as stranger:
        mine = await a_session(stranger)

        progress = await reencrypt(stranger)

        assert (progress.looked_at, progress.unreadable, progress.rewritten) == (2, 1, 0)
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
