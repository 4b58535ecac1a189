"""`fiml token`, as a user at a shell meets it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fiml.access.tokens import MAX_LISTED, open_tokens
from fiml.core.config import Settings, Synchronous


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "FIML_DATA_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "fiml", "token", *arguments],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )


def test_a_token_is_printed_once_listed_without_its_text_and_revoked(tmp_path: Path) -> None:
    made = run(tmp_path, "new", "ann", "--days", "7")
    listed = run(tmp_path, "list")
    [token_id] = re.findall(r"^[0-9a-f-]{36}", listed.stdout, re.MULTILINE)
    revoked, again = run(tmp_path, "revoke", token_id), run(tmp_path, "revoke", token_id)
    after = run(tmp_path, "list")

    token = made.stdout.strip()
    assert re.fullmatch(r"fiml_[\w-]{43}", token)
    assert "it isn't shown again" in made.stderr
    assert token not in listed.stdout
    assert "ann  valid" in listed.stdout
    assert (revoked.stdout, after.stdout.count("revoked")) == ("revoked\n", 1)
    assert (again.returncode, again.stdout) == (1, "")
    assert "belongs to no token, or to one that is already revoked" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["new", "ann", "--scope", "all"], "valid values are sessions:read"),
        (["new", "ann", "--days", "0"], "days"),
        (["new", ""], "user"),
        (["revoke", "seven"], "fiml token list"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = run(tmp_path, *arguments)

    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_tokens_the_list_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, "list").stdout == "no tokens\n"


async def test_a_list_that_is_cut_says_so(tmp_path: Path) -> None:
    tokens = open_tokens(Settings(data_dir=tmp_path, sqlite_synchronous=Synchronous.OFF))
    for _ in range(MAX_LISTED):
        await tokens.issue("ann", scopes=["sessions:read"], days=1)
    await tokens.aclose()

    listed = run(tmp_path, "list")

    assert listed.stdout.count("ann  valid") == MAX_LISTED
    assert listed.stderr == f"only the newest {MAX_LISTED} are listed\n"
