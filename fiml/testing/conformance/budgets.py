"""Calls to the engines are a budget, whatever the history and however many sessions there are."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ClassVar

import pytest
import pytest_asyncio

from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.conformance.crashes import Faults, OpenCrashingStore
from fiml.testing.conformance.suite import OWNER, Suite
from fiml.testing.samples import make_query

LONG_HISTORY = 1000
MANY_SESSIONS = 300
VERBS: dict[str, Callable[[SessionStore, Session], Awaitable[object]]] = {
    "create": lambda store, _: store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, tags=["t"]),
    "track": lambda store, session: store.record_query(session.id, make_query()),
    "track with entries": lambda store, session: store.record_query(session.id, make_query(), context={"a": 1}),
    "read": lambda store, session: store.get_session(session.id),
    "read the last 5": lambda store, session: store.get_session(session.id, recent_queries=5),
    "extend": lambda store, session: store.extend_session(session.id, 1),
    "a page": lambda store, _: store.list_user_sessions(OWNER),
    "a page of all": lambda store, _: store.list_user_sessions(None),
}
BUDGET = dict.fromkeys(VERBS, 1) | {"a page": 2, "a page of all": 2}


class BudgetSuite(Suite):
    """Needs the fixture `open_crashing_store`, whose `Faults` count. A call may carry several commands.

    An engine that can do less at once says so in `budget`.
    """

    budget: ClassVar[dict[str, int]] = BUDGET

    @pytest.fixture
    def counter(self) -> Faults:
        return Faults()

    @pytest_asyncio.fixture
    async def counted(self, counter: Faults, open_crashing_store: OpenCrashingStore) -> AsyncIterator[SessionStore]:
        async with open_crashing_store(counter) as store:
            yield store

    @pytest.mark.parametrize("verb", VERBS)
    async def test_a_verb_keeps_its_budget_whatever_the_history(
        self, counted: SessionStore, counter: Faults, verb: str
    ) -> None:
        short = await counted.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        long = await _with_long_history(counted)

        calls = [await _count(counter, VERBS[verb](counted, session)) for session in (short, long)]

        assert calls[0] == calls[1] <= self.budget[verb]

    @pytest.mark.parametrize("verb", VERBS)
    async def test_a_verb_keeps_its_budget_however_many_sessions_there_are(
        self, counted: SessionStore, counter: Faults, verb: str
    ) -> None:
        session = await counted.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        alone = await _count(counter, VERBS[verb](counted, session))
        await asyncio.gather(
            *(counted.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER) for _ in range(MANY_SESSIONS))
        )

        among_many = await _count(counter, VERBS[verb](counted, session))

        assert alone == among_many <= self.budget[verb]


async def _with_long_history(store: SessionStore) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    for _ in range(LONG_HISTORY - 1):
        session.add_query(make_query())
    await store.update_session(session.id, session)
    return session


async def _count(counter: Faults, call: Awaitable[object]) -> int:
    before = counter.calls
    await call
    return counter.calls - before
