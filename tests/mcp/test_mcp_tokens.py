"""HTTP behind a token: who gets in, and what each caller sees of others. A row here that passes is a break-in."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from fiml.access.principals import Scope
from fiml.access.tokens import KNOWN_FOR, MAX_DAYS, open_tokens
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, Misconfigured
from fiml.mcp.http import parse_address
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment
from tests.support.http_server import HttpServer, http_server
from tests.support.issuer import AUDIENCE, ISSUER, Issuer
from tests.support.mcp_client import ERAS, Caller

LIST_TOOLS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
UUID_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@asynccontextmanager
async def guarded(folder: Path, issuer: Issuer, **variables: str) -> AsyncIterator[HttpServer]:
    """A server that takes the issuer's tokens, and those of `fiml token new`."""
    settings = {
        "FIML_AUTH_ISSUER": ISSUER,
        "FIML_AUTH_AUDIENCE": AUDIENCE,
        "FIML_AUTH_JWKS": issuer.write_keys(folder.with_suffix(".keys")),
        "FIML_AUTH_TOKENS": "true",
        "FIML_PUBLIC_URL": "https://fiml.example/mcp",
    }
    async with http_server(folder, **settings | variables) as server:
        yield server


def moment(**later: int) -> datetime:
    """A time from now on: the server's processes have the machine's clock."""
    return datetime.now(UTC) + timedelta(**later)  # noqa: TID251  as above


def bad_tokens(issuer: Issuer) -> dict[str, str]:
    """What lets nobody in, by what is wrong with it."""
    good = issuer.token()
    return {
        "no token": "",
        "no form": "abc",
        "a cut signature": good[:-4],
        "another key's signature": issuer.strange_token(),
        "a changed claim": ".".join([good.split(".")[0], issuer.token("eve").split(".")[1], good.split(".")[2]]),
        "no signature": issuer.unsigned(),
        "HS for RS": issuer.confused(),
        "an algorithm that isn't pinned": issuer.other_algorithm(),
        "another issuer": issuer.token(iss="https://evil.example"),
        "another audience": issuer.token(aud="others"),
        "no audience": issuer.token(aud=None),
        "expired": issuer.token(exp=moment(minutes=-2)),
        "no expiry": issuer.token(exp=None),
        "not yet valid": issuer.token(nbf=moment(minutes=10)),
        "no subject": issuer.token(sub=None),
        "an empty subject": issuer.token(sub=""),
        "a blank subject": issuer.token(sub=" "),
        "a subject of control characters": issuer.token(sub="a\nb"),
        "a subject that is too long": issuer.token(sub="a" * 256),
        "too long a token": issuer.token(more="x" * 20_000),
        "a header nested deep": issuer.nested(depth=5_000),
        "an unknown token of ours": "fiml_" + "a" * 43,
    }


async def test_nobody_gets_in_without_a_valid_token(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        answers = {
            name: await server.post(LIST_TOOLS, **({"authorization": f"Bearer {token}"} if token else {}))
            for name, token in bad_tokens(issuer).items()
        }
        basic = await server.post(LIST_TOOLS, authorization=f"Basic {issuer.token()}")
        async with httpx2.AsyncClient() as client:
            in_address = await client.post(f"{server.url}/mcp?access_token={issuer.token()}", content=LIST_TOOLS)

    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 401)
    assert (basic.status_code, in_address.status_code) == (401, 401)
    assert len({answer.text for answer in answers.values()}) == 1
    assert "resource_metadata=" in answers["expired"].headers["www-authenticate"]


@pytest.mark.parametrize("era", ERAS)
async def test_a_valid_token_gets_in_with_either_kind_of_key(tmp_path: Path, issuer: Issuer, era: str) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        for token in (issuer.token(), issuer.ec_token(), issuer.token(exp=moment(seconds=-5))):
            async with server.caller(era=era, token=token) as caller:
                session_id = await caller.create("AAPL")
                info = await caller.answer("get-session-info", sessionId=session_id)
                assert info["user_id"] == "ann"


async def test_the_resource_metadata_name_the_issuer(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        metadata = (await server.get("/.well-known/oauth-protected-resource/mcp")).json()
        health = await server.get("/health")

    assert metadata["authorization_servers"] == [ISSUER]
    assert metadata["resource"] == "https://fiml.example/mcp"
    assert health.status_code == 200


async def everything_on(caller: Caller, session_id: str) -> list[str]:
    """What every tool, the prompts and the resource say of a session; ids are left out."""
    said = []
    for tool, more in (
        ("get-session-info", {}),
        ("get-session-context", {}),
        ("update-session-context", {"note": "mine"}),
        ("extend-session", {"hours": 1}),
        ("resume-session", {}),
        ("close-session", {}),
        ("share-session", {"withUser": "ann"}),
        ("share-session", {"redeemCode": "share_wrong"}),
        ("search-by-symbol", {"symbol": "AAPL"}),
        ("search-by-coin", {"symbol": "BTC"}),
    ):
        arguments: dict[str, Any] = {"sessionId": session_id, **more}
        result = await caller.client.call_tool(tool, arguments)
        assert result.is_error, tool
        said.append(result.model_dump_json())
    for prompt in ("continue-analysis", "session-report"):
        with pytest.raises(MCPError) as refused:
            await caller.client.get_prompt(prompt, {"sessionId": session_id})
        said.append(repr(refused.value))
    with pytest.raises(MCPError) as missing:
        await caller.client.read_resource(f"fiml://session/{session_id}")
    said.append(repr(missing.value))
    return [UUID_TEXT.sub("ID", each) for each in said]


async def test_anothers_session_answers_exactly_as_one_that_does_not_exist(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        async with server.caller(token=issuer.token("ann")) as ann:
            live = await ann.create("AAPL", title="secret")
            archived = await ann.create("AAPL")
            await ann.answer("close-session", sessionId=archived)
        async with server.caller(token=issuer.token("eve")) as eve:
            unknown = await everything_on(eve, str(uuid4()))
            assert await everything_on(eve, live) == unknown
            assert await everything_on(eve, archived) == unknown
        async with server.caller(token=issuer.token("ann")) as ann:
            info = await ann.answer("get-session-info", sessionId=live)

    assert (info["is_archived"], info["total_queries"]) == (False, 0)


async def test_lists_searches_statistics_and_completion_show_ones_own_only(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        async with server.caller(token=issuer.token("ann")) as ann:
            session_id = await ann.create("AAPL", title="secret")
        async with server.caller(token=issuer.token("eve")) as eve:
            own = await eve.create("KO")
            listed = await eve.answer("list-sessions", includeArchived=True)
            found = await eve.answer("search-sessions", text="secret")
            stats = await eve.answer("get-session-analytics")
            reference = ResourceTemplateReference(type="ref/resource", uri="fiml://session/{id}")
            completed = await eve.client.complete(reference, {"name": "id", "value": session_id[:2]})
            refusals = [
                await eve.refusal(tool, userId="ann", **more)
                for tool, more in (
                    ("create-analysis-session", {"assets": ["AAPL"], "sessionType": "equity"}),
                    ("list-sessions", {}),
                    ("search-sessions", {"text": "secret"}),
                    ("get-session-analytics", {}),
                )
            ]

    assert [each["session_id"] for each in listed["sessions"]] == [own]
    assert found["sessions"] == []
    assert stats["total_sessions"] == 1
    assert session_id not in completed.completion.values
    assert {refusal["code"] for refusal in refusals} == {"not_permitted"}


async def test_a_scope_that_is_missing_is_a_refusal_that_names_it(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        async with server.caller(token=issuer.token("ann")) as ann:
            session_id = await ann.create("AAPL")
        async with server.caller(token=issuer.token("ann", scope="sessions:read")) as reader:
            await reader.answer("get-session-info", sessionId=session_id)
            refusals = [
                await reader.refusal("close-session", sessionId=session_id),
                await reader.refusal("update-session-context", sessionId=session_id, note="n"),
                await reader.refusal("search-by-symbol", symbol="AAPL"),
            ]
        async with server.caller(token=issuer.token("ann", scope="market:read")) as looker:
            await looker.answer("search-by-symbol", symbol="AAPL")
            refusals.append(await looker.refusal("search-by-symbol", symbol="AAPL", sessionId=session_id))
            refusals.append(await looker.refusal("list-sessions"))
            with pytest.raises(MCPError, match="sessions:read"):
                await looker.client.get_prompt("continue-analysis", {"sessionId": session_id})

    assert {refusal["code"] for refusal in refusals} == {"not_permitted"}
    scopes = ["sessions:write", "sessions:write", "market:read", "sessions:write", "sessions:read"]
    assert all(scope in refusal["message"] for scope, refusal in zip(scopes, refusals, strict=True))


async def test_an_admin_sees_every_users_sessions(tmp_path: Path, issuer: Issuer) -> None:
    async with guarded(tmp_path / "data", issuer) as server:
        async with server.caller(token=issuer.token("ann")) as ann:
            session_id = await ann.create("AAPL")
        async with server.caller(token=issuer.token("root", scope="admin")) as admin:
            info = await admin.answer("get-session-info", sessionId=session_id)
            listed = await admin.answer("list-sessions", userId="ann")
            own = await admin.answer("create-analysis-session", assets=["KO"], sessionType="equity")
            anns = await admin.answer("create-analysis-session", assets=["KO"], sessionType="equity", userId="ann")

    assert info["user_id"] == "ann"
    assert len(listed["sessions"]) == 1
    assert (own["user_id"], anns["user_id"]) == ("root", "ann")


async def test_no_token_is_in_the_log(tmp_path: Path, issuer: Issuer) -> None:
    token = issuer.token()
    async with guarded(tmp_path / "data", issuer) as server:
        async with server.caller(token=token) as caller:
            await caller.create("AAPL")
        await server.post(LIST_TOOLS, authorization=f"Bearer {issuer.strange_token()}")
        server.process.terminate()
        printed, _ = await server.process.communicate()
        logged = server.log.read_bytes()

    assert token.encode() not in printed + logged
    assert issuer.strange_token().encode() not in printed + logged


async def test_a_token_of_ours_gets_in_until_it_is_revoked(
    deployment: Deployment, tmp_path: Path, clock: FrozenClock
) -> None:
    for settings in (deployment.settings(), Settings(data_dir=tmp_path / "data")):
        tokens = open_tokens(settings)
        try:
            token, info = await tokens.issue("ann", scopes=["sessions:read"], days=30)
            principal = await tokens.principal_of(token)
            assert principal is not None
            assert (principal.user_id, principal.scopes) == ("ann", frozenset({Scope.SESSIONS_READ}))
            assert [each.id for each in await tokens.list_tokens()] == [info.id]

            assert await tokens.revoke(info.id)
            assert not await tokens.revoke(info.id)
            clock.advance(seconds=KNOWN_FOR.total_seconds())
            assert await tokens.principal_of(token) is None

            other, _ = await tokens.issue("bob", scopes=["admin"], days=1)
            assert await tokens.principal_of(other) is not None
            clock.advance(days=1)
            assert await tokens.principal_of(other) is None
        finally:
            await tokens.aclose()


async def test_only_a_digest_of_a_token_is_kept(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    tokens = open_tokens(settings)
    token, _ = await tokens.issue("ann", scopes=["sessions:read"], days=30)
    await tokens.aclose()

    kept = b"".join(file.read_bytes() for file in settings.embedded_file.parent.iterdir())
    assert token.removeprefix("fiml_").encode() not in kept


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"user": ""}, "user"),
        ({"user": " "}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"user": "a" * 256}, "user"),
        ({"days": 0}, "days"),
        ({"days": MAX_DAYS + 1}, "days"),
        ({"scopes": []}, "scope"),
        ({"scopes": ["everything"]}, "valid values are sessions:read"),
    ],
)
async def test_a_token_that_makes_no_sense_is_not_made(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    tokens = open_tokens(Settings(data_dir=tmp_path / "data"))
    asked: dict[str, Any] = {"user": "ann", "scopes": ["sessions:read"], "days": 1} | given

    with pytest.raises(InvalidInput, match=says):
        await tokens.issue(asked.pop("user"), **asked)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"auth_issuer": ISSUER}, "go together"),
        ({"auth_issuer": "issuer", "auth_audience": "a", "auth_jwks": "f"}, "FIML_AUTH_ISSUER"),
        ({"auth_algorithms": "HS256"}, "FIML_AUTH_ALGORITHMS"),
        ({"auth_algorithms": "none"}, "FIML_AUTH_ALGORITHMS"),
        ({"auth_algorithms": ""}, "FIML_AUTH_ALGORITHMS"),
        ({"auth_leeway_seconds": 301}, "FIML_AUTH_LEEWAY_SECONDS"),
        ({"auth_jwks": "http://issuer.example/keys"}, "FIML_AUTH_JWKS"),
        ({"public_url": "fiml.example"}, "FIML_PUBLIC_URL"),
    ],
)
def test_settings_that_would_let_in_the_wrong_callers_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        Settings(**values)


def test_with_authentication_any_address_may_be_bound() -> None:
    assert parse_address("192.168.1.5:80", is_authenticated=True) == ("192.168.1.5", 80)
