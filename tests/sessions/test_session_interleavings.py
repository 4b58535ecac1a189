"""Two calls on one session, in every order of their steps: what a race may do, it does here each time."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import deepcopy
from datetime import timedelta
from functools import partial
from itertools import combinations_with_replacement, count, product
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import settings as hypothesis_settings
from sqlalchemy import text

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import SessionArchived, SessionExpired, SessionNotFound
from fiml.sessions.listing import SummaryPage
from fiml.sessions.models import QueryTotals, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance import Crash, Faults
from fiml.testing.conformance.suite import OWNER, existing, listing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen, Schedule, explore, sweep_one_step_at_a_time
from tests.support.old_layout import lay_out_as_before

# How often a call may be interrupted by the other; the profile "thorough" takes every order there is.
PREEMPTIONS = 1 if hypothesis_settings().max_examples <= 100 else 99
GUEST = "bob"
ENDED = (SessionExpired, SessionArchived)
Result = TypeVar("Result")
Call = Callable[[SessionStore, Session], Awaitable[Any]]


async def _end(store: SessionStore, session: Session) -> Session:
    ended = deepcopy(session)
    ended.expires_at = clock.now() - timedelta(seconds=1)
    return await store.update_session(session.id, ended)


async def _shorten(store: SessionStore, session: Session) -> Session:
    shorter = deepcopy(session)
    shorter.expires_at = clock.now() + timedelta(hours=1)
    return await store.update_session(session.id, shorter)


CALLS: dict[str, Call] = {
    "archive": lambda store, session: store.archive_session(session.id),
    "sweep": lambda store, _: store.cleanup_expired_sessions(),
    "resume": lambda store, session: store.resume_session(session.id),
    "resume for longer": lambda store, session: store.resume_session(session.id, hours=48),
    "delete": lambda store, session: store.delete_session(session.id),
    "record": lambda store, session: store.record_query(session.id, make_query("raced")),
    "extend": lambda store, session: store.extend_session(session.id, 1),
    "end": _end,
    "shorten": _shorten,
    "get": lambda store, session: store.get_session(session.id),
    "list": lambda store, _: store.list_user_sessions(OWNER, include_archived=True),
    "share": lambda store, session: store.share_session(session.id, GUEST),
}
MOVERS, WRITERS, READERS = ("archive", "sweep", "resume", "delete"), ("record", "extend", "end"), ("get", "list")
WHOLE = ("live", "expired", "archived")
OLD, EXTENDED = "live, laid out as before", "live, extended"
CASES = [
    *product(combinations_with_replacement(MOVERS, 2), (*WHOLE, "half archived", "half resumed")),
    *product(product(MOVERS, WRITERS), ["live"]),
    *product(product(["resume"], WRITERS), ["expired", "archived"]),
    *product([("end", other) for other in WRITERS], ["live"]),
    *product([("shorten", other) for other in (*WRITERS, "shorten", "sweep")], ["live"]),
    *product([("shorten", "sweep"), ("extend", "sweep"), ("end", "sweep")], [EXTENDED]),
    *product(product(MOVERS, [*READERS, "share"]), WHOLE),
    *product([("share", "record"), ("share", "share")], ["live"]),
    *product([("resume", "resume for longer")], ["expired", "archived", "half resumed"]),
    *product([("record", other) for other in (*WRITERS, *MOVERS, "share", "get", "list")], [OLD]),
]


async def _resume_and_write(store: SessionStore, session_id: UUID) -> None:
    await store.resume_session(session_id)
    await store.record_query(session_id, make_query("newer"), context={"newer": True})


async def _write_and_archive(store: SessionStore, session_id: UUID) -> None:
    await _resume_and_write(store, session_id)
    await store.archive_session(session_id)


async def _live_two_lives(store: SessionStore, session_id: UUID) -> None:
    await _write_and_archive(store, session_id)
    await store.resume_session(session_id)


async def _delete(store: SessionStore, session_id: UUID) -> None:
    await store.delete_session(session_id)


MEANWHILE: dict[str, Callable[[SessionStore, UUID], Awaitable[None]]] = {
    "written": _resume_and_write,
    "written and archived": _write_and_archive,
    "written, archived and resumed": _live_two_lives,
    "deleted": _delete,
}


class Switch:
    """Sends the calls to engines through the schedule of the moment."""

    schedule = Schedule([])

    async def around(self, call: Callable[[], Awaitable[Result]]) -> Result:
        return await self.schedule.around(call)


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return deployment.settings()


@pytest.fixture(autouse=True)
def one_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep_one_step_at_a_time(monkeypatch)


@pytest.mark.parametrize(
    ("pair", "state"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
async def test_two_calls_in_any_order_of_their_steps(
    store: SessionStore, settings: Settings, clock: FrozenClock, pair: tuple[str, str], state: str
) -> None:
    start, switch = clock.now(), Switch()
    async with open_watched_store(settings, switch.around) as watched:
        for switch.schedule in explore(PREEMPTIONS):
            clock.set(start)
            session = await arrange(store, settings, clock, state)

            outcomes = await switch.schedule.run([CALLS[name](watched, session) for name in pair])

            try:
                await Check(store, session, list(zip(pair, outcomes, strict=True)), state).everything(clock)
            except Exception as exc:
                exc.add_note(f"the order of the steps was {switch.schedule.taken}, the outcomes {outcomes}")
                raise


async def arrange(store: SessionStore, settings: Settings, clock: FrozenClock, state: str) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=2)
    for n in range(2):
        await store.record_query(session.id, make_query(f"{n}"), context={f"{n}": n})
    if state == EXTENDED:
        await store.extend_session(session.id, 10)  # a sweep looks at it, and finds that it lives on
    if state in ("expired", EXTENDED):
        clock.advance(hours=2)
    if state in ("archived", "half resumed"):
        await store.archive_session(session.id)
    if state == OLD:
        lay_out_as_before(settings, session.id)
    if state.startswith("half"):
        await crash(settings, CALLS["archive" if state == "half archived" else "resume"], session)
    return await existing(store, session.id)


async def crash(settings: Settings, call: Call, session: Session) -> None:
    """Let a process die behind the step that leaves a session in both tiers."""
    faults = Faults()
    async with open_watched_store(settings, faults.around) as crashing:
        faults.crash_at(2 if call is CALLS["archive"] else 3, is_reply_lost=True)
        with suppress(Crash):
            await call(crashing, session)
        faults.disarm()


class Check:
    """What holds after two calls on a session, whatever their order was."""

    def __init__(self, store: SessionStore, session: Session, outcomes: list[tuple[str, Any]], state: str) -> None:
        self.store = store
        self.session = session
        self.outcomes = outcomes
        self.state = state

    async def everything(self, clock: FrozenClock) -> None:
        if "delete" in (name for name, _ in self.outcomes):
            assert True in self.of("delete")
            await self.is_gone()
            clock.advance(hours=200)
            assert await self.store.cleanup_expired_sessions() == 0
            await self.is_gone()
            return
        self.every_answer_is_true()
        found = await self.is_found_once()
        self.holds_what_was_acknowledged(found)
        self.is_where_it_belongs(found)
        await self.is_shared_as_was_acknowledged()
        if self.state in (*WHOLE, OLD):
            assert await count_archived(self.store) == found.is_archived
        await self.goes_on(clock, found)

    def of(self, name: str) -> list[Any]:
        return [outcome for each, outcome in self.outcomes if each == name]

    def every_answer_is_true(self) -> None:
        for name, outcome in self.outcomes:
            match outcome:
                case Session():
                    assert outcome.state.history.queries[:2] == self.session.state.history.queries
                case SummaryPage():
                    assert [summary.id for summary in outcome] == [self.session.id]
                case QueryTotals():
                    assert outcome.total_queries >= 3
                case bool() | int():
                    assert name in ("archive", "sweep")
                case None:
                    assert name == "share"
                case _:
                    assert isinstance(outcome, ENDED), f"{name} gave {outcome!r}"
                    assert name in ("record", "extend", "end", "shorten")

    async def is_found_once(self) -> Session:
        found = await existing(self.store, self.session.id)
        [listed] = await listing(self.store)
        assert (listed.id, listed.is_archived) == (found.id, found.is_archived)
        assert found.version >= self.session.version
        assert found.state.context == self.session.state.context
        return found

    def holds_what_was_acknowledged(self, found: Session) -> None:
        recorded = sum(isinstance(outcome, QueryTotals) for outcome in self.of("record"))
        assert found.state.history.get_query_types_summary() == {"0": 1, "1": 1} | (
            {"raced": recorded} if recorded else {}
        )
        assert found.state.history.total_queries == len(found.state.history.queries) == 2 + recorded
        names = {name for name, _ in self.outcomes}
        if not names & {"resume", "end", "shorten"}:
            extended = sum(isinstance(outcome, Session) for outcome in self.of("extend"))
            assert found.expires_at == self.session.expires_at + timedelta(hours=extended)
        if "resume" not in names and any(isinstance(outcome, Session) for outcome in self.of("end")):
            assert found.is_expired

    async def is_shared_as_was_acknowledged(self) -> None:
        is_shared = "share" in (name for name, _ in self.outcomes)
        assert [share.user_id for share in await self.store.list_shares(self.session.id)] == [GUEST] * is_shared
        found = await listing(self.store.as_principal(GUEST), None)
        assert [summary.id for summary in found] == [self.session.id] * is_shared
        trail = await self.store.get_audit_trail(self.session.id)
        assert [entry.did for entry in trail].count("share") == is_shared  # doing so again changes nothing
        assert [entry.version for entry in trail] == sorted(entry.version for entry in trail)

    def is_where_it_belongs(self, found: Session) -> None:
        names = {name for name, _ in self.outcomes}
        was_moved = any(outcome in (True, 1) for outcome in self.of("archive") + self.of("sweep"))
        if was_moved and "resume" not in names:
            assert found.is_archived
        if "resume" in names and not names & {"archive", "end"}:
            assert not found.is_archived
            assert not found.is_expired

    async def is_gone(self) -> None:
        assert await self.store.get_session(self.session.id) is None
        assert await listing(self.store) == []
        assert not await self.store.delete_session(self.session.id)
        with pytest.raises(SessionNotFound):
            await self.store.resume_session(self.session.id)

    async def goes_on(self, clock: FrozenClock, found: Session) -> None:
        """A sweep finds it when its time has come, and a resume brings it back whole."""
        is_due = found.is_expired and not found.is_archived
        assert await self.store.cleanup_expired_sessions() == is_due
        clock.set(max(clock.now(), found.expires_at))
        assert await self.store.cleanup_expired_sessions() == (not found.is_archived and not is_due)
        assert await self.store.cleanup_expired_sessions() == 0
        archived = await self.is_found_once()
        assert archived.is_archived
        assert archived.state == found.state
        resumed = await self.store.resume_session(found.id)
        assert resumed.state == found.state
        assert await self.store.delete_session(found.id)
        await self.is_gone()


async def count_archived(store: SessionStore) -> int:
    """How many rows the archive has; no listing shows one that was left behind beside a live session."""
    async with store.session_maker() as session:
        count: int = (await session.execute(text("SELECT count(*) FROM sessions"))).scalar_one()
    return count


async def test_a_session_that_lived_on_after_an_archiving_died_ends_when_it_expires(
    store: SessionStore, settings: Settings, clock: FrozenClock
) -> None:
    """Retention counts from its end, and the statistics say how it ended."""
    session = await arrange(store, settings, clock, "half archived")
    clock.advance(hours=1)
    read_at = clock.now()
    await existing(store, session.id)
    clock.advance(hours=1)

    assert await store.cleanup_expired_sessions() == 1

    assert (await existing(store, session.id)).last_accessed_at == read_at
    assert await times_of_archived(store) == [(clock.now(), clock.now(), False, 3600)]


async def times_of_archived(store: SessionStore) -> list[tuple[Any, ...]]:
    """When sessions were archived and have ended, whether on purpose, and how long they lasted."""
    joined = text(
        "SELECT archived_at, ended_at, completed_normally, duration_seconds"
        " FROM sessions JOIN session_metrics ON session_id = sessions.id"
    )
    async with store.session_maker() as session:
        return [tuple(row) for row in await session.execute(joined)]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize(
    ("verb", "state"),
    [("archive", "live"), ("sweep", "expired"), ("resume", "archived"), ("resume", "expired"), ("record", "live")],
)
async def test_a_process_that_was_frozen_writes_no_old_history_over_new(
    store: SessionStore, settings: Settings, clock: FrozenClock, verb: str, state: str, meanwhile: str
) -> None:
    """It may freeze before any of its steps, and go on much later, or die of it behind that step."""
    start = clock.now()
    for step in count(1):
        for does_die in (False, True):
            clock.set(start)
            session = await arrange(store, settings, clock, state)
            frozen = Frozen(partial(MEANWHILE[meanwhile], store, session.id), does_die=does_die)
            async with open_watched_store(settings, frozen.around) as watched:
                frozen.freeze_at(step)
                with suppress(Crash, *ENDED, SessionNotFound):
                    await CALLS[verb](watched, session)

            if meanwhile == "deleted" and frozen.has_thawed:
                assert await store.get_session(session.id) is None
                assert await listing(store) == []
            elif frozen.has_thawed:
                found = await existing(store, session.id)
                assert "newer" in found.state.history.get_query_types_summary()
                assert found.state.context["newer"] is True
                [listed] = await listing(store)
                assert listed.total_queries == found.state.history.total_queries
            await store.delete_session(session.id)
        if not frozen.has_thawed:
            return
