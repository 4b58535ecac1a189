"""What was taken back stays taken back, whatever copies of a session a crash or a resume in progress left."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from uuid import UUID, uuid4

import pytest

from fiml.core.config import Settings
from fiml.core.errors import FimlError, SessionNotFound, Unavailable
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.redis import keys
from fiml.sessions.backends.redis.tier import FLOOR_S, SCRIPTS, TOMBSTONE_S, RedisTier
from fiml.sessions.models import SessionType
from fiml.sessions.rights import Role
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing import make_query
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import OWNER, existing, listing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen

GUEST = "bob"


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return deployment.settings()


async def begin(store: SessionStore, role: Role = Role.EDITOR) -> UUID:
    owner = store.as_principal(OWNER)
    session = await owner.create_session(["AAPL"], SessionType.EQUITY, title="secret")
    await owner.share_session(session.id, GUEST, role)
    return session.id


async def leave_a_copy(settings: Settings, session_id: UUID, verb: str) -> None:
    """Let a process die behind the step that leaves a session both live and archived."""
    faults = Faults()
    async with open_watched_store(settings, faults.around) as crashing:
        faults.crash_at(2 if verb == "archive" else 3, is_reply_lost=True)
        with suppress(Crash):
            await (crashing.archive_session if verb == "archive" else crashing.resume_session)(session_id)
        faults.disarm()


async def has_nothing(view: SessionVerbs, session_id: UUID) -> None:
    assert await view.get_session(session_id) is None
    assert await listing(view, None) == []
    assert await view.search_sessions(None, symbol="AAPL") == []
    for each in (session_id, uuid4()):
        assert not await view.delete_session(each)
        with pytest.raises(SessionNotFound):
            await view.extend_session(each, 1)
        with pytest.raises(SessionNotFound):
            await view.hold(each, "mine")


@pytest.mark.parametrize("verb", ["archive", "resume"])
async def test_a_copy_at_rest_gives_nobody_what_the_live_session_took_back(
    store: SessionStore, settings: Settings, verb: str
) -> None:
    session_id = await begin(store)
    if verb == "resume":
        await store.archive_session(session_id)
    await leave_a_copy(settings, session_id, verb)

    await store.as_principal(OWNER).unshare_session(session_id, GUEST)

    await has_nothing(store.as_principal(GUEST), session_id)
    await store.archive_session(session_id)
    await has_nothing(store.as_principal(GUEST), session_id)


async def test_a_code_is_redeemed_once_though_a_copy_holds_it_too(store: SessionStore, settings: Settings) -> None:
    session_id = await begin(store)
    code = str((await store.create_share_code(session_id, Role.EDITOR)).code)
    await leave_a_copy(settings, session_id, "archive")
    cem, eve = store.as_principal("cem"), store.as_principal("eve")

    await cem.redeem_share_code(session_id, code)
    await cem.record_query(session_id, make_query("important"))
    with pytest.raises(SessionNotFound):
        await eve.redeem_share_code(session_id, code)
    await store.archive_session(session_id)

    ended = await existing(store, session_id)
    assert ended.state.history.get_query_types_summary() == {"important": 1}
    assert [share.user_id for share in await store.list_shares(session_id)] == [GUEST, "cem"]
    assert [(each.did, each.by) for each in await store.get_audit_trail(session_id)][-3:] == [
        ("redeem", "cem"),
        ("record", "cem"),
        ("archive", None),
    ]


@pytest.mark.parametrize("does_die", [False, True])
async def test_what_is_taken_back_while_a_resume_is_under_way_stays_taken_back(
    store: SessionStore, settings: Settings, does_die: bool
) -> None:
    for step in count(1):
        session_id = await begin(store)
        await store.archive_session(session_id)

        async def unshare(session_id: UUID = session_id) -> None:
            await store.as_principal(OWNER).unshare_session(session_id, GUEST)

        frozen = Frozen(unshare, does_die=does_die)
        async with open_watched_store(settings, frozen.around) as resuming:
            frozen.freeze_at(step)
            with suppress(Crash, FimlError):
                await resuming.resume_session(session_id)
        if frozen.has_thawed:
            await has_nothing(store.as_principal(GUEST), session_id)
            assert [each.did for each in await store.get_audit_trail(session_id)].count("revoke") == 1
        await store.delete_session(session_id)
        if not frozen.has_thawed:
            break
    assert step > 3


async def test_what_is_taken_back_while_a_resume_dies_stays_taken_back(store: SessionStore, settings: Settings) -> None:
    for step in count(1):
        session_id = await begin(store)
        await store.archive_session(session_id)
        frozen = Frozen(partial(leave_a_copy, settings, session_id, "resume"), does_die=False)
        async with open_watched_store(settings, frozen.around) as unsharing:
            frozen.freeze_at(step)
            await unsharing.as_principal(OWNER).unshare_session(session_id, GUEST)

        await has_nothing(store.as_principal(GUEST), session_id)
        await store.delete_session(session_id)
        if not frozen.has_thawed:
            break
    assert step > 3


async def test_what_changes_nothing_at_rest_keeps_no_session_from_coming_back(store: SessionStore) -> None:
    session_id = await begin(store)
    await store.archive_session(session_id)

    await store.unshare_session(session_id, "nobody")
    await store.share_session(session_id, GUEST, Role.EDITOR)

    assert not (await store.resume_session(session_id)).is_archived


async def test_a_fence_that_comes_late_lowers_none(store: SessionStore, settings: Settings) -> None:
    session_id = await begin(store)
    await store.archive_session(session_id)
    version = (await existing(store, session_id)).version
    client = RedisClient.of(settings, SCRIPTS)

    for fenced in (version + 5, version):
        assert await RedisTier(client).fence(session_id, fenced)
    await client.close()

    with pytest.raises(Unavailable, match="a later version"):
        await store.resume_session(session_id)


async def test_a_fence_is_forgotten_after_an_hour_and_a_deletion_after_a_day(
    store: SessionStore, settings: Settings
) -> None:
    session_id, client = await begin(store), RedisClient.of(settings, SCRIPTS)
    tier = RedisTier(client)
    record = await tier.read(session_id, now=None)
    assert record is not None
    await store.archive_session(session_id)
    await tier.fence(session_id, record.header.version + 1)
    [fence_s] = await client.run([("TTL", keys.floor_key(session_id))])

    await store.delete_session(session_id)
    await tier.fence(session_id, record.header.version + 2)
    [deletion_s] = await client.run([("TTL", keys.floor_key(session_id))])
    assert await tier.remove([record.header]) == ["absent"]
    revived = await tier.put(replace(record, header=replace(record.header, version=record.header.version + 3)))
    await client.close()

    assert 0 < fence_s <= FLOOR_S < deletion_s <= TOMBSTONE_S
    assert revived == "deleted"
