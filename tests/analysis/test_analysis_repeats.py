"""A question asked again with the id of its record: a client that retries tracks nothing twice."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from fiml.analysis import RECENT_QUERIES, Answer, Question, ask
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, Unavailable
from fiml.market.models import AssetKind, Depth, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import open_temporary_store
from fiml.testing.conformance.suite import OpenStore, existing
from tests.support.mcp_client import door

AAPL = Question(symbol="AAPL", depth=Depth.QUICK)
BTC = Question(symbol="BTC", kind=AssetKind.COIN, depth=Depth.QUICK)


class Shop(SampleProvider):
    """A market that may be closed."""

    is_open = False

    async def quote(self, instrument: Instrument) -> Quote:
        if not self.is_open:
            raise Unavailable("the shop", "it is closed")
        return await super().quote(instrument)


@pytest.fixture
def market() -> MarketService:
    return MarketService(SampleProvider())


async def begin(store: SessionStore) -> Session:
    return await store.create_session(["AAPL", "BTC"], SessionType.EQUITY)


async def recorded(store: SessionStore, session: Session) -> list[UUID]:
    found = await store.get_session(session.id)
    assert found is not None
    assert found.state.history.total_queries == len(found.state.history.queries)
    return [query.id for query in found.state.history.queries]


@pytest.mark.parametrize("question", [AAPL, BTC])
async def test_a_question_asked_again_is_recorded_once(
    open_store: OpenStore, market: MarketService, question: Question
) -> None:
    record_id = uuid4()
    async with open_store() as store:
        session = await begin(store)
        answers = [
            await ask(question, market=market, sessions=store, session_id=session.id, record_id=record_id)
            for _ in range(3)
        ]
        kept = await recorded(store, session)

    assert kept == [record_id]
    assert [(each.tracked, each.record_id, each.total_queries) for each in answers] == [(True, record_id, 1)] * 3
    assert len({answer.market.quote.price for answer in answers}) == 1


async def test_a_question_asked_many_times_at_once_is_recorded_once(
    open_store: OpenStore, market: MarketService
) -> None:
    record_id = uuid4()
    async with open_store() as store:
        session = await begin(store)
        answers: list[Answer] = await asyncio.gather(
            *(ask(AAPL, market=market, sessions=store, session_id=session.id, record_id=record_id) for _ in range(20))
        )
        kept = await recorded(store, session)

    assert kept == [record_id]
    assert {answer.record_id for answer in answers} == {record_id}


@pytest.mark.parametrize(
    "other",
    [replace(AAPL, symbol="MSFT"), replace(AAPL, depth=Depth.STANDARD), BTC],
    ids=["symbol", "depth", "kind"],
)
async def test_the_id_of_another_question_is_refused_and_records_nothing(
    open_store: OpenStore, market: MarketService, other: Question
) -> None:
    record_id = uuid4()
    async with open_store() as store:
        session = await begin(store)
        await ask(AAPL, market=market, sessions=store, session_id=session.id, record_id=record_id)

        with pytest.raises(InvalidInput, match=r"already used for another question \(AAPL, quick\); give a new UUID"):
            await ask(other, market=market, sessions=store, session_id=session.id, record_id=record_id)
        kept = await recorded(store, session)

    assert kept == [record_id]


@pytest.mark.parametrize(
    ("question", "spellings"),
    [
        (AAPL, [{"market": "us"}, {"market": " Us "}, {"symbol": " aapl"}]),
        (BTC, [{"pair": "usd"}, {"pair": " Usd "}, {"exchange": "BITSTAMP"}, {"symbol": "btc "}]),
    ],
    ids=["stock", "coin"],
)
async def test_a_question_in_another_spelling_is_the_same_one(
    open_store: OpenStore, market: MarketService, question: Question, spellings: list[dict[str, Any]]
) -> None:
    record_id = uuid4()
    async with open_store() as store:
        session = await begin(store)
        for spelling in ({}, *spellings):
            asked = replace(question, **spelling)
            for name in (record_id, uuid4()):
                await ask(asked, market=market, sessions=store, session_id=session.id, record_id=name)
        history = (await existing(store, session.id)).state.history

    assert history.total_queries == len(spellings) + 2
    assert len({tuple(query.parameters.items()) for query in history.queries}) == 1


async def test_far_back_in_a_history_an_id_still_records_nothing_twice(
    sqlite_settings: Settings, market: MarketService
) -> None:
    assert sqlite_settings.data_dir is not None
    record_id = uuid4()
    async with open_temporary_store(sqlite_settings.data_dir) as store:
        session = await begin(store)
        await ask(AAPL, market=market, sessions=store, session_id=session.id, record_id=record_id)
        for _ in range(RECENT_QUERIES):
            await ask(AAPL, market=market, sessions=store, session_id=session.id)

        again = await ask(BTC, market=market, sessions=store, session_id=session.id, record_id=record_id)
        kept = await recorded(store, session)

    assert (again.tracked, again.total_queries) == (True, RECENT_QUERIES + 1)
    assert kept.count(record_id) == 1


async def test_a_question_that_failed_and_then_succeeds_has_a_record_of_each(sqlite_settings: Settings) -> None:
    assert sqlite_settings.data_dir is not None
    shop, record_id = Shop(), uuid4()
    market = MarketService(shop)
    async with open_temporary_store(sqlite_settings.data_dir) as store:
        session = await begin(store)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await ask(AAPL, market=market, sessions=store, session_id=session.id, record_id=record_id)
        shop.is_open = True
        answer = await ask(AAPL, market=market, sessions=store, session_id=session.id, record_id=record_id)
        found = await store.get_session(session.id)

    assert found is not None
    assert [query.error for query in found.state.history.queries] == ["unavailable", None]
    assert (answer.record_id, answer.total_queries) == (record_id, 2)


async def test_a_session_that_the_question_filled_answers_it_again(
    sqlite_settings: Settings, market: MarketService
) -> None:
    assert sqlite_settings.data_dir is not None
    record_id = uuid4()
    async with open_temporary_store(sqlite_settings.data_dir, session_max_queries_per_session=1) as store:
        session = await begin(store)
        answers = [
            await ask(AAPL, market=market, sessions=store, session_id=session.id, record_id=record_id) for _ in range(2)
        ]

    assert [answer.tracked for answer in answers] == [True, True]


@pytest.mark.parametrize(("tool", "symbol"), [("search-by-symbol", "AAPL"), ("search-by-coin", "BTC")])
async def test_a_client_that_retries_gives_a_request_id(tmp_path: Path, tool: str, symbol: str) -> None:
    request_id = str(uuid4())
    async with door(Settings(data_dir=tmp_path / "data")) as caller:
        session_id = await caller.create("AAPL")
        asked: dict[str, Any] = {"symbol": symbol, "sessionId": session_id, "requestId": request_id}
        answers = [await caller.answer(tool, **asked), await caller.answer(tool, **asked)]
        snake = {"symbol": symbol, "sessionId": session_id, "request_id": request_id}
        answers.append(await caller.answer(tool, **snake))
        other = await caller.refusal(tool, **asked | {"depth": "quick"})
        malformed = await caller.refusal(tool, **asked | {"requestId": "first"})
        alone = await caller.answer(tool, symbol=symbol, requestId=request_id)

    assert [(each["record_id"], each["tracked"], each["total_queries"]) for each in answers] == [
        (request_id, True, 1)
    ] * 3
    assert (other["code"], malformed["code"]) == ("invalid_input", "invalid_input")
    assert alone["tracked"] is False
