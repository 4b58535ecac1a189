"""Every call in every state of a session: the table of the public contract."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from fiml.core.errors import FimlError, SessionArchived, SessionExpired, SessionNotFound
from fiml.sessions.models import QueryTotals, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, STRANGER, Suite, content, document, existing, listing
from fiml.testing.samples import make_query

TTL_HOURS = 2
ACTIVE, EXPIRED, ARCHIVED = "active", "expired", "archived"
PRESENT = (ACTIVE, EXPIRED, ARCHIVED)
ABSENT = ("unknown", "deleted", "deleted from the archive", *(f"another's {state}" for state in PRESENT))

# An outcome is what the call returns (for a session, its state), or the error that it raises.
Outcome = str | bool | type[FimlError] | None

TABLE: dict[str, dict[str, Outcome]] = {
    "get_session": {ACTIVE: ACTIVE, EXPIRED: EXPIRED, ARCHIVED: ARCHIVED, "absent": None},
    "update_session": {
        ACTIVE: ACTIVE,
        EXPIRED: SessionExpired,
        ARCHIVED: SessionArchived,
        "absent": SessionNotFound,
    },
    "record_query": {
        ACTIVE: "totals",
        EXPIRED: SessionExpired,
        ARCHIVED: SessionArchived,
        "absent": SessionNotFound,
    },
    "extend_session": {
        ACTIVE: ACTIVE,
        EXPIRED: SessionExpired,
        ARCHIVED: SessionArchived,
        "absent": SessionNotFound,
    },
    "resume_session": {ACTIVE: ACTIVE, EXPIRED: ACTIVE, ARCHIVED: ACTIVE, "absent": SessionNotFound},
    "archive_session": {ACTIVE: True, EXPIRED: True, ARCHIVED: False, "absent": False},
    "delete_session": {ACTIVE: True, EXPIRED: True, ARCHIVED: True, "absent": False},
}
ROWS = [
    pytest.param(verb, state, outcomes.get(state, outcomes["absent"]), id=f"{verb}-{state}")
    for verb, outcomes in TABLE.items()
    for state in (*PRESENT, *ABSENT)
]
REFUSALS = [row for row in ROWS if isinstance(row.values[2], type)]
Calls = dict[str, Callable[[SessionVerbs, Session], Awaitable[object]]]


async def _update(store: SessionVerbs, session: Session) -> Session:
    session.title = "Changed"
    session.add_query(make_query("changed"))
    session.state.context["changed"] = True
    return await store.update_session(session.id, session)


CALLS: Calls = {
    "get_session": lambda store, session: store.get_session(session.id),
    "update_session": _update,
    "record_query": lambda store, session: store.record_query(session.id, make_query()),
    "extend_session": lambda store, session: store.extend_session(session.id, hours=1),
    "resume_session": lambda store, session: store.resume_session(session.id),
    "archive_session": lambda store, session: store.archive_session(session.id),
    "delete_session": lambda store, session: store.delete_session(session.id),
}


class LifecycleSuite(Suite):
    """Every call in every state of a session."""

    @pytest.mark.parametrize(("verb", "state", "outcome"), ROWS)
    async def test_a_call_answers_as_the_table_says(
        self, store: SessionStore, clock: FrozenClock, verb: str, state: str, outcome: Outcome
    ) -> None:
        session, view = await _arrange(store, clock, state)

        assert await _outcome(CALLS[verb](view, session)) == outcome

    @pytest.mark.parametrize(("verb", "state", "outcome"), REFUSALS)
    async def test_a_refusal_changes_nothing_and_names_the_session(
        self, store: SessionStore, clock: FrozenClock, verb: str, state: str, outcome: type[FimlError]
    ) -> None:
        session, view = await _arrange(store, clock, state)
        before = await _seen(store, session)

        with pytest.raises(outcome) as raised:
            await CALLS[verb](view, session)

        assert getattr(raised.value, "session_id", None) == session.id
        assert str(session.id) in str(raised.value)
        assert await _seen(store, session) == before

    @pytest.mark.parametrize("state", [EXPIRED, ARCHIVED])
    @pytest.mark.parametrize("verb", ["update_session", "record_query", "extend_session"])
    async def test_the_refusal_of_an_ended_session_names_the_way_on(
        self, store: SessionStore, clock: FrozenClock, verb: str, state: str
    ) -> None:
        session, view = await _arrange(store, clock, state)

        with pytest.raises((SessionExpired, SessionArchived), match="resume"):
            await CALLS[verb](view, session)

    @pytest.mark.parametrize("state", ABSENT[-3:])
    @pytest.mark.parametrize("verb", ["get_session", "archive_session", "delete_session"])
    async def test_a_strangers_call_changes_nothing(
        self, store: SessionStore, clock: FrozenClock, verb: str, state: str
    ) -> None:
        session, view = await _arrange(store, clock, state)
        before = await _seen(store, session)
        clock.advance(microseconds=1)

        await CALLS[verb](view, session)

        clock.advance(microseconds=-1)
        assert await _seen(store, session) == before

    @pytest.mark.parametrize("state", [EXPIRED, ARCHIVED])
    async def test_reading_an_ended_session_is_no_access(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session, _ = await _arrange(store, clock, state)
        before = document(await existing(store, session.id))
        clock.advance(minutes=1)

        assert document(await existing(store, session.id)) == before

    @pytest.mark.parametrize("state", PRESENT)
    async def test_a_resumed_session_has_its_id_and_all_it_held(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session, _ = await _arrange(store, clock, state)
        before = await existing(store, session.id)

        resumed = await store.resume_session(session.id, hours=3)

        assert content(resumed) == content(before) == content(await existing(store, session.id))
        if state == ACTIVE:
            assert document(resumed) == document(before)
        else:
            assert (resumed.version, resumed.time_remaining.total_seconds()) == (before.version + 1, 3 * 3600)

    @pytest.mark.parametrize("state", PRESENT)
    async def test_an_archived_session_has_all_it_held(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session, _ = await _arrange(store, clock, state)
        before = await existing(store, session.id)

        await store.archive_session(session.id)

        archived = await existing(store, session.id)
        assert document(archived, "is_archived") == document(before, "is_archived")
        assert archived.is_archived

    async def test_what_a_session_knows_is_packed_alike_in_every_tier(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        """An engine may keep the keys of JSON in another order."""
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)
        answer = {"volume": 7.0, "price": 100.5, "market_cap": 3e12, "change": -0.5}
        said: dict[str, object] = {"zeta": {"b": 1, "a": 2}, "alpha": [{"y": 1, "x": 2}]}
        await store.record_query(session.id, make_query(figures=answer), context=said)
        live = (await store.pack_context(session.id)).lines

        await store.archive_session(session.id)
        archived = (await store.pack_context(session.id)).lines
        await store.resume_session(session.id)
        again = make_query(figures=answer)
        await store.record_query(session.id, again)
        resumed = (await store.pack_context(session.id)).lines

        assert archived == live
        assert len(resumed) == len(live)
        assert str(again.id) in {line.id for line in resumed}

    @pytest.mark.parametrize("state", PRESENT)
    async def test_a_deleted_session_is_nowhere_for_good(
        self, store: SessionStore, clock: FrozenClock, state: str
    ) -> None:
        session, _ = await _arrange(store, clock, state)

        assert await store.delete_session(session.id)

        assert await store.get_session(session.id) is None
        assert await listing(store) == []
        assert await store.cleanup_expired_sessions() == 0
        assert await listing(store) == []
        with pytest.raises(SessionNotFound):
            await store.resume_session(session.id)

    async def test_anothers_session_raises_the_very_words_of_an_unknown_one(
        self, store: SessionStore, clock: FrozenClock
    ) -> None:
        unknown = uuid4()
        session, view = await _arrange(store, clock, "another's active")

        for call in (view.resume_session, lambda id_: view.extend_session(id_, 1)):
            with pytest.raises(SessionNotFound) as of_unknown:
                await call(unknown)
            with pytest.raises(SessionNotFound) as of_anothers:
                await call(session.id)
            assert str(of_anothers.value) == str(of_unknown.value).replace(str(unknown), str(session.id))

    @pytest.mark.parametrize("early_microseconds", [0, 1])
    async def test_a_session_ends_at_its_expiry_to_the_microsecond(
        self, store: SessionStore, clock: FrozenClock, early_microseconds: int
    ) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        clock.set(session.expires_at)
        clock.advance(microseconds=-early_microseconds)

        outcome = await _outcome(store.record_query(session.id, make_query()))

        assert outcome == ("totals" if early_microseconds else SessionExpired)
        assert await store.cleanup_expired_sessions() == (0 if early_microseconds else 1)


async def _arrange(store: SessionStore, clock: FrozenClock, state: str) -> tuple[Session, SessionVerbs]:
    """A session, as its owner last read it when it was live, and the view in which it has the wanted state."""
    session = await store.create_session(
        ["AAPL", "MSFT"], SessionType.EQUITY, user_id=OWNER, ttl_hours=TTL_HOURS, tags=["tech"], title="Before"
    )
    for n in range(3):
        await store.record_query(session.id, make_query(result_summary=f"{n}"), context={f"key {n}": [n]})
    session = await existing(store, session.id)
    if state.endswith((EXPIRED, ARCHIVED)):
        clock.advance(hours=TTL_HOURS)
    if state.endswith((ARCHIVED, "archive")):
        assert await store.archive_session(session.id)
    if state.startswith("deleted"):
        assert await store.delete_session(session.id)
    if state == "unknown":
        session = Session.from_dict(session.to_dict() | {"id": str(uuid4())})
    return session, store.as_principal(STRANGER) if state.startswith("another's") else store


async def _outcome(call: Awaitable[object]) -> Outcome:
    try:
        result = await call
    except FimlError as exc:
        return type(exc)
    if isinstance(result, Session):
        return ARCHIVED if result.is_archived else EXPIRED if result.is_expired else ACTIVE
    if isinstance(result, QueryTotals):
        return "totals"
    assert result is None or isinstance(result, bool)
    return result


async def _seen(store: SessionStore, session: Session) -> Any:
    """All that can be seen of a session, by reading and by listing it."""
    found = await store.get_session(session.id)
    return json.dumps([found and found.to_dict(), [summary.to_dict() for summary in await listing(store)]])
