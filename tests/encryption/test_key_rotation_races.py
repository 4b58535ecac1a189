"""Key rotation against others: while they write, whatever they change before any step, and if it is interrupted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import Unavailable
from fiml.sessions.backends.reencryption import Progress
from fiml.sessions.keyring import KeyFile
from fiml.sessions.models import Session
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import content, existing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.encryption import a_session, change_keys, reencrypt, with_keys
from tests.support.interleaving import Frozen

Result = TypeVar("Result")
MOST_CALLS = 100


@pytest.fixture
def settings(plain_settings: Settings, keys: KeyFile) -> Settings:
    return with_keys(plain_settings, keys.path)


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
        with pytest.raises(Unavailable, match="a process with an older key file keeps writing"):
            _ = [progress async for progress in _with_late_writes(store, late, session.id, at=range(MOST_CALLS))]


def _with_a_copy_of(keys: KeyFile, settings: Settings, folder: Path) -> Settings:
    """Of a process that doesn't hear of a change of keys."""
    copy = folder / "old"
    copy.write_bytes(keys.path.read_bytes())
    copy.chmod(0o600)
    return with_keys(settings, copy)


async def _with_late_writes(
    store: SessionStore, late: SessionStore, session_id: UUID, *, at: Container[int]
) -> AsyncIterator[Progress]:
    number = 0
    async for progress in store.reencrypt_sessions():
        number += 1
        if number in at:
            await late.remember(session_id, context={"late": number})
        yield progress


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


async def reencrypted_with(meanwhile: Callable[[], Awaitable[None]], step: int, settings: Settings) -> bool:
    """Whether re-encrypting has so many steps; before that one, something happens meanwhile."""
    frozen = Frozen(meanwhile, does_die=False)
    async with open_watched_store(settings, frozen.around) as watched:
        frozen.freeze_at(step)
        await reencrypt(watched)
    return frozen.has_thawed


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

        if not await reencrypted_with(meanwhile, step, settings):
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

                if not await reencrypted_with(meanwhile, step, settings):
                    break
                assert client.hget(header, "format") == b"1000"
            await store.delete_session(session.id)
    assert step > 4
