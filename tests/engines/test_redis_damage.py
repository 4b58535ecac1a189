"""Live sessions in Redis that are damaged: every verb says so, none half-writes, and they can be removed."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
import redis

from fiml.core.errors import CorruptRecord, SessionNotFound
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import listing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment

OWNER, STRANGER = "ann", "eve"
WRITES: dict[str, Callable[[SessionVerbs, UUID], Awaitable[object]]] = {
    "extend": lambda store, session_id: store.extend_session(session_id, 1),
    "resume": lambda store, session_id: store.resume_session(session_id),
    "share": lambda store, session_id: store.share_session(session_id, "bob"),
    "make a code": lambda store, session_id: store.create_share_code(session_id),
    "unshare": lambda store, session_id: store.unshare_session(session_id, "cara"),
    "record": lambda store, session_id: store.record_query(session_id, make_query()),
    "remember": lambda store, session_id: store.remember(session_id, context={"a": 1}),
}
READS: dict[str, Callable[[SessionVerbs, UUID], Awaitable[object]]] = {
    "get": lambda store, session_id: store.get_session(session_id),
    "get the last 5": lambda store, session_id: store.get_session(session_id, recent_queries=5),
    "look at the trail": lambda store, session_id: store.get_audit_trail(session_id),
}
NUMBERS = ("expires", "accessed", "version", "format")


@pytest.fixture
async def store(deployment: Deployment, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(deployment.settings()) as opened:
        yield opened


@pytest.fixture
async def session(store: SessionStore) -> Session:
    created = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    await store.share_session(created.id, "cara")
    await store.record_query(created.id, make_query())
    return created


class Keys:
    """The keys of a session, as they are."""

    def __init__(self, deployment: Deployment, session: Session) -> None:
        self._client = redis.Redis.from_url(deployment.redis_url)
        self._prefix = f"fiml:{{{session.id.hex}}}:"

    def dump(self) -> dict[Any, Any]:
        return {key: self._client.dump(key) for key in self._client.keys(f"{self._prefix}*")}

    def set_field(self, field: str, value: str | None) -> None:
        if value is None:
            self._client.hdel(f"{self._prefix}header", field)
        else:
            self._client.hset(f"{self._prefix}header", field, value)

    def lose(self, part: str) -> bytes:
        """Remove a part; what it held, for `live_anew`."""
        held: Any = self._client.dump(f"{self._prefix}{part}")
        self._client.delete(f"{self._prefix}{part}")
        return bytes(held)

    def live_anew(self, header: bytes) -> None:
        """Give the session a header of another life."""
        self._client.restore(f"{self._prefix}header", 0, header)
        self.set_field("life", "99")

    def has(self, part: str) -> bool:
        return bool(self._client.exists(f"{self._prefix}{part}"))

    def replace(self, part: str) -> None:
        self._client.set(f"{self._prefix}{part}", "text")


@pytest.fixture
def keys(deployment: Deployment, session: Session) -> Keys:
    return Keys(deployment, session)


@pytest.mark.parametrize("value", [None, "soon", "1.5"])
@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("verb", WRITES)
async def test_a_missing_or_invalid_number_is_damage_and_nothing_is_written(
    store: SessionStore, session: Session, keys: Keys, clock: FrozenClock, verb: str, field: str, value: str | None
) -> None:
    keys.set_field(field, value)
    if verb == "resume":
        clock.advance(hours=2)
    before = keys.dump()

    with pytest.raises(CorruptRecord, match=str(session.id)):
        await WRITES[verb](store, session.id)

    assert keys.dump() == before
    assert await store.delete_session(session.id)


@pytest.mark.parametrize("field", [*NUMBERS, "created", "type", "life", "maps_bytes", "totals"])
@pytest.mark.parametrize("verb", READS)
async def test_a_missing_part_is_damage_to_a_reader(
    store: SessionStore, session: Session, keys: Keys, verb: str, field: str
) -> None:
    keys.set_field(field, None)

    with pytest.raises(CorruptRecord, match=str(session.id)):
        await READS[verb](store, session.id)

    assert await store.delete_session(session.id)


@pytest.mark.parametrize("field", ["created", "life"])
async def test_a_session_that_lost_its_place_is_not_shared(
    store: SessionStore, session: Session, keys: Keys, field: str
) -> None:
    keys.set_field(field, None)
    before = keys.dump()

    with pytest.raises(CorruptRecord, match="missing"):
        await store.share_session(session.id, "bob")

    assert keys.dump() == before


@pytest.mark.parametrize("verb", WRITES | READS)
async def test_an_invalid_header_is_damage_to_the_local_user_and_not_found_to_others(
    store: SessionStore, session: Session, keys: Keys, verb: str
) -> None:
    keys.replace("header")
    before = keys.dump()
    call = (WRITES | READS)[verb]

    with pytest.raises(CorruptRecord, match=str(session.id)):
        await call(store, session.id)
    for user in (OWNER, STRANGER):  # what would say whose it is is gone
        try:
            found = await call(store.as_principal(user), session.id)
        except SessionNotFound:
            found = None
        assert found is None

    assert keys.dump() == before


@pytest.mark.parametrize("part", ["header", "entries", "queries", "ids", "trail"])
async def test_a_session_of_which_a_part_is_of_another_type_is_removed(
    store: SessionStore, session: Session, keys: Keys, part: str
) -> None:
    keys.replace(part)

    assert await store.delete_session(session.id)

    assert await store.get_session(session.id) is None
    assert await listing(store, OWNER) == []
    assert not [key for key in keys.dump() if not key.endswith(b":floor")]


async def test_a_sweep_sets_aside_what_is_left_of_a_session_without_a_header(
    store: SessionStore, session: Session, keys: Keys, clock: FrozenClock
) -> None:
    keys.lose("header")
    clock.advance(hours=3)  # the entry for the user that it is shared with is due too

    await store.cleanup_expired_sessions()

    [found] = await store.list_quarantine()
    assert (found.id, found.user_id, found.reason) == (session.id, OWNER, "its header is missing")
    assert not keys.dump()
    assert await store.delete_session(session.id)


async def test_a_session_without_a_header_that_lives_anew_during_the_sweep_is_not_set_aside(
    deployment: Deployment, session: Session, keys: Keys, clock: FrozenClock
) -> None:
    header = keys.lose("header")

    async def around(call: Callable[[], Awaitable[Any]]) -> Any:
        found = await call()
        if found == [0, 1, 1, 1]:  # which parts there are, besides the header
            keys.live_anew(header)
        return found

    clock.advance(hours=3)
    async with open_watched_store(deployment.settings(), around) as store:
        await store.cleanup_expired_sessions()

        assert await store.list_quarantine() == []
        assert keys.has("header")
        assert keys.has("queries")


async def test_erasing_a_user_removes_what_is_left_of_a_session_without_a_header(
    store: SessionStore, session: Session, keys: Keys
) -> None:
    """As after an eviction of single keys."""
    keys.lose("header")

    await store.erase_user(OWNER)

    assert not [key for key in keys.dump() if not key.endswith(b":floor")]


async def test_a_listing_tells_a_header_of_another_type_as_damage_and_hides_nothing_of_others(
    store: SessionStore, session: Session, keys: Keys
) -> None:
    others = await store.create_session(["MSFT"], SessionType.EQUITY, user_id="cara")
    keys.replace("header")

    with pytest.raises(CorruptRecord, match=str(session.id)):
        await store.list_user_sessions(None)

    assert [each.id for each in await listing(store.as_principal("cara"), "cara")] == [others.id]
    assert await listing(store.as_principal(OWNER), OWNER) == []


@pytest.mark.parametrize("version", [str(1 << 63), "9" * 5000])
async def test_a_version_too_large_for_the_database_keeps_nobody_from_deleting_or_erasing(
    deployment: Deployment, store: SessionStore, session: Session, version: str
) -> None:
    another = await store.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER)
    for each in (session, another):
        Keys(deployment, each).set_field("version", version)

    assert await store.delete_session(session.id)
    receipt = await store.erase_user(OWNER)

    assert receipt.erased == [another.id]


async def test_a_stranger_who_guesses_a_code_learns_nothing_of_a_damaged_session(
    store: SessionStore, session: Session, keys: Keys
) -> None:
    keys.set_field("version", None)
    with pytest.raises(SessionNotFound):
        await store.as_principal(STRANGER).redeem_share_code(session.id, "share_wrong")

    keys.replace("header")
    with pytest.raises(SessionNotFound):
        await store.as_principal(STRANGER).redeem_share_code(session.id, "share_wrong")
