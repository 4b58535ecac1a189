"""What changed since the last looks at a symbol, each part of the answer compared with the last look that had it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from fiml.analysis import Answer, Question, ask
from fiml.cache.l1_cache import MemoryL1Cache
from fiml.core.errors import Unavailable
from fiml.looks import holding
from fiml.market.models import Bars, Depth, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.sessions.models import Session
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.clock import START
from fiml.testing.conformance.suite import existing
from fiml.testing.fixtures import store

__all__ = ["store"]  # the shipped one: embedded, and fast


class Rising(SampleProvider):
    """A market whose prices rise by a tenth each day, and which may be away or slow."""

    source = "live"

    def __init__(self, clock: FrozenClock) -> None:
        self._clock = clock
        self.is_away = False
        self.takes = timedelta(0)

    async def quote(self, instrument: Instrument) -> Quote:
        factor = self._factor()
        quote = await super().quote(instrument)
        return quote.model_copy(update={"source": self.source, "price": round(quote.price * factor, 6)})

    async def bars(self, instrument: Instrument) -> Bars:
        factor = self._factor()
        found = await super().bars(instrument)
        last = found.bars[-1]._replace(close=found.bars[-1].close * factor)
        return replace(found, bars=(*found.bars[:-1], last))

    def _factor(self) -> float:
        if self.is_away:
            raise Unavailable("the market", "it is away")
        self._clock.advance(seconds=self.takes.total_seconds())
        return float(1.1 ** (self._clock.now() - START).days)


@pytest.fixture
async def session(store: SessionStore) -> Session:
    return await store.create_session(["AAPL", "NVDA"], "equity", ttl_hours=168)


@pytest.fixture
def rising(clock: FrozenClock) -> Rising:
    return Rising(clock)


class Analyst:
    """Asks about AAPL in a session."""

    def __init__(self, store: SessionStore, session: Session, market: MarketService) -> None:
        self._store, self._session, self._market = store, session, market

    async def look(self, depth: Depth) -> Answer:
        question = Question(symbol="AAPL", depth=depth)
        return await ask(question, market=self._market, sessions=self._store, session_id=self._session.id)


@pytest.fixture
async def analyst(store: SessionStore, session: Session, rising: Rising) -> AsyncIterator[Analyst]:
    market = MarketService(rising, (MemoryL1Cache(),))
    yield Analyst(store, session, market)
    await market.aclose()


def changed(answer: Answer) -> set[str]:
    assert answer.since_last_look is not None
    return {change.figure for change in answer.since_last_look.changed}


async def test_a_quick_look_in_between_does_not_hide_what_has_changed(analyst: Analyst, clock: FrozenClock) -> None:
    first = await analyst.look(Depth.STANDARD)
    clock.advance(days=1)
    await analyst.look(Depth.QUICK)

    again = await analyst.look(Depth.STANDARD)

    assert again.since_last_look is not None
    assert again.since_last_look.new_sections == []
    rsi = next(each for each in again.since_last_look.changed if each.figure == "technicals.rsi_14")
    assert first.market.technicals is not None
    assert again.market.technicals is not None
    assert (rsi.before, rsi.now) == (first.market.technicals.rsi_14, again.market.technicals.rsi_14)
    assert "quote.price" not in changed(again)  # the quick look has seen this one
    assert again.since_last_look.summary.endswith(" figures changed (technicals since 2024-12-23T15:30:00Z)")


async def test_a_quick_answer_from_the_session_is_no_look_at_the_technicals(
    analyst: Analyst, clock: FrozenClock
) -> None:
    await analyst.look(Depth.STANDARD)
    clock.advance(seconds=5)
    assert (await analyst.look(Depth.QUICK)).layer == "session"
    clock.advance(days=1)

    again = await analyst.look(Depth.STANDARD)

    assert again.since_last_look is not None
    assert "technicals since 2024-12-23T15:30:00Z" in again.since_last_look.summary
    assert "quote since" not in again.since_last_look.summary


async def test_a_standard_look_in_between_keeps_the_comparisons(analyst: Analyst, clock: FrozenClock) -> None:
    await analyst.look(Depth.DEEP)
    clock.advance(days=1)
    await analyst.look(Depth.STANDARD)

    again = await analyst.look(Depth.DEEP)

    assert again.since_last_look is not None
    assert (again.layer, again.since_last_look.new_sections) == ("l1", [])
    assert again.market.comparisons[0].return_self == pytest.approx(1.213 * 1.1 - 1, abs=0.001)


@pytest.mark.parametrize(("depth", "may_answer"), [(Depth.QUICK, True), (Depth.STANDARD, False)])
async def test_comparisons_answer_only_beside_the_technicals_that_they_were_made_with(
    depth: Depth, *, may_answer: bool
) -> None:
    """The other's bars may be current for longer than those of the symbol, which a standard look has renewed."""
    market = MarketService(SampleProvider())
    instrument = await market.equity("AAPL")
    deep = await market.answer(instrument, Depth.DEEP, ["NVDA"])
    held = holding(None, Depth.DEEP, instrument, deep, ["NVDA"], is_hit=False)
    assert held.answers(Depth.DEEP, ["NVDA"])

    held = holding(held, depth, instrument, await market.answer(instrument, depth), [], is_hit=False)

    assert held.answers(Depth.DEEP, ["NVDA"]) is may_answer
    assert held.answer.comparisons == deep.comparisons


async def test_what_is_no_longer_compared_does_not_make_an_answer_old(
    store: SessionStore, session: Session, analyst: Analyst, clock: FrozenClock
) -> None:
    await analyst.look(Depth.DEEP)
    looked = await existing(store, session.id)
    looked.assets = ["AAPL", "MSFT"]
    await store.update_session(session.id, looked)
    clock.advance(days=1)

    await analyst.look(Depth.DEEP)

    held = (await existing(store, session.id)).state.intermediate_results["answer:AAPL"]
    assert set(held["answer"]["delivery"]) == {"quote", "bars", "fundamentals", "bars:MSFT"}
    assert (await analyst.look(Depth.DEEP)).layer == "session"


async def test_a_quick_look_leaves_parts_that_are_still_current_to_answer_the_next_question(
    analyst: Analyst, clock: FrozenClock
) -> None:
    await analyst.look(Depth.STANDARD)
    clock.advance(seconds=20)
    assert (await analyst.look(Depth.QUICK)).layer == "provider"
    clock.advance(seconds=5)

    answer = await analyst.look(Depth.STANDARD)

    assert (answer.layer, answer.market.technicals is not None) == ("session", True)
    ages = {name: part.age_seconds for name, part in answer.market.delivery.items()}
    assert (ages["quote"], ages["bars"]) == (5, 25)


async def test_without_the_provider_nobody_says_that_nothing_has_changed(
    analyst: Analyst, rising: Rising, clock: FrozenClock
) -> None:
    await analyst.look(Depth.QUICK)
    clock.advance(hours=5)
    rising.is_away = True

    answer = await analyst.look(Depth.QUICK)

    assert answer.since_last_look is not None
    assert answer.since_last_look.summary == (
        "no figure changed as far as is known: the provider fails, and its last figures are of 2024-12-23T15:30:00Z"
    )


async def test_a_look_of_a_release_that_did_not_store_when_parts_were_learnt_never_answers(
    analyst: Analyst, store: SessionStore, session: Session, clock: FrozenClock
) -> None:
    await analyst.look(Depth.STANDARD)
    looked = await existing(store, session.id)
    looked.state.intermediate_results["answer:AAPL"]["answer"].pop("delivery")
    await store.update_session(session.id, looked)
    await analyst.look(Depth.QUICK)

    answer = await analyst.look(Depth.STANDARD)

    assert answer.layer != "session"
    assert answer.since_last_look is not None


async def test_a_question_is_of_the_moment_when_it_was_asked(
    analyst: Analyst, store: SessionStore, session: Session, rising: Rising
) -> None:
    rising.takes = timedelta(seconds=4)

    await analyst.look(Depth.QUICK)

    [query] = (await existing(store, session.id)).state.history.queries
    assert (query.timestamp, query.known_at) == (START, START + rising.takes)
    assert not query.was_known_by(START)


async def test_a_repeated_question_says_that_its_record_has_other_figures(
    store: SessionStore, session: Session, rising: Rising, clock: FrozenClock
) -> None:
    record_id, market = uuid4(), MarketService(rising)
    question = Question(symbol="AAPL", depth=Depth.QUICK)

    async def attempt() -> Answer:
        return await ask(question, market=market, sessions=store, session_id=session.id, record_id=record_id)

    first = await attempt()
    clock.advance(days=1)
    second = await attempt()

    looked = await existing(store, session.id)
    assert (first.reason, second.tracked, second.record_id) == (None, True, record_id)
    assert second.reason == "the record is of 2024-12-23T15:30:00Z, and keeps the figures of then"
    assert [query.figures["price"] for query in looked.state.history.queries] == [first.market.quote.price]
    held = looked.state.intermediate_results["answer:AAPL"]
    assert held["answer"]["quote"]["price"] == first.market.quote.price
    await market.aclose()
