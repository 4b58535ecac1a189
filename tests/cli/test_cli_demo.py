"""`fiml demo`, as a user at a shell meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT, run_fiml


def test_the_demo_tells_the_whole_story_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_fiml("demo", TMPDIR=str(tmp_path), FIML_DATA_DIR=str(tmp_path / "mine"))

    assert done.returncode == 0, done.stderr
    assert "close 173.93 USD" in done.stdout
    assert "as of 2023-09-21" in done.stdout
    assert "answered from the session" in done.stdout
    assert "AAPL +21.3%, NVDA +93.1%, correlation 0.65" in done.stdout
    assert "goes on with NVDA" in done.stdout
    assert "resumed under the same id: 5 queries" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "configured",
    [
        {"fiml_redis_url": "redis://127.0.0.1:1", "fiml_database_url": "postgresql://127.0.0.1:1/sessions"},
        {"FIML_SESSION_DEFAULT_TTL_HOURS": "6", "FIML_SESSION_MAX_TTL_HOURS": "12"},
        {"FIML_ENCRYPTION_KEYS": "/no/such/file"},
    ],
)
def test_the_demo_is_the_same_whatever_is_configured_and_touches_nothing_of_it(configured: dict[str, str]) -> None:
    """The settings ignore the case of a variable's name."""
    done = run_fiml("demo", **configured)

    assert (done.returncode, done.stderr) == (0, "")
    assert "resumed under the same id: 5 queries" in done.stdout


@pytest.mark.parametrize("columns", ["40", "80"])
def test_the_demo_cuts_no_number_at_the_edge_of_a_terminal(columns: str) -> None:
    done = run_fiml("demo", COLUMNS=columns, FORCE_COLOR="1", TERM="xterm")

    assert done.returncode == 0, done.stderr
    assert "173.93" in done.stdout
    assert "…" not in done.stdout


def test_the_example_is_the_demo() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "examples/session_demo.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "close 173.93 USD" in done.stdout
