"""The documentation is true: its blocks run, and its links lead somewhere."""

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
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import ALL_PAGES, BLOCK, README, ROOT, name_of

RUNNING_PAGES = [README, ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
SERVER_PAGES = {"redis-and-postgresql.md", "upgrade-the-database.md"}

FILE_NAME = re.compile(r"# (\w+\.py)\n")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
LINK_TO_HEADING = re.compile(r"\]\(([^)#]*)#([^)]+)\)")
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


def test_no_file_names_a_package_registry() -> None:
    found = [
        f"{name_of(file)}: {term}"
        for file in repository_files()
        for text in [file.read_bytes().decode(errors="replace").lower()]
        for term in REGISTRIES
        if term in text
    ]

    assert found == []
