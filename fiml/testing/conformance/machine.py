"""Hypothesis drives a store and a plain model side by side, and looks for differences."""

import asyncio
import json
from collections.abc import Awaitable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from fiml.core.clock import using
from fiml.core.errors import FimlError, SessionArchived, SessionConflict, SessionExpired, SessionFull, SessionNotFound
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, OpenStore, bounded, existing, listing
from fiml.testing.samples import make_query

MAX_QUERIES = 6
MAX_TTL_HOURS = 12
HOURS = st.integers(1, MAX_TTL_HOURS)
KEYS = st.sampled_from(["a", "b", ""])
TAGS = st.sampled_from(["x", "y", "z"])
_NO_ENTRY = "equal to none of VALUES"
VALUES: st.SearchStrategy[Any] = st.sampled_from([None, 0, 1.5, "text", [], {"k": [1e23]}])
Result = TypeVar("Result")


@dataclass
class ModelSession:
    """What a store should know about a session."""

    created_at: datetime
    expires_at: datetime
    last_accessed_at: datetime
    version: int
    tags: list[str]
    title: str | None = None
    context: dict[str, Any] = field(default_factory=dict)
    queries: list[QueryRecord] = field(default_factory=list)
    is_archived: bool = False

    def refusal(self, now: datetime) -> type[FimlError] | None:
        """The error that refuses every write, if any."""
        if self.is_archived:
            return SessionArchived
        return SessionExpired if now >= self.expires_at else None


class SessionMachine(RuleBasedStateMachine):
    """Does to a store whatever Hypothesis comes up with, and compares it with the model."""

    store: SessionStore
    runner: asyncio.Runner

    ids = Bundle("ids")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self._using = using(self.clock)
        self._using.__enter__()
        self.model: dict[UUID, ModelSession] = {}
        self.deleted: set[UUID] = set()

    def teardown(self) -> None:
        try:
            for session_id in self.model:
                self._check_whole(session_id)
            for session_id in self.deleted:
                assert self.run(self.store.get_session(session_id)) is None
        finally:
            for session_id in self.model:
                self.run(self.store.delete_session(session_id))
            self._using.__exit__(None, None, None)

    def run(self, call: Awaitable[Result]) -> Result:
        async def awaited() -> Result:
            return await call

        return self.runner.run(awaited())

    @rule(target=ids, ttl_hours=HOURS, tags=st.lists(TAGS, unique=True, max_size=2))
    def create(self, ttl_hours: int, tags: list[str]) -> UUID:
        session = self.run(
            self.store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=ttl_hours, tags=tags)
        )
        now = self.clock.now()
        self.model[session.id] = ModelSession(now, now + timedelta(hours=ttl_hours), now, session.version, tags)
        return session.id

    @rule(hours=st.integers(0, 5), minutes=st.sampled_from([0, 1, 59]))
    def pass_time(self, hours: int, minutes: int) -> None:
        self.clock.advance(hours=hours, minutes=minutes)

    @rule(session_id=ids, is_repeated=st.booleans())
    def record(self, session_id: UUID, is_repeated: bool) -> None:  # noqa: FBT001  Hypothesis names it
        known = self.model.get(session_id)
        is_repeated = is_repeated and known is not None and bool(known.queries)
        query = known.queries[0] if known and is_repeated else make_query()
        is_over = known is not None and len(known.queries) >= MAX_QUERIES and not is_repeated
        if self._write(session_id, self.store.record_query(session_id, query), SessionFull if is_over else None):
            assert known is not None
            known.queries += [] if is_repeated else [query]
            known.version -= is_repeated  # a query that is there already is no change

    @rule(target=held, session_id=ids)
    def read(self, session_id: UUID) -> Any:
        session = self.run(self.store.get_session(session_id))
        assert (session is None) == (session_id not in self.model)
        if session is None:
            return multiple()
        self._touch(session_id)
        self._check(session, self.model[session_id])
        return session

    @rule(target=held, session=held)
    def copy(self, session: Session) -> Session:
        return deepcopy(session)

    @rule(target=held, session=consumes(held), key=KEYS, value=VALUES, tag=TAGS, has_version=st.booleans())
    def update(self, session: Session, key: str, value: Any, tag: str, has_version: bool) -> Any:  # noqa: FBT001
        """Set one entry, add one tag and one query, on an object that may be outdated."""
        known = self.model.get(session.id)
        query = make_query()
        is_new_tag = tag not in session.tags
        if known is not None and session.version > known.version:
            raise AssertionError("the version went down")
        is_stale = known is not None and has_version and session.version != known.version
        is_over = known is not None and len(known.queries) >= MAX_QUERIES
        entry_before = session.state.context.get(key, _NO_ENTRY)
        session.state.context[key] = deepcopy(value)
        session.add_query(query)
        session.tags += [tag] if is_new_tag else []
        call = self.store.update_session(session.id, session, session.version if has_version else None)
        refusal = SessionConflict if is_stale else SessionFull if is_over else None
        if not self._write(session.id, call, refusal):
            return multiple()
        assert known is not None
        if not _same(entry_before, value):
            known.context[key] = deepcopy(value)
        known.queries.append(query)
        known.tags += [tag] if is_new_tag and tag not in known.tags else []
        return session

    @rule(session_id=ids, key=KEYS)
    def remove_entry(self, session_id: UUID, key: str) -> None:
        known = self.model.get(session_id)
        if known is None or key not in known.context or known.is_archived:
            return
        session = self.run(existing(self.store, session_id))
        self._touch(session_id)
        del session.state.context[key]
        session.title = f"without {key}"
        if self._write(session_id, self.store.update_session(session_id, session)):
            del known.context[key]
            known.title = f"without {key}"

    @rule(session_id=ids)
    def end_now(self, session_id: UUID) -> None:
        known = self.model.get(session_id)
        if known is None or known.is_archived:
            return
        session = self.run(existing(self.store, session_id))
        self._touch(session_id)
        session.expires_at = self.clock.now()
        if self._write(session_id, self.store.update_session(session_id, session)):
            known.expires_at = self.clock.now()

    @rule(session_id=ids, hours=HOURS)
    def extend(self, session_id: UUID, hours: int) -> None:
        if self._write(session_id, self.store.extend_session(session_id, hours)):
            known = self.model[session_id]
            latest = self.clock.now() + timedelta(hours=MAX_TTL_HOURS)
            later = min(known.expires_at + timedelta(hours=hours), latest)
            known.version -= later == known.expires_at  # its expiry was at the latest allowed already
            known.expires_at = later

    @rule()
    def sweep(self) -> None:
        expired = [known for known in self.model.values() if known.refusal(self.clock.now()) is SessionExpired]

        assert self.run(self.store.cleanup_expired_sessions()) == len(expired)

        for known in expired:
            known.is_archived = True

    @rule(session_id=ids)
    def archive(self, session_id: UUID) -> None:
        known = self.model.get(session_id)

        was_live = self.run(self.store.archive_session(session_id))

        assert was_live == (known is not None and not known.is_archived)
        if known is not None:
            known.is_archived = True

    @rule(session_id=ids, hours=HOURS)
    def resume(self, session_id: UUID, hours: int) -> None:
        known = self.model.get(session_id)
        if known is None:
            with pytest.raises(SessionNotFound):
                self.run(self.store.resume_session(session_id, hours))
            return
        session = self.run(self.store.resume_session(session_id, hours))
        if known.refusal(self.clock.now()) is not None:
            known.is_archived = False
            known.expires_at = self.clock.now() + timedelta(hours=hours)
            known.version += 1
        self._touch(session_id)
        self._check(session, known)

    @rule(session_id=ids)
    def delete(self, session_id: UUID) -> None:
        assert self.run(self.store.delete_session(session_id)) == (session_id in self.model)
        self.model.pop(session_id, None)
        self.deleted.add(session_id)

    @rule(limit=st.integers(1, 4), tag=st.none() | TAGS, include_archived=st.booleans())
    def list_filtered(self, limit: int, tag: str | None, include_archived: bool) -> None:  # noqa: FBT001
        found = self.run(listing(self.store, limit=limit, tag=tag, include_archived=include_archived))

        expected = [
            session_id
            for session_id, known in self._in_order()
            if (tag is None or tag in known.tags) and (include_archived or not known.is_archived)
        ]
        assert [summary.id for summary in found] == expected

    @invariant()
    def lists_what_the_model_has(self) -> None:
        found = self.run(listing(self.store))

        assert [
            (each.id, each.is_archived, each.expires_at, each.total_queries, each.last_accessed_at, each.tags)
            for each in found
        ] == [
            (session_id, each.is_archived, each.expires_at, len(each.queries), each.last_accessed_at, each.tags)
            for session_id, each in self._in_order()
        ]

    def _in_order(self) -> list[tuple[UUID, ModelSession]]:
        by_id = sorted(self.model.items(), key=lambda item: str(item[0]))
        return sorted(by_id, key=lambda item: item[1].created_at, reverse=True)

    def _write(self, session_id: UUID, call: Awaitable[object], refusal: type[FimlError] | None = None) -> bool:
        """Whether the write was accepted, after checking that the model expects this."""
        known = self.model.get(session_id)
        expected = SessionNotFound if known is None else known.refusal(self.clock.now()) or refusal
        if expected is not None:
            with pytest.raises(expected):
                self.run(call)
            return False
        self.run(call)
        assert known is not None
        known.version += 1
        self._touch(session_id)
        return True

    def _touch(self, session_id: UUID) -> None:
        known = self.model[session_id]
        if not known.is_archived and self.clock.now() < known.expires_at:
            known.last_accessed_at = self.clock.now()

    def _check_whole(self, session_id: UUID) -> None:
        session = self.run(existing(self.store, session_id))
        self._touch(session_id)
        self._check(session, self.model[session_id])

    def _check(self, session: Session, known: ModelSession) -> None:
        assert session.state.history.queries == known.queries
        assert session.state.history.total_queries == len(known.queries)
        assert _same(session.state.context, known.context)
        assert (session.tags, session.title) == (known.tags, known.title)
        assert (session.created_at, session.expires_at) == (known.created_at, known.expires_at)
        assert (session.is_archived, session.version) == (known.is_archived, known.version)
        assert session.last_accessed_at == known.last_accessed_at


class MachineSuite:
    """A store behaves as a plain dict of sessions would."""

    examples = 12
    steps = 30

    def test_a_store_is_like_its_model(self, open_store: OpenStore) -> None:
        # With a loop factory, the runner doesn't change the thread's current loop.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            opened = open_store(
                session_max_queries_per_session=MAX_QUERIES,
                session_max_ttl_hours=MAX_TTL_HOURS,
                session_default_ttl_hours=MAX_TTL_HOURS,
            )
            store = runner.run(opened.__aenter__())
            try:
                machine = type("Machine", (SessionMachine,), {"store": store, "runner": runner})
                run_state_machine_as_test(machine, settings=bounded(self.examples, stateful_step_count=self.steps))
            finally:
                runner.run(opened.__aexit__(None, None, None))


def _same(one: object, other: object) -> bool:
    """Whether two values are the same JSON: 1.0 is not 1, and the order of keys is nothing."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
