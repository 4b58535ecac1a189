"""A session's questions asked again: what changed, and which conclusions rest on it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fiml.analysis import Question, ask
from fiml.cache.l1_cache import MemoryL1Cache
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, Unavailable
from fiml.market.models import AssetKind, Bars, Depth, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.replay import Replay, replay
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, open_temporary_store
from fiml.testing.conformance.suite import existing

SAMPLE = MarketService(SampleProvider())


class Moved(SampleProvider):
    """Another market, whose prices differ by a factor; some symbols are unavailable, some in another currency."""

    source = "moved"

    def __init__(self, factor: float, *, away: str = "", currency: str = "USD") -> None:
        self.factor = factor
        self.away = away
        self.currency = currency
        self.asked = 0

    async def quote(self, instrument: Instrument) -> Quote:
        self.asked += 1
        if instrument.symbol == self.away:
            raise Unavailable("the market", "it is closed")
        quote = await super().quote(instrument)
        changed = {"price": quote.price * self.factor, "source": self.source, "currency": self.currency}
        return quote.model_copy(update=changed)


@pytest.fixture
async def store(sqlite_settings: Settings) -> AsyncIterator[SessionStore]:
    assert sqlite_settings.data_dir is not None
    async with open_temporary_store(sqlite_settings.data_dir) as opened:
        yield opened


async def analysed(store: SessionStore, *symbols: str, depth: Depth = Depth.QUICK) -> Session:
    session = await store.create_session(["AAPL", "MSFT"], "equity")
    for symbol in symbols:
        kind = AssetKind.COIN if symbol == "BTC" else AssetKind.EQUITY
        await ask(Question(symbol=symbol, kind=kind, depth=depth), market=SAMPLE, sessions=store, session_id=session.id)
    return await existing(store, session.id)


def drifts(found: Replay) -> list[set[str]]:
    return [{drift.figure for drift in query.drifts} for query in found.queries]


@pytest.mark.parametrize("depth", list(Depth))
async def test_on_the_same_data_nothing_has_changed(store: SessionStore, depth: Depth) -> None:
    session = await analysed(store, "AAPL", "BTC", depth=depth)

    found = await replay(session, market=SAMPLE, tolerance=0)

    assert drifts(found) == [set(), set()]
    assert [query.compared for query in found.queries] == [len(q.figures) for q in session.state.history.queries]
    assert [query.problem for query in found.queries] == [None, None]


async def test_a_figure_that_moved_beyond_the_tolerance_is_shown_with_both_sources(store: SessionStore) -> None:
    session = await analysed(store, "AAPL")

    found = await replay(session, market=MarketService(Moved(1.05)), tolerance=0.04)

    [query] = found.queries
    [drift] = query.drifts
    assert (drift.figure, drift.then) == ("price", 173.93)
    assert drift.now == pytest.approx(182.6265)
    assert drift.change == pytest.approx(0.05)
    assert (query.source_then, query.source_now) == ("sample", "moved")
    assert (query.as_of_then, query.as_of_now) == ("2023-09-21", "2023-09-21")


async def test_a_figure_within_the_tolerance_is_not_shown(store: SessionStore) -> None:
    session = await analysed(store, "AAPL")

    assert drifts(await replay(session, market=MarketService(Moved(1.05)), tolerance=0.06)) == [set()]


async def test_conclusions_that_rest_on_a_changed_figure_are_named_through_notes_too(store: SessionStore) -> None:
    session = await analysed(store, "AAPL", "MSFT")
    aapl, msft = session.state.history.queries
    [note] = await store.remember(session.id, notes=["Apple at 174"], cites=[aapl.id])
    [through] = await store.remember(session.id, conclusions=["Apple is dear"], cites=[note.id])
    [both] = await store.remember(session.id, conclusions=["Both are dear"], cites=[aapl.id, msft.id])
    await store.remember(session.id, conclusions=["Nothing cited"])
    moved = MarketService(Moved(1.5, away="MSFT"))

    found = await replay(await existing(store, session.id), market=moved)

    shaken = {conclusion.note.id: conclusion.records for conclusion in found.conclusions}
    assert shaken == {through.id: [aapl.id], both.id: [aapl.id]}


async def test_a_question_is_asked_once_whatever_the_number_of_its_records(store: SessionStore) -> None:
    session = await analysed(store, *["AAPL"] * 5)
    moved = Moved(2)

    found = await replay(session, market=MarketService(moved))

    assert moved.asked == 1
    assert drifts(found) == [{"price"}] * 5


async def test_what_cannot_be_compared_says_why(store: SessionStore) -> None:
    session = await analysed(store, "AAPL", "MSFT")
    await store.record_query(session.id, QueryRecord("note", {"text": "free"}))
    await store.record_query(session.id, QueryRecord("price", {"symbol": "X", "depth": "quick"}, error="unavailable"))
    figures = {"price": 1.0}
    await store.record_query(session.id, QueryRecord("price", {"symbol": "X", "depth": "all"}, figures=figures))
    session = await existing(store, session.id)

    found = await replay(session, market=MarketService(Moved(1, away="MSFT", currency="EUR")))

    problems = [query.problem or "" for query in found.queries]
    assert "the currency was USD and is EUR" in problems[0]
    assert "the market is unavailable" in problems[1]
    assert "no figures" in problems[2]
    assert "it failed then" in problems[3]
    assert "no figures that can be asked for again" in problems[4]
    assert drifts(found) == [set()] * 5


async def test_a_figure_that_is_gone_is_a_drift(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], "equity")
    query = QueryRecord("price", {"symbol": "AAPL", "depth": "quick"}, figures={"price": 173.93, "pe_ratio": 29.0})
    await store.record_query(session.id, query)

    found = await replay(await existing(store, session.id), market=SAMPLE)

    [query_now] = found.queries
    [drift] = query_now.drifts
    assert (drift.figure, drift.then, drift.now, drift.change) == ("pe_ratio", 29.0, None, None)
    assert query_now.problem is None  # the record says nothing of an adjustment


@pytest.mark.parametrize(
    ("then", "change"), [(-0.5, -0.7778), (-1.0, 0.1111), (0.5, -2.7778), (0.0, None), (5e-324, None)]
)
async def test_a_change_is_positive_if_the_figure_rose_even_from_below_zero(
    store: SessionStore, then: float, change: float | None
) -> None:
    """The change of Apple's price is now -0.8889 per cent."""
    session = await store.create_session(["AAPL"], "equity")
    query = QueryRecord("price", {"symbol": "AAPL", "depth": "quick"}, figures={"change_percent": then})
    await store.record_query(session.id, query)

    found = await replay(await existing(store, session.id), market=SAMPLE)

    [drift] = found.queries[0].drifts
    assert drift.change == (None if change is None else pytest.approx(change))


class Patchy(SampleProvider):
    """A market that has no bars of Microsoft now, or of anything."""

    source = "patchy"

    def __init__(self) -> None:
        self.is_away = False

    async def bars(self, instrument: Instrument) -> Bars:
        if self.is_away or instrument.symbol == "MSFT":
            raise Unavailable(self.source, "it is closed")
        return await super().bars(instrument)


async def test_figures_of_a_comparison_that_cannot_be_made_now_are_not_gone(store: SessionStore) -> None:
    session = await analysed(store, "AAPL", depth=Depth.DEEP)
    await store.remember(session.id, conclusions=["in step"], cites=[session.state.history.queries[0].id])

    found = await replay(await existing(store, session.id), market=MarketService(Patchy()))

    [query] = found.queries
    names = session.state.history.queries[0].figures
    assert (query.drifts, query.problem) == ([], "can't be compared now with MSFT")
    assert query.compared == len([name for name in names if not name.endswith(":MSFT")]) < len(names)
    assert found.conclusions == []


async def test_an_answer_that_is_stale_is_called_so(store: SessionStore, clock: FrozenClock) -> None:
    session = await analysed(store, "NVDA", depth=Depth.STANDARD)
    provider = Patchy()
    market = MarketService(provider, [MemoryL1Cache()])
    await replay(session, market=market)
    provider.is_away = True
    clock.advance(hours=20)

    found = await replay(session, market=market)

    [query] = found.queries
    assert query.problem == "the market doesn't answer: stale figures, known 2024-12-23T15:30:00Z"


async def test_nothing_is_written_and_the_result_is_json(store: SessionStore) -> None:
    session = await analysed(store, "AAPL")

    found = await replay(session, market=MarketService(Moved(2)))

    assert (await existing(store, session.id)).state.history.total_queries == 1
    assert json.loads(json.dumps(found.to_dict()))["queries"][0]["drifts"][0]["figure"] == "price"


@pytest.mark.parametrize("tolerance", [-0.1, 10.1, float("nan"), float("inf"), True])
async def test_an_invalid_tolerance_is_refused(store: SessionStore, tolerance: Any) -> None:
    session = await analysed(store)

    with pytest.raises(InvalidInput, match="tolerance"):
        await replay(session, market=SAMPLE, tolerance=tolerance)
