"""The copies that are kept of the embedded file before its schema is upgraded."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from fiml.core.errors import Misconfigured
from fiml.db import kept_copies

OLDER = {"found": "older", "needed": "newer"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "fiml.db"
    put(made, 1)
    return made


def put(file: Path, number: int) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS one (number)")
        connection.execute("INSERT INTO one VALUES (?)", (number,))


def numbers_in(file: Path) -> list[int]:
    with closing(sqlite3.connect(file)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM one")]


def test_a_kept_copy_is_one_file_with_no_log_beside_it(file: Path) -> None:
    copy = kept_copies.keep(file, **OLDER)

    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_kept_copy_has_the_permissions_of_the_file(file: Path, mode: int) -> None:
    file.chmod(mode)

    copy = kept_copies.keep(file, **OLDER)

    assert stat.S_IMODE(copy.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_kept_copy_that_root_makes_belongs_to_the_owner_of_the_file(file: Path) -> None:
    os.chown(file, 65534, 65533)

    copy = kept_copies.keep(file, **OLDER)

    assert (copy.stat().st_uid, copy.stat().st_gid) == (65534, 65533)


def test_a_kept_copy_overwrites_no_other(file: Path) -> None:
    first = kept_copies.keep(file, **OLDER)
    put(file, 2)
    with capture_logs() as logs:
        second = kept_copies.keep(file, **OLDER)

    assert (numbers_in(first), numbers_in(second)) == ([1], [1, 2])
    assert kept_copies.copies_of(file) == [first, second]
    assert [entry["event"] for entry in logs] == ["upgrade_keeps_a_copy"]


def test_an_upgrade_that_is_begun_again_keeps_one_copy(file: Path) -> None:
    first = kept_copies.keep(file, **OLDER)
    with capture_logs() as logs:
        second = kept_copies.keep(file, **OLDER)

    assert (first, kept_copies.copies_of(file)) == (second, [second])
    assert [entry["event"] for entry in logs] == ["upgrade_was_interrupted", "upgrade_keeps_a_copy"]


def test_a_copy_that_was_left_unfinished_is_begun_again(file: Path) -> None:
    unfinished = file.with_name(f"{file.name}.before-newer.unfinished")
    unfinished.write_bytes(b"half a copy")
    with capture_logs() as logs:
        copy = kept_copies.keep(file, **OLDER)

    assert (numbers_in(copy), unfinished.exists()) == ([1], False)
    assert [entry["event"] for entry in logs] == ["upgrade_was_interrupted", "upgrade_keeps_a_copy"]


def test_a_file_that_can_not_be_written_is_not_copied() -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "fiml.db"
        put(file, 1)
        file.chmod(0o444)
        Path(folder).chmod(0o755)

        with without_root(), pytest.raises(Misconfigured, match="can't be written"):
            kept_copies.keep(file, **OLDER)

        assert kept_copies.copies_of(file) == []


@contextmanager
def without_root() -> Iterator[None]:
    """Root may write to every file: let it be nobody for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
