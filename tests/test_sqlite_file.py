"""What waits for the disk in the embedded file, and what doesn't."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fiml.core.config import Synchronous
from fiml.db.sqlite_file import SqliteFile

LEVELS = {Synchronous.OFF: 0, Synchronous.NORMAL: 1, Synchronous.FULL: 2}


@pytest.fixture(params=list(Synchronous))
async def file(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteFile]:
    file = SqliteFile(tmp_path / "fiml.db", request.param)
    await file.open()
    yield file
    await file.close()


def level(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA synchronous").fetchone()[0])


def refuse(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO active_trail (session_id, entry) VALUES ('0', '[]')")
    raise ValueError("on purpose")


async def test_a_note_does_not_wait_for_the_disk_and_a_write_does(
    file: SqliteFile, request: pytest.FixtureRequest
) -> None:
    full = LEVELS[request.node.callspec.params["file"]]

    assert await file.read_and_note(level) == min(full, LEVELS[Synchronous.NORMAL])
    assert await file.write(level) == full


async def test_a_note_that_fails_leaves_nothing_behind(file: SqliteFile, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        await file.read_and_note(refuse)

    assert await file.write(level) == LEVELS[request.node.callspec.params["file"]]
    assert await file.read(lambda connection: connection.execute("SELECT * FROM active_trail").fetchall()) == []
