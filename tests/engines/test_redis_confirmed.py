"""Writes that replicas must have before they are acknowledged."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis
from structlog.testing import capture_logs

from fiml.analysis import Question, ask
from fiml.core.config import Settings
from fiml.core.errors import (
    Misconfigured,
    SessionConflict,
    SessionExpired,
    SessionNotFound,
    Unavailable,
    Unconfirmed,
)
from fiml.market.models import Depth, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.sessions.backends.shapes import WriteResult
from fiml.sessions.models import QueryTotals, SessionType
from fiml.sessions.rights import Caller
from fiml.sessions.smart_ttl import METADATA_KEY, live_on
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing
from tests.support.deployment import Deployment
from tests.support.fleets import Watched, valkey_cluster, watched_valkeys


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with watched_valkeys() as started:
        yield started


def confirming(watched: Watched, deployment: Deployment, replicas: int) -> Settings:
    return Settings(redis_url=watched.url, database_url=deployment.database_url, redis_wait_replicas=replicas)


async def test_a_write_is_on_the_replica_when_it_is_acknowledged(watched: Watched, deployment: Deployment) -> None:
    replica = next(server for server in watched.servers if server is not watched.master)
    async with SessionStore(confirming(watched, deployment, 1)) as store:
        for _ in range(50):
            session = await store.create_session(["AAPL"], SessionType.EQUITY)
            with redis.Redis(port=replica.port) as client:
                assert client.exists(f"fiml:{{{session.id.hex}}}:header")


async def test_too_few_replicas_are_reported_and_the_write_is_there(watched: Watched, deployment: Deployment) -> None:
    query = make_query()
    async with SessionStore(confirming(watched, deployment, 1)) as careful:
        session = await careful.create_session(["AAPL"], SessionType.EQUITY)
        async with SessionStore(confirming(watched, deployment, 2)) as store:
            with pytest.raises(Unconfirmed, match=r"made the change, but only 1 of 2 replicas") as caught:
                await store.record_query(session.id, query)
            found = await existing(store, session.id)  # to read takes nobody's confirmation
        await careful.record_query(session.id, query)
        again = await existing(careful, session.id)

    assert (caught.value.reached, caught.value.session_id) == (1, None)
    assert isinstance(caught.value, Unavailable)
    assert [each.id for each in found.state.history.queries] == [query.id]
    assert [each.id for each in again.state.history.queries] == [query.id]


async def test_a_write_that_is_refused_is_not_said_to_be_done(
    watched: Watched, deployment: Deployment, clock: FrozenClock
) -> None:
    async with SessionStore(confirming(watched, deployment, 1)) as careful:
        session = await careful.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    async with SessionStore(confirming(watched, deployment, 2)) as store:
        with pytest.raises(SessionNotFound):
            await store.record_query(uuid4(), make_query())
        with pytest.raises(SessionConflict):
            await store.update_session(session.id, session, expected_version=session.version + 1)
        clock.advance(hours=1)
        for write in (store.record_query(session.id, make_query()), store.extend_session(session.id, 1)):
            with pytest.raises(SessionExpired):
                await write


async def test_a_question_that_too_few_replicas_have_is_tracked_and_says_so(
    watched: Watched, deployment: Deployment
) -> None:
    market = MarketService(SampleProvider())
    async with SessionStore(confirming(watched, deployment, 1)) as careful:
        session = await careful.create_session(["AAPL"], SessionType.EQUITY)
        async with SessionStore(confirming(watched, deployment, 2)) as store:
            answer = await ask(Question(symbol="AAPL"), market=market, sessions=store, session_id=session.id)
        [query] = (await existing(careful, session.id)).state.history.queries

    assert (answer.tracked, answer.record_id, answer.total_queries) == (True, query.id, None)
    assert "1 of 2 replicas have it" in (answer.reason or "")


class Closed(SampleProvider):
    """A market that is unavailable."""

    async def quote(self, instrument: Instrument) -> Quote:
        raise Unavailable("the market", f"closed for {instrument.symbol}")


async def test_a_failed_question_that_too_few_replicas_have_is_logged_as_such(
    watched: Watched, deployment: Deployment
) -> None:
    question = Question(symbol="AAPL", depth=Depth.QUICK)
    async with SessionStore(confirming(watched, deployment, 1)) as careful:
        session = await careful.create_session(["AAPL"], SessionType.EQUITY)
        async with SessionStore(confirming(watched, deployment, 2)) as store:
            with capture_logs() as logs, pytest.raises(Unavailable, match="closed for AAPL"):
                await ask(question, market=MarketService(Closed()), sessions=store, session_id=session.id)
        [query] = (await existing(careful, session.id)).state.history.queries

    assert query.error == "unavailable"
    assert [line["event"] for line in logs] == ["failed_query_unconfirmed"]


async def test_an_extension_that_too_few_replicas_have_is_one(
    watched: Watched, deployment: Deployment, clock: FrozenClock
) -> None:
    """The write before it was confirmed: a replica left in between."""
    async with SessionStore(confirming(watched, deployment, 1)) as careful:
        session = await careful.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=24)
        clock.advance(hours=23)
        written = WriteResult(session.version, 0, session.expires_at, QueryTotals(), is_new_version=True)
        async with SessionStore(confirming(watched, deployment, 2)) as store:
            backend = store._backend
            with capture_logs() as logs:
                extended = await live_on(backend, store.settings, session.id, written, caller=Caller(None))
        found = await existing(careful, session.id)

    assert METADATA_KEY in found.state.metadata
    assert (extended.version, extended.expires_at) == (found.version, found.expires_at)
    assert [line["event"] for line in logs] == ["session_extension_unconfirmed"]


async def test_what_is_unconfirmed_on_a_cluster_is_whole(deployment: Deployment) -> None:
    """The indexes are written first, and somebody waits for their replicas too."""
    with valkey_cluster() as cluster:
        settings = Settings(redis_url=cluster.url, database_url=deployment.database_url, redis_wait_replicas=1)
        async with SessionStore(settings) as store:
            with pytest.raises(Unconfirmed, match="0 of 1 replicas") as caught:
                await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")
            [summary] = await store.list_user_sessions("ann")
            found = await existing(store, summary.id)

    assert found.assets == ["AAPL"]
    assert caught.value.session_id == found.id
    assert f"read the new session {found.id} before" in str(caught.value)


async def test_archiving_needs_no_confirmation_but_deleting_does(
    watched: Watched, deployment: Deployment, clock: FrozenClock
) -> None:
    """A failover could bring an archived session back, which loses nothing; a deleted one must stay deleted."""
    async with SessionStore(confirming(watched, deployment, 1)) as store:
        ended, expired, deleted = [
            await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1) for _ in range(3)
        ]
    async with SessionStore(confirming(watched, deployment, 2)) as store:
        assert await store.archive_session(ended.id)
        with pytest.raises(Unconfirmed):
            await store.delete_session(deleted.id)
        clock.advance(hours=2)
        assert (await store.sweep()).archived >= 1
        assert (await existing(store, expired.id)).is_archived
        assert await store.get_session(deleted.id) is None


@pytest.mark.parametrize("value", ["-1", "11", "all"])
def test_how_many_is_checked_at_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FIML_REDIS_WAIT_REPLICAS", value)

    with pytest.raises(Misconfigured, match="FIML_REDIS_WAIT_REPLICAS"):
        Settings()


@pytest.mark.parametrize("value", ["", "a:b", "{a}", "a" * 65, "a b"])
def test_the_prefix_is_checked_at_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FIML_REDIS_PREFIX", value)

    with pytest.raises(Misconfigured, match="FIML_REDIS_PREFIX: must have 1 to 64"):
        Settings()
