"""The documentation is true: its blocks run, its links lead somewhere, and the reference lacks nothing."""

import ast
import asyncio
import codeop
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from enum import EnumType
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from fiml import __version__
from fiml.analysis import ANSWER_TIMEOUT_S, MAX_COMPARED
from fiml.cli import app
from fiml.core import errors
from fiml.core.config import MAX_TTL_HOURS, MarketData, Settings, variable
from fiml.core.errors import FimlError
from fiml.db import schema, tables
from fiml.market.providers.base import MAX_SYMBOL_CHARACTERS
from fiml.market.providers.coins import EXCHANGES, PAIRS
from fiml.market.providers.texts import MAX_TEXT_CHARACTERS
from fiml.market.providers.yahoo_symbols import MARKETS
from fiml.mcp import memory_results, results, sharing_tools
from fiml.mcp.http import MAX_BODY_BYTES
from fiml.mcp.memory_tools import memory_tools
from fiml.mcp.tools import session_tools
from fiml.replay import MAX_TOLERANCE, Drift, Replay, ReplayedQuery
from fiml.runtime import Runtime
from fiml.sessions import analytics, models, notes, rights, searching, store, values
from fiml.sessions.backends.base import MAX_SEARCHED
from fiml.sessions.care import MAX_REASON_CHARACTERS, ErasureReceipt
from fiml.sessions.context_pack import MAX_TOKENS, MIN_TOKENS, ContextPack
from fiml.sessions.notes import Note

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference"
RUNNING_PAGES = [README, ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
SERVER_PAGES = {"redis-and-postgresql.md", "upgrade-the-database.md"}
ALL_PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
LINK_TO_HEADING = re.compile(r"\]\(([^)#]*)#([^)]+)\)")
NAMED_COMMAND = re.compile(r"(?:^|[`/ ])fiml ([^`\n]+)", re.MULTILINE)
# One in brackets is a record's.
UUID = re.compile(r"(?<!\[)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|\d\d:\d\d:\d\d")

IGNORED_FOLDERS = {"__pycache__", "build", "dist", "node_modules"}
KEPT_HIDDEN = {".ci", ".github", ".gitignore", ".importlinter"}
# Where packages come from is for who installs them to say. In parts, so that this file doesn't name them either.
REGISTRIES = ["pypi" + ".org", "python" + "hosted", "npm" + "js"]


class Reader:
    """Does what a page says, block by block, in the current folder."""

    def __init__(self, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self._runner = runner
        self._monkeypatch = monkeypatch
        self._names: dict[str, Any] = {"__name__": "page"}
        self._last_id = "no-id-was-printed"

    def follow(self, page: Path) -> int:
        """How many blocks were run."""
        for name in [name for name in os.environ if name.startswith("FIML_TEST_")]:
            self._monkeypatch.delenv(name)  # `fiml doctor` knows no such setting
        blocks = [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind in ("python", "console")]
        for kind, text in blocks:
            output = self._run_python(text) if kind == "python" else self._run_console(text)
            self._last_id = [self._last_id, *UUID.findall(output)][-1]
        return len(blocks)

    def _run_python(self, text: str) -> str:
        if named := FILE_NAME.match(text):
            Path(named[1]).write_text(text)
            return ""
        code = compile(text, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with redirect_stdout(io.StringIO()) as output:
            if code.co_flags & inspect.CO_COROUTINE:
                self._runner.run(eval(code, self._names))  # noqa: S307  our own pages
            else:
                exec(code, self._names)  # noqa: S102  as above
        return output.getvalue()

    def _run_console(self, text: str) -> str:
        output = ""
        for line in text.splitlines():
            if line.startswith("$ "):
                output = self._run_command([self._last_id if word == "ID" else word for word in shlex.split(line[2:])])
            else:
                assert line in output
        return output

    def _run_command(self, words: list[str]) -> str:
        match words:
            case [("fiml" | "pytest") as module, *arguments]:
                return run_module(module, *arguments)
        raise AssertionError(f"{words[0]} is no command that a console block may have; use a block of `sh`")


def run_module(*command: str) -> str:
    """What `python -m` prints, in the current folder; it must end with 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, encoding="utf-8", env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def section(page: str, heading: str) -> str:
    """The text under a heading of the reference, up to the next heading of any level."""
    _, found, rest = (REFERENCE / page).read_text().partition(f"# {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def public_names(cls: type) -> list[str]:
    """Methods, properties and fields of a class, without inherited ones of other packages."""
    own = {name for base in cls.__mro__ if base.__module__.startswith("fiml.") for name in vars(base)}
    fields = set(getattr(cls, "__dataclass_fields__", ()))
    return sorted(name for name in own | fields if not name.startswith("_"))


def is_hidden(part: str) -> bool:
    return part.startswith(".") and part not in KEPT_HIDDEN


def repository_files() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not is_hidden(name) and name not in IGNORED_FOLDERS]
        yield from (Path(folder, name) for name in names if not is_hidden(name))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Reader]:
    """A reader in a folder of their own, on the sample."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FIML_MARKET_DATA", "sample")
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield Reader(runner, monkeypatch)


@pytest.fixture
def page(request: pytest.FixtureRequest, reader: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A page, in the deployment that it is about."""
    path: Path = request.param
    if path.name == "encrypt-at-rest.md":
        monkeypatch.setenv("FIML_ENCRYPTION_KEYS", str(tmp_path / "keys"))
    if path.name in SERVER_PAGES:
        deployment = request.getfixturevalue("deployment")
        monkeypatch.setenv("FIML_REDIS_URL", deployment.redis_url)
        monkeypatch.setenv("FIML_DATABASE_URL", deployment.database_url)
    return path


@pytest.mark.parametrize("page", RUNNING_PAGES, ids=name_of, indirect=True)
def test_the_blocks_of_a_page_run(page: Path, reader: Reader) -> None:
    assert reader.follow(page) > 0


@pytest.mark.parametrize("page", RUNNING_PAGES, ids=name_of)
def test_the_python_blocks_of_a_page_can_be_typed_into_pythons_shell(page: Path) -> None:
    """It ends an indented block at an empty line, and only there."""
    blocks = [text for kind, text in BLOCK.findall(page.read_text()) if kind == "python"]

    for text in [text for text in blocks if not FILE_NAME.match(text)]:
        compiler = codeop.CommandCompiler()
        compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        typed = ""
        for line in [*text.splitlines(), ""]:
            typed += f"{line}\n"
            typed = typed if compiler(typed.removesuffix("\n"), name_of(page)) is None else ""
        assert typed == "", "a statement has no end"


def test_what_the_readme_shows_of_the_demo_is_what_it_prints(reader: Reader) -> None:
    [shown] = [text for kind, text in BLOCK.findall(README.read_text()) if kind == "text"]

    printed = run_module("fiml", "demo")

    def without_chance(text: str) -> list[str]:
        return MOMENT.sub("MOMENT", UUID.sub("ID", text)).splitlines()

    assert set(without_chance(shown)) - {"..."} <= set(without_chance(printed))


def test_the_configuration_in_the_readme_is_what_install_prints(reader: Reader) -> None:
    [shown] = [json.loads(text) for kind, text in BLOCK.findall(README.read_text()) if kind == "json"]

    printed = json.loads(run_module("fiml", "install", "claude-code"))

    printed["mcpServers"]["fiml"] |= {"command": "/path/to/.venv/bin/python", "env": {}}
    assert shown == printed


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]

    assert [link for link in links if not (page.parent / link).exists()] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_to_headings_lead_to_headings(page: Path) -> None:
    links = [(link, anchor) for link, anchor in LINK_TO_HEADING.findall(page.read_text()) if "://" not in link]

    assert [anchor for link, anchor in links if anchor not in anchors(page.parent / link if link else page)] == []


def test_the_map_leads_to_every_page() -> None:
    home = ROOT / "docs" / "index.md"
    linked = {(home.parent / link).resolve() for link in LINK.findall(home.read_text())}

    assert {page for page in (ROOT / "docs").rglob("*.md") if page != home} - linked == set()


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


LIMITS = {
    "assets of a session": ["MAX_ASSETS"],
    "tags of a session": ["MAX_TAGS"],
    "one asset, tag or query type": ["MAX_NAME_CHARACTERS"],
    "`user_id`": ["MAX_USER_ID_CHARACTERS"],
    "`title`": ["MAX_TITLE_CHARACTERS"],
    "page of a listing": ["MAX_PAGE"],
    "one stored value, as JSON": ["MAX_VALUE_BYTES", "MAX_VALUE_DEPTH"],
    "a session's maps together, keys and values": ["MAX_MAPS_BYTES"],
    "an integer": ["MAX_INTEGER_DIGITS"],
    "queries of a session, as JSON": ["MAX_HISTORY_BYTES"],
    "`execution_time_ms` of a query": ["MAX_DURATION_MS"],
    "`expected_version`": ["MAX_VERSION"],
}


def limits_row(what: str) -> str:
    [row] = [line for line in (REFERENCE / "limits.md").read_text().splitlines() if line.startswith(f"| {what} |")]
    return row


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_in_the_reference_is_that_of_the_code(what: str) -> None:
    numbers = [getattr(values, name) for name in LIMITS[what]]

    assert [number for number in numbers if not re.search(rf"\b{number}\b", limits_row(what))] == []


def test_every_limit_is_in_the_reference() -> None:
    named = {name for names in LIMITS.values() for name in names}

    assert {name for name in vars(values) if name.startswith("MAX_")} == named


def test_limits_that_stand_elsewhere_are_in_the_reference_too() -> None:
    defaults = Settings()

    assert f" {defaults.session_max_ttl_hours} " in limits_row("TTL, hours to extend or resume by")
    assert f" {defaults.session_max_queries_per_session} " in limits_row("queries of a session")
    assert f" {analytics.MAX_DAYS} " in limits_row("days of statistics")
    assert f" {MAX_COMPARED};" in limits_row("assets that one deep question compares with")
    assert f" {MAX_SYMBOL_CHARACTERS} " in limits_row("a symbol")
    assert f" {notes.MAX_NOTE_CHARACTERS} " in limits_row("a note or conclusion")
    assert f" {notes.MAX_CITATIONS} " in limits_row("records that one note cites")
    assert f" {MIN_TOKENS} to {MAX_TOKENS} " in limits_row("budget of a packed context")
    text_row = limits_row("text of a search")
    for limit in (searching.MAX_TEXT_CHARACTERS, searching.MAX_WORDS, searching.MAX_CONDITIONS):
        assert f" {limit} " in text_row
    assert f" {MAX_SEARCHED};" in limits_row("live sessions that one search reads in Redis")
    filtered_row = limits_row("live sessions that one page filtered by type, tag or asset looks at in Redis")
    assert f" {MAX_SEARCHED};" in filtered_row
    words_row = limits_row("words of a session that full-text search finds")
    assert f" {searching.MAX_INDEXED_BYTES} " in words_row
    assert f" {searching.MAX_WORD_CHARACTERS} " in words_row
    assert f" {MAX_TEXT_CHARACTERS} " in limits_row("a text that a market provider sends")
    assert f" {ANSWER_TIMEOUT_S:g} seconds;" in limits_row("one question to the market")
    assert f" {MAX_TOLERANCE:g} " in limits_row("tolerance of a replay")
    assert f" {rights.MAX_SHARES} " in limits_row("users a session is shared with")
    assert f" {rights.MAX_CODES};" in limits_row("open codes of a session")
    assert f" {MAX_REASON_CHARACTERS} " in limits_row("reason of a hold")
    assert f" {analytics.MAX_ROWS};" in limits_row("rows of `get_session_metrics`")
    assert f" {defaults.http_rate_per_minute} by default, {defaults.http_rate_burst} " in limits_row(
        "calls of a principal on HTTP"
    )
    assert f" {MAX_BODY_BYTES} " in limits_row("the body of an HTTP request")
    assert f" {MAX_TTL_HOURS} " in (REFERENCE / "settings.md").read_text()


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


def test_no_file_names_a_package_registry() -> None:
    found = [
        f"{name_of(file)}: {term}"
        for file in repository_files()
        for text in [file.read_bytes().decode(errors="replace").lower()]
        for term in REGISTRIES
        if term in text
    ]

    assert found == []
