"""Where the figures of a question come from: recorded with it, current or stale, sample and live apart."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from fiml.analysis import Question, ask, summarize
from fiml.cache.l1_cache import MemoryL1Cache
from fiml.core.errors import InvalidInput, SymbolNotFound, Unavailable
from fiml.market.models import AssetKind, Bars, Depth, Fundamentals, Instrument, Quote
from fiml.market.providers.sample import SampleProvider
from fiml.market.service import MarketService
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance.suite import existing
from fiml.testing.fixtures import store

__all__ = ["store"]  # the shipped one: embedded, and fast

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


@pytest.mark.parametrize(
    ("price", "text"),
    [
        (8709.49, "8,709.49"),
        (1.0, "1.00"),
        (0.07234, "0.07234"),
        (1.23456e-5, "0.00001235"),
        (1.7e-10, "0.0000000001700"),
    ],
)
async def test_the_line_of_a_record_shows_a_price_however_small(price: float, text: str) -> None:
    market = MarketService(SampleProvider())
    found = await market.answer(await market.coin("BTC"), Depth.QUICK)

    line = summarize(found.model_copy(update={"quote": found.quote.model_copy(update={"price": price})}))

    assert line == f"BTC: close {text} USD (-0.01%), 2020-01-17, source sample"


async def test_the_line_of_a_record_has_an_index_in_points() -> None:
    market = MarketService(SampleProvider())

    found = await market.answer(await market.equity("^GSPC"), Depth.QUICK)

    assert "^GSPC: close 3,783.22 points (-1.20%)" in summarize(found)


async def test_the_line_of_a_record_names_what_was_compared_and_the_day_to_which_it_could_be() -> None:
    market = MarketService(SampleProvider())
    apple, microsoft, nvidia = [await market.equity(symbol) for symbol in ("AAPL", "MSFT", "NVDA")]

    found = await market.answer(apple, Depth.DEEP, [microsoft, nvidia])

    assert summarize(found) == (
        "AAPL: close 173.93 USD (-0.89%), 2023-09-21, source sample; compared with MSFT (until 2022-12-28), NVDA"
    )


class London(SampleProvider):
    """A market that is open, with prices in pence, company figures in pounds, and technicals of the day before."""

    source = "live"

    async def quote(self, instrument: Instrument) -> Quote:
        today = {"as_of": date(2023, 9, 22), "currency": "GBp", "source": "live"}
        return (await super().quote(instrument)).model_copy(update=today)

    async def fundamentals(self, instrument: Instrument) -> Fundamentals:
        return (await super().fundamentals(instrument)).model_copy(update={"currency": "GBP", "market_cap": 18e9})


async def test_the_line_of_a_record_names_the_days_and_currencies_that_differ_from_the_prices(
    store: SessionStore,
) -> None:
    session = await begin(store)
    question = Question(symbol="AAPL")

    await ask(question, market=MarketService(London()), sessions=store, session_id=session.id)

    [query] = await records(store, session)
    assert query.figures["market_cap"] == 18e9
    assert query.result_summary == (
        "AAPL: close 173.93 GBp (-0.89%), 2023-09-22, source live"
        "; technicals of 2023-09-21; market_cap, eps, revenue in GBP"
    )


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


class Recovering(SampleProvider):
    """A market that has no bars of Microsoft at first."""

    source = "live"
    is_away = True

    async def bars(self, instrument: Instrument) -> Bars:
        if self.is_away and instrument.symbol == "MSFT":
            raise Unavailable(self.source, "it is closed")
        return await super().bars(instrument)

    async def quote(self, instrument: Instrument) -> Quote:
        return (await super().quote(instrument)).model_copy(update={"source": self.source})


async def test_another_that_could_not_be_compared_is_tried_again_at_the_next_question(
    store: SessionStore, clock: FrozenClock
) -> None:
    session = await begin(store)
    provider, question = Recovering(), Question(symbol="AAPL", depth=Depth.DEEP)
    market = MarketService(provider, [MemoryL1Cache()])
    first = await ask(question, market=market, sessions=store, session_id=session.id)
    provider.is_away = False

    again, held = [await ask(question, market=market, sessions=store, session_id=session.id) for _ in range(2)]

    assert [[each.other for each in one.market.comparisons] for one in (first, again, held)] == [[], ["MSFT"], ["MSFT"]]
    assert [one.layer for one in (again, held)] == ["l1", "session"]


async def test_an_answer_of_a_cache_is_a_hit_from_the_second_look_at_a_symbol_on(
    store: SessionStore, clock: FrozenClock
) -> None:
    market = MarketService(Recovering(), [MemoryL1Cache()])
    quick, standard = (Question(symbol="AAPL", depth=depth) for depth in (Depth.QUICK, Depth.STANDARD))
    await ask(standard, market=market)
    session = await begin(store)

    answers = [await ask(each, market=market, sessions=store, session_id=session.id) for each in (quick, standard)]

    assert [(answer.layer, answer.cache_hit) for answer in answers] == [("l1", False), ("l1", True)]


class Growing(Live):
    """A market with one more day at each question, on which nothing happened, another note, and then the close."""

    def __init__(self) -> None:
        super().__init__()
        self.days = 300
        self.labels = ["close", "last trade"]

    async def quote(self, instrument: Instrument) -> Quote:
        told = {"note": f"{self.days} days", "price_label": self.labels.pop()}
        return (await super().quote(instrument)).model_copy(update=told)

    async def bars(self, instrument: Instrument) -> Bars:
        self.days += 1
        found = await super().bars(instrument)
        return replace(found, bars=found.bars[-self.days :])


async def test_a_note_a_label_or_a_number_of_bars_is_no_figure_that_changed(store: SessionStore) -> None:
    session = await begin(store)
    market, question = MarketService(Growing()), Question(symbol="AAPL")
    await ask(question, market=market, sessions=store, session_id=session.id)

    again = await ask(question, market=market, sessions=store, session_id=session.id)

    assert again.since_last_look is not None
    assert {change.figure for change in again.since_last_look.changed} <= {"technicals.ema_26", "technicals.rsi_14"}


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

    with pytest.raises(Unavailable, match="no answer within 0"):
        await ask(AAPL, market=MarketService(live), sessions=store, session_id=session.id, timeout_s=0.05)

    [failed] = await records(store, session)
    assert (failed.error, failed.cache_hit, failed.provider) == ("unavailable", False, "live")


class Exchanges(SampleProvider):
    """A market where a coin's price differs by exchange, and an equity has the symbol of a coin."""

    source = "live"

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        if kind is AssetKind.EQUITY and symbol == "ETH":
            kind, symbol = AssetKind.EQUITY, "KO"
        found = await super().instrument(symbol, kind, market=market)
        named = {} if exchange is None else {"exchange": exchange}
        return found.model_copy(update={**named, "currency": pair})

    async def quote(self, instrument: Instrument) -> Quote:
        quote = await super().quote(instrument)
        place = {"exchange": instrument.exchange, "currency": instrument.currency}
        return quote.model_copy(update={"source": self.source, **place})


async def test_the_same_coin_on_another_exchange_is_another_first_look(store: SessionStore) -> None:
    session = await store.create_session(["BTC"], "crypto")
    market = MarketService(Exchanges())

    def on(exchange: str) -> Question:
        return Question(symbol="BTC", kind=AssetKind.COIN, exchange=exchange, depth=Depth.QUICK)

    await ask(on("kraken"), market=market, sessions=store, session_id=session.id)
    answer = await ask(on("bitstamp"), market=market, sessions=store, session_id=session.id)

    assert (answer.market.quote.exchange, answer.cache_hit, answer.since_last_look) == ("bitstamp", False, None)


async def test_each_market_of_a_coin_has_an_earlier_look_of_its_own(store: SessionStore) -> None:
    session = await store.create_session(["BTC"], "crypto")
    market = MarketService(Exchanges())
    places = [{"exchange": "kraken"}, {"exchange": "bitstamp"}, {"exchange": "kraken", "pair": "EUR"}]
    questions = [Question(symbol="BTC", kind=AssetKind.COIN, depth=Depth.QUICK, **place) for place in places]

    answers = [await ask(question, market=market, sessions=store, session_id=session.id) for question in questions * 2]

    assert [each.since_last_look is not None for each in answers] == [False] * 3 + [True] * 3
    assert [each.market.quote.exchange for each in answers] == ["kraken", "bitstamp", "kraken"] * 2


async def test_a_look_at_a_coin_that_an_older_release_kept_is_an_earlier_look(store: SessionStore) -> None:
    session = await store.create_session(["BTC"], "crypto")
    market = MarketService(Exchanges())
    kraken, bitstamp = (
        Question(symbol="BTC", kind=AssetKind.COIN, exchange=exchange, depth=Depth.QUICK)
        for exchange in ("kraken", "bitstamp")
    )
    await ask(kraken, market=market, sessions=store, session_id=session.id)
    looked = await store.get_session(session.id)
    assert looked is not None
    looked.state.intermediate_results["answer:BTC"] = looked.state.intermediate_results.pop("answer:BTC/USD@kraken")
    await store.update_session(session.id, looked)

    answers = [await ask(each, market=market, sessions=store, session_id=session.id) for each in (bitstamp, kraken)]

    assert [answer.since_last_look is not None for answer in answers] == [False, True]


async def test_a_coin_is_compared_with_coins_though_an_equity_has_the_symbol(store: SessionStore) -> None:
    session = await store.create_session(["BTC", "ETH"], "crypto")
    question = Question(symbol="BTC", kind=AssetKind.COIN, depth=Depth.DEEP)

    answer = await ask(question, market=MarketService(Exchanges()), sessions=store, session_id=session.id)

    assert [(each.other, each.other_is) for each in answer.market.comparisons] == [
        ("ETH", "Ether, coin, Bitstamp, in USD, source sample")
    ]


class Pairs(Exchanges):
    """A market of coins that trade against dollars and euros; Litecoin against dollars only."""

    async def instrument(
        self, symbol: str, kind: AssetKind, *, market: str = "US", exchange: str | None = None, pair: str = "USD"
    ) -> Instrument:
        if (symbol, pair) == ("LTC", "EUR"):
            raise SymbolNotFound("LTC", source=self.source, known=[])
        return await super().instrument(symbol, kind, market=market, exchange=exchange, pair=pair)

    async def bars(self, instrument: Instrument) -> Bars:
        return replace(await super().bars(instrument), currency=instrument.currency)


async def test_a_coin_is_compared_with_coins_in_its_own_currency_if_they_have_it(store: SessionStore) -> None:
    session = await store.create_session(["BTC", "ETH", "LTC"], "crypto")
    question = Question(symbol="BTC", kind=AssetKind.COIN, pair="EUR", depth=Depth.DEEP)

    answer = await ask(question, market=MarketService(Pairs()), sessions=store, session_id=session.id)

    assert {comparison.other: comparison.note for comparison in answer.market.comparisons} == {
        "ETH": None,
        "LTC": "BTC is priced in EUR, LTC in USD: their returns leave out the exchange rate",
    }


async def test_a_hanging_store_costs_a_bounded_time_and_leaves_the_answer_untracked(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await begin(store)
    monkeypatch.setattr("fiml.analysis.STORE_TIMEOUT_S", 0.2)
    with closing(sqlite3.connect(store.settings.embedded_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            answer = await ask(
                AAPL, market=MarketService(SampleProvider()), sessions=store, session_id=session.id, timeout_s=1
            )
        finally:
            other.execute("ROLLBACK")

    assert answer.market.quote.price == 173.93
    assert answer.tracked is False
    assert "the session store is unavailable" in (answer.reason or "")


async def test_kind_and_depth_are_taken_by_name() -> None:
    answer = await ask(Question(symbol="BTC", kind="coin", depth="deep"), market=MarketService(SampleProvider()))

    assert (answer.market.quote.kind, answer.depth) == (AssetKind.COIN, Depth.DEEP)


@pytest.mark.parametrize("given", [{"kind": "crypto"}, {"depth": "full"}, {"kind": None}])
def test_an_unknown_kind_or_depth_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="valid values are"):
        Question(symbol="KO", **given)
