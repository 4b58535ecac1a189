"""What the tools refuse: each refusal is a tool error that says what was wrong and what to do, and changes nothing."""

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from fiml.core.config import Settings
from tests.mcp.test_mcp_surface import ARGUMENTS
from tests.support.deployment import Deployment
from tests.support.mcp_client import ERAS, Door, door, structured

SESSION = "the session of the test"
UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"
GOOGOLS = 10**5000
HUGE = "x" * 10_000
NUL = "A\0B"
HALF = "A\ud800"  # a lone surrogate: half a character
ROCKET = "\N{ROCKET}"
SHOWN_AT_MOST = 80
SHORT_CHARACTERS = 1000
CREATING, UPDATING = "create-analysis-session", "update-session-context"
CREATE = {"assets": ["AAPL"], "sessionType": "equity"}


@dataclass(frozen=True)
class Bad:
    """A call that is refused: with which code, and in whose words."""

    tool: str
    arguments: dict[str, Any]
    code: str = "invalid_input"
    says: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.tool} with {', '.join(f'{name} {shown(value)}' for name, value in self.arguments.items())}"


def shown(value: object) -> str:
    """A value in the name of a test or a failure."""
    return f"of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 10**20 else ascii(value)[:40]


def of_session(value: object, code: str = "invalid_session_id") -> list[Bad]:
    """A bad id, wherever one is taken."""
    named = {"sessionId": value}
    return [
        Bad("get-session-info", named, code),
        Bad("extend-session", named, code),
        Bad("search-by-symbol", {"symbol": "AAPL"} | named, code),
        Bad("search-by-coin", {"symbol": "BTC"} | named, code),
        Bad("get-session-context", named, code),
        Bad("update-session-context", {"note": "x"} | named, code),
        Bad("resume-session", named, code),
        Bad("close-session", named, code),
    ]


def each(*values: Any) -> tuple[Any, ...]:
    """Values of any types, to go through."""
    return values


def creating(says: str, **arguments: Any) -> Bad:
    return Bad("create-analysis-session", CREATE | arguments, says=[says])


def listing(says: str, **arguments: Any) -> Bad:
    return Bad("list-sessions", arguments, says=[says])


def extending(says: str, hours: object) -> Bad:
    return Bad("extend-session", {"sessionId": SESSION, "hours": hours}, says=[says])


def searching(says: str, code: str = "invalid_input", **arguments: Any) -> Bad:
    return Bad("search-by-symbol", {"symbol": "AAPL", "sessionId": SESSION} | arguments, code, [says])


def coin(says: str, code: str = "invalid_input", **arguments: Any) -> Bad:
    return Bad("search-by-coin", {"symbol": "BTC", "sessionId": SESSION} | arguments, code, [says])


def misspelt(tool: str, says: str, **arguments: Any) -> Bad:
    return Bad(tool, arguments, "unknown_argument", [says])


def cursor(value: object) -> str:
    """A cursor that was made like ours, of something else."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


IDS = [
    *of_session(UNKNOWN, "session_not_found"),
    *of_session(UNKNOWN.replace("-", ""), "session_not_found"),
    *(
        bad
        for value in each("", " ", "abc", f"{{{UNKNOWN}}}", f" {UNKNOWN}", f"{UNKNOWN}\n", "5" * 36, NUL)
        for bad in of_session(value)
    ),
    *of_session(f"urn:uuid:{UNKNOWN}"),
    *of_session(UNKNOWN.replace("5", "\N{FULLWIDTH DIGIT FIVE}")),
    *of_session(ROCKET * 36),
    *of_session(HUGE, "invalid_input"),
    *of_session(HALF, "invalid_input"),
    *of_session(5, "invalid_input"),
    *of_session([UNKNOWN], "invalid_input"),
    *of_session({"id": UNKNOWN}, "invalid_input"),
    Bad("get-session-info", {"sessionId": "null"}, "invalid_session_id"),
    Bad("get-session-info", {"sessionId": None}),
    Bad("extend-session", {"sessionId": None}),
    Bad("get-session-info", {}, says=["sessionId"]),
    Bad("extend-session", {"hours": 24}, says=["sessionId"]),
]
NAMES = [
    *(
        creating(field, **{field: value})
        for field, most in (("assets", 100), ("tags", 50))
        for value in each(
            [f"X{number}" for number in range(most + 1)],
            ["x" * 65],
            [HUGE],
            [""],
            ["AAPL", "   "],
            [NUL],
            [HALF],
            [None],
            [5],
            [["AAPL"]],
            [{"symbol": "AAPL"}],
            "AAPL",
            "",
            {},
            5,
        )
    ),
    creating("name 1 to 100 assets", assets=[]),
    creating("assets", assets=None),
    creating("at most 100 are allowed", assets=["AAPL"] * 100_000),
    creating("at most 50 are allowed", tags=["tech"] * 100_000),
    Bad("create-analysis-session", {"sessionType": "equity"}, says=["assets"]),
    Bad("create-analysis-session", {"assets": ["AAPL"]}, says=["sessionType"]),
    *(creating("title", title=value) for value in each("", "  ", NUL, HALF, "x" * 201, HUGE, 5, ["a"], {"a": 1})),
    *(creating("userId", userId=value) for value in each("", NUL, HALF, "x" * 256, HUGE)),
    *(creating("userId", userId=value) for value in each(5, ["a"], {"a": 1})),
]
TYPES = [
    *(creating("'equity', 'crypto'", sessionType=value) for value in each("stocks", "EQUITY", "", HUGE, NUL, None, 5)),
    *(listing("'equity', 'crypto'", sessionType=value) for value in each("stocks", HUGE, 5, ["equity"])),
    Bad("get-session-analytics", {"sessionType": "stocks"}, says=["'equity', 'crypto'"]),
    *(searching("'quick', 'standard' or 'deep'", depth=value) for value in each("shallow", "QUICK", "", HUGE, 5, [])),
]
HOURS = [
    *(creating("between 1 and 168", ttlHours=value) for value in each(0, -1, 169, 10**9, -(10**9), GOOGOLS, -GOOGOLS)),
    *(extending("between 1 and 168", value) for value in each(0, -1, 169, 10**9, GOOGOLS)),
    *(creating("ttlHours", ttlHours=value) for value in each(1.5, True, "soon", HUGE, [24], {})),
    *(extending("hours", value) for value in each(1.5, True, "soon", [24], {})),
]
NUMBERS = [
    *(listing("between 1 and 200", limit=value) for value in each(0, 201, -1, GOOGOLS)),
    *(listing("limit", limit=value) for value in each("ten", 1.5, True, [], {})),
    *(
        Bad("get-session-analytics", {"days": value}, says=["days", "between 1 and 3650"])
        for value in each(0, -1, 3651, 10**9, GOOGOLS)
    ),
    *(Bad("get-session-analytics", {"days": value}, says=["days"]) for value in each("many", 1.5, True, [])),
    *(listing("includeArchived", includeArchived=value) for value in each("perhaps", 5, [])),
]
CURSORS = [
    *(
        listing("next_cursor of the previous page", cursor=value)
        for value in each(
            "",
            "abc",
            "%%%",
            "é",
            NUL,
            ROCKET,
            cursor([]),
            cursor([1]),
            cursor({}),
            cursor(5),
            cursor("text"),
            cursor([1, 2]),
            cursor([1, None]),
            cursor([1, "no id"]),
            cursor([1, UNKNOWN, 3]),
            cursor(["soon", UNKNOWN]),
            cursor([None, UNKNOWN]),
            cursor([[], UNKNOWN]),
            cursor([10**200, UNKNOWN]),
            cursor([-(10**200), UNKNOWN]),
            cursor([float("nan"), UNKNOWN]),
            cursor([float("inf"), UNKNOWN]),
        )
    ),
    *(listing("cursor", cursor=value) for value in each(HUGE, HALF, 5, [], {})),
]
FILTERS = [
    listing(name, **{name: value}) for name in ("tag", "asset") for value in each(NUL, HALF, HUGE, 5, ["a"], {"a": 1})
] + [
    Bad(tool, {"userId": value}, says=["userId"])
    for tool in ("list-sessions", "get-session-analytics")
    for value in each("", NUL, HALF, HUGE)
]
SYMBOLS = [
    *(
        bad
        for value in each("", " ", "AA PL", "AA\tPL", "AA\nPL", "A" * 33, NUL)
        for bad in (searching("is not a symbol", symbol=value), coin("is not a symbol", symbol=value))
    ),
    *(
        searching("is not in the sample data; it has AAPL", "symbol_not_found", symbol=value)
        for value in each('A"B', "A'B", "';DROP--", ROCKET, "../etc", "null", "ÅÄÖ", "<script>", "%s%n", "{0}", "BTC")
    ),
    coin("it has BTC, ETH, LTC", "symbol_not_found", symbol="AAPL"),
    *(
        searching("symbol", symbol=value)
        for value in each(HUGE, HALF, None, 5, True, [], ["AAPL"], {}, {"symbol": "AAPL"})
    ),
    *(coin("symbol", symbol=value) for value in each(HUGE, HALF, None, 5, [], {})),
    *(searching("valid: US", market=value) for value in each("", "DE", HUGE, NUL, ROCKET)),
    *(searching("market", market=value) for value in each(HALF, 5, [])),
    *(coin("valid: Bitstamp", exchange=value) for value in each("", "Kraken", HUGE, NUL)),
    *(coin("exchange", exchange=value) for value in each(HALF, 5, [], {})),
    *(coin("valid: USD", pair=value) for value in each("", "EUR", HUGE)),
    *(coin("pair", pair=value) for value in each(HALF, 5, [])),
    Bad("search-by-symbol", {}, says=["symbol"]),
]
MISSPELT = [
    misspelt("search-by-symbol", "did you mean sessionId", symbol="AAPL", sessionid=SESSION),
    misspelt("search-by-symbol", "did you mean sessionId", symbol="AAPL", sesionId=SESSION),
    misspelt("search-by-symbol", "did you mean depth", symbol="AAPL", depht="deep"),
    misspelt("get-session-info", "did you mean sessionId", sessionid=SESSION),
    misspelt("list-sessions", "did you mean includeArchived", include_archive=True),
    misspelt("create-analysis-session", "did you mean ttlHours", **CREATE, ttlHour=24),
    misspelt("create-analysis-session", "the tool takes assets, sessionType", **CREATE, zzz=24),
    *(misspelt("list-sessions", "there is no argument", **{name: 1}) for name in ("", HUGE, NUL, HALF, ROCKET, "_")),
    misspelt("create-analysis-session", "there is no argument", **CREATE, status="success"),
]
TWICE = "is given under two names"
TWO_NAMES = [
    Bad("search-by-symbol", {"symbol": "AAPL", "sessionId": SESSION, "session_id": SESSION}, says=["sessionId", TWICE]),
    Bad("search-by-coin", {"symbol": "BTC", "session_id": SESSION, "sessionId": UNKNOWN}, says=["sessionId", TWICE]),
    Bad("list-sessions", {"userId": "ann", "user_id": "eve"}, says=["userId", TWICE]),
]
NULL = "is the text 'null'"
TEXT_FOR_NULL = [
    searching(NULL, sessionId="null"),
    coin(NULL, sessionId=" null "),
    coin(NULL, exchange="null"),
    *(creating(NULL, **{name: "null"}) for name in ("userId", "title", "tags", "ttlHours")),
    *(listing(NULL, **{name: "null"}) for name in ("userId", "cursor", "sessionType", "tag", "asset")),
]
UNKNOWN_TOOLS = [
    Bad(name, {}, "unknown_tool", ["create-analysis-session", "search-by-coin"])
    for name in ("nope", "search_by_symbol", "", HUGE, NUL)
]
MEMORY = [
    *(Bad("get-session-context", {"sessionId": SESSION, "maxTokens": n}) for n in (0, -1, 299, 10**9, GOOGOLS, True)),
    Bad("update-session-context", {"sessionId": SESSION}, says=["writes nothing"]),
    Bad("update-session-context", {"sessionId": SESSION, "cites": [UNKNOWN]}, says=["is given alone"]),
    Bad(
        "update-session-context",
        {"sessionId": SESSION, "note": "n", "cites": [UNKNOWN]},
        says=["not a record of session"],
    ),
    Bad("update-session-context", {"sessionId": SESSION, "conclusion": "c", "cites": ["seven", HUGE]}),
    Bad("update-session-context", {"sessionId": SESSION, "context": ["no map"]}),
    *(
        Bad(
            "update-session-context",
            {"sessionId": SESSION, name: dict.fromkeys(map(str, range(1001)), 1)},
            says=["1000"],
        )
        for name in ("context", "preferences", "intermediateResults")
    ),
    *(Bad("update-session-context", {"sessionId": SESSION, "note": text}) for text in ("", HUGE, NUL, HALF, 7)),
    *(Bad("update-session-context", {"sessionId": SESSION, "context": {"k": v}}) for v in (NUL, HALF, HUGE * 30)),
    Bad("resume-session", {"sessionId": SESSION, "hours": 0}),
    Bad("resume-session", {"sessionId": SESSION, "hours": 10**9}),
    Bad("search-sessions", {}, says=["has no criterion"]),
    *(Bad("search-sessions", {"text": text}) for text in ("", HUGE, NUL, HALF, ROCKET, "pe_ratio <", "a = b", 7)),
    *(Bad("search-sessions", {"symbol": text}) for text in ("", "A" * 65, NUL)),
    *(Bad("search-sessions", {"createdFrom": text}) for text in ("yesterday", "2024-13-01", "2024-12-24T10:00:00", "")),
    Bad(
        "search-sessions",
        {"createdFrom": "2024-12-25", "createdBefore": "2024-12-24"},
        says=["createdFrom is not before createdBefore"],
    ),
    Bad("search-sessions", {"text": "a", "limit": 0}),
    Bad("search-sessions", {"text": "a", "cursor": "x"}),
]
# With these a call is in order; the one argument that is to be refused comes on top.
IN_ORDER: dict[str, dict[str, Any]] = {
    "create-analysis-session": CREATE,
    "search-by-symbol": {"symbol": "AAPL"},
    "search-by-coin": {"symbol": "BTC"},
    "update-session-context": {"note": "n"},
    "search-sessions": {"text": "a"},
}
WRONG = each("", 0, -1, 10**9, True, NUL, HALF, HUGE, "nobody's", [], [""], {}, {NUL: 1}, {"k": NUL}, {"k": [HALF]})
CALLS = {
    "memory": MEMORY,
    "ids": IDS,
    "names": NAMES,
    "types": TYPES,
    "hours": HOURS,
    "numbers": NUMBERS,
    "cursors": CURSORS,
    "filters": FILTERS,
    "symbols": SYMBOLS,
    "misspelt": MISSPELT,
    "two names": TWO_NAMES,
    "text for null": TEXT_FOR_NULL,
    "unknown tools": UNKNOWN_TOOLS,
}


async def everything(caller: Door, session_id: str) -> tuple[Any, Any]:
    """All that a refused call could have changed."""
    page = await caller.answer("list-sessions", includeArchived=True, limit=200)
    session = await (await caller.runtime.store()).get_session(UUID(session_id))
    assert session is not None
    untouched = {name: value for name, value in page["sessions"][0].items() if name != "last_accessed_at"}
    return [untouched, *page["sessions"][1:]], session.state


def with_session(arguments: dict[str, Any], session_id: str) -> dict[str, Any]:
    return {name: session_id if value == SESSION else value for name, value in arguments.items()}


def long_runs(value: object) -> list[str]:
    """The texts of a value that are longer than a message shows of them."""
    if isinstance(value, list):
        return [run for item in value for run in long_runs(item)]
    return [value[: SHOWN_AT_MOST + 1]] if isinstance(value, str) and len(value) > SHOWN_AT_MOST else []


async def check(caller: Door, bad: Bad, session_id: str) -> None:
    """Call, and look at the refusal and at what the store holds."""
    before = await everything(caller, session_id)

    refusal = await caller.refusal(bad.tool, **with_session(bad.arguments, session_id))

    message = refusal["message"]
    assert refusal["code"] == bad.code, f"{bad}: {message}"
    assert refusal["next_step"], bad
    assert all(words in message for words in bad.says), f"{bad}: {message}"
    assert message.isprintable(), f"{bad}: {message!a}"
    assert len(message) < SHORT_CHARACTERS, bad
    given = [bad.tool, *bad.arguments, *bad.arguments.values()]
    assert not [run for run in long_runs(given) if run in message], f"{bad}: {message}"
    assert await everything(caller, session_id) == before, bad


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("era", ERAS)
async def test_a_bad_call_is_refused_with_the_next_step_and_changes_nothing(
    sqlite_settings: Settings, era: str, calls: list[Bad]
) -> None:
    async with door(sqlite_settings, era=era) as caller:
        session_id = await caller.create("AAPL", "MSFT")
        for bad in calls:
            await check(caller, bad, session_id)


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
async def test_the_server_deployment_refuses_the_same(deployment: Deployment, calls: list[Bad]) -> None:
    async with door(deployment.settings()) as caller:
        session_id = await caller.create("AAPL", "MSFT")
        for bad in calls:
            await check(caller, bad, session_id)


@pytest.mark.parametrize(("tool", "field"), [(CREATING, "assets"), (CREATING, "tags"), (UPDATING, "cites")])
async def test_a_list_is_refused_at_its_first_wrong_item(sqlite_settings: Settings, tool: str, field: str) -> None:
    """Describing a million of them would occupy the server."""
    usual: dict[str, dict[str, Any]] = {CREATING: CREATE, UPDATING: {"sessionId": UNKNOWN, "note": "n"}}

    async with door(sqlite_settings) as caller:
        refusal = await caller.refusal(tool, **usual[tool] | {field: [5, 5]})

    assert refusal["message"] == f"{field}.0: Input should be a valid string (it is 5)"


@pytest.mark.parametrize("tool", ARGUMENTS)
async def test_a_refusal_begins_with_the_name_of_the_argument_as_the_tool_has_it(
    sqlite_settings: Settings, tool: str
) -> None:
    async with door(sqlite_settings) as caller:
        named = {"sessionId": await caller.create("AAPL")} if "sessionId" in ARGUMENTS[tool] else {}
        for argument in ARGUMENTS[tool]:
            calls = [{**named, **IN_ORDER.get(tool, {}), argument: value} for value in WRONG]
            results = [structured(await caller.client.call_tool(tool, call)) for call in calls]

            refused = [each["message"] for each in results if each.get("code", "").startswith("invalid")]
            assert refused, argument
            assert all(re.match(rf"(a key of )?{argument}\b", message) for message in refused), refused
