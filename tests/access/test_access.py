"""Tokens and keys while engines and providers are slow, unavailable, or asked by many at once."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fiml.access.keys import AGAIN_AFTER, KEPT_FOR, MAX_KEYS_BYTES, IssuerKeys
from fiml.access.principals import MAX_USER_CHARACTERS, Principal, Scope, is_user, known_scopes
from fiml.access.signed import SignedTokens
from fiml.access.tokens import open_tokens
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured, Unavailable
from fiml.sessions import values
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.http_server import http_server
from tests.support.issuer import AUDIENCE, ISSUER, Issuer
from tests.support.market_server import MarketServer, hanging, json_reply, market_server, refusal
from tests.support.servers import valkey_server

RFC_8037_KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
LIST_TOOLS = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}'


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def provider() -> Iterator[MarketServer]:
    """A small web server that has the keys."""
    with market_server() as server:
        yield server


def serve_keys(provider: MarketServer, issuer: Issuer, tmp_path: Path) -> IssuerKeys:
    file = tmp_path / "keys.json"
    issuer.write_keys(file)
    provider.always("/keys", json.loads(file.read_text()))
    return IssuerKeys(f"{provider.url}/keys")


async def test_many_first_calls_at_once_open_the_database_once(tmp_path: Path, deployment: Deployment) -> None:
    for settings in (Settings(data_dir=tmp_path / "data"), deployment.settings()):
        tokens = open_tokens(settings)
        token, _ = await tokens.issue("ann", scopes=["sessions:read"], days=1)
        await tokens.aclose()

        fresh = open_tokens(settings)
        found = await asyncio.gather(*(fresh.principal_of(each) for each in [token, "fiml_guess"] * 20))
        await fresh.aclose()

        assert found == [Principal("ann", frozenset({Scope.SESSIONS_READ})), None] * 20


async def test_a_token_is_looked_up_while_somebody_writes_to_the_file(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    tokens = open_tokens(settings)
    token, _ = await tokens.issue("ann", scopes=["sessions:read"], days=1)
    await tokens.aclose()
    tokens = open_tokens(settings)
    assert await tokens.principal_of("fiml_guess") is None

    with closing(sqlite3.connect(settings.embedded_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        principal = await tokens.principal_of(token)
        other.execute("ROLLBACK")
    await tokens.aclose()

    assert principal is not None


async def test_a_revoked_token_is_refused_however_far_the_clock_was_set_back(
    tmp_path: Path, clock: FrozenClock
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    server, operator = open_tokens(settings), open_tokens(settings)
    token, info = await operator.issue("ann", scopes=["sessions:read"], days=30)
    known = await server.principal_of(token)
    clock.advance(hours=-24)

    await operator.revoke(info.id)
    found = await server.principal_of(token)
    await server.aclose()
    await operator.aclose()

    assert (known is not None, found) == (True, None)


async def test_keys_are_fetched_again_after_the_clock_was_set_back(
    provider: MarketServer, issuer: Issuer, tmp_path: Path, clock: FrozenClock
) -> None:
    keys = serve_keys(provider, issuer, tmp_path)
    await keys.key_of("r")

    clock.advance(hours=-24)
    with pytest.raises(LookupError):
        await keys.key_of("new")

    assert provider.requests["/keys"] == 2


async def test_keys_are_fetched_once_for_many_and_again_after_a_while(
    provider: MarketServer, issuer: Issuer, tmp_path: Path, clock: FrozenClock
) -> None:
    keys = serve_keys(provider, issuer, tmp_path)
    await asyncio.gather(*(keys.key_of("r") for _ in range(20)))
    assert provider.requests["/keys"] == 1

    clock.advance(seconds=KEPT_FOR.total_seconds())
    await asyncio.gather(*(keys.key_of("r") for _ in range(20)))
    await asyncio.to_thread(provider.wait_for, "/keys", times=2)
    await asyncio.gather(*(keys.key_of("r") for _ in range(20)))
    with pytest.raises(LookupError):  # and a fetch that had begun is waited for
        await keys.key_of("unknown")

    assert provider.requests["/keys"] == 2


async def test_unknown_key_ids_cause_no_repeated_requests_to_the_provider(
    provider: MarketServer, issuer: Issuer, tmp_path: Path, clock: FrozenClock
) -> None:
    keys = serve_keys(provider, issuer, tmp_path)
    await keys.key_of("r")
    clock.advance(seconds=AGAIN_AFTER.total_seconds())
    for number in range(50):
        with pytest.raises(LookupError):
            await keys.key_of(f"junk {number}")

    assert provider.requests["/keys"] == 2


async def test_a_key_that_is_known_is_given_at_once_while_the_provider_hangs(
    provider: MarketServer, issuer: Issuer, tmp_path: Path, clock: FrozenClock
) -> None:
    keys = serve_keys(provider, issuer, tmp_path)
    await keys.key_of("r")
    provider.always("/keys", hanging())
    clock.advance(days=1)

    async with asyncio.timeout(1):
        assert await keys.key_of("r") is not None
    await keys.aclose()


@pytest.mark.parametrize(
    "answer", [refusal(500), {"keys": []}, [], {"keys": [{"kty": "oct", "k": "AAAA", "kid": "r"}]}]
)
async def test_keys_that_cannot_be_fetched_are_unavailable_and_not_requested_again_at_once(
    provider: MarketServer, clock: FrozenClock, answer: Any
) -> None:
    provider.always("/keys", answer)
    keys = IssuerKeys(f"{provider.url}/keys")

    for _ in range(3):
        with pytest.raises(Unavailable, match="identity provider's key set"):
            await keys.key_of("r")

    assert provider.requests["/keys"] == 1


async def test_keys_at_an_address_that_is_no_url_are_unavailable() -> None:
    keys = IssuerKeys("https://issuer..\N{SNOWMAN}/keys")

    with pytest.raises(Unavailable, match="InvalidURL"):
        await keys.key_of("r")


async def test_keys_beyond_the_limit_are_not_read_and_the_log_has_no_password(
    provider: MarketServer, issuer: Issuer, tmp_path: Path, clock: FrozenClock
) -> None:
    serve_keys(provider, issuer, tmp_path)
    body = (tmp_path / "keys.json").read_bytes()
    provider.always("/keys", replace(json_reply({}), body=body + b" " * MAX_KEYS_BYTES))
    keys = IssuerKeys(f"{provider.url.replace('//', '//fiml:never-shown@')}/keys")

    with capture_logs() as logged, pytest.raises(Unavailable):
        await keys.key_of("r")

    assert [(line["event"], line["address"]) for line in logged] == [("keys_not_fetched", f"{provider.url}/keys")]


@pytest.mark.parametrize("name", ["a" * MAX_USER_CHARACTERS, "é", " a"])
def test_every_valid_principal_may_own_sessions(name: str) -> None:
    assert is_user(name)
    assert values.check_user_id(name) == name
    assert values.MAX_USER_ID_CHARACTERS == MAX_USER_CHARACTERS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AAAA"}]}'])
def test_a_file_without_public_keys_is_refused_at_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)

    with pytest.raises(Misconfigured, match="not a file of keys"):
        IssuerKeys(str(file))


async def test_a_file_of_keys_is_read_again_when_a_token_names_an_unknown_one(
    tmp_path: Path, issuer: Issuer, clock: FrozenClock
) -> None:
    file = tmp_path / "keys.json"
    issuer.write_keys(file)
    keys = IssuerKeys(str(file))
    document = json.loads(file.read_text())
    document["keys"] = [key | {"kid": "next"} if key["kid"] == "r" else key for key in document["keys"]]
    file.write_text(json.dumps(document))

    assert await keys.key_of("next") is not None
    with pytest.raises(LookupError):
        await keys.key_of("r")
    file.write_text("{half")
    clock.advance(minutes=6)
    assert await keys.key_of("next") is not None  # a known key keeps working while the file can't be read
    await keys.aclose()


@pytest.mark.parametrize(
    "other",
    [
        {"kty": "OKP", "crv": "X25519", "x": "AAAA"},
        {"kty": "EC", "crv": "P-999", "x": "AAAA", "y": "AAAA", "use": "sig"},
        {"kty": "RSA", "n": "AAAA", "e": "AQAB", "alg": "RSA-OAEP"},
        {"kty": "RSA", "n": 5, "e": "AQAB"},
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA"},
        RFC_8037_KEY | {"d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"},
        RFC_8037_KEY | {"use": "enc"},
        {"kty": "RSA", "n": "AAAA", "e": "AQAB", "kid": ["z"]},
        "no key",
    ],
    ids=str,
)
async def test_an_unusable_key_does_not_disable_the_others(tmp_path: Path, issuer: Issuer, other: Any) -> None:
    file = tmp_path / "keys.json"
    issuer.write_keys(file)
    good = json.loads(file.read_text())["keys"]
    file.write_text(json.dumps({"keys": [{"kid": "z"} | other if isinstance(other, dict) else other, *good]}))

    keys = IssuerKeys(str(file))

    assert await keys.key_of("r") is not None
    with pytest.raises(LookupError):
        await keys.key_of("z")


async def test_a_token_that_names_no_key_is_checked_with_the_only_one(tmp_path: Path, issuer: Issuer) -> None:
    file = tmp_path / "keys.json"
    issuer.write_keys(file)
    nameless = [
        {name: value for name, value in key.items() if name != "kid"} for key in json.loads(file.read_text())["keys"]
    ]
    file.write_text(json.dumps({"keys": nameless[:1]}))
    assert await IssuerKeys(str(file)).key_of(None) is not None

    for two in (nameless, [key | {"kid": None} for key in nameless]):
        file.write_text(json.dumps({"keys": two}))
        with pytest.raises(LookupError):
            await IssuerKeys(str(file)).key_of(None)


async def test_signatures_of_other_pinned_algorithms_of_a_key_are_accepted(tmp_path: Path, issuer: Issuer) -> None:
    signed = SignedTokens(
        Settings(
            auth_issuer=ISSUER,
            auth_audience=AUDIENCE,
            auth_jwks=issuer.write_keys(tmp_path / "keys.json"),
            auth_algorithms="RS512",
        )
    )

    assert await signed.principal_of(issuer.other_algorithm()) is not None
    assert await signed.principal_of(issuer.token()) is None


def test_scopes_that_are_not_ours_grant_a_token_nothing() -> None:
    assert known_scopes(["admin ", "root", 7, None, "sessions:read"]) == {Scope.SESSIONS_READ}


async def test_the_answer_is_503_if_callers_cannot_be_identified(tmp_path: Path) -> None:
    with valkey_server() as valkey:
        variables = {
            "FIML_REDIS_URL": valkey.url,
            "FIML_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
            "FIML_AUTH_TOKENS": "true",
        }
        async with http_server(tmp_path / "data", **variables) as server:
            answer = await server.post(LIST_TOOLS, authorization="Bearer fiml_guess")
            healthy = await server.get("/health")

    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
    assert healthy.status_code == 200


async def test_a_token_whose_record_is_damaged_is_answered_with_503_and_logged_in_a_line(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    tokens = open_tokens(settings)
    token, _ = await tokens.issue("ann", scopes=["sessions:read"], days=1)
    await tokens.aclose()
    with closing(sqlite3.connect(settings.embedded_file)) as connection, connection:
        connection.execute("UPDATE access_tokens SET expires_at = 'soon'")

    async with http_server(tmp_path / "data", FIML_AUTH_TOKENS="true") as server:
        answer = await server.post(LIST_TOOLS, authorization=f"Bearer {token}")

    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
    assert "callers_not_known" in server.log.read_text(encoding="utf-8")
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "values",
    [
        {"auth_jwks": "http://127.0.0.1.evil.example/k"},
        {"auth_jwks": "http://127.0.0.1@evil.example/k"},
        {"auth_jwks": "https://"},
        {"auth_jwks": "https://issuer.example:99999/k"},
        {"auth_jwks": "https://issuer.example:https/k"},
        {"public_url": "https://fiml.example:0"},
        {"public_url": "https://"},
        {"auth_audience": " "},
    ],
)
def test_addresses_that_only_look_right_are_refused(values: dict[str, str]) -> None:
    complete = {"auth_issuer": ISSUER, "auth_audience": AUDIENCE, "auth_jwks": "https://issuer.example/keys"}

    with pytest.raises(Misconfigured, match="FIML_"):
        Settings(**{**complete, **values})
