"""A process that dies while it shares: no listing lacks what was shared, and nothing remains of what was deleted."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID

import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import FimlError, SessionNotFound
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import OWNER, listing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen

GUEST = "bob"
Verb = Callable[[SessionStore, UUID], Awaitable[Any]]
CODES: dict[UUID, str] = {}


async def share_with_guest(store: SessionStore, session_id: UUID) -> None:
    await store.share_session(session_id, GUEST)


async def redeem(store: SessionStore, session_id: UUID) -> None:
    await store.as_principal("cem").redeem_share_code(session_id, CODES[session_id])


VERBS: dict[str, Verb] = {
    "share": lambda store, session_id: store.share_session(session_id, "cem"),
    "redeem": redeem,
    "unshare": lambda store, session_id: store.unshare_session(session_id, GUEST),
    "archive": lambda store, session_id: store.archive_session(session_id),
    "resume": lambda store, session_id: store.resume_session(session_id),
    "delete": lambda store, session_id: store.delete_session(session_id),
    "erase": lambda store, _: store.erase_user(GUEST),
}


OPPOSITES: dict[str, tuple[Verb, Verb]] = {
    "share": (share_with_guest, VERBS["unshare"]),
    "unshare": (VERBS["unshare"], share_with_guest),
}


@pytest.fixture
async def store(deployment: Deployment, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(deployment.settings()) as opened:
        yield opened


@pytest.mark.parametrize("verb", VERBS)
async def test_a_process_that_dies_at_any_step_leaves_no_listing_wrong(
    store: SessionStore, deployment: Deployment, clock: FrozenClock, verb: str
) -> None:
    for step in count(1):
        session_id = await shared(store, verb)

        has_died = await die_at(step, deployment.settings(), VERBS[verb], session_id)

        await every_listing_is_right(store)
        await finish(store, session_id, VERBS[verb])
        await every_listing_is_right(store)
        clock.advance(hours=200)
        for _ in range(2):  # the second sweep drops the entries of those who never had it
            await store.cleanup_expired_sessions()
        assert given_keys(deployment) == []
        await store.delete_session(session_id)
        if not has_died:
            break
    assert step > 2


async def test_a_user_is_erased_whose_redeeming_died_at_any_step(store: SessionStore, deployment: Deployment) -> None:
    for step in count(1):
        session_id = await shared(store, "redeem")
        has_died = await die_at(step, deployment.settings(), redeem, session_id)

        await store.erase_user("cem")

        assert [share.user_id for share in await store.list_shares(session_id)] == [GUEST]
        assert await store.as_principal("cem").get_session(session_id) is None
        await store.delete_session(session_id)
        if not has_died:
            break
    assert step > 2


@pytest.mark.parametrize("verb", OPPOSITES)
async def test_the_opposite_before_any_step_leaves_no_listing_wrong(
    store: SessionStore, deployment: Deployment, verb: str
) -> None:
    do, undo = OPPOSITES[verb]
    for step in count(1):
        session_id = await shared(store, verb)
        await undo(store, session_id)
        frozen = Frozen(partial(undo, store, session_id), does_die=False)
        async with open_watched_store(deployment.settings(), frozen.around) as watched:
            frozen.freeze_at(step)
            await do(watched, session_id)

        await every_listing_is_right(store)
        await store.delete_session(session_id)
        if not frozen.has_thawed:
            break
    assert step > 2


@pytest.mark.parametrize("verb", ["share", "redeem"])
async def test_a_process_that_dies_once_the_session_lives_anew_leaves_no_listing_wrong(
    store: SessionStore, deployment: Deployment, verb: str
) -> None:
    for step in count(1):
        session_id = await shared(store, verb)

        async def live_anew(session_id: UUID = session_id) -> None:
            await store.archive_session(session_id)
            await store.resume_session(session_id)

        frozen = Frozen(live_anew, does_die=True)
        async with open_watched_store(deployment.settings(), frozen.around) as dying:
            frozen.freeze_at(step)
            with suppress(Crash):
                await VERBS[verb](dying, session_id)

        await every_listing_is_right(store)
        await store.delete_session(session_id)
        if not frozen.has_thawed:
            break
    assert step > 2


async def test_a_session_that_is_deleted_leaves_its_guests_listings_at_once(
    store: SessionStore, deployment: Deployment
) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
    await share_with_guest(store, session.id)
    assert len(given_keys(deployment)) == 1

    await store.delete_session(session.id)

    assert given_keys(deployment) == []


@pytest.mark.parametrize("code", ["wrong", "past", "revoked", "used"])
async def test_a_code_that_is_not_valid_enters_nothing_in_a_listing(
    store: SessionStore, deployment: Deployment, clock: FrozenClock, code: str
) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=9)
    made = await store.create_share_code(session.id, hours=1)
    if code == "past":
        clock.advance(hours=1)
    elif code == "revoked":
        await store.revoke_share_code(session.id, made.id)
    elif code == "used":
        await store.as_principal(GUEST).redeem_share_code(session.id, str(made.code))

    with pytest.raises(SessionNotFound):
        await store.as_principal("eve").redeem_share_code(session.id, "wrong" if code == "wrong" else str(made.code))

    assert b"fiml:given:eve" not in given_keys(deployment)


async def shared(store: SessionStore, verb: str) -> UUID:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    await store.share_session(session.id, GUEST)
    CODES[session.id] = str((await store.create_share_code(session.id)).code)
    if verb == "resume":
        await store.archive_session(session.id)
    return session.id


async def die_at(step: int, settings: Settings, verb: Verb, session_id: UUID) -> bool:
    """Whether the process died, behind a call to an engine."""
    faults = Faults()
    async with open_watched_store(settings, faults.around) as crashing:
        faults.crash_at(step, is_reply_lost=True)
        try:
            await verb(crashing, session_id)
        except Crash:
            return True
        finally:
            faults.disarm()
    return False


async def every_listing_is_right(store: SessionStore) -> None:
    for summary in await listing(store, None):
        given = {share.user_id for share in await store.list_shares(summary.id)}
        for user in (GUEST, "cem"):
            view = store.as_principal(user)
            for found in (await listing(view, None), await view.search_sessions(None, symbol="AAPL")):
                assert (summary.id in [each.id for each in found]) == (user in given)


async def finish(store: SessionStore, session_id: UUID, verb: Verb) -> None:
    """Somebody tries again, as after every crash."""
    with suppress(FimlError):
        await verb(store, session_id)


def given_keys(deployment: Deployment) -> list[bytes]:
    with redis.Redis.from_url(deployment.redis_url) as client:
        return list(client.scan_iter("fiml:given:*"))
