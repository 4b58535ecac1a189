"""What users install: the wheel has what fiml needs, and imports load no more than they must."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import fiml

ROOT = Path(__file__).parents[2]
HEAVY = {"aiosqlite", "alembic", "asyncpg", "mcp", "redis", "sqlalchemy", "talipp"}

USE = """
import asyncio

import fiml
from fiml.market.service import open_market
from fiml.core.config import Settings
from fiml.sessions.models import QueryRecord
from fiml.sessions.store import SessionStore

async def use():
    async with SessionStore() as store:
        session = await store.create_session(["AAPL"], "equity")
        await store.record_query(session.id, QueryRecord("price"))
        await store.archive_session(session.id)
        archived = await store.get_session(session.id)
    instrument = await open_market(Settings()).equity("AAPL")
    print(fiml.__file__, archived.is_archived, archived.state.history.total_queries, instrument.name, sep="\\n")

asyncio.run(use())
"""

SHOW_LOADED = """
import sys
print(*{{name.partition(".")[0] for name in sys.modules}} & {wanted})
"""


def run(*arguments: str, folder: Path, path: str | None = None) -> str:
    """What Python prints when it is started in a folder, with `path` before all else that it imports from."""
    environment = {**os.environ, "PYTHONPATH": path or os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), folder=ROOT)
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fiml").rglob("*") if path.is_file()}

    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert packed == {name for name in files if "__pycache__" not in name}


@pytest.mark.parametrize(
    "name",
    [
        "fiml/py.typed",
        "fiml/sessions/lua/write.lua",
        "fiml/db/migrations/env.py",
        "fiml/db/migrations/versions/0001_sessions.py",
        "fiml/market/sample/equities_daily.csv",
        "fiml/market/sample/README.md",
        f"fiml-{fiml.__version__}.dist-info/licenses/LICENSE",
    ],
)
def test_the_wheel_has_the_files_that_are_not_modules(wheel: zipfile.ZipFile, name: str) -> None:
    assert name in wheel.namelist()


def test_the_wheel_keeps_and_archives_a_session(installed: Path, tmp_path: Path) -> None:
    origin, *answers = run("-c", USE, folder=tmp_path, path=str(installed)).splitlines()

    assert Path(origin).is_relative_to(installed)
    assert answers == ["True", "1", "Apple Inc."]


def test_the_wheel_has_the_command_line(installed: Path, tmp_path: Path) -> None:
    assert run("-m", "fiml", "--version", folder=tmp_path, path=str(installed)) == f"fiml {fiml.__version__}\n"


def test_the_store_loads_no_engine_before_it_opens(installed: Path, tmp_path: Path) -> None:
    program = "import fiml.sessions.store" + SHOW_LOADED.format(wanted=HEAVY)

    assert run("-c", program, folder=tmp_path, path=str(installed)).split() == []


def test_core_loads_no_driver(installed: Path, tmp_path: Path) -> None:
    modules = [path.stem for path in (ROOT / "fiml" / "core").glob("*.py") if path.stem != "__init__"]
    imports = "import " + ", ".join(f"fiml.core.{module}" for module in modules)
    program = imports + SHOW_LOADED.format(wanted=HEAVY | {"sqlite3"})

    assert run("-c", program, folder=tmp_path, path=str(installed)).split() == []


def test_each_package_that_is_imported_is_a_dependency_of_its_own() -> None:
    """Another package that needs it today may need it no longer in its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = set(re.findall(r"[a-z][\w.-]*", " ".join(listed)))  # also those of extras, as in redis[hiredis]
    distributions = packages_distributions()

    undeclared = {
        name
        for name in imported_packages(ROOT / "fiml") - sys.stdlib_module_names - {"fiml"}
        if not {each.lower().replace("_", "-") for each in distributions[name]} & declared
    }

    assert undeclared == set()


def imported_packages(folder: Path) -> set[str]:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in folder.rglob("*.py")]
    nodes = list(chain.from_iterable(map(ast.walk, trees)))
    plain = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return {name.partition(".")[0] for name in plain + [str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)]}
