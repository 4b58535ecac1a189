"""What happens at the edges of the store's promises, on each deployment."""

import asyncio
import copy
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis

from fiml.core.config import MAX_COUNT, Settings
from fiml.core.errors import (
    CorruptRecord,
    FimlError,
    InvalidInput,
    Misconfigured,
    SchemaTooNew,
    SessionNotFound,
    Unavailable,
)
from fiml.db.redis_client import RedisClient
from fiml.sessions.analytics import SessionAnalytics
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.records import FORMAT
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.servers import postgres_server, valkey_server


@pytest.fixture
async def session(store: SessionStore) -> Session:
    return await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann", ttl_hours=1)


async def test_a_change_made_while_a_write_is_under_way_is_written_by_the_next(
    store: SessionStore, session: Session
) -> None:
    session.add_query(QueryRecord("price"))
    write = asyncio.create_task(store.update_session(session.id, session))
    await asyncio.sleep(0)
    session.add_query(QueryRecord("technical"))
    session.title = "late"
    session.tags.append("late")
    session.state.context["late"] = True
    await write

    merged = await store.update_session(session.id, session)

    assert [query.query_type for query in merged.state.history.queries] == ["price", "technical"]
    assert (merged.title, merged.tags, merged.state.context) == ("late", ["late"], {"late": True})


async def test_an_object_from_a_document_writes_only_what_was_changed_on_it(
    store: SessionStore, session: Session
) -> None:
    restored = Session.from_dict(session.to_dict())
    extended = await store.extend_session(session.id, 10)
    restored.state.update_context("key", "value")

    merged = await store.update_session(session.id, restored)

    assert merged.expires_at == extended.expires_at
    assert merged.state.context == {"key": "value"}


async def test_an_object_that_was_never_read_is_refused(store: SessionStore, session: Session) -> None:
    made_by_hand = Session(id=session.id, type=SessionType.CRYPTO, assets=["BTC"])

    with pytest.raises(InvalidInput, match="was not read from the store"):
        await store.update_session(session.id, made_by_hand)

    stranger = Session(type=SessionType.CRYPTO, assets=["BTC"])
    with pytest.raises(SessionNotFound):
        await store.update_session(stranger.id, stranger)


async def test_what_is_no_session_is_refused_as_an_update(store: SessionStore, session: Session) -> None:
    document: Any = session.to_dict()

    with pytest.raises(InvalidInput, match="is a dict; give the Session that was read"):
        await store.update_session(session.id, document)


async def test_a_recorded_query_never_changes(store: SessionStore, session: Session) -> None:
    await store.record_query(session.id, QueryRecord("price", {"symbol": "AAPL"}))
    read = await store.get_session(session.id)
    assert read is not None
    read.state.history.queries[0].parameters["symbol"] = "MSFT"

    with pytest.raises(InvalidInput, match="a recorded query can't be changed"):
        await store.update_session(session.id, read)


async def test_an_access_in_the_future_is_refused(store: SessionStore, session: Session) -> None:
    session.last_accessed_at += timedelta(days=365 * 80)

    with pytest.raises(InvalidInput, match="last_accessed_at lies in the future"):
        await store.update_session(session.id, session)


async def test_the_metrics_of_a_live_session_are_replaced_when_it_ends(
    store: SessionStore, session: Session, clock: FrozenClock
) -> None:
    analytics = SessionAnalytics(store.session_maker)
    await analytics.record_session_metrics(session)
    clock.advance(hours=2)

    await store.cleanup_expired_sessions()

    assert (await analytics.get_session_stats())["abandonment_rate"] == 1.0


async def test_analytics_that_are_off_write_nothing_and_say_so(backend_settings: Settings) -> None:
    settings = backend_settings.model_copy(update={"session_enable_analytics": False})
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        analytics = SessionAnalytics(store.session_maker)
        await analytics.record_session_metrics(session)
        await store.archive_session(session.id)

        stats = await analytics.get_session_stats()

    assert stats["total_sessions"] == 0
    assert stats["analytics_enabled"] is False


@pytest.mark.parametrize("recent", [0, 1, 2, 4, 9])
async def test_the_last_queries_of_an_archived_session_are_read_alone(
    store: SessionStore, session: Session, recent: int
) -> None:
    for query_type in ("first", "second", "third"):
        await store.record_query(session.id, QueryRecord(query_type))
    await store.archive_session(session.id)

    read = await store.get_session(session.id, recent_queries=recent)

    assert read is not None
    expected = ["first", "second", "third"][3 - min(recent, 3) :]
    assert [query.query_type for query in read.state.history.queries] == expected
    assert read.state.history.total_queries == 3


async def test_a_session_that_cant_be_read_stops_no_sweep_and_can_be_deleted(
    store: SessionStore, session: Session, clock: FrozenClock, backend_settings: Settings
) -> None:
    others = [await store.create_session(["MSFT"], SessionType.EQUITY, ttl_hours=1) for _ in range(3)]
    await corrupt(backend_settings, session.id)
    clock.advance(hours=2)

    assert await store.cleanup_expired_sessions() == len(others)
    with pytest.raises(CorruptRecord, match=str(session.id)):
        await store.get_session(session.id)
    assert await store.delete_session(session.id) is True
    assert await store.get_session(session.id) is None


async def test_nobody_learns_that_anothers_session_cant_be_read(
    store: SessionStore, session: Session, backend_settings: Settings
) -> None:
    await corrupt(backend_settings, session.id)
    stranger = store.as_principal("eve")

    for call in (
        stranger.share_session(session.id, "bob"),
        stranger.unshare_session(session.id, "bob"),
        stranger.create_share_code(session.id),
        stranger.redeem_share_code(session.id, "share_guess"),
        stranger.get_audit_trail(session.id),
        stranger.record_query(session.id, QueryRecord("price")),
        stranger.extend_session(session.id, 1),
    ):
        with pytest.raises(SessionNotFound):
            await call


@pytest.mark.parametrize("value", ["'2026-01.01 00:00:00.000000'", "5", "x'00ff'"])
async def test_an_invalid_time_is_damage_to_readers_of_the_archive(sqlite_settings: Settings, value: str) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")
        await store.archive_session(session.id)
        with closing(sqlite3.connect(sqlite_settings.embedded_file)) as connection, connection:
            connection.execute(f"UPDATE sessions SET last_accessed_at = {value}")  # noqa: S608 - of ours

        for call in (
            store.get_session(session.id),
            store.resume_session(session.id),
            store.list_user_sessions("ann", include_archived=True),
            store.search_sessions("ann", symbol="AAPL"),
        ):
            with pytest.raises(CorruptRecord, match="holds a time that can't be read"):
                await call
        with pytest.raises(CorruptRecord, match=str(session.id)):
            await store.get_session(session.id)
        assert await store.delete_session(session.id)


async def test_a_session_whose_archive_was_set_back_waits(deployment: Deployment, clock: FrozenClock) -> None:
    """As when PostgreSQL is restored from a backup: Redis remembers a later version for an hour."""
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")
        await store.archive_session(session.id)
        with redis.Redis.from_url(deployment.redis_url) as client:
            client.set(f"fiml:{{{session.id.hex}}}:floor", 50)

            with pytest.raises(Unavailable, match="later version"):
                await store.resume_session(session.id)

            client.delete(f"fiml:{{{session.id.hex}}}:floor")
        assert (await store.resume_session(session.id)).id == session.id


async def test_a_record_of_a_later_version_is_not_written_to(
    store: SessionStore, session: Session, backend_settings: Settings
) -> None:
    await corrupt(backend_settings, session.id, field="format", value=str(FORMAT + 1))

    with pytest.raises(SchemaTooNew, match=rf"install fiml 0\.{FORMAT + 1}\.0 or newer"):
        await store.record_query(session.id, QueryRecord("price"))
    with pytest.raises(SchemaTooNew):
        await store.get_session(session.id)


BAD_CALLS: dict[str, Any] = {
    "a query's id": lambda store, s: store.record_query(s.id, QueryRecord("price", id="x")),  # type: ignore[arg-type]
    "recent as text": lambda store, s: store.get_session(s.id, recent_queries="x"),
    "recent as a fraction": lambda store, s: store.get_session(s.id, recent_queries=2.5),
    "recent as a truth": lambda store, s: store.get_session(s.id, recent_queries=True),
    "recent beyond counting": lambda store, s: store.get_session(s.id, recent_queries=10**30),
    "entries as a list": lambda store, s: store.record_query(s.id, QueryRecord("price"), context=[1]),
    "a cursor of brackets": lambda store, s: store.list_user_sessions(None, cursor="W1tb" * 9000),
    "a cursor of another type": lambda store, s: store.list_user_sessions(None, cursor=5),
    "a version that is a truth": lambda store, s: store.update_session(s.id, s, expected_version=True),
    "no hours": lambda store, s: store.extend_session(s.id, None),
    "no session": lambda store, s: store.update_session(s.id, {"id": s.id}),
    "a tag that is a number": lambda store, s: store.list_user_sessions(None, tag=5),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
async def test_a_value_of_the_wrong_type_is_invalid_input(store: SessionStore, session: Session, call: Any) -> None:
    before = await store.get_session(session.id)

    with pytest.raises(InvalidInput):
        await call(store, session)

    assert await store.get_session(session.id) == before


@pytest.mark.parametrize("change", ["state", "history", "queries"])
async def test_a_state_of_the_wrong_type_is_invalid_input(store: SessionStore, session: Session, change: str) -> None:
    broken: Any = copy.deepcopy(session)
    match change:
        case "state":
            broken.state = None
        case "history":
            broken.state.history = None
        case _:
            broken.state.history.queries = None

    with pytest.raises(InvalidInput):
        await store.update_session(session.id, broken)


async def test_a_value_that_repeats_itself_a_million_times_is_refused_early(session: Session) -> None:
    value: list[Any] = []
    for _ in range(30):
        value = [value, value]

    with pytest.raises(InvalidInput, match="256 KiB"):
        session.state.update_context("key", value)


async def test_every_error_is_typed_while_the_engines_are_away_and_calls_work_again_when_they_are_back() -> None:
    with valkey_server(append_only=True) as valkey, postgres_server(durable=True) as postgres:
        async with SessionStore(Settings(redis_url=valkey.url, database_url=postgres.url)) as store:
            sessions = await asyncio.gather(*(store.create_session(["AAPL"], SessionType.EQUITY) for _ in range(20)))
            analytics = SessionAnalytics(store.session_maker, store)
            valkey.kill()
            postgres.kill()

            for call in (
                store.get_session(sessions[0].id),
                analytics.get_session_stats(),
                store.resume_session(UUID(int=1)),
            ):
                with pytest.raises(Unavailable):
                    await call

            valkey.start()
            postgres.start()
            found = await asyncio.gather(*(store.get_session(session.id) for session in sessions))
            assert all(session is not None for session in found)
            assert (await analytics.get_session_stats())["total_sessions"] == 20


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("FIML_REDIS_URL", "redis://127.0.0.1:1?foo=bar"),
        ("FIML_REDIS_URL", "redis://127.0.0.1:1?max_connections=0"),
        ("FIML_REDIS_URL", "redis://user:sec/ret@127.0.0.1:1"),
        ("FIML_DATABASE_URL", "postgresql://127.0.0.1:1/fiml?nonsense=1"),
        ("FIML_DATABASE_URL", "postgresql://127.0.0.1:1/fiml?connect_timeout=soon"),
        ("FIML_DATABASE_URL", "postgresql://user:sec/ret@127.0.0.1:x/fiml"),
    ],
)
async def test_a_url_that_cant_be_used_is_misconfigured_and_keeps_its_secret(variable: str, url: str) -> None:
    urls = {"FIML_REDIS_URL": "redis://127.0.0.1:1", "FIML_DATABASE_URL": "postgresql://127.0.0.1:1/fiml"} | {
        variable: url
    }
    settings = Settings(redis_url=urls["FIML_REDIS_URL"], database_url=urls["FIML_DATABASE_URL"])

    with pytest.raises(FimlError) as caught:
        await SessionStore(settings).initialize()

    assert isinstance(caught.value, Misconfigured)
    assert variable in str(caught.value)
    assert "sec" not in str(caught.value).replace("seconds", "")


async def corrupt(settings: Settings, session_id: UUID, field: str = "created", value: str = "[") -> None:
    if settings.redis_url is not None:
        client = RedisClient(settings.redis_url, ())
        await client.run([("HSET", f"fiml:{{{session_id.hex}}}:header", field, value)])
        await client.close()
        return
    column = {"created": "assets"}.get(field, field)
    with closing(sqlite3.connect(settings.embedded_file)) as connection, connection:
        connection.execute(f"UPDATE active_sessions SET {column} = ? WHERE id = ?", (value, session_id.hex))  # noqa: S608


async def test_a_shutdown_that_is_cancelled_is_finished_by_the_next(clock: FrozenClock) -> None:
    settings = Settings()
    store = SessionStore(settings)
    await store.initialize()
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("fiml-sqlite")}

    closing = asyncio.create_task(store.shutdown())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    await store.shutdown()

    assert closing.cancelled()
    assert [file.name for file in settings.embedded_file.parent.iterdir()] == ["fiml.db"]
    assert before
    assert not any(thread.is_alive() for thread in before)
    async with store:
        assert await store.get_session(session.id) is not None


@contextmanager
def two_loops() -> Iterator[tuple[asyncio.Runner, asyncio.Runner]]:
    """Runners that leave the thread's current loop alone, which those without a factory don't."""
    make = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=make) as first, asyncio.Runner(loop_factory=make) as second:
        yield first, second


def test_a_store_over_servers_is_used_in_the_event_loop_that_opened_it(deployment: Deployment) -> None:
    """Its connections belong to that loop: in another one, some calls would fail and some hang."""
    store = SessionStore(deployment.settings())
    with two_loops() as (first, second):
        first.run(store.initialize())
        session = first.run(store.create_session(["AAPL"], SessionType.EQUITY))
        for call in (
            store.get_session(session.id),
            store.as_principal("ann").list_user_sessions("ann"),
            store.initialize(),
            store.shutdown(),
        ):
            with pytest.raises(Unavailable, match="another event loop"):
                second.run(call)
        assert first.run(store.get_session(session.id)) is not None
        first.run(store.shutdown())

        second.run(store.initialize())
        assert second.run(store.get_session(session.id)) is not None
        second.run(store.shutdown())


def test_an_embedded_store_works_in_any_event_loop(sqlite_settings: Settings) -> None:
    store = SessionStore(sqlite_settings)
    with two_loops() as (first, second):
        first.run(store.initialize())
        session = first.run(store.create_session(["AAPL"], SessionType.EQUITY))
        assert second.run(store.get_session(session.id)) is not None
        second.run(store.shutdown())


async def test_a_session_may_be_as_large_as_the_settings_can_say(backend_settings: Settings) -> None:
    largest = {"session_max_queries_per_session": MAX_COUNT, "session_max_changes": MAX_COUNT}

    async with SessionStore(backend_settings.model_copy(update=largest)) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        totals = await store.record_query(session.id, QueryRecord("price"))

    assert totals.total_queries == 1
