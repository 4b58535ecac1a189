"""How often a principal may call on HTTP: an allowance that all replicas share."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from mcp.shared.exceptions import MCPError
from structlog.testing import capture_logs

from fiml.access import rates
from fiml.access.rates import ALONE_FOR, Allowances, OwnAllowances, Rate, SharedAllowances, key_of, open_allowances
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured
from fiml.mcp.limits import BODY_WITHIN_S, RATE_LIMITED
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.http_server import http_server
from tests.support.issuer import Issuer
from tests.support.servers import valkey_server

LIST_TOOLS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
BURST = 5
NO_WAIT = timedelta()


@pytest.fixture(params=["own", "shared"])
def server_settings(request: pytest.FixtureRequest) -> Settings | None:
    if request.param == "own":
        return None
    deployment: Deployment = request.getfixturevalue("deployment")
    return deployment.settings()


@pytest.fixture
async def allowances(server_settings: Settings | None) -> AsyncIterator[Allowances]:
    """Five calls at once, one more each ten seconds."""
    rate = Rate(per_minute=6, burst=BURST)
    opened = OwnAllowances(rate) if server_settings is None else SharedAllowances(server_settings, rate)
    yield opened
    await opened.aclose()


async def test_an_allowance_is_used_up_and_grows_back(allowances: Allowances, clock: FrozenClock) -> None:
    first = [await allowances.take("ann") for _ in range(BURST)]
    refused = await allowances.take("ann")
    clock.advance(seconds=4)
    still_refused = await allowances.take("ann")
    clock.advance(seconds=6)
    one_more = [await allowances.take("ann") for _ in range(2)]
    clock.advance(hours=1)
    whole_again = [await allowances.take("ann") for _ in range(BURST + 1)]

    assert first == [NO_WAIT] * BURST
    assert (refused, still_refused) == (timedelta(seconds=10), timedelta(seconds=6))
    assert one_more == [NO_WAIT, timedelta(seconds=10)]
    assert whole_again == [NO_WAIT] * BURST + [timedelta(seconds=10)]


async def test_a_clock_that_was_set_back_locks_nobody_out(clock: FrozenClock) -> None:
    own = OwnAllowances(Rate(per_minute=6, burst=BURST))
    for _ in range(BURST):
        await own.take("ann")

    clock.advance(hours=-24)
    refused = await own.take("ann")
    clock.advance(seconds=10)

    assert refused == timedelta(seconds=10)
    assert [await own.take("ann") for _ in range(2)] == [NO_WAIT, timedelta(seconds=10)]


async def test_each_principal_has_an_allowance_of_its_own(allowances: Allowances, clock: FrozenClock) -> None:
    for _ in range(BURST):
        await allowances.take("ann")

    assert await allowances.take("ann") > NO_WAIT
    assert await allowances.take("bob") == NO_WAIT


async def test_of_many_calls_at_once_exactly_the_allowed_number_get_in(
    allowances: Allowances, clock: FrozenClock
) -> None:
    waits = await asyncio.gather(*(allowances.take("ann") for _ in range(50)))

    assert waits.count(NO_WAIT) == BURST


async def test_a_principal_that_is_back_to_its_whole_allowance_is_forgotten(
    clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "MAX_KEPT", 3)
    own = OwnAllowances(Rate(per_minute=6, burst=BURST))
    for number in range(3):
        await own.take(f"user {number}")
    clock.advance(minutes=1)

    await own.take("ann")

    assert list(own._whole_at) == ["ann"]


async def test_of_too_many_principals_those_nearest_a_full_allowance_are_forgotten(
    clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "MAX_KEPT", 4)
    own = OwnAllowances(Rate(per_minute=6, burst=BURST))
    for number in range(1, BURST):
        for _ in range(number):
            await own.take(f"user {number}")

    await own.take("ann")

    assert sorted(own._whole_at) == ["ann", "user 3", "user 4"]


async def test_the_key_in_redis_expires_by_itself_and_does_not_say_who(deployment: Deployment) -> None:
    shared = SharedAllowances(deployment.settings(), Rate(per_minute=6, burst=BURST))
    await shared.take("ann")

    [life_ms] = await shared._client.run([("PTTL", key_of("ann"))])
    await shared.aclose()

    assert 0 < life_ms <= 10_000
    assert "ann" not in key_of("ann")


async def test_while_redis_is_away_a_process_counts_for_itself(clock: FrozenClock) -> None:
    with valkey_server() as valkey:
        shared = SharedAllowances(_settings(valkey.url), Rate(per_minute=6, burst=BURST))
        for _ in range(BURST):
            await shared.take("ann")
        valkey.stop()
        with capture_logs() as logged:
            alone = [await shared.take("ann") for _ in range(BURST + 1)]
        valkey.start()
        clock.advance(seconds=ALONE_FOR.total_seconds())
        back = await shared.take("ann")
        [kept] = await shared._client.run([("EXISTS", key_of("ann"))])
        await shared.aclose()

    assert alone == [NO_WAIT] * BURST + [timedelta(seconds=10)]
    assert [line["event"] for line in logged] == ["rates_not_shared"]  # once, not at each call
    assert (back, kept) == (NO_WAIT, 1)


async def test_a_redis_that_hangs_is_not_waited_for_at_each_call(
    clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "TAKE_TIMEOUT_S", 0.2)
    with valkey_server() as valkey:
        shared = SharedAllowances(_settings(valkey.url), Rate(per_minute=6, burst=BURST))
        await shared.take("ann")
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            with capture_logs() as logged:
                alone = await asyncio.gather(*(shared.take("ann") for _ in range(3)))
                alone += [await shared.take("ann") for _ in range(BURST - 3)]
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        clock.advance(minutes=1)
        back = [await shared.take("ann") for _ in range(BURST + 1)]
        await shared.aclose()

    assert alone == [NO_WAIT] * BURST
    assert {line["problem"] for line in logged} == {"TimeoutError"}
    assert back == [NO_WAIT] * BURST + [timedelta(seconds=10)]


async def test_figures_are_answered_while_redis_is_away(deployment: Deployment, tmp_path: Path) -> None:
    issuer = Issuer()
    with valkey_server() as valkey:
        engines = {"FIML_REDIS_URL": valkey.url, "FIML_DATABASE_URL": deployment.database_url}
        variables = issuer.variables(tmp_path / "keys.json") | engines
        async with (
            http_server(tmp_path / "data", **variables) as server,
            server.caller(token=issuer.token()) as caller,
        ):
            valkey.stop()
            answer = await caller.answer("search-by-symbol", symbol="AAPL")
            refusal = await caller.refusal("list-sessions")

    assert answer["symbol"] == "AAPL"
    assert refusal["code"] == "unavailable"


async def test_two_replicas_share_a_principals_allowance_whatever_its_token(
    deployment: Deployment, tmp_path: Path
) -> None:
    issuer = Issuer()
    variables = issuer.variables(tmp_path / "keys.json") | {
        "FIML_REDIS_URL": deployment.redis_url,
        "FIML_DATABASE_URL": deployment.database_url,
        "FIML_HTTP_RATE_PER_MINUTE": "1",
        "FIML_HTTP_RATE_BURST": "6",
    }
    tokens = [issuer.token("ann"), issuer.ec_token("ann")]
    async with http_server(tmp_path / "one", **variables) as one, http_server(tmp_path / "two", **variables) as two:
        answers = [
            await (one, two)[number % 2].post(LIST_TOOLS, authorization=f"Bearer {tokens[number // 2 % 2]}")
            for number in range(10)
        ]
        others = await two.post(LIST_TOOLS, authorization=f"Bearer {issuer.token('bob')}")
        nobody = await two.post(LIST_TOOLS)

    assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 4
    assert (others.status_code, nobody.status_code) == (200, 401)
    refusal = answers[-1].json()["error"]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert refusal["code"] == RATE_LIMITED
    assert refusal["data"]["code"] == "rate_limited"
    assert "try again at" in refusal["message"]


async def test_a_refused_call_is_answered_with_its_id_where_it_can_be_read(tmp_path: Path) -> None:
    issuer = Issuer()
    variables = issuer.variables(tmp_path / "keys.json") | {
        "FIML_HTTP_RATE_PER_MINUTE": "1",
        "FIML_HTTP_RATE_BURST": "1",
    }
    has_none = [b"", b"no JSON", b"[]", b'{"id": true}', b'{"id": 1.5}', b'{"id": "\\ud800"}', b'{"id": "\xff"}']
    too_much = [b"[" * 60_000, b'{"id": 7, "x": "' + b"x" * 1_000_000 + b'"}']
    async with http_server(tmp_path / "data", **variables) as server:
        token = f"Bearer {issuer.token()}"
        await server.post(LIST_TOOLS, authorization=token)
        bodies = [LIST_TOOLS, b'{"method": "tools/list", "id": "seven"}', *has_none, *too_much]
        answers = [await server.post(body, authorization=token) for body in bodies]

    assert {answer.status_code for answer in answers} == {429}
    assert [answer.json()["id"] for answer in answers] == [1, "seven"] + [None] * (len(has_none) + len(too_much))


async def test_a_client_is_told_by_an_error_that_it_can_show_to_the_model(tmp_path: Path) -> None:
    issuer = Issuer()
    variables = issuer.variables(tmp_path / "keys.json") | {
        "FIML_HTTP_RATE_PER_MINUTE": "1",
        "FIML_HTTP_RATE_BURST": "10",
    }
    async with (
        http_server(tmp_path / "data", **variables) as server,
        server.caller(token=issuer.token()) as caller,
    ):
        for _ in range(9):
            await server.post(LIST_TOOLS, authorization=f"Bearer {issuer.token()}")
        with pytest.raises(MCPError, match="rate_limited: fiml accepts no more calls") as refused:
            await asyncio.gather(*(caller.answer("list-sessions") for _ in range(2)))

    assert refused.value.error.code == RATE_LIMITED


async def test_the_local_user_on_loopback_is_not_limited(tmp_path: Path) -> None:
    variables = {"FIML_HTTP_RATE_PER_MINUTE": "1", "FIML_HTTP_RATE_BURST": "1"}
    async with http_server(tmp_path / "data", **variables) as server:
        answers = [await server.post(LIST_TOOLS) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200] * 3


def test_a_rate_of_zero_limits_nobody() -> None:
    assert open_allowances(Settings(http_rate_per_minute=0)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("http_rate_per_minute", -1), ("http_rate_per_minute", 60_001), ("http_rate_burst", 0), ("http_rate_burst", 1.5)],
)
def test_a_rate_that_makes_no_sense_is_refused_at_start(field: str, value: float) -> None:
    with pytest.raises(Misconfigured, match=f"FIML_{field.upper()}"):
        Settings(**{field: value})


def _settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url, database_url="postgresql://127.0.0.1:1/nobody-asks-it")


async def test_a_refused_call_is_answered_although_its_body_never_comes(tmp_path: Path) -> None:
    issuer = Issuer()
    variables = issuer.variables(tmp_path / "keys.json") | {
        "FIML_HTTP_RATE_PER_MINUTE": "1",
        "FIML_HTTP_RATE_BURST": "1",
    }
    async with http_server(tmp_path / "data", **variables) as server:
        token = f"Bearer {issuer.token()}"
        await server.post(LIST_TOOLS, authorization=token)
        reader, writer = await server.connect()
        lines = ("POST /mcp HTTP/1.1", "Host: localhost", f"Authorization: {token}", "Content-Length: 9")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(BODY_WITHIN_S / 2):
            status = await reader.readline()
        writer.close()

    assert status.startswith(b"HTTP/1.1 429 ")
