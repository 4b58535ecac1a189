"""A Valkey that is out of memory under `noeviction`: it can be read, and everything that ends sessions empties it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import Unavailable
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance.suite import existing
from tests.support.deployment import Deployment
from tests.support.servers import ValkeyProcess, valkey_server

OWNER = "ann"
SESSIONS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyProcess]:
    with valkey_server() as process:
        yield process


@pytest.fixture
async def store(server: ValkeyProcess, deployment: Deployment, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 0)
        client.flushall()
    async with SessionStore(Settings(redis_url=server.url, database_url=deployment.database_url)) as opened:
        yield opened


@pytest.fixture
async def sessions(store: SessionStore, server: ValkeyProcess) -> list[Session]:
    """Large ones, of an hour; behind them the server has no room."""
    made = [
        await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1) for _ in range(SESSIONS)
    ]
    for session in made:
        await store.remember(session.id, context={"note": "x" * 50_000})
    return made


def fill(server: ValkeyProcess) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)


async def test_it_is_read_and_takes_nothing(
    store: SessionStore, server: ValkeyProcess, sessions: list[Session]
) -> None:
    fill(server)

    with pytest.raises(Unavailable, match="memory"):
        await store.create_session(["AAPL"], SessionType.EQUITY)

    assert len((await existing(store, sessions[0].id)).state.context["note"]) == 50_000
    assert len(await store.list_user_sessions(OWNER)) == SESSIONS


async def test_what_has_expired_is_archived(
    store: SessionStore, server: ValkeyProcess, sessions: list[Session], clock: FrozenClock
) -> None:
    for session in sessions[:4]:
        await store.extend_session(session.id, 24)  # their entries in the index are moved by the sweep
    clock.advance(hours=2)
    fill(server)

    swept = await store.sweep()

    assert (swept.archived, swept.quarantined) == (SESSIONS - 4, 0)
    assert (await existing(store, sessions[-1].id)).is_archived
    assert not (await existing(store, sessions[0].id)).is_archived


async def test_what_is_damaged_is_set_aside(
    store: SessionStore, server: ValkeyProcess, sessions: list[Session], clock: FrozenClock
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.hset(f"fiml:{{{sessions[0].id.hex}}}:header", "type", "poetry")
    clock.advance(hours=2)
    fill(server)

    assert (await store.sweep()).quarantined == 1


async def test_sessions_are_ended_by_call(store: SessionStore, server: ValkeyProcess, sessions: list[Session]) -> None:
    fill(server)

    assert await store.archive_session(sessions[0].id)
    assert await store.delete_session(sessions[1].id)
    assert len((await store.erase_user(OWNER)).erased) == SESSIONS - 1

    with redis.Redis.from_url(server.url) as client:
        assert not list(client.scan_iter("fiml:{*:header"))
