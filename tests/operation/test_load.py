"""A short load run: what was acknowledged is there, once, although a replica is killed in the middle."""

import asyncio
from pathlib import Path
from uuid import uuid4

import httpx2

from benchmarks.load import Outcome, Plan, compare, report, run
from benchmarks.load_users import Acknowledged, Caller, Seen, User
from fiml.sessions.models import QueryRecord, SessionType
from fiml.sessions.store import SessionStore
from tests.support.deployment import Deployment


async def test_users_lose_nothing_and_double_nothing_when_a_replica_crashes(
    deployment: Deployment, tmp_path: Path
) -> None:
    plan = Plan(users=10, seconds=4, calls_per_second=20)

    async with asyncio.timeout(90):
        outcome = await run(plan, deployment.settings(), tmp_path)

    assert (outcome.seen.errors, outcome.faults) == ([], []), report(outcome)
    assert outcome.sessions >= plan.users
    assert outcome.records > 0
    assert any(outcome.seen.repeated.values()), "the crash went by unnoticed"


async def test_the_load_run_sees_what_is_lost_and_what_nobody_sent(deployment: Deployment) -> None:
    """A comparison that can't fail would prove nothing."""
    async with SessionStore(deployment.settings()) as store:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="user 0")
        await store.record_query(session.id, QueryRecord("price"))
        await store.create_session(["AAPL"], SessionType.EQUITY, user_id="user 0")
        user = User(Caller(httpx2.AsyncClient(), ["http://127.0.0.1:1"], None, Seen()), Seen(), 0)
        user.sessions[session.id] = Acknowledged(records={str(uuid4())}, steps={"step 0": 0})
        user.sessions[uuid4()] = Acknowledged()
        outcome = Outcome(Seen(), Seen())

        await compare(store, [user], outcome)

    told = "\n".join(outcome.faults)
    for fault in ("1 records are lost", "1 records that nobody sent", "written to the context is lost", "is lost"):
        assert fault in told
    assert "1 sessions that nobody asked for" in told
