import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta

import pytest
import stamina

from fiml.core import clock as process_clock
from fiml.core.errors import BadData, InvalidInput, NotSupported, RateLimited, SymbolNotFound, Unavailable
from fiml.market.providers.guard import Guard, retry_moment
from fiml.market.providers.texts import clean
from fiml.testing import FrozenClock


@pytest.fixture(autouse=True)
def retries_without_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


class Provider:
    """Gives its outcomes one after the other, then answers; counts how often it was asked."""

    def __init__(self, *outcomes: Exception | Callable[[], Awaitable[str]]) -> None:
        self.outcomes = list(outcomes)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        if not self.outcomes:
            return "an answer"
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return await outcome()


def away() -> Unavailable:
    return Unavailable("provider", "HTTP 503")


async def hang() -> str:
    await asyncio.Event().wait()
    return "never"


async def fail_times(guard: Guard, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Unavailable):
            await guard.call(Provider(away()))


async def test_a_provider_that_was_away_is_asked_again() -> None:
    provider = Provider(away(), away())

    assert await Guard("provider").call(provider) == "an answer"
    assert provider.asked == 3


async def test_after_all_attempts_the_last_error_is_raised() -> None:
    provider = Provider(away(), away(), away(), away())

    with pytest.raises(Unavailable, match="HTTP 503"):
        await Guard("provider", attempts=2).call(provider)

    assert provider.asked == 2


@pytest.mark.parametrize(
    "error",
    [
        BadData("provider", "no JSON"),
        RateLimited("provider", process_clock.EPOCH),
        SymbolNotFound("X", source="provider", known=[]),
        InvalidInput("symbol", "is wrong", "mend it"),
        NotSupported("no", "another"),
        ZeroDivisionError(),
    ],
)
async def test_what_another_attempt_would_not_change_is_not_repeated(error: Exception) -> None:
    provider = Provider(error)

    with pytest.raises(type(error)):
        await Guard("provider").call(provider)

    assert provider.asked == 1


async def test_a_hung_attempt_is_given_up_and_repeated() -> None:
    provider = Provider(hang)

    assert await Guard("provider", attempt_timeout_s=0.05).call(provider) == "an answer"


async def test_a_call_to_a_hung_provider_ends_with_its_limit() -> None:
    provider = Provider(hang, hang, hang)

    with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
        await Guard("provider", attempt_timeout_s=30, timeout_s=0.1).call(provider)


async def test_the_wait_for_ones_turn_is_part_of_the_limit_and_no_failure_of_the_provider() -> None:
    guard = Guard("provider", timeout_s=0.1, rate=(1, 60), failures=1)
    provider = Provider()
    await guard.call(provider)

    for _ in range(2):
        with pytest.raises(Unavailable, match="too many calls at once"):
            await guard.call(provider)

    assert provider.asked == 1


async def test_calls_that_queue_for_a_slow_provider_are_no_failures_of_it() -> None:
    guard = Guard("provider", timeout_s=30, at_once=1, failures=1)
    asked, answers = asyncio.Event(), asyncio.Event()

    async def answer_slowly() -> str:
        asked.set()
        await answers.wait()
        return "an answer"

    slow = asyncio.create_task(guard.call(answer_slowly))
    await asked.wait()
    for _ in range(3):
        with pytest.raises(Unavailable, match="too many calls at once"):
            await guard.call(Provider(), within_s=0.05)
    answers.set()

    assert await slow == "an answer"
    assert await guard.call(Provider()) == "an answer"


async def test_a_clock_that_is_set_back_does_not_keep_a_provider_away(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=1, open_s=30)
    await fail_times(guard, 1)
    clock.advance(hours=-1)

    assert await guard.call(Provider()) == "an answer"


async def test_one_call_may_have_another_limit() -> None:
    with pytest.raises(Unavailable, match=r"no answer within 0\.05 s"):
        await Guard("provider").call(Provider(hang), within_s=0.05)


async def test_bad_data_of_one_symbol_refuses_no_other() -> None:
    guard = Guard("provider", failures=2)
    for _ in range(3):
        with pytest.raises(BadData):
            await guard.call(Provider(BadData("provider", "no close of X")))

    assert await guard.call(Provider()) == "an answer"


async def test_a_callers_cancellation_is_no_timeout() -> None:
    call = asyncio.create_task(Guard("provider").call(Provider(hang)))
    await asyncio.sleep(0)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call


async def test_no_call_gets_through_until_a_rate_limit_is_over(clock: FrozenClock) -> None:
    guard = Guard("provider")
    retry_at = clock.now() + timedelta(seconds=30)
    with pytest.raises(RateLimited):
        await guard.call(Provider(RateLimited("provider", retry_at)))
    provider = Provider()
    clock.advance(seconds=29)

    with pytest.raises(RateLimited) as caught:
        await guard.call(provider)

    assert caught.value.retry_at == retry_at
    assert provider.asked == 0
    clock.advance(seconds=1)
    assert await guard.call(provider) == "an answer"


async def test_after_failures_in_a_row_calls_are_refused_at_once(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=2, open_s=30)
    await fail_times(guard, 2)
    provider = Provider()

    with pytest.raises(Unavailable, match="failed 2 times in a row, and will be tried again at 2024-12-23T15:30:30Z"):
        await guard.call(provider)

    assert provider.asked == 0


async def test_a_trial_that_succeeds_closes_the_breaker(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=2, open_s=30)
    await fail_times(guard, 2)
    clock.advance(seconds=30)

    await guard.call(Provider())

    await fail_times(guard, 1)
    assert await guard.call(Provider()) == "an answer"


async def test_after_a_trial_that_succeeds_calls_go_through_side_by_side(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=1, open_s=30)
    await fail_times(guard, 1)
    clock.advance(seconds=30)
    await guard.call(Provider())
    waiting = asyncio.create_task(guard.call(Provider(hang)))
    await asyncio.sleep(0)

    assert await guard.call(Provider()) == "an answer"

    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_trial_that_fails_opens_the_breaker_again(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=2, open_s=30)
    await fail_times(guard, 2)
    clock.advance(seconds=30)
    await fail_times(guard, 1)
    clock.advance(seconds=29)
    provider = Provider()

    with pytest.raises(Unavailable, match="failed 3 times"):
        await guard.call(provider)

    assert provider.asked == 0


async def test_only_one_call_is_on_trial(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=1, open_s=30)
    await fail_times(guard, 1)
    clock.advance(seconds=30)
    release = asyncio.Event()

    async def slow() -> str:
        await release.wait()
        return "the trial's answer"

    trial = asyncio.create_task(guard.call(slow))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="in a row"):
        await guard.call(Provider())
    release.set()

    assert await trial == "the trial's answer"


async def test_a_cancelled_trial_leaves_the_next_call_a_trial(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=1, open_s=30)
    await fail_times(guard, 1)
    clock.advance(seconds=30)
    trial = asyncio.create_task(guard.call(Provider(hang)))
    await asyncio.sleep(0)
    trial.cancel()
    await asyncio.wait([trial])

    assert await guard.call(Provider()) == "an answer"


async def test_that_there_is_no_such_symbol_is_no_failure(clock: FrozenClock) -> None:
    guard = Guard("provider", attempts=1, failures=2)
    for _ in range(3):
        with pytest.raises(SymbolNotFound):
            await guard.call(Provider(SymbolNotFound("X", source="provider", known=[])))
        await fail_times(guard, 1)

    assert await guard.call(Provider()) == "an answer"


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("30", 30),
        ("0", 0),
        ("1.5", 1.5),
        ("Mon, 23 Dec 2024 15:32:00 GMT", 120),
        ("Mon, 23 Dec 2024 15:00:00 GMT", 0),
        ("Fri, 23 Dec 2124 15:00:00 GMT", 86400),
        ("99999999999", 86400),
        (None, 60),
        ("", 60),
        ("soon", 60),
        ("-5", 60),
        ("nan", 60),
        ("inf", 60),
        (f"-9999 Jan {'9' * 20} 12.34.56", 60),
    ],
)
def test_a_retry_after_names_a_moment_within_a_day(clock: FrozenClock, retry_after: str | None, seconds: float) -> None:
    assert retry_moment(retry_after) == clock.now() + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Apple Inc.", "Apple Inc."),
        ("a\x00b\x1b[31m\r\nc\td", "ab[31m c d"),
        ("left\u202eright\u200b", "leftright"),
        ("ÅÄÖ 日本", "ÅÄÖ 日本"),
        ("x" * 81, "x" * 79 + "…"),
        (None, ""),
        (["a list"], ""),
    ],
)
def test_a_providers_text_is_one_line_without_hidden_characters(sent: object, kept: str) -> None:
    assert clean(sent) == kept
