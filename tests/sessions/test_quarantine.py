"""What can't be archived is quarantined as a whole, and the other sessions are archived."""

import asyncio
from itertools import count
from uuid import UUID

import asyncpg
import pytest

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, RecordRefused, SessionNotFound, SessionOnHold, SessionQuarantined
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.redis.tier import RedisTier
from fiml.sessions.backends.tiered.backend import SCRIPTS
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.backends import open_watched_store
from tests.support.damage import DAMAGES, Surgeon, refusing
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen, sweep_one_step_at_a_time

OWNER = "ann"
MANY = 1000


@pytest.fixture
async def session(store: SessionStore) -> Session:
    created = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    for n in range(3):
        await store.record_query(created.id, make_query(f"{n}"), context={f"{n}": n})
    return await existing(store, created.id)


@pytest.mark.parametrize("how", DAMAGES)
async def test_a_damaged_session_is_set_aside_with_its_bytes_and_the_reason(
    store: SessionStore, session: Session, clock: FrozenClock, backend_settings: Settings, how: str
) -> None:
    others = [await store.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1) for _ in range(5)]
    await Surgeon(backend_settings, session.id).damage(how)
    clock.advance(hours=2)

    report = await store.sweep()

    assert (report.archived, report.quarantined) == (len(others), 1)
    assert {summary.id for summary in await listing(store)} == {other.id for other in others}
    [kept] = await store.list_quarantine()
    assert (kept.id, kept.quarantined_at) == (session.id, clock.now())
    assert kept.user_id == OWNER or (how == "a user that is no text" and kept.user_id is None)
    assert kept.reason
    with pytest.raises(SessionQuarantined, match="quarantine"):
        await store.get_session(session.id)
    with pytest.raises(SessionQuarantined):
        await store.resume_session(session.id)
    with pytest.raises(SessionQuarantined):
        await store.retry_quarantined(session.id)
    shown = await store.get_quarantined(session.id)
    assert "fundamentals" not in str(shown)
    assert "AAPL" in str(shown["record"])
    assert (await store.sweep()).quarantined == 0
    assert await store.delete_session(session.id)
    assert await store.get_session(session.id) is None


async def test_two_sweepers_at_one_damaged_session_keep_its_bytes(
    store: SessionStore, clock: FrozenClock, backend_settings: Settings
) -> None:
    damaged = []
    for _ in range(8):
        created = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        await store.record_query(created.id, make_query(), context={"0": 0})
        await Surgeon(backend_settings, created.id).damage("an unknown type")
        damaged.append(created.id)
    clock.advance(hours=2)

    async with SessionStore(backend_settings) as other:
        await asyncio.gather(store.sweep(), other.sweep(), store.sweep())

    assert {each.id for each in await store.list_quarantine()} == set(damaged)
    for session_id in damaged:
        assert "poetry" in str(await store.get_quarantined(session_id))
        assert await store.delete_session(session_id)


async def test_the_quarantine_is_read_in_pages_of_those_that_are_longest_there(
    store: SessionStore, clock: FrozenClock, backend_settings: Settings
) -> None:
    damaged: list[UUID] = []
    for _ in range(3):
        created = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        await store.record_query(created.id, make_query(), context={"0": 0})
        await Surgeon(backend_settings, created.id).damage("an unknown type")
        damaged.append(created.id)
        clock.advance(hours=2)
        assert (await store.sweep()).quarantined == 1

    first = await store.list_quarantine(2)
    second = await store.list_quarantine(2, after=first[-1])

    assert [each.id for each in (*first, *second)] == damaged
    assert await store.list_quarantine(2, after=second[-1]) == []


@pytest.mark.parametrize("how", ["no version", "a version that is no number"])
async def test_an_erasure_reaches_a_live_session_that_can_not_be_read(
    store: SessionStore, session: Session, backend_settings: Settings, how: str
) -> None:
    await Surgeon(backend_settings, session.id).damage(how)

    assert (await store.erase_user(OWNER)).erased == [session.id]

    if backend_settings.redis_url is not None:
        client = RedisClient(backend_settings.redis_url, ())
        [left] = await client.run([("KEYS", f"fiml:{{{session.id.hex}}}:[heqi]*")])
        await client.close()
        assert left == []


async def test_one_poisoned_record_among_a_thousand_stops_no_other(
    store: SessionStore, clock: FrozenClock, backend_settings: Settings
) -> None:
    sessions = [
        await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1) for _ in range(MANY)
    ]
    poisoned = sessions[MANY // 2]
    await store.record_query(poisoned.id, make_query(), context={"0": 0})
    await Surgeon(backend_settings, poisoned.id).damage("an entry that is no JSON")
    clock.advance(hours=2)

    report = await store.sweep()

    assert (report.archived, report.quarantined) == (MANY - 1, 1)
    archived = {summary.id for summary in await listing(store) if summary.is_archived}
    assert archived == {session.id for session in sessions} - {poisoned.id}
    assert [each.id for each in await store.list_quarantine()] == [poisoned.id]


async def test_a_session_that_the_database_refuses_is_archived_whole_once_it_takes_it(
    store: SessionStore, session: Session, clock: FrozenClock, backend_settings: Settings
) -> None:
    others = [await store.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1) for _ in range(9)]
    session.title = "refused"
    session = await store.update_session(session.id, session)
    await store.share_session(session.id, "bob")
    clock.advance(hours=2)

    async with refusing(backend_settings, "refused"):
        report = await store.sweep()
        assert (report.archived, report.quarantined) == (len(others), 1)
        with pytest.raises(SessionQuarantined, match="refuse"):
            await store.retry_quarantined(session.id)
    await store.retry_quarantined(session.id)

    assert await store.list_quarantine() == []
    with pytest.raises(SessionNotFound):
        await store.retry_quarantined(session.id)
    archived = await existing(store, session.id)
    assert archived.is_archived
    assert content(archived) == content(session)
    assert await store.list_shares(session.id) == []  # meanwhile, nobody could stop sharing it
    assert await store.as_principal("bob").get_session(session.id) is None
    assert (await store.resume_session(session.id)).state.history.total_queries == 3


async def test_a_refused_session_that_is_archived_by_hand_stays_where_it_is(
    store: SessionStore, session: Session, backend_settings: Settings
) -> None:
    await Surgeon(backend_settings, session.id).damage("an entry that is no JSON")

    with pytest.raises((RecordRefused, CorruptRecord), match=str(session.id)):
        await store.archive_session(session.id)

    assert await store.list_quarantine() == []
    assert [summary.id for summary in await listing(store)] == [session.id]


async def test_a_session_of_a_later_format_is_left_alone(
    store: SessionStore, session: Session, clock: FrozenClock, backend_settings: Settings
) -> None:
    surgeon = Surgeon(backend_settings, session.id)
    if backend_settings.is_embedded:
        surgeon.sqlite("UPDATE active_sessions SET format = 99 WHERE id = ID")
    else:
        await surgeon.redis(("HSET", "KEY:header", "format", 99))
    await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    clock.advance(hours=2)

    report = await store.sweep()

    assert (report.archived, report.quarantined, report.postponed) == (1, 0, 1)
    if backend_settings.is_embedded:
        surgeon.sqlite("UPDATE active_sessions SET format = 2 WHERE id = ID")
    else:
        await surgeon.redis(("HSET", "KEY:header", "format", 2))
    clock.advance(hours=2)
    assert (await store.sweep()).archived == 1
    assert content(await existing(store, session.id)) == content(session)


async def test_a_hold_keeps_a_session_in_quarantine_too(
    store: SessionStore, session: Session, clock: FrozenClock, backend_settings: Settings
) -> None:
    await Surgeon(backend_settings, session.id).damage("a date")
    clock.advance(hours=2)
    await store.sweep()

    await store.hold(session.id, "inquiry")

    with pytest.raises(SessionOnHold, match="inquiry"):
        await store.delete_session(session.id)
    receipt = await store.erase_user(OWNER)
    assert (receipt.erased, receipt.held) == ([], {session.id: "inquiry"})
    assert await store.release(session.id)
    assert (await store.erase_user(OWNER)).erased == [session.id]
    assert await store.list_quarantine() == []


async def test_a_stranger_sees_no_quarantine(
    store: SessionStore, session: Session, clock: FrozenClock, backend_settings: Settings
) -> None:
    await Surgeon(backend_settings, session.id).damage("a lost query")
    clock.advance(hours=2)
    await store.sweep()
    stranger, owner = store.as_principal("eve"), store.as_principal(OWNER)

    assert await stranger.list_quarantine() == []
    assert await stranger.get_session(session.id) is None
    with pytest.raises(SessionNotFound):
        await stranger.get_quarantined(session.id)
    with pytest.raises(SessionNotFound):
        await stranger.retry_quarantined(session.id)
    with pytest.raises(SessionNotFound):
        await stranger.hold(session.id, "mine")
    assert [each.id for each in await owner.list_quarantine()] == [session.id]


async def test_a_session_that_is_being_deleted_is_not_set_aside_behind_it(
    deployment: Deployment, clock: FrozenClock
) -> None:
    """The deletion has its lock and its tombstone, and is not yet done."""
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        await Surgeon(deployment.settings(), session.id).damage("an unknown type")
        clock.advance(hours=2)
        deleting = await asyncpg.connect(deployment.database_url)
        async with deleting.transaction():
            await deleting.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", str(session.id))
            bury = "INSERT INTO session_tombstones (id, version, deleted_at) VALUES ($1, 1, now())"
            await deleting.execute(bury, session.id)
            swept = await store.sweep()
        await deleting.close()

        assert swept.quarantined == 0
        assert (await store.sweep()).quarantined == 0
        assert await store.list_quarantine() == []
        assert await store.get_session(session.id) is None


async def test_a_copy_from_before_it_went_on_living_hides_no_session_that_is_set_aside(
    deployment: Deployment, clock: FrozenClock
) -> None:
    """As a resume leaves it whose process dies before it has taken the copy away."""
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        await store.archive_session(session.id)
        server = await asyncpg.connect(deployment.database_url)
        await server.execute("CREATE TEMPORARY TABLE kept AS SELECT * FROM sessions")
        await store.resume_session(session.id, 1)
        await server.execute("INSERT INTO sessions SELECT * FROM kept")
        await store.record_query(session.id, make_query())
        await Surgeon(deployment.settings(), session.id).damage("an unknown type")
        clock.advance(hours=2)

        assert (await store.sweep()).quarantined == 1

        for call in (store.get_session(session.id), store.resume_session(session.id)):
            with pytest.raises(SessionQuarantined):
                await call
        assert await server.fetchval("SELECT count(*) FROM session_metrics") == 0
        await server.close()


async def test_what_was_set_aside_becomes_live_in_no_older_state(deployment: Deployment, clock: FrozenClock) -> None:
    client = RedisClient.of(deployment.settings(), SCRIPTS)
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        before = await RedisTier(client).read(session.id, now=None)
        assert before is not None
        await Surgeon(deployment.settings(), session.id).damage("an unknown type")
        clock.advance(hours=2)
        assert (await store.sweep()).quarantined == 1

        assert await RedisTier(client).put(before) == "outdated"
    await client.close()


async def test_a_session_whose_header_is_of_another_type_is_set_aside(
    deployment: Deployment, clock: FrozenClock
) -> None:
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        surgeon = Surgeon(deployment.settings(), session.id)
        await surgeon.redis(("DEL", "KEY:header"), ("SET", "KEY:header", "text"))
        clock.advance(hours=2)

        assert (await store.sweep()).quarantined == 1

        assert "text" in str(await store.get_quarantined(session.id))
        assert not await surgeon.is_live()


async def test_a_session_that_lives_on_while_it_is_set_aside_is_not_taken_out(
    deployment: Deployment, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_one_step_at_a_time(monkeypatch)
    lived_on: list[UUID] = []
    async with SessionStore(deployment.settings()) as store:
        for step in count(1):
            session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
            surgeon, query = Surgeon(deployment.settings(), session.id), make_query()
            await surgeon.damage("an unknown type")
            clock.advance(hours=2)

            async def live_on(
                session: Session = session, surgeon: Surgeon = surgeon, query: QueryRecord = query
            ) -> None:
                """Once it is in quarantine, and before it is taken out."""
                if await store.list_quarantine() and await surgeon.is_live():
                    await surgeon.redis(("HSET", "KEY:header", "type", "equity"))
                    await store.resume_session(session.id)
                    await store.record_query(session.id, query)
                    lived_on.append(session.id)

            frozen = Frozen(live_on, does_die=False)
            async with open_watched_store(deployment.settings(), frozen.around) as sweeping:
                frozen.freeze_at(step)
                report = await sweeping.sweep()

            if session.id in lived_on:
                assert report.quarantined == 0
                assert await store.list_quarantine() == []
                assert (await existing(store, session.id)).state.history.queries == [query]
            await store.delete_session(session.id)
            if not frozen.has_thawed:
                break
    assert lived_on
