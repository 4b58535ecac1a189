"""The reference lacks nothing, and has nothing that is gone: settings, commands, tools, errors, names, tables."""

import inspect
import re
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from fiml import __version__
from fiml.cli import app
from fiml.core import errors
from fiml.core.config import MarketData, Settings, variable
from fiml.core.errors import FimlError
from fiml.db import schema, tables
from fiml.market.providers.coins import EXCHANGES, PAIRS
from fiml.market.providers.yahoo_symbols import MARKETS
from fiml.mcp import memory_results, results, sharing_tools
from fiml.mcp.memory_tools import memory_tools
from fiml.mcp.tools import session_tools
from fiml.replay import Drift, Replay, ReplayedQuery
from fiml.runtime import Runtime
from fiml.sessions import analytics, models, store
from fiml.sessions.care import ErasureReceipt
from fiml.sessions.context_pack import ContextPack
from fiml.sessions.notes import Note
from tests.support.pages import ALL_PAGES, BLOCK, REFERENCE, ROOT, name_of, section

NAMED_COMMAND = re.compile(r"(?:^|[`/ ])fiml ([^`\n]+)", re.MULTILINE)


def public_names(cls: type) -> list[str]:
    """Methods, properties and fields of a class, without inherited ones of other packages."""
    own = {name for base in cls.__mro__ if base.__module__.startswith("fiml.") for name in vars(base)}
    fields = set(getattr(cls, "__dataclass_fields__", ()))
    return sorted(name for name in own | fields if not name.startswith("_"))


def settings_row(field: str) -> str:
    lines = (REFERENCE / "settings.md").read_text().splitlines()
    [row] = [line for line in lines if f"| `{variable(field)}` |" in line]
    return row


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_in_the_reference_with_its_default(field: str) -> None:
    row = settings_row(field)

    default = Settings.model_fields[field].default
    if default is not None:
        assert f"| `{(str(default).lower() if isinstance(default, bool) else str(default))}` |" in row


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_bound_and_choice_of_a_setting_is_in_the_reference(field: str) -> None:
    valid = settings_row(field).split(" | ")[2]

    described = Settings.model_fields[field]
    bounds = {getattr(each, name, None) for each in described.metadata for name in ("ge", "le")} - {None}
    kind: Any = described.annotation
    choices: list[Any] = list(kind) if isinstance(kind, EnumType) else []
    # The least that the visibility timeout can be follows from another setting.
    bounds -= {2} if field == "task_visibility_timeout_minutes" else set()
    assert [bound for bound in bounds if not re.search(rf"\b{bound}\b", valid)] == []
    assert [choice for choice in choices if f"`{choice}`" not in valid] == []


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command with its whole name; groups only where they have options of their own."""
    below = getattr(command, "commands", {})
    if not below or any(not parameter.hidden for parameter in options(command)):
        yield name, command
    for child_name, child in below.items():
        yield from commands(child, f"{name} {child_name}")


def options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


@pytest.mark.parametrize(
    ("name", "command"), [pytest.param(*found, id=found[0]) for found in commands(get_command(app), "fiml")]
)
def test_every_command_and_option_is_in_the_reference(name: str, command: Any) -> None:
    text = section("cli.md", name)

    shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    arguments = [(each.metavar or each.name).upper() for each in shown if each not in options(command)]
    if arguments:
        assert f"`{name} {' '.join(arguments)}`" in text
    for parameter in shown:
        if parameter in options(command):
            [row] = [row for row in text.splitlines() if row.startswith("|") and f"`{parameter.opts[0]}`" in row]
            assert not parameter.default or f"| `{parameter.default}` |" in row


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    shell = [line for kind, block in BLOCK.findall(text) if kind in ("sh", "console") for line in block.splitlines()]
    code = [
        *re.findall(r"`fiml [^`\n]+`", text),
        *(line.partition(" #")[0] for line in shell if line != f"fiml {__version__}"),
    ]

    for named in NAMED_COMMAND.findall("\n".join(code)):
        words = named.split()
        command: Any = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for each in options(command) for option in each.opts} | {"--help", "--version"}
        is_group = hasattr(command, "commands")
        assert not (is_group and words) or words[0].startswith("-"), named
        assert [word for word in words if word.startswith("--") and word not in known] == [], named


def test_the_reference_has_no_command_or_option_that_is_gone() -> None:
    text = (REFERENCE / "cli.md").read_text()
    known = dict(commands(get_command(app), "fiml"))
    known_options = {option for command in known.values() for found in options(command) for option in found.opts}

    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == set(known)
    assert set(re.findall(r"--[a-z-]+\b", text)) - known_options - {"--help"} == set()


RUNTIME = Runtime(Settings(redis_url=None, database_url=None, market_data=MarketData.SAMPLE))
TOOLS = [*session_tools(RUNTIME), *memory_tools(RUNTIME), *sharing_tools.sharing_tools(RUNTIME)]
RESULTS: dict[str, type[BaseModel]] = {
    "create-analysis-session": results.CreatedSession,
    "get-session-info": results.SessionInfo,
    "list-sessions": results.SessionList,
    "extend-session": results.ExtendedSession,
    "get-session-analytics": results.Statistics,
    "search-by-symbol": results.SearchResult,
    "get-session-context": memory_results.SessionContext,
    "update-session-context": memory_results.UpdatedContext,
    "resume-session": memory_results.ResumedSession,
    "close-session": memory_results.ClosedSession,
    "search-sessions": memory_results.FoundSessions,
    "share-session": sharing_tools.SharedSession,
}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_tool_and_argument_is_in_the_reference(tool: Any) -> None:
    text = section("mcp-tools.md", tool.name)

    arguments = set(tool.parameters["properties"])
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", text, re.MULTILINE)
    defaults = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    assert set(defaults) == arguments
    for name, argument in tool.parameters["properties"].items():
        assert (defaults[name] == "required") is (name in tool.parameters.get("required", []))
        if (default := argument.get("default")) is not None:
            assert f"`{str(default).lower() if isinstance(default, bool) else default}`" in defaults[name]


@pytest.mark.parametrize("tool", RESULTS)
def test_every_field_of_a_tools_result_is_in_the_reference(tool: str) -> None:
    text = section("mcp-tools.md", tool)

    assert [name for name in RESULTS[tool].model_fields if name != "status" and f"`{name}`" not in text] == []


def test_every_error_is_in_the_reference_with_its_code() -> None:
    classes = [cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FimlError)]
    public = {(cls.__name__, cls.code) for cls in classes if not cls.__name__.startswith("_")}

    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (REFERENCE / "errors.md").read_text(), re.MULTILINE)

    assert set(rows) == public
    assert len(rows) == len(public)


def test_every_attribute_of_an_error_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text()
    own = {
        cls.__name__: set(re.findall(r"self\.(\w+) = ", inspect.getsource(cls))) - {"args"}
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, FimlError)
    }

    shown = dict(re.findall(r"^\| `(\w+)` \| `\w+` \| ([^|]*) \|", text, re.MULTILINE))

    missing = {name: own[name] - set(re.findall(r"\w+", attributes)) for name, attributes in shown.items()}
    assert [name for name in missing if missing[name]] == []


@pytest.mark.parametrize(
    "cls",
    [
        store.SessionStore,
        models.QueryRecord,
        models.QueryTotals,
        models.AnalysisHistory,
        models.SessionState,
        models.Session,
        models.SessionSummary,
        Note,
        ContextPack,
        Replay,
        ReplayedQuery,
        Drift,
        ErasureReceipt,
        Runtime,
        analytics.SessionAnalytics,
    ],
    ids=lambda cls: cls.__name__,
)
def test_every_public_name_is_in_the_reference(cls: type) -> None:
    text = (REFERENCE / "library.md").read_text()
    inner = {"stored", "add"}  # what the store builds histories and totals with
    of_every_model = {"to_dict", "from_dict"}

    names = set(public_names(cls)) - inner - of_every_model

    assert [name for name in sorted(names) if not re.search(rf"`{name}\b", text)] == []


@pytest.mark.parametrize(
    "table",
    [table for each in (tables.shared, tables.embedded, tables.server) for table in each.tables.values()],
    ids=lambda table: table.name,
)
def test_every_table_and_column_is_in_the_reference(table: Any) -> None:
    text = section("storage.md", table.name)

    assert [column.name for column in table.c if f"`{column.name}`" not in text] == []


def test_every_market_exchange_and_pair_of_the_live_sources_is_named() -> None:
    text = (ROOT / "docs" / "how-to" / "live-market-data.md").read_text()

    for name in (*MARKETS, *EXCHANGES, *PAIRS):
        assert f"`{name}`" in text


def test_the_schema_that_is_named_is_the_current_one() -> None:
    text = (ROOT / "docs" / "how-to" / "upgrade-the-database.md").read_text()

    assert f"has schema `{schema.REVISIONS[-1]}`" in text
