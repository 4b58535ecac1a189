"""Sessions that a later fiml wrote: an older one neither changes nor moves them, to lose nothing that it can't read."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

import asyncpg
import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import SchemaTooNew
from fiml.sessions.models import Session, SessionType
from fiml.sessions.records import FORMAT
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query

OWNER, FRIEND = "ann", "bob"
LATER = FORMAT + 1
Verb = Callable[[SessionStore, Session], Awaitable[object]]

ON_ANY: dict[str, Verb] = {
    "resume": lambda store, session: store.resume_session(session.id),
    "share": lambda store, session: store.share_session(session.id, "cara"),
    "unshare": lambda store, session: store.unshare_session(session.id, FRIEND),
    "give up a role": lambda store, session: store.as_principal(FRIEND).unshare_session(session.id, FRIEND),
    "make a code": lambda store, session: store.create_share_code(session.id),
}
ON_EXPIRED: dict[str, Verb] = ON_ANY | {"archive": lambda store, session: store.archive_session(session.id)}
ON_LIVE: dict[str, Verb] = ON_EXPIRED | {
    "extend": lambda store, session: store.extend_session(session.id, 1),
    "record": lambda store, session: store.record_query(session.id, make_query()),
    "update": lambda store, session: store.update_session(session.id, session),
    "remember": lambda store, session: store.remember(session.id, notes=["a"]),
}
BY_STATE = {"live": ON_LIVE, "expired": ON_EXPIRED, "archived": ON_ANY}
CALLS = [(state, verb) for state, verbs in BY_STATE.items() for verb in verbs]
MAKE_LATER = ("UPDATE active_sessions SET format = ?", "UPDATE sessions SET format = ?")
SELECT_ALL = (
    "SELECT * FROM active_sessions",
    "SELECT * FROM active_entries",
    "SELECT * FROM active_queries",
    "SELECT * FROM active_trail",
    "SELECT * FROM sessions",
)


@pytest.fixture
async def store(backend_settings: Settings, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(backend_settings) as opened:
        yield opened


class Stored:
    """What an engine holds of the only session, byte for byte."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def make_later(self) -> None:
        if self._settings.is_embedded:
            with closing(sqlite3.connect(self._settings.embedded_file)) as connection, connection:
                for statement in MAKE_LATER:
                    connection.execute(statement, (LATER,))
            return
        with redis.Redis.from_url(str(self._settings.redis_url)) as client:
            for key in client.scan_iter("fiml:{*:header"):
                client.hset(key, "format", LATER)
        server = await asyncpg.connect(str(self._settings.database_url))
        await server.execute("UPDATE sessions SET format = $1", LATER)
        await server.close()

    async def dump(self) -> list[Any]:
        if self._settings.is_embedded:
            with closing(sqlite3.connect(self._settings.embedded_file)) as connection:
                return [connection.execute(statement).fetchall() for statement in SELECT_ALL]
        with redis.Redis.from_url(str(self._settings.redis_url)) as client:
            live = {key: client.dump(key) for key in client.scan_iter("fiml:{*") if not key.endswith(b":floor")}
        server = await asyncpg.connect(str(self._settings.database_url))
        archived = await server.fetch("SELECT * FROM sessions")
        await server.close()
        return [live, archived]


@pytest.fixture
def stored(backend_settings: Settings) -> Stored:
    return Stored(backend_settings)


async def a_session(store: SessionStore, clock: FrozenClock, state: str) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    await store.share_session(session.id, FRIEND, "editor")
    if state == "archived":
        await store.archive_session(session.id)
    if state == "expired":
        clock.advance(hours=2)
    return session


@pytest.mark.parametrize(("state", "verb"), CALLS)
async def test_nothing_of_it_is_changed(
    store: SessionStore, stored: Stored, clock: FrozenClock, state: str, verb: str
) -> None:
    session = await a_session(store, clock, state)
    session.title = "Other"
    await stored.make_later()
    before = await stored.dump()

    with pytest.raises(SchemaTooNew, match=rf"install fiml 0\.{LATER}\.0 or newer"):
        await ON_LIVE[verb](store, session)

    assert await stored.dump() == before


@pytest.mark.parametrize("state", ["live", "archived"])
async def test_a_user_is_erased_whom_it_is_given_to(
    store: SessionStore, stored: Stored, clock: FrozenClock, state: str
) -> None:
    await a_session(store, clock, state)
    await stored.make_later()
    before = await stored.dump()

    assert (await store.erase_user(FRIEND)).erased == []

    assert await stored.dump() == before


@pytest.mark.parametrize("state", ["live", "archived"])
async def test_it_can_be_deleted(store: SessionStore, stored: Stored, clock: FrozenClock, state: str) -> None:
    session = await a_session(store, clock, state)
    await stored.make_later()

    assert await store.delete_session(session.id)

    assert await store.get_session(session.id) is None
