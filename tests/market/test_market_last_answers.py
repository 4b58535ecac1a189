"""A provider that fails: its last answers stand in, and that there is no such symbol is remembered."""

from datetime import timedelta

import pytest

from fiml.cache.l2_cache import L2Cache
from fiml.core.errors import BadData, InvalidInput, SymbolNotFound, Unavailable
from fiml.market.fetching import Fetching
from fiml.market.models import AssetKind
from fiml.testing import FrozenClock
from fiml.testing.clock import START
from tests.support.exchange import AAPL, FAILURES, Exchange, anew


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_the_last_answer_stands_in_for_a_provider_that_fails_and_says_its_age(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache, clock: FrozenClock, failure: Exception
) -> None:
    await fetching.quote(AAPL)
    clock.advance(minutes=10)
    exchange.failure = failure

    for one, layer in ((fetching, "l1"), (anew(exchange, file_cache), "l2")):
        found = await one.quote(AAPL)

        assert found.value.price == 1.0
        assert found.delivery.model_dump() == {
            "layer": layer,
            "known_at": START,
            "fresh_until": START + timedelta(seconds=15),
            "is_stale": True,
            "age_seconds": 600,
        }


async def test_a_symbol_that_had_figures_a_while_ago_exists(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    clock.advance(minutes=1)
    exchange.failure = SymbolNotFound("AAPL", source="exchange", known=[])

    for _ in range(2):
        found = await fetching.quote(AAPL)

    assert (found.value.price, found.delivery.is_stale) == (1.0, True)


async def test_what_a_providers_code_raises_unexpectedly_is_a_bad_answer(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    for failure in (ValueError("year 56945 is out of range"), OverflowError(), RecursionError(), NotImplementedError()):
        exchange.failure = failure
        with pytest.raises(BadData, match=type(failure).__name__):
            await fetching.quote(AAPL)
    exchange.failure = None
    await fetching.quote(AAPL)
    clock.advance(minutes=1)
    exchange.failure = KeyError("price")

    assert (await fetching.quote(AAPL)).delivery.is_stale


async def test_a_company_without_figures_is_asked_about_again_after_a_quarter_of_an_hour(
    fetching: Fetching, clock: FrozenClock
) -> None:
    """The sample has none of any company; a source may have none by mistake."""
    first = await fetching.fundamentals(AAPL)

    assert first.delivery.fresh_until == clock.now() + timedelta(minutes=15)


async def test_an_answer_of_a_machine_whose_clock_is_ahead_is_not_current(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    clock.advance(minutes=10)
    await fetching.quote(AAPL)
    clock.advance(minutes=-10)

    assert (await fetching.quote(AAPL)).delivery.layer == "provider"
    clock.advance(seconds=-4)  # as much as clocks differ
    assert (await fetching.quote(AAPL)).delivery.layer == "l1"


async def test_of_two_last_answers_the_one_that_was_learnt_later_stands_in(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    clock.advance(minutes=1)
    await anew(exchange, file_cache).quote(AAPL)
    clock.advance(minutes=1)
    exchange.failure = FAILURES[0]

    found = await fetching.quote(AAPL)

    assert (found.value.price, found.delivery.layer, found.delivery.age_seconds) == (2.0, "l2", 60)


async def test_the_last_answer_stands_in_up_to_the_limit(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    exchange.failure = FAILURES[0]

    clock.advance(hours=24, seconds=14)
    assert (await fetching.quote(AAPL)).delivery.is_stale

    clock.advance(seconds=1)
    with pytest.raises(Unavailable, match="the exchange is unavailable"):
        await fetching.quote(AAPL)


async def test_a_lower_limit_holds_for_what_was_kept_under_a_higher_one(
    fetching: Fetching, exchange: Exchange, file_cache: L2Cache, clock: FrozenClock
) -> None:
    await fetching.quote(AAPL)
    exchange.failure = FAILURES[0]
    clock.advance(minutes=1)

    with pytest.raises(Unavailable):
        await Fetching(exchange, (file_cache,), max_stale=timedelta(0)).quote(AAPL)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_a_failure_goes_on_where_nothing_is_kept(
    fetching: Fetching, exchange: Exchange, failure: Exception
) -> None:
    exchange.failure = failure

    with pytest.raises(type(failure)) as caught:
        await fetching.quote(AAPL)

    assert caught.value is failure


async def test_after_a_failure_the_provider_is_asked_again(fetching: Fetching, exchange: Exchange) -> None:
    exchange.failure = FAILURES[0]
    with pytest.raises(Unavailable):
        await fetching.quote(AAPL)
    exchange.failure = None

    assert (await fetching.quote(AAPL)).value.price == 2.0


async def test_a_provider_that_hangs_is_given_up_and_its_last_answer_given(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    exchange.gate.clear()
    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
        await fetching.quote(AAPL)
    exchange.gate.set()
    await fetching.quote(AAPL)
    clock.advance(minutes=1)
    exchange.gate.clear()

    assert (await fetching.quote(AAPL)).delivery.is_stale


async def test_that_there_is_no_such_symbol_is_remembered_for_a_minute(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    messages = []
    for seconds in (0, 59, 1):
        clock.advance(seconds=seconds)
        with pytest.raises(SymbolNotFound) as caught:
            await fetching.instrument("tsla", AssetKind.EQUITY)
        messages.append((str(caught.value), tuple(caught.value.known)))

    assert len(set(messages)) == 1
    assert exchange.asked == 2


async def test_the_nearest_symbols_are_remembered_as_such(fetching: Fetching, exchange: Exchange) -> None:
    exchange.failure = SymbolNotFound("APPL", source="exchange", known=["AAPL"], is_nearest=True)

    for _ in range(2):
        with pytest.raises(SymbolNotFound, match="'APPL' is not in the exchange data; the nearest are AAPL"):
            await fetching.quote(AAPL)

    assert exchange.asked == 1


async def test_a_symbol_that_was_not_there_is_no_stale_answer(
    fetching: Fetching, exchange: Exchange, clock: FrozenClock
) -> None:
    with pytest.raises(SymbolNotFound):
        await fetching.instrument("TSLA", AssetKind.EQUITY)
    clock.advance(minutes=2)
    exchange.failure = FAILURES[0]

    with pytest.raises(Unavailable):
        await fetching.instrument("TSLA", AssetKind.EQUITY)


async def test_bad_input_is_not_remembered(fetching: Fetching, exchange: Exchange) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match="market 'DE'"):
            await fetching.instrument("AAPL", AssetKind.EQUITY, market="DE")

    assert exchange.asked == 2
