"""`fiml keys`, as an operator at a shell meets it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from fiml.core.config import Settings
from fiml.sessions.store import SessionStore
from fiml.testing.conformance.suite import existing


class Shell:
    """A shell in which the file of keys is named, or isn't."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self._data = folder / "data"

    def run(self, *arguments: str, answer: str | None = None, **more: str) -> "subprocess.CompletedProcess[str]":
        named = {"FIML_DATA_DIR": str(self._data), "FIML_ENCRYPTION_KEYS": str(self.keys)}
        return subprocess.run(
            [sys.executable, "-m", "fiml", *arguments],
            capture_output=True,
            encoding="utf-8",
            input=answer,
            env=os.environ | named | more,
            check=False,
        )

    def begin_a_session(self, *, is_encrypted: bool = True) -> UUID:
        async def begin() -> UUID:
            keys = self.keys if is_encrypted else None
            async with SessionStore(Settings(data_dir=self._data, encryption_keys=keys)) as store:
                session = await store.create_session(["AAPL"], "equity")
                await store.remember(session.id, context={"word": "physalis"})
                return session.id

        return asyncio.run(begin())

    def word_in(self, session_id: UUID) -> str:
        async def read() -> str:
            async with SessionStore(Settings(data_dir=self._data, encryption_keys=self.keys)) as store:
                return str((await existing(store, session_id)).state.context["word"])

        return asyncio.run(read())


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_keys_are_added_listed_and_changed_and_never_shown(shell: Shell) -> None:
    first = shell.run("keys", "new")
    session_id = shell.begin_a_session()
    second = shell.run("keys", "new", "--id", "next")
    before = shell.run("keys", "list")
    rotated = shell.run("keys", "rotate")
    after = shell.run("keys", "list", "--usage")
    secrets = [line.partition(":")[2] for line in shell.keys.read_text().splitlines()]

    old = first.stdout.strip()
    assert before.stdout == f"{old}  current\nnext  for reading\n"
    assert "then run `fiml keys rotate`" in second.stderr
    assert rotated.stdout == "the current key is next\nsessions re-encrypted: 1 of 1\n"
    assert f"copy the file to every machine again: the others still write with {old}" in rotated.stderr
    assert after.stdout == f"{old}  for reading  0 sessions\nnext  current  1 session\n"
    assert shell.word_in(session_id) == "physalis"
    printed = "".join(done.stdout + done.stderr for done in (first, second, before, rotated, after))
    assert [secret for secret in secrets if secret in printed] == []


def test_sessions_from_before_are_left_and_named_until_they_are_asked_for(shell: Shell) -> None:
    session_id = shell.begin_a_session(is_encrypted=False)
    shell.run("keys", "new")

    left = shell.run("keys", "rotate")
    listed = shell.run("keys", "list", "--usage")
    taken = shell.run("keys", "rotate", "--encrypt-plaintext")

    assert left.returncode == 1
    assert "sessions in plaintext: 1; `fiml keys rotate --encrypt-plaintext` encrypts them" in left.stdout
    assert "in plaintext: 1 session\n" in listed.stdout
    assert (taken.returncode, "sessions re-encrypted: 1" in taken.stdout) == (0, True)
    assert shell.word_in(session_id) == "physalis"


@pytest.mark.parametrize("command", [["new"], ["list"], ["rotate"]])
def test_if_no_file_is_set_the_error_names_the_setting(shell: Shell, command: list[str]) -> None:
    done = shell.run("keys", *command, FIML_ENCRYPTION_KEYS="")

    assert done.returncode == 1
    assert "FIML_ENCRYPTION_KEYS is not set" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_change_can_be_left_to_the_servers(shell: Shell) -> None:
    shell.run("keys", "new", "--id", "old")
    shell.begin_a_session()
    shell.run("keys", "new", "--id", "next")

    refused = shell.run("keys", "rotate", "--background", "--encrypt-plaintext")
    left = shell.run("keys", "rotate", "--background")

    assert (refused.returncode, "leave one of them out" in refused.stderr) == (1, True)
    assert left.stdout.startswith("the current key is next\nthe maintenance re-encrypts the stored data")
    assert shell.run("keys", "list", "--usage").stdout == "old  for reading  1 session\nnext  current  0 sessions\n"


def test_the_doctor_says_which_key_is_current_and_what_is_wrong_with_the_file(shell: Shell) -> None:
    key_id = shell.run("keys", "new").stdout.strip()
    well = shell.run("doctor")
    shell.keys.chmod(0o644)
    ill = shell.run("doctor")

    assert f"encryption: 1 key, the current one is {key_id}" in well.stdout
    assert ill.returncode == 1
    assert f"run: chmod 600 {shell.keys}" in ill.stdout
    assert shell.keys.read_text().partition(":")[2].strip() not in well.stdout + ill.stdout


def test_a_session_whose_key_is_lost_is_deleted_after_confirmation(shell: Shell) -> None:
    shell.run("keys", "new", "--id", "lost")
    session_id = shell.begin_a_session()
    shell.keys.unlink()
    shell.run("keys", "new", "--id", "other")

    deleted = shell.run("sessions", "delete", str(session_id), answer="y\n")

    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert f"Delete session {session_id}, which can't be read (its key lost is missing)?" in deleted.stdout
