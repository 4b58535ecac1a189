"""What a model reads before it calls anything, and how much of its context that and the answers use."""

import json
import warnings
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it ships no types
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp_types import Tool

from fiml.core.config import Settings
from fiml.core.errors import FimlError, NotPermitted, Unavailable, Unconfirmed
from fiml.mcp.refusals import next_step_of
from fiml.testing import make_query
from tests.support.mcp_client import ERAS, HANDSHAKE, TOOLS, Door, door, structured, tokens

SEVEN_TOKENS = 6000
LISTING_TOKENS = 10_000
MAX_TOOLS = 14
RESULT_TOKENS = 2000
QUOTE_TOKENS = 600
ARGUMENTS = {
    "create-analysis-session": ["assets", "sessionType", "userId", "ttlHours", "tags", "title"],
    "get-session-info": ["sessionId"],
    "list-sessions": ["userId", "includeArchived", "limit", "cursor", "sessionType", "tag", "asset"],
    "extend-session": ["sessionId", "hours"],
    "get-session-analytics": ["userId", "sessionType", "days"],
    "search-by-symbol": ["symbol", "market", "depth", "sessionId", "requestId"],
    "search-by-coin": ["symbol", "exchange", "pair", "depth", "sessionId", "requestId"],
    "get-session-context": ["sessionId", "maxTokens"],
    "update-session-context": [
        "sessionId",
        "context",
        "preferences",
        "intermediateResults",
        "note",
        "conclusion",
        "cites",
    ],
    "resume-session": ["sessionId", "hours"],
    "close-session": ["sessionId"],
    "search-sessions": [
        "text",
        "symbol",
        "sessionType",
        "tag",
        "createdFrom",
        "createdBefore",
        "includeArchived",
        "userId",
        "limit",
        "cursor",
    ],
    "share-session": ["sessionId", "withUser", "role", "codeHours", "revokeCode", "redeemCode"],
}
REQUIRED = {
    "create-analysis-session": ["assets", "sessionType"],
    "get-session-info": ["sessionId"],
    "extend-session": ["sessionId"],
    "search-by-symbol": ["symbol"],
    "search-by-coin": ["symbol"],
    "get-session-context": ["sessionId"],
    "update-session-context": ["sessionId"],
    "resume-session": ["sessionId"],
    "close-session": ["sessionId"],
    "share-session": ["sessionId"],
}
READERS = {
    "get-session-info",
    "list-sessions",
    "get-session-analytics",
    "get-session-context",
    "search-sessions",
}
TEN_ASSETS = ["AAPL", "MSFT", "NVDA", "AMZN", "META", "JPM", "XOM", "WMT", "KO", "GOOGL", "BTC"]


async def tools(settings: Settings) -> dict[str, Tool]:
    async with door(settings) as caller:
        return {tool.name: tool for tool in (await caller.client.list_tools()).tools}


async def busy(caller: Door) -> str:
    """The id of a session whose every answer is as long as a usual one gets."""
    session_id = await caller.create(
        *TEN_ASSETS,
        sessionType="comparative",
        userId="analyst_001",
        tags=["tech", "comparison", "quarterly"],
        title="Large caps before the earnings season, against the index",
    )
    for symbol in TEN_ASSETS[:6]:
        await caller.answer("search-by-symbol", symbol=symbol, depth="deep", sessionId=session_id)
    return session_id


@pytest.mark.parametrize("era", ERAS)
async def test_the_tools_take_the_arguments_of_the_contract(sqlite_settings: Settings, era: str) -> None:
    async with door(sqlite_settings, era=era) as caller:
        listed = (await caller.client.list_tools()).tools

    assert len(listed) <= MAX_TOOLS
    assert {tool.name: list(tool.input_schema["properties"]) for tool in listed} == ARGUMENTS
    assert {tool.name: tool.input_schema["required"] for tool in listed if "required" in tool.input_schema} == REQUIRED


async def test_every_argument_is_described_with_an_example(sqlite_settings: Settings) -> None:
    for tool in (await tools(sqlite_settings)).values():
        for name, schema in tool.input_schema["properties"].items():
            assert "e.g. " in schema["description"], f"{tool.name}.{name}"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("days", ["1 to 3650", "e.g."]),
        ("hours", ["1 to the maximum above", "e.g."]),
        ("codeHours", ["1 to the maximum above", "e.g."]),
        ("limit", ["1 to 200", "e.g."]),
        ("userId", ["at most 255 characters", "left out: the user of your token", "e.g."]),
        ("asset", ["in the spelling it was created with", "e.g."]),
        ("tag", ["exactly", "e.g."]),
        ("createdFrom", ["in UTC", "e.g."]),
        ("createdBefore", ["in UTC", "e.g."]),
    ],
)
async def test_bounds_and_an_example_stand_in_the_description(
    sqlite_settings: Settings, argument: str, says: list[str]
) -> None:
    changed = sqlite_settings.model_copy(update={"session_max_ttl_hours": 77})
    taking = [tool for tool in (await tools(changed)).values() if argument in tool.input_schema["properties"]]

    for tool in taking:
        description = tool.input_schema["properties"][argument]["description"]
        assert all(words in description for words in says), f"{tool.name}: {description}"
        assert "maximum above" not in description or " 77" in (tool.description or ""), tool.name


async def test_a_session_is_named_in_the_same_words_everywhere(sqlite_settings: Settings) -> None:
    descriptions = {
        tool.input_schema["properties"]["sessionId"]["description"]
        for tool in (await tools(sqlite_settings)).values()
        if "sessionId" in tool.input_schema["properties"]
    }

    [only] = descriptions
    assert "create-analysis-session" in only


@pytest.mark.parametrize(
    ("tool", "argument", "values"),
    [
        ("create-analysis-session", "sessionType", ["equity", "crypto", "portfolio", "comparative", "macro"]),
        ("search-by-symbol", "depth", ["quick", "standard", "deep"]),
        ("search-by-coin", "depth", ["quick", "standard", "deep"]),
    ],
)
async def test_what_an_argument_may_be_is_in_its_schema(
    sqlite_settings: Settings, tool: str, argument: str, values: list[str]
) -> None:
    schema = (await tools(sqlite_settings))[tool].input_schema["properties"][argument]

    assert schema["enum"] == values


async def test_every_tool_has_a_title_a_description_annotations_and_an_output_schema(sqlite_settings: Settings) -> None:
    for tool in (await tools(sqlite_settings)).values():
        assert tool.title
        assert tool.description is not None
        assert tool.description.count(".") >= 3, f"{tool.name}: what, when, when not, what comes back"
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (tool.name in READERS)
        assert tool.annotations.destructive_hint is (tool.name in {"update-session-context", "share-session"})
        assert tool.annotations.idempotent_hint is (tool.name in READERS | {"close-session", "resume-session"})


async def test_how_long_a_page_is_stands_in_the_tool_that_lists(sqlite_settings: Settings) -> None:
    lister = (await tools(sqlite_settings))["list-sessions"]

    assert f"{lister.input_schema['properties']['limit']['default']} by default" in str(lister.description)


async def test_the_life_of_a_session_stands_in_the_tool_that_makes_it(sqlite_settings: Settings) -> None:
    changed = sqlite_settings.model_copy(update={"session_default_ttl_hours": 5, "session_max_ttl_hours": 77})

    description = (await tools(changed))["create-analysis-session"].description

    assert description is not None
    assert "default 5" in description
    assert "at most 77" in description


@pytest.mark.parametrize("tool", ["search-by-symbol", "search-by-coin"])
@pytest.mark.parametrize("part", ["quote", "technicals", "fundamentals", "comparisons"])
async def test_what_one_per_cent_is_stands_with_each_part_of_an_answer(
    sqlite_settings: Settings, tool: str, part: str
) -> None:
    schema = json.dumps((await tools(sqlite_settings))[tool].output_schema)

    described = schema.partition(f'"{part}": ')[2].partition('"description": "')[2].partition('"')[0]
    assert "is 1%" in described


@pytest.mark.parametrize("tool", ["search-by-symbol", "search-by-coin"])
async def test_a_truncated_comparison_says_how_to_get_the_rest(sqlite_settings: Settings, tool: str) -> None:
    schema = (await tools(sqlite_settings))[tool].output_schema

    assert schema is not None
    assert "first 10 other assets were compared; for the rest begin a session" in json.dumps(schema)


@pytest.mark.parametrize("era", ERAS)
async def test_the_instructions_tell_the_workflow_across_the_tools(sqlite_settings: Settings, era: str) -> None:
    async with door(sqlite_settings, era=era if era == HANDSHAKE else "auto") as caller:
        instructions = caller.client.instructions

    assert instructions is not None
    assert all(name in instructions for name in TOOLS if name != "get-session-analytics")
    assert "includeArchived" in instructions
    assert tokens(instructions) < 400


@pytest.mark.parametrize("era", ERAS)
async def test_the_listing_takes_less_than_ten_thousand_tokens_and_the_first_seven_six_thousand(
    sqlite_settings: Settings, era: str
) -> None:
    async with door(sqlite_settings, era=era) as caller:
        listed = await caller.client.list_tools()

    everything = listed.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert tokens(everything) < LISTING_TOKENS
    assert tokens(everything | {"tools": everything["tools"][:7]}) < SEVEN_TOKENS


async def test_every_result_fits_its_output_schema_and_two_thousand_tokens(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await busy(caller)
        for _ in range(9):
            await busy(caller)
        calls: dict[str, list[dict[str, Any]]] = {
            "create-analysis-session": [{"assets": TEN_ASSETS, "sessionType": "equity", "tags": ["tech"]}],
            "get-session-info": [{"sessionId": session_id}],
            "list-sessions": [{}, {"userId": "nobody"}],
            "extend-session": [{"sessionId": session_id}],
            "get-session-analytics": [{}],
            "search-by-symbol": [{"symbol": "AAPL"}]
            + [{"symbol": "AAPL", "depth": depth, "sessionId": session_id} for depth in ("quick", "standard", "deep")],
            "search-by-coin": [{"symbol": "BTC"}, {"symbol": "ETH", "depth": "deep", "sessionId": session_id}],
            "get-session-context": [{"sessionId": session_id}],
            "update-session-context": [{"sessionId": session_id, "conclusion": "large caps are dear"}],
            "search-sessions": [{"symbol": "AAPL"}, {"text": "dear price > 100"}],
            "share-session": [{"sessionId": session_id}, {"sessionId": session_id, "withUser": "analyst_002"}],
            "close-session": [{"sessionId": session_id}, {"sessionId": session_id}],
            "resume-session": [{"sessionId": session_id}],
        }
        listed = (await caller.client.list_tools()).tools
        results = {
            tool.name: [structured(await caller.client.call_tool(tool.name, given)) for given in calls[tool.name]]
            for tool in listed
        }

    for tool in listed:
        assert tool.output_schema is not None
        Draft202012Validator.check_schema(tool.output_schema)
        for result in results[tool.name]:
            Draft202012Validator(tool.output_schema).validate(result)
            assert result["status"] == "success"
            assert tokens(result) < RESULT_TOKENS, tool.name


async def test_of_many_types_of_queries_the_most_frequent_are_shown(sqlite_settings: Settings) -> None:
    """A program that writes to the same store has types of its own."""
    types = [f"{number:03}-{'t' * 60}" for number in range(100)]
    async with door(sqlite_settings) as caller:
        session_id = await caller.create("AAPL")
        store = await caller.runtime.store()
        for each in [*types, *types[-20:]]:
            await store.record_query(session_id, make_query(each))
        info = await caller.answer("get-session-info", sessionId=session_id)
        statistics = await caller.answer("get-session-analytics")

    assert info["query_types"] == statistics["query_type_distribution"] == dict.fromkeys(types[-20:], 2)
    assert info["total_queries"] == statistics["total_queries"] == 120
    assert max(tokens(info), tokens(statistics)) < RESULT_TOKENS


@pytest.mark.parametrize(("tool", "asked"), [("list-sessions", {}), ("search-sessions", {"tag": "wide"})])
async def test_a_page_of_wide_sessions_is_shorter_and_leads_to_all(
    sqlite_settings: Settings, tool: str, asked: dict[str, Any]
) -> None:
    found: list[str] = []
    async with door(sqlite_settings) as caller:
        made = {
            await caller.create(assets=[f"A{number:05}" for number in range(100)], tags=["wide"]) for _ in range(10)
        }
        cursor = None
        while len(found) < 20:
            page = await caller.answer(tool, cursor=cursor, **asked)
            assert tokens(page) < RESULT_TOKENS
            found += [each["session_id"] for each in page["sessions"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        [one] = (await caller.answer(tool, limit=1, **asked))["sessions"]

    assert len(one["assets"]) == 100
    assert len(found) == len(made)
    assert set(found) == made


@pytest.mark.parametrize(("tool", "symbol"), [("search-by-symbol", "MSFT"), ("search-by-coin", "BTC")])
async def test_a_quick_quote_takes_less_than_six_hundred_tokens(
    sqlite_settings: Settings, tool: str, symbol: str
) -> None:
    async with door(sqlite_settings) as caller:
        session_id = await busy(caller)
        plain = await caller.client.call_tool(tool, {"symbol": symbol, "depth": "quick"})
        tracked = [
            await caller.answer(tool, symbol=symbol, depth="quick", sessionId=session_id) for _ in ("first", "again")
        ]

    # Text and structured content together: some clients show a model both.
    assert tokens(plain.model_dump(mode="json", by_alias=True, exclude_none=True)) < QUOTE_TOKENS
    assert max(map(tokens, tracked)) < QUOTE_TOKENS


async def test_every_refusal_fits_the_output_schema_of_its_tool(sqlite_settings: Settings) -> None:
    """Clients check structured content against the schema, of an error too, and show their own error otherwise."""
    bad: dict[str, dict[str, Any]] = {
        "create-analysis-session": {"assets": [], "sessionType": "equity"},
        "get-session-info": {"sessionId": "malformed"},
        "list-sessions": {"limit": 0},
        "extend-session": {"sessionId": "malformed", "hours": 1},
        "get-session-analytics": {"days": 0},
        "search-by-symbol": {"symbol": "GOOGL"},
        "search-by-coin": {"symbl": "BTC"},
        "get-session-context": {"sessionId": "malformed", "maxTokens": 0},
        "update-session-context": {"sessionId": "malformed"},
        "resume-session": {"sessionId": "malformed"},
        "close-session": {"sessionId": "malformed"},
        "search-sessions": {},
        "share-session": {"sessionId": "malformed"},
    }
    async with door(sqlite_settings) as caller:
        listed = (await caller.client.list_tools()).tools
        refusals = {tool.name: await caller.refusal(tool.name, **bad[tool.name]) for tool in listed}

    for tool in listed:
        assert tool.output_schema is not None
        validator = Draft202012Validator(tool.output_schema)
        validator.validate(refusals[tool.name])
        assert not validator.is_valid({}), tool.name
        assert not validator.is_valid({"status": "success"}), tool.name
        assert not validator.is_valid({"status": "error"}), tool.name


@pytest.mark.parametrize(
    ("error", "says", "never"),
    [
        (Unavailable("the session store", "refused"), "call again in a minute", "get-session-context"),
        (Unconfirmed("Redis", 0, 1), "before you call again", "in a minute"),
        (NotPermitted("the scope sessions:write is missing", "ask for it"), "whom to ask", "userId"),
    ],
    ids=["away", "unconfirmed", "a missing scope"],
)
def test_the_next_step_is_one_that_can_help(error: FimlError, says: str, never: str) -> None:
    step = next_step_of(error) or ""

    assert says in step
    assert never not in step


async def test_a_refusal_is_short(sqlite_settings: Settings) -> None:
    async with door(sqlite_settings) as caller:
        refusal = await caller.refusal("search-by-symbol", symbol="GOOGL")

    assert tokens(refusal) < QUOTE_TOKENS


@pytest.mark.parametrize("tool", TOOLS)
async def test_the_output_schema_of_a_tool_names_no_python(sqlite_settings: Settings, tool: str) -> None:
    described = json.dumps((await tools(sqlite_settings))[tool].model_dump(mode="json", by_alias=True))

    assert not [word for word in ("pydantic", "fiml.mcp", "CallToolResult", "<class") if word in described]


def test_a_use_of_what_the_protocol_has_deprecated_is_an_error() -> None:
    with pytest.raises(MCPDeprecationWarning):
        warnings.warn("sampling", MCPDeprecationWarning, stacklevel=1)
