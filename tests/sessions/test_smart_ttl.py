"""A session in use near its end lives on, if the setting says so."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from fiml.core.config import Settings
from fiml.core.errors import SessionExpired
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.smart_ttl import METADATA_KEY
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance.suite import OpenStore, document, existing
from tests.support.backends import open_watched_store
from tests.support.interleaving import Frozen


async def test_it_is_off_by_default(open_store: OpenStore, clock: FrozenClock) -> None:
    async with open_store() as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        await store.record_query(session.id, QueryRecord("price"))

        assert (await existing(store, session.id)).expires_at == session.expires_at


async def test_a_query_near_the_end_extends_by_half_the_default_and_says_so(
    open_store: OpenStore, clock: FrozenClock
) -> None:
    async with open_store(session_smart_ttl=True, session_default_ttl_hours=24) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=19)
        await store.record_query(session.id, QueryRecord("price"))

        found = await existing(store, session.id)
        clock.advance(hours=11)
        await store.remember(session.id, notes=["still here"])
        again = await existing(store, session.id)

    assert found.expires_at == session.created_at + timedelta(hours=19 + 12)
    assert found.state.metadata[METADATA_KEY] == {
        "extensions": 1,
        "at": "2024-12-24T10:30:00Z",
        "from": "2024-12-24T15:30:00Z",
        "to": "2024-12-24T22:30:00Z",
    }
    assert again.expires_at == session.created_at + timedelta(hours=30 + 12)
    assert again.state.metadata[METADATA_KEY]["extensions"] == 2


async def test_an_update_that_extends_and_the_next_one_give_all_that_is_stored(
    open_store: OpenStore, clock: FrozenClock
) -> None:
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        for n in range(2):
            session.state.context["n"] = n
            merged = await store.update_session(session.id, session)

            assert document(merged) == document(await existing(store, session.id))
            assert merged.state.metadata[METADATA_KEY]["extensions"] == 1
            assert merged.state.context == {"n": n}


@pytest.mark.parametrize("hours", [1, 17])
async def test_a_query_before_the_last_quarter_changes_nothing(
    open_store: OpenStore, clock: FrozenClock, hours: int
) -> None:
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=hours)
        await store.record_query(session.id, QueryRecord("price"))

        found = await existing(store, session.id)

    assert (found.expires_at, found.state.metadata) == (session.expires_at, {})


async def test_a_query_that_is_there_already_is_use_too(open_store: OpenStore, clock: FrozenClock) -> None:
    query = QueryRecord("price")
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        await store.record_query(session.id, query)
        clock.advance(hours=19)
        await store.record_query(session.id, query)

        found = await existing(store, session.id)

    assert found.expires_at == clock.now() + timedelta(hours=12)


async def test_reading_is_no_use_and_an_expired_session_stays_so(open_store: OpenStore, clock: FrozenClock) -> None:
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        assert (await existing(store, session.id)).expires_at == session.expires_at
        clock.advance(hours=1)
        with pytest.raises(SessionExpired):
            await store.record_query(session.id, QueryRecord("price"))


async def test_an_explicit_expiry_is_not_overruled(open_store: OpenStore, clock: FrozenClock) -> None:
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        ends_at = clock.now() + timedelta(minutes=5)
        session.expires_at = ends_at
        await store.update_session(session.id, session)

        assert (await existing(store, session.id)).expires_at == ends_at


async def test_writers_at_once_extend_once_and_lose_nothing(open_store: OpenStore, clock: FrozenClock) -> None:
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        await asyncio.gather(*(store.record_query(session.id, QueryRecord("price")) for _ in range(20)))

        found = await existing(store, session.id)

    assert found.state.history.total_queries == 20
    assert found.expires_at == session.created_at + timedelta(hours=23 + 12)
    assert found.state.metadata[METADATA_KEY]["extensions"] == 1


async def test_an_expiry_that_another_sets_after_the_write_is_not_overruled(
    backend_settings: Settings, store: SessionStore, clock: FrozenClock
) -> None:
    settings = backend_settings.model_copy(update={"session_smart_ttl": True})
    for step in count(2):
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        ends_at = clock.now() + timedelta(minutes=5)

        async def set_expiry(session: Session = session, ends_at: datetime = ends_at) -> None:
            session.expires_at = ends_at
            await store.update_session(session.id, session)

        frozen = Frozen(set_expiry, does_die=False)
        async with open_watched_store(settings, frozen.around) as writing:
            frozen.freeze_at(step)
            await writing.record_query(session.id, QueryRecord("price"))

        if not frozen.has_thawed:
            break
        assert (await existing(store, session.id)).expires_at == ends_at
    assert step > 3


async def test_the_new_expiry_stays_within_the_maximum(open_store: OpenStore, clock: FrozenClock) -> None:
    async with open_store(session_smart_ttl=True, session_default_ttl_hours=3, session_max_ttl_hours=3) as store:
        session = await store.create_session(["AAPL"], "equity")
        for _ in range(10):
            clock.advance(minutes=80)
            await store.record_query(session.id, QueryRecord("price"))
            found = await existing(store, session.id)
            assert found.expires_at <= clock.now() + timedelta(hours=3)


async def test_the_object_that_was_written_knows_its_new_version_and_expiry(
    open_store: OpenStore, clock: FrozenClock
) -> None:
    async with open_store(session_smart_ttl=True) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        session.state.context["a"] = 1
        await store.update_session(session.id, session)

        session.state.context["b"] = 2
        merged = await store.update_session(session.id, session, expected_version=session.version)

    assert merged.state.context == {"a": 1, "b": 2}
    assert session.expires_at == merged.expires_at == session.created_at + timedelta(hours=23 + 12)


async def test_a_query_is_recorded_even_if_the_metadata_are_damaged(tmp_path: Path, clock: FrozenClock) -> None:
    async with SessionStore(Settings(data_dir=tmp_path, session_smart_ttl=True)) as store:
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)
        clock.advance(hours=23)
        await store.record_query(session.id, QueryRecord("price"))
        with closing(sqlite3.connect(tmp_path / "fiml.db")) as connection:
            connection.execute("UPDATE active_entries SET value = '{' WHERE key = ?", [METADATA_KEY])
            connection.commit()
        clock.advance(hours=11)

        totals = await store.record_query(session.id, QueryRecord("price"))
        [found] = await store.list_user_sessions(None)

    assert totals.total_queries == 2
    assert found.expires_at == session.created_at + timedelta(hours=23 + 12)
