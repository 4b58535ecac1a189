"""Where the figures of a question come from: recorded with it, current or stale, sample and live apart."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date

import pytest

from fiml.analysis import Question, ask
from fiml.core.config import Settings
from fiml.core.errors import Unavailable
from fiml.market.models import Depth, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, open_temporary_store
from fiml.testing.conformance.suite import existing

AAPL = Question(symbol="AAPL", depth=Depth.QUICK)


class Live(SampleProvider):
    """A market that isn't the sample, and may hang."""

    source = "live"

    def __init__(self) -> None:
        self.hangs = False

    async def quote(self, instrument: Instrument) -> Quote:
        if self.hangs:
            await asyncio.sleep(60)
        return (await super().quote(instrument)).model_copy(update={"source": "live"})


@pytest.fixture
async def store(sqlite_settings: Settings) -> AsyncIterator[SessionStore]:
    assert sqlite_settings.data_dir is not None
    async with open_temporary_store(sqlite_settings.data_dir) as opened:
        yield opened


async def begin(store: SessionStore) -> Session:
    return await store.create_session(["AAPL", "MSFT"], "equity")


async def records(store: SessionStore, session: Session) -> list[QueryRecord]:
    return (await existing(store, session.id)).state.history.queries


async def test_a_record_names_source_times_currency_and_adjustment(store: SessionStore, clock: FrozenClock) -> None:
    session = await begin(store)

    await ask(AAPL, market=MarketService(SampleProvider()), sessions=store, session_id=session.id)

    [query] = await records(store, session)
    assert (query.provider, query.as_of, query.known_at) == ("sample", date(2023, 9, 21), clock.now())
    assert (query.currency, query.adjustment, query.layer, query.error) == ("USD", "splits", "provider", None)
    assert query.figures["price"] == 173.93
    assert query.figures["change_percent"] == -0.8889


async def test_a_deep_record_has_every_figure_of_the_answer(store: SessionStore) -> None:
    session = await begin(store)
    question = Question(symbol="AAPL", depth=Depth.DEEP)

    answer = await ask(question, market=MarketService(SampleProvider()), sessions=store, session_id=session.id)

    [query] = await records(store, session)
    assert answer.market.technicals is not None
    assert query.figures["rsi_14"] == answer.market.technicals.rsi_14
    assert query.figures["correlation:MSFT"] == answer.market.comparisons[0].correlation
    assert "pe_ratio" not in query.figures  # the sample has none


async def test_an_answer_from_the_session_says_so_and_keeps_when_it_was_learnt(
    store: SessionStore, clock: FrozenClock
) -> None:
    session = await begin(store)
    market = MarketService(SampleProvider())
    learnt = clock.now()
    await ask(AAPL, market=market, sessions=store, session_id=session.id)
    clock.advance(hours=1)

    answer = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    [_, again] = await records(store, session)
    assert (answer.layer, again.layer, again.cache_hit) == ("session", "session", True)
    assert again.known_at == learnt


async def test_sample_and_live_are_never_mixed(store: SessionStore) -> None:
    """What a session holds from the sample neither answers a live question nor is compared with it."""
    session = await begin(store)
    await ask(AAPL, market=MarketService(SampleProvider()), sessions=store, session_id=session.id)

    answer = await ask(AAPL, market=MarketService(Live()), sessions=store, session_id=session.id)

    assert (answer.market.quote.source, answer.cache_hit, answer.since_last_look) == ("live", False, None)


async def test_live_figures_that_are_no_longer_current_are_asked_for_again(store: SessionStore) -> None:
    session = await begin(store)
    market = MarketService(Live())
    await ask(AAPL, market=market, sessions=store, session_id=session.id)

    answer = await ask(AAPL, market=market, sessions=store, session_id=session.id)

    assert (answer.cache_hit, answer.layer) == (False, "provider")
    assert answer.since_last_look is not None


async def test_a_provider_that_hangs_makes_no_call_longer_than_its_limit_and_is_recorded_as_failed(
    store: SessionStore,
) -> None:
    session = await begin(store)
    live = Live()
    live.hangs = True

    with pytest.raises(Unavailable, match=r"no answer within 0\.05 s"):
        await ask(AAPL, market=MarketService(live), sessions=store, session_id=session.id, timeout_s=0.05)

    [failed] = await records(store, session)
    assert (failed.error, failed.cache_hit, failed.provider) == ("unavailable", False, "live")
