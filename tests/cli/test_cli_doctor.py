"""`fiml doctor` on the embedded file, and what it says of settings and extras."""

import asyncio
import os
import pty
import re
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from fiml import __version__
from fiml.cli.checks import Check, Mark
from fiml.cli.doctor import EXTRAS
from fiml.core.config import Settings
from fiml.db import schema
from tests.support.doctor import (
    AWAY,
    PASSWORD,
    embedded_in,
    forget_home,
    forget_redis_py,
    leave_expired_sessions,
    line_about,
    run,
    sweep,
)
from tests.support.issuer import Issuer

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return embedded_in(tmp_path / "sessions", monkeypatch)


def rewrite_revision(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"update {schema.VERSION_TABLE} set version_num = ?", [revision])  # noqa: S608 - a constant
        connection.commit()


class TestCommand:
    def test_without_problems_it_exits_with_0_and_says_so(self) -> None:
        result = run()

        assert result.exit_code == 0
        assert result.output.splitlines()[-1] == "no problems"

    def test_a_problem_exits_with_1_and_is_counted(self) -> None:
        result = run(FIML_NONSENSE="1")

        assert result.exit_code == 1
        assert result.output.splitlines()[-1] == "1 problem"

    def test_each_check_is_a_line_that_begins_with_its_mark(self) -> None:
        lines = run(FIML_NONSENSE="1").output.splitlines()[:-1]

        assert all(re.match(r"(ok|note|PROBLEM) +\S.*: \S", line) for line in lines)

    def test_the_versions_stand_first(self) -> None:
        python = ".".join(str(number) for number in sys.version_info[:3])

        assert run().output.splitlines()[0] == f"ok      fiml: {__version__} on Python {python}"

    def test_a_terminal_of_80_columns_is_wide_enough(self, folder: Path) -> None:
        ours, theirs = pty.openpty()
        code = "from fiml.cli.doctor import doctor; doctor()"
        environment = {
            **os.environ,
            "COLUMNS": "80",
            "PYTHONPATH": str(ROOT),
            "FIML_DATA_DIR": "/a",
            "FIML_REDIS_URL": f"redis://{AWAY}",
        }

        subprocess.run(
            [sys.executable, "-c", code], stdout=theirs, stderr=subprocess.DEVNULL, env=environment, check=False
        )

        text = os.read(ours, 1 << 16).decode()
        os.close(ours)
        os.close(theirs)
        assert "PROBLEM settings: FIML_DATABASE_URL is not set" in text
        assert max(len(line) for line in text.splitlines()) <= 80

    def test_a_message_of_several_lines_is_one(self) -> None:
        assert str(Check(Mark.PROBLEM, "PostgreSQL", "one\ntwo", "three")) == "PROBLEM PostgreSQL: one two; three"


class TestSettings:
    def test_a_misspelt_variable_is_a_problem_and_the_nearest_is_named(self) -> None:
        line = line_about("FIML_SESSION_RETENTION_DAY", run(FIML_SESSION_RETENTION_DAY="3"))

        assert line.startswith("PROBLEM")
        assert line.endswith("did you mean FIML_SESSION_RETENTION_DAYS?")

    def test_a_variable_unlike_any_setting_is_to_be_unset(self) -> None:
        assert line_about("FIML_ZZZ", run(FIML_ZZZ="3")).endswith("unset it")

    def test_the_value_of_a_misspelt_variable_is_not_shown(self) -> None:
        assert PASSWORD not in run(FIML_REDIS_URI=f"redis://:{PASSWORD}@cache").output

    def test_a_wrong_setting_is_a_problem_and_the_rest_is_looked_at(self, folder: Path) -> None:
        result = run(FIML_SESSION_RETENTION_DAYS="-1", FIML_MARKET_DATA="live")

        assert "FIML_SESSION_RETENTION_DAYS" in line_about("settings", result)
        assert str(folder) in line_about("file", result)
        assert line_about("market data", result).endswith("(FIML_MARKET_DATA is live)")

    def test_a_url_of_another_kind_is_a_problem_and_is_not_tried(self) -> None:
        result = run(FIML_REDIS_URL="http://cache", FIML_DATABASE_URL="mysql://db")

        assert "FIML_REDIS_URL: must begin with redis://" in line_about("settings", result)
        assert "Redis:" not in result.output
        assert "PostgreSQL:" not in result.output

    def test_sample_data_is_called_sample(self) -> None:
        assert line_about("market data", run()) == "ok      market data: sample (FIML_MARKET_DATA is sample)"

    def test_live_data_is_called_live_and_its_packages_are_not_loaded(self) -> None:
        report = "import sys; from fiml.cli import main; sys.argv = ['fiml', 'doctor']"
        loaded = "print('loaded', {'yfinance', 'ccxt', 'pandas'} & set(sys.modules))"
        program = f"{report}\ntry:\n    main()\nfinally:\n    {loaded}"

        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "FIML_MARKET_DATA": "auto"},
            capture_output=True,
            text=True,
            check=False,
        )

        assert "market data: live (FIML_MARKET_DATA is auto)" in done.stdout
        assert "loaded set()" in done.stdout

    def test_live_data_without_a_source_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fiml.market.providers.live.live_extras", list)

        line = line_about("market data", run(FIML_MARKET_DATA="live"))

        assert line.startswith("PROBLEM")
        assert "pip install 'fiml[yahoo]'" in line

    def test_an_invalid_source_is_reported_as_a_wrong_setting_only(self) -> None:
        result = run(FIML_MARKET_DATA="Live")

        assert "FIML_MARKET_DATA" in line_about("settings", result)
        assert "market data: " not in result.output


class TestExtras:
    def test_installed_extras_are_named(self) -> None:
        result = run()

        assert line_about("extra [server]", result).endswith("installed")
        assert line_about("extra [testing]", result).endswith("installed")

    def test_a_missing_extra_that_nothing_needs_is_not_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "asyncpg", None)
        monkeypatch.setitem(sys.modules, "hypothesis", None)

        result = run()

        assert line_about("extra [server]", result) == (
            "ok      extra [server]: not installed (asyncpg missing), and not needed here"
        )
        assert line_about("extra [testing]", result).startswith("ok")

    def test_every_extra_is_looked_at(self) -> None:
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

        assert set(EXTRAS) == declared.keys() - {"all", "dev"}
        assert [name for name in EXTRAS if not line_about(f"extra [{name}]", run())] == []

    def test_traces_that_are_configured_without_their_extra_are_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)

        line = line_about("extra [tracing]", run(OTEL_TRACES_EXPORTER="otlp"))

        assert line.startswith("note")
        assert line.endswith("pip install 'fiml[tracing]'")

    def test_a_missing_extra_that_the_settings_need_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forget_redis_py(monkeypatch)

        result = run(FIML_REDIS_URL=f"redis://{AWAY}", FIML_DATABASE_URL=f"postgresql://{AWAY}/fiml")

        assert "pip install 'fiml[server]'" in line_about("extra [server]", result)
        assert "pip install 'fiml[server]'" in line_about("Redis", result)
        assert line_about("extra [server]", result).startswith("PROBLEM")


class TestEmbedded:
    def test_a_missing_file_is_not_a_problem_and_is_not_created(self, folder: Path) -> None:
        result = run()

        assert result.exit_code == 0
        assert line_about("deployment", result) == "ok      deployment: embedded, everything in one file"
        assert f"{folder / 'fiml.db'} doesn't exist yet, it is created at first use" in line_about("file", result)
        assert not folder.exists()

    def test_a_file_is_reported_with_its_size_and_schema(self, folder: Path) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 0))

        result = run()

        assert re.search(r"fiml\.db, 0\.\d MiB, SQLite 3\.", line_about("file", result))
        assert line_about("folder", result) == f"ok      folder: {folder} is writable"
        assert line_about("schema", result) == f"ok      schema: {schema.REVISIONS[-1]}, current"
        assert line_about("backlog", result).startswith("ok")

    def test_checking_changes_nothing(self, folder: Path) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 1))
        before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}

        run()

        assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before

    def test_expired_sessions_that_wait_are_counted_and_it_says_what_sweeps_them(self) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 3))

        line = line_about("backlog", run(FIML_SESSION_CLEANUP_INTERVAL_MINUTES="50"))

        assert line.startswith("note    backlog: 3 expired sessions")
        assert "`fiml serve` sweeps every 50 minutes" in line
        assert "`fiml sessions sweep`" in line

    def test_sessions_in_quarantine_are_counted(self) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 2))
        assert "quarantine:" not in run().output
        with closing(sqlite3.connect(Settings().embedded_file)) as connection, connection:
            expired = "id IN (SELECT id FROM active_sessions ORDER BY expires_at LIMIT 2)"
            connection.execute(f"UPDATE active_sessions SET type = 'poetry' WHERE {expired}")  # noqa: S608 - a constant
        asyncio.run(sweep(Settings()))

        result = run()

        line = line_about("quarantine", result)
        assert line.startswith("note    quarantine: 2 sessions can't be archived; `fiml sessions qu")
        assert result.exit_code == 0

    def test_a_backlog_that_no_sweep_has_looked_at_grows(self) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 3))

        result = run(FIML_SESSION_CLEANUP_INTERVAL_MINUTES="5")

        line = line_about("backlog", result)
        assert re.search(
            r"3 expired sessions waiting to be archived, the oldest for (59|60) minutes: no sweep has run", line
        )
        assert "check that `fiml serve` or a worker runs" in line
        assert result.exit_code == 0

    def test_an_outdated_schema_is_upgraded_at_next_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 0))
        [*_, current] = schema.REVISIONS
        monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9000"))

        line = line_about("schema", run())

        assert line == f"note    schema: {current} is outdated, this fiml needs 9000; it is upgraded at next use"

    def test_a_schema_of_a_later_version_is_a_problem(self, folder: Path) -> None:
        asyncio.run(leave_expired_sessions(Settings(), 0))
        rewrite_revision(folder / "fiml.db", "9999")

        line = line_about("schema", run())

        assert line.startswith("PROBLEM schema: 9999 is later")
        assert line.endswith("install a newer fiml")

    def test_a_read_only_folder_is_a_problem(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file", encoding="utf-8")

        line = line_about("folder", run(FIML_DATA_DIR=str(tmp_path / "taken" / "sessions")))

        assert line.startswith("PROBLEM")
        assert "FIML_DATA_DIR" in line

    def test_a_folder_that_can_not_be_reached_is_a_problem_and_the_rest_is_looked_at(self, tmp_path: Path) -> None:
        result = run(FIML_DATA_DIR=str(tmp_path / ("x" * 300)))

        assert line_about("file", result).startswith("PROBLEM")
        assert line_about("file", result).endswith(
            "can't be reached (File name too long); give this user access, or set FIML_DATA_DIR"
        )
        assert line_about("market data", result).startswith("ok")

    def test_a_user_without_a_home_folder_has_to_name_a_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forget_home(monkeypatch)

        result = run(FIML_DATA_DIR="")

        assert line_about("file", result) == (
            "PROBLEM file: this user has no home folder to keep the data in; set FIML_DATA_DIR"
        )
        assert line_about("market data", result).startswith("ok")

    def test_a_file_that_is_not_a_database_is_a_problem(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "fiml.db").write_text("Dear diary, " * 100, encoding="utf-8")

        line = line_about("file", run())

        assert line.startswith("PROBLEM")
        assert "is not a fiml database" in line


def test_settings_with_which_http_would_not_start_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_in(tmp_path, monkeypatch)
    tokens = {"FIML_AUTH_ISSUER": "https://id.example", "FIML_AUTH_AUDIENCE": "fiml"}

    without_keys = run(**tokens, FIML_AUTH_JWKS=str(tmp_path / "none"), FIML_PUBLIC_URL="https://fiml.example/mcp")
    Issuer().write_keys(tmp_path / "keys")
    without_address = run(**tokens, FIML_AUTH_JWKS=str(tmp_path / "keys"))
    right = run(**tokens, FIML_AUTH_JWKS=str(tmp_path / "keys"), FIML_PUBLIC_URL="https://fiml.example/mcp")

    assert "is not a file of keys" in line_about("authentication", without_keys)
    assert "FIML_PUBLIC_URL is not set" in line_about("authentication", without_address)
    assert line_about("authentication", right) == "ok      authentication: tokens of https://id.example"
