"""A question asked within a session: one answer, one record, and what changed since the last look."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from fiml.analysis import MAX_COMPARED, Question, ask
from fiml.core.config import Settings
from fiml.core.errors import (
    InvalidInput,
    InvalidSessionId,
    SessionArchived,
    SessionExpired,
    SessionNotFound,
    SymbolNotFound,
    Unavailable,
)
from fiml.market.models import AssetKind, Depth, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.sessions.values import ANSWER_PREFIX
from fiml.testing import FrozenClock, open_temporary_store
from fiml.testing.conformance.suite import OpenStore
from fiml.testing.fixtures import store
from tests.support.deployment import Deployment
from tests.support.servers import ValkeyProcess, valkey_server

__all__ = ["store"]  # the shipped one: embedded, and fast

AAPL = Question(symbol="AAPL", depth=Depth.QUICK)
AAPL_DEEP = Question(symbol="AAPL", depth=Depth.DEEP)


class Ticker(SampleProvider):
    """A market that isn't the sample: it moves by one at each quote, and may close."""

    source = "ticker"

    def __init__(self) -> None:
        self.moves = 0
        self.is_open = True

    async def quote(self, instrument: Instrument) -> Quote:
        if not self.is_open:
            raise Unavailable("the ticker", "it is closed")
        last = await super().quote(instrument)
        self.moves += 1
        return last.model_copy(update={"source": self.source, "price": last.price + self.moves})


@pytest.fixture
def market() -> MarketService:
    return MarketService(SampleProvider())


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    with valkey_server() as server:
        yield server


async def begin(store: SessionStore, *assets: str) -> Session:
    return await store.create_session(list(assets) or ["AAPL"], SessionType.EQUITY)


async def current(store: SessionStore, session: Session) -> Session:
    found = await store.get_session(session.id)
    assert found is not None
    return found


async def test_a_question_without_a_session_is_answered_and_recorded_nowhere(
    store: SessionStore, market: MarketService
) -> None:
    answer = await ask(AAPL, market=market, sessions=store)

    assert answer.market.quote.price == 173.93
    assert (answer.tracked, answer.session_id, answer.total_queries) == (False, None, None)
    assert answer.reason is not None


async def test_a_text_is_no_question(market: MarketService) -> None:
    text: Any = "AAPL"

    with pytest.raises(InvalidInput, match="give a Question"):
        await ask(text, market=market)


async def test_one_question_is_one_record(open_store: OpenStore, market: MarketService) -> None:
    async with open_store() as store:
        session = await begin(store)

        answer = await ask(AAPL, market=market, sessions=store, session_id=session.id)

        [query] = (await current(store, session)).state.history.queries
    assert (answer.tracked, answer.total_queries, answer.reason) == (True, 1, None)
    assert query.query_type == "price"
    assert query.parameters == {"symbol": "AAPL", "market": "US", "depth": "quick"}
    assert query.result_summary == "AAPL: close 173.93 USD (-0.89%), 2023-09-21, source sample"
    assert query.cache_hit is False
    assert query.execution_time_ms is not None
    assert query.execution_time_ms >= 0


async def test_a_coin_is_recorded_with_its_exchange_and_pair(store: SessionStore, market: MarketService) -> None:
    session = await begin(store, "BTC")
    question = Question(symbol="btc", kind=AssetKind.COIN, depth=Depth.QUICK)

    await ask(question, market=market, sessions=store, session_id=str(session.id))

    [query] = (await current(store, session)).state.history.queries
    assert query.parameters == {"symbol": "BTC", "exchange": "Bitstamp", "pair": "USD", "depth": "quick"}


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("looks", [1, 2])
async def test_a_question_costs_two_scripts_at_redis(
    deployment: Deployment, valkey: ValkeyProcess, market: MarketService, depth: Depth, looks: int
) -> None:
    """One reads what the session knows, one records; a question answered from the session costs the same."""
    settings = Settings(redis_url=valkey.url, database_url=deployment.database_url)
    question = Question(symbol="AAPL", depth=depth)
    async with SessionStore(settings) as store:
        session = await begin(store, "AAPL", "MSFT")
        for _ in range(looks - 1):
            await ask(question, market=market, sessions=store, session_id=session.id)
        before = scripts_run(valkey)

        answer = await ask(question, market=market, sessions=store, session_id=session.id)

        assert scripts_run(valkey) - before == 2
    assert answer.cache_hit is (looks == 2)


def scripts_run(valkey: ValkeyProcess) -> int:
    with redis.Redis.from_url(valkey.url) as client:
        stats = client.info("commandstats")
    assert isinstance(stats, dict)
    return int(stats["cmdstat_evalsha"]["calls"])


async def test_questions_at_once_are_one_record_each(open_store: OpenStore, market: MarketService) -> None:
    async with open_store() as store:
        session = await begin(store)

        answers = await asyncio.gather(
            *(ask(AAPL, market=market, sessions=store, session_id=session.id) for _ in range(30))
        )

        history = (await current(store, session)).state.history
    assert sorted(answer.total_queries or 0 for answer in answers) == list(range(1, 31))
    assert len({query.id for query in history.queries}) == 30


async def test_what_a_session_holds_survives_its_archiving(open_store: OpenStore, market: MarketService) -> None:
    async with open_store() as store:
        session = await begin(store)
        first = await ask(AAPL, market=market, sessions=store, session_id=session.id)
        await store.archive_session(session.id)
        await store.resume_session(session.id)

        again = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert again.cache_hit is True
    assert again.market == first.market


async def test_figures_of_a_moving_market_are_asked_for_again(store: SessionStore, clock: FrozenClock) -> None:
    market = MarketService(Ticker())
    session = await begin(store)
    await ask(AAPL, market=market, sessions=store, session_id=session.id)
    looked_at = clock.now()
    clock.advance(minutes=5)

    again = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert again.cache_hit is False
    since = again.since_last_look
    assert since is not None
    assert since.looked_at == looked_at
    assert [(change.figure, change.before, change.now) for change in since.changed] == [("quote.price", 174.93, 175.93)]
    assert since.summary == "1 figure changed"


async def test_another_source_is_asked_though_the_session_holds_the_sample(
    store: SessionStore, market: MarketService
) -> None:
    session = await begin(store)
    ticker = MarketService(Ticker())
    await ask(AAPL, market=ticker, sessions=store, session_id=session.id)

    answer = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert answer.cache_hit is False
    assert answer.market.quote.source == "sample"


async def test_a_question_that_the_market_does_not_answer_is_recorded_as_failed(store: SessionStore) -> None:
    ticker = Ticker()
    ticker.is_open = False
    session = await begin(store)

    with pytest.raises(Unavailable, match="the ticker is unavailable"):
        await ask(AAPL, market=MarketService(ticker), sessions=store, session_id=session.id)

    history = (await current(store, session)).state.history
    [failed] = history.queries
    assert (failed.query_type, failed.error, failed.cache_hit, failed.figures) == ("price", "unavailable", False, {})
    assert failed.parameters == {"symbol": "AAPL", "market": "US", "depth": "quick"}
    assert "the ticker is unavailable" in (failed.result_summary or "")
    assert history.cache_hit_rate == 0


@pytest.mark.parametrize(
    "question",
    [
        Question(symbol="TSLA"),
        Question(symbol=""),
        Question(symbol="AAPL", market="DE"),
        Question(symbol="AAPL", kind=AssetKind.COIN),
        Question(symbol="BTC", kind=AssetKind.COIN, exchange="Kraken"),
        Question(symbol="BTC", kind=AssetKind.COIN, pair="EUR"),
    ],
    ids=repr,
)
async def test_a_question_that_is_not_valid_leaves_no_record(
    store: SessionStore, market: MarketService, question: Question
) -> None:
    session = await begin(store)

    with pytest.raises(InvalidInput):
        await ask(question, market=market, sessions=store, session_id=session.id)

    assert (await current(store, session)).state.history.total_queries == 0


async def test_a_missing_symbol_is_refused_with_the_known_ones(market: MarketService) -> None:
    with pytest.raises(SymbolNotFound) as caught:
        await ask(Question(symbol="GOOGL"), market=market)

    assert "GOOG" in caught.value.known


async def test_a_session_that_cannot_take_a_question_is_an_error(
    store: SessionStore, market: MarketService, clock: FrozenClock
) -> None:
    archived, expired = await begin(store), await begin(store)
    await store.archive_session(archived.id)
    clock.advance(hours=24)

    for session_id, error in (
        (expired.id, SessionExpired),
        (archived.id, SessionArchived),
        (uuid4(), SessionNotFound),
        ("no id", InvalidSessionId),
    ):
        with pytest.raises(error):
            await ask(AAPL, market=market, sessions=store, session_id=session_id)


async def test_another_principals_session_is_not_found(store: SessionStore, market: MarketService) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id="ann")

    with pytest.raises(SessionNotFound):
        await ask(AAPL, market=market, sessions=store.as_principal("eve"), session_id=session.id)

    assert (await current(store, session)).state.history.total_queries == 0


async def test_a_file_that_takes_no_writes_any_more_costs_the_record_and_not_the_answer(
    store: SessionStore, market: MarketService
) -> None:
    session = await begin(store)
    await store._backend._file.read(lambda connection: connection.execute("PRAGMA query_only=ON"))  # type: ignore[attr-defined]

    answer = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert (answer.market.quote.symbol, answer.tracked, answer.total_queries) == ("AAPL", False, None)
    assert answer.reason is not None
    assert "can't be opened for writing" in answer.reason


async def test_a_full_session_keeps_what_it_held(sqlite_settings: Settings, market: MarketService) -> None:
    assert sqlite_settings.data_dir is not None
    async with open_temporary_store(sqlite_settings.data_dir, session_max_queries_per_session=1) as store:
        session = await begin(store)
        await ask(AAPL, market=market, sessions=store, session_id=session.id)
        before = (await current(store, session)).state

        answer = await ask(Question(symbol="MSFT"), market=market, sessions=store, session_id=session.id)

        assert (answer.tracked, answer.total_queries) == (False, None)
        assert answer.reason is not None
        assert "holds at most 1 queries" in answer.reason
        assert (await current(store, session)).state == before


@pytest.mark.parametrize("stranger", [None, "text", 5, [], {}, {"depth": "deep"}, {"answer": None}])
async def test_somebody_elses_value_under_the_key_counts_as_nothing_held(
    store: SessionStore, market: MarketService, stranger: object
) -> None:
    session = await begin(store)
    session.state.store_intermediate_result(ANSWER_PREFIX + "AAPL", stranger)
    await store.update_session(session.id, session)

    answer = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert (answer.cache_hit, answer.tracked, answer.since_last_look) == (False, True, None)
    again = await ask(AAPL, market=market, sessions=store, session_id=session.id)
    assert again.cache_hit is True


ODD_TIMES = ("2024-12-24T15:30:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00")


@pytest.mark.parametrize("odd", ODD_TIMES)
@pytest.mark.parametrize("place", ["looked_at", "known_at", "fresh_until", "market_time"])
async def test_an_earlier_answer_with_an_invalid_time_counts_as_nothing_held(
    store: SessionStore, market: MarketService, place: str, odd: str
) -> None:
    session = await begin(store)
    await ask(AAPL, market=market, sessions=store, session_id=session.id)
    session = await current(store, session)
    held = session.state.get_intermediate_result(ANSWER_PREFIX + "AAPL")
    answer = held["answer"]
    {"looked_at": held, "market_time": answer["quote"]}.get(place, answer["delivery"]["quote"])[place] = odd
    await store.update_session(session.id, session)

    again = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert (again.cache_hit, again.tracked, again.since_last_look) == (False, True, None)


async def test_what_the_user_put_into_the_session_stays(store: SessionStore, market: MarketService) -> None:
    session = await begin(store)
    session.state.update_context("user_preference", "detailed_analysis")
    session.state.store_intermediate_result("fundamental_analysis", {"pe_ratio": 28.5})
    await store.update_session(session.id, session)

    await ask(AAPL, market=market, sessions=store, session_id=session.id)

    state = (await current(store, session)).state
    assert state.context == {
        "user_preference": "detailed_analysis",
        "last_symbol": "AAPL",
        "last_query_type": "price",
    }
    assert state.intermediate_results.keys() == {"fundamental_analysis", "answer:AAPL"}


async def test_an_answer_compares_with_at_most_ten_assets_and_counts_the_others(
    store: SessionStore, market: MarketService
) -> None:
    others = [f"X{number}" for number in range(MAX_COMPARED + 5)]
    session = await begin(store, "AAPL", *others)

    answer = await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)

    assert list(answer.market.not_compared) == others[:MAX_COMPARED]
    assert answer.not_compared_count == 5


async def test_an_asset_that_is_not_a_symbol_is_reported_like_any_unknown_one(
    store: SessionStore, market: MarketService
) -> None:
    session = await begin(store, "AAPL", "not a symbol at all", "x" * 64)

    answer = await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)

    assert answer.market.not_compared.keys() == {"not a symbol at all", "x" * 64}


async def test_an_asset_named_twice_in_different_letters_is_compared_once(
    store: SessionStore, market: MarketService
) -> None:
    session = await begin(store, "AAPL", "msft", "MSFT", "aapl")

    answer = await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)

    assert [comparison.other for comparison in answer.market.comparisons] == ["MSFT"]


async def test_the_order_of_the_assets_does_not_matter_to_what_is_held(
    store: SessionStore, market: MarketService
) -> None:
    session = await begin(store, "AAPL", "MSFT", "NVDA")
    await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)
    session.assets.remove("MSFT")
    session = await store.update_session(session.id, session)
    session.assets.append("MSFT")
    await store.update_session(session.id, session)

    again = await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)

    assert again.cache_hit is True


async def test_an_asset_that_joined_since_the_last_look_is_compared_too(
    store: SessionStore, market: MarketService
) -> None:
    session = await begin(store, "AAPL", "MSFT")
    await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)
    session.assets.append("NVDA")
    await store.update_session(session.id, session)

    again = await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)

    assert again.cache_hit is False
    assert [comparison.other for comparison in again.market.comparisons] == ["MSFT", "NVDA"]


@pytest.mark.parametrize(
    ("depth", "parts"), [(Depth.QUICK, {"quote"}), (Depth.STANDARD, {"quote", "bars", "fundamentals"})]
)
async def test_an_answer_from_a_deeper_look_has_only_the_parts_that_were_asked_for(
    store: SessionStore, market: MarketService, depth: Depth, parts: set[str]
) -> None:
    session = await begin(store, "AAPL", "MSFT")
    await ask(AAPL_DEEP, market=market, sessions=store, session_id=session.id)

    answer = await ask(Question(symbol="AAPL", depth=depth), market=market, sessions=store, session_id=session.id)

    assert answer.cache_hit is True
    assert answer.market.delivery.keys() == parts
