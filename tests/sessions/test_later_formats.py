"""Sessions that a later fiml wrote: an older one doesn't change or move them, to lose nothing that it can't read."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import asyncpg
import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, SchemaTooNew
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
OTHER_JSON = '{"v": 2}'
# Who sees the session stays as it is: the members of the grants.
OTHER_LAYOUT = (
    "UPDATE active_sessions SET tags = :other, query_types = :other, maps_bytes = :other, grants = :grants",
    "UPDATE sessions SET tags = :other, context = '[]', grants = :grants",
)
OTHER_GRANTS = '{"s:bob": {"role": "editor"}}'
GONE_FROM_REDIS = ("totals", "types", "times", "days", "maps_bytes")
SELECT_ALL = (
    "SELECT * FROM active_sessions",
    "SELECT * FROM active_entries",
    "SELECT * FROM active_queries",
    "SELECT * FROM active_trail",
    "SELECT * FROM sessions",
)


class Stored:
    """What an engine holds of the only session, byte for byte."""

    def __init__(self, settings: Settings, *, has_other_layout: bool) -> None:
        self._settings = settings
        self.has_other_layout = has_other_layout

    async def make_later(self) -> None:
        if self._settings.is_embedded:
            with closing(sqlite3.connect(self._settings.embedded_file)) as connection, connection:
                for statement in MAKE_LATER:
                    connection.execute(statement, (LATER,))
                for statement in OTHER_LAYOUT if self.has_other_layout else ():
                    connection.execute(statement, {"other": OTHER_JSON, "grants": OTHER_GRANTS})
            return
        with redis.Redis.from_url(str(self._settings.redis_url)) as client:
            for key in client.scan_iter("fiml:{*:header"):
                client.hset(key, "format", LATER)
                if self.has_other_layout:
                    client.hdel(key, *GONE_FROM_REDIS)
                    client.hset(key, "sums", b"\x93\x01\x02\x03")
        server = await asyncpg.connect(str(self._settings.database_url))
        await server.execute("UPDATE sessions SET format = $1", LATER)
        if self.has_other_layout:
            await server.execute("UPDATE sessions SET tags = $1, context = '[]', grants = $2", OTHER_JSON, OTHER_GRANTS)
        await server.close()

    async def take_a_new_type(self) -> None:
        if self._settings.is_embedded:
            with closing(sqlite3.connect(self._settings.embedded_file)) as connection, connection:
                connection.execute("UPDATE active_sessions SET type = 'poetry'")
            return
        with redis.Redis.from_url(str(self._settings.redis_url)) as client:
            for key in client.scan_iter("fiml:{*:header"):
                client.hset(key, "type", "poetry")

    async def lose_metrics(self) -> None:
        if self._settings.is_embedded:
            with closing(sqlite3.connect(self._settings.embedded_file)) as connection, connection:
                connection.execute("DELETE FROM session_metrics")
            return
        server = await asyncpg.connect(str(self._settings.database_url))
        await server.execute("DELETE FROM session_metrics")
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


@pytest.fixture(params=["its layout is known", "its layout is another"])
def stored(request: pytest.FixtureRequest, backend_settings: Settings) -> Stored:
    return Stored(backend_settings, has_other_layout=request.param == "its layout is another")


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
async def test_a_user_whom_it_is_shared_with_can_be_erased(
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


@pytest.mark.parametrize("state", BY_STATE)
async def test_it_is_not_read(store: SessionStore, stored: Stored, clock: FrozenClock, state: str) -> None:
    session = await a_session(store, clock, state)
    await stored.make_later()

    with pytest.raises(SchemaTooNew, match=rf"install fiml 0\.{LATER}\.0 or newer"):
        await store.get_session(session.id)
    with pytest.raises(SchemaTooNew):
        await store.as_principal(FRIEND).get_session(session.id)
    assert await store.as_principal("stranger").get_session(session.id) is None


@pytest.mark.parametrize("user", [OWNER, FRIEND])
@pytest.mark.parametrize("state", ["live", "archived"])
async def test_the_others_are_listed_and_found(
    store: SessionStore, stored: Stored, clock: FrozenClock, state: str, user: str
) -> None:
    """It is among them where its layout is the one that is known."""
    later = await a_session(store, clock, state)
    await stored.make_later()
    clock.advance(seconds=1)
    other = await a_session(store, clock, state)
    reader = store.as_principal(user)
    shown = [other.id] if stored.has_other_layout else [other.id, later.id]

    page = await reader.list_user_sessions(None, include_archived=True, limit=1)
    rest = [] if page.next_cursor is None else await reader.list_user_sessions(None, True, 1, page.next_cursor)
    found = await reader.search_sessions(None, type="equity")

    assert [summary.id for summary in [*page, *rest]] == shown
    assert other.id in [summary.id for summary in found]


async def test_a_page_goes_on_behind_one_of_a_type_that_is_not_known_yet(
    store: SessionStore, stored: Stored, clock: FrozenClock
) -> None:
    older = await a_session(store, clock, "archived")
    clock.advance(seconds=1)
    await a_session(store, clock, "live")
    await stored.take_a_new_type()
    with pytest.raises(CorruptRecord):
        await store.list_user_sessions(OWNER)
    await stored.make_later()

    page = await store.list_user_sessions(OWNER, include_archived=True, limit=1)
    rest = await store.list_user_sessions(OWNER, True, 1, page.next_cursor)

    assert page == []
    assert [summary.id for summary in rest] == ([] if stored.has_other_layout else [older.id])


async def test_a_search_names_a_live_one_that_it_can_not_read(
    store: SessionStore, stored: Stored, clock: FrozenClock
) -> None:
    later = await a_session(store, clock, "live")
    await stored.make_later()

    found = await store.search_sessions(OWNER, type="equity")

    assert [*found.unreadable, *(summary.id for summary in found)] == [later.id]
    assert not stored.has_other_layout or found.unreadable == [later.id]


async def test_a_sweep_leaves_it_where_it_is(store: SessionStore, stored: Stored, clock: FrozenClock) -> None:
    await a_session(store, clock, "expired")
    await stored.make_later()
    before = await stored.dump()

    report = await store.sweep()

    assert (report.archived, report.quarantined, report.postponed) == (0, 0, 1)
    assert await stored.dump() == before
    assert await store.list_quarantine() == []


async def test_metrics_of_the_others_are_written(store: SessionStore, stored: Stored, clock: FrozenClock) -> None:
    await a_session(store, clock, "archived")
    await stored.make_later()
    await a_session(store, clock, "archived")
    await stored.lose_metrics()

    written = await store.write_missing_metrics()

    assert written == (1 if stored.has_other_layout else 2)
