"""What waits for the disk in the embedded file, and what doesn't; what becomes of a call that is given up."""

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from fiml.core.config import Settings, Synchronous
from fiml.core.errors import Unavailable
from fiml.db import engines
from fiml.db.engines import BUSY_TIMEOUT_S, driver
from fiml.db.sqlite_file import Note, SqliteFile
from fiml.sessions.store import SessionStore
from fiml.testing import make_query

LEVELS = {Synchronous.OFF: 0, Synchronous.NORMAL: 1, Synchronous.FULL: 2}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(params=list(Synchronous))
async def file(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteFile]:
    file = SqliteFile(tmp_path / "fiml.db", request.param)
    await file.open()
    yield file
    await file.close()


def level(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA synchronous").fetchone()[0])


def enter(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO active_trail (session_id, entry) VALUES ('0', '[]')")


def rows_of_the_trail(connection: sqlite3.Connection) -> list[object]:
    return connection.execute("SELECT * FROM active_trail").fetchall()


def refuse(connection: sqlite3.Connection) -> None:
    enter(connection)
    connection.execute("INSERT INTO active_trail (session_id, entry) VALUES (NULL, NULL)")


async def read_and_note(
    file: SqliteFile, write: Callable[[Connection], object], *, about: int = 1, at: datetime = NOON
) -> None:
    await file.read_single(lambda _: file.note(about, Note(at, write)))


def enter_later(connection: Connection) -> None:
    enter(driver(connection))


def refuse_later(connection: Connection) -> None:
    refuse(driver(connection))


async def test_a_note_does_not_wait_for_the_disk_and_a_write_does(
    file: SqliteFile, request: pytest.FixtureRequest
) -> None:
    full = LEVELS[request.node.callspec.params["file"]]
    noted: list[int] = []

    await read_and_note(file, lambda connection: noted.append(level(driver(connection))))
    assert await file.read(level) == full
    assert noted == [min(full, LEVELS[Synchronous.NORMAL])]
    assert await file.write(level) == full


@pytest.mark.parametrize(("minutes", "written"), [(1, "second"), (0, "second"), (-1, "first")])
async def test_of_several_notes_about_one_thing_that_of_the_latest_moment_is_written(
    file: SqliteFile, minutes: int, written: str
) -> None:
    """A clock may be set back."""
    noted: list[str] = []

    def note(name: str) -> Callable[[Connection], None]:
        return lambda _: noted.append(name)

    await read_and_note(file, note("first"))
    await read_and_note(file, note("of another"), about=2)
    await read_and_note(file, note("second"), at=NOON + timedelta(minutes=minutes))
    await file.read(level)
    assert noted == [written, "of another"]


async def test_a_note_that_the_file_refuses_is_logged_and_no_reader_sees_an_error(file: SqliteFile) -> None:
    await read_and_note(file, refuse_later)
    with capture_logs() as logs:
        assert await file.read(rows_of_the_trail) == []
        assert await file.read(rows_of_the_trail) == []
    assert [(line["event"], line["count"]) for line in logs] == [("notes_lost", 1)]


async def test_a_note_that_can_not_be_written_is_kept_and_reported_at_the_end(file: SqliteFile) -> None:
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other, capture_logs() as logs:
        other.execute("BEGIN IMMEDIATE")
        await read_and_note(file, enter_later)
        for _ in range(2):
            assert await file.read(rows_of_the_trail) == []
        assert logs == []
        await file.close()
    assert [(line["event"], line["count"]) for line in logs] == [("notes_lost", 1)]


async def test_a_call_that_was_given_up_while_it_waited_is_not_made(file: SqliteFile) -> None:
    is_begun, goes_on = threading.Event(), threading.Event()

    def hold_up(_connection: sqlite3.Connection) -> None:
        is_begun.set()
        goes_on.wait(10)

    held_up = asyncio.create_task(file.write(hold_up))
    given_up = asyncio.create_task(file.write(enter))
    made = asyncio.create_task(file.write(enter))
    await asyncio.to_thread(is_begun.wait, 10)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    goes_on.set()
    await asyncio.gather(held_up, made)
    assert len(await file.read(rows_of_the_trail)) == 1


async def test_a_call_that_was_given_up_while_it_was_made_is_made(file: SqliteFile) -> None:
    is_begun, goes_on = threading.Event(), threading.Event()

    def enter_slowly(connection: sqlite3.Connection) -> None:
        is_begun.set()
        goes_on.wait(10)
        enter(connection)

    call = asyncio.create_task(file.write(enter_slowly))
    await asyncio.to_thread(is_begun.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    goes_on.set()
    assert len(await file.read(rows_of_the_trail)) == 1


async def test_a_write_that_fails_leaves_nothing_behind(file: SqliteFile) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        enter(connection)
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await file.write(fail)
    assert await file.read(rows_of_the_trail) == []


async def test_a_note_with_a_bug_is_logged_and_no_reader_sees_an_error(file: SqliteFile) -> None:
    def fail(_connection: Connection) -> None:
        raise ValueError("on purpose")

    await read_and_note(file, fail)
    with capture_logs() as logs:
        assert await file.read(rows_of_the_trail) == []
        assert await file.read(rows_of_the_trail) == []
    assert [(line["event"], line["count"]) for line in logs] == [("notes_lost", 1)]


async def test_what_is_changed_for_a_note_is_as_it_was_afterwards(
    file: SqliteFile, request: pytest.FixtureRequest
) -> None:
    for note in (enter_later, refuse_later):
        await read_and_note(file, note)
        found = await file.read(lambda connection: connection.execute("PRAGMA busy_timeout").fetchone()[0])
        assert found == BUSY_TIMEOUT_S * 1000
        assert await file.write(level) == LEVELS[request.node.callspec.params["file"]]


@pytest.fixture
async def hear(file: SqliteFile) -> Callable[[str], Awaitable[None]]:
    """Waits until the file's connection begins a statement."""
    loop, said = asyncio.get_running_loop(), asyncio.Queue[str]()
    await file.read(
        lambda connection: connection.set_trace_callback(lambda text: loop.call_soon_threadsafe(said.put_nowait, text))
    )

    async def hear(statement: str) -> None:
        async with asyncio.timeout(10):
            while await said.get() != statement:
                pass

    return hear


async def test_a_note_that_met_a_lock_is_tried_again_without_a_further_call(
    file: SqliteFile, hear: Callable[[str], Awaitable[None]]
) -> None:
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await read_and_note(file, enter_later)
        await hear("BEGIN IMMEDIATE")
        await hear("BEGIN IMMEDIATE")  # the first one was in vain
        other.execute("ROLLBACK")
        await hear("COMMIT")
    assert await file.read(rows_of_the_trail)  # behind the end of that COMMIT


@pytest.mark.parametrize("call", ["write", "transact"])
async def test_a_write_that_waits_for_a_lock_tries_again_and_again(
    file: SqliteFile, hear: Callable[[str], Awaitable[None]], call: str
) -> None:
    """A hundred tries take seconds with SQLite's own wait, which gets slower and shows only its first try."""
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(getattr(file, call)(lambda _connection: "written"))
        for _ in range(100):
            await hear("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        assert await writing == "written"


async def test_scrubbing_waits_for_a_lock_as_a_write_does(
    file: SqliteFile, hear: Callable[[str], Awaitable[None]]
) -> None:
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        scrubbing = asyncio.create_task(file.scrub())
        for _ in range(2):
            await hear("INSERT INTO session_fts (session_fts) VALUES ('optimize')")
        other.execute("ROLLBACK")
        await scrubbing


@pytest.mark.parametrize("scrub", [SqliteFile.scrub, lambda file: file.erase_traces("ann", [])])
async def test_what_a_reader_keeps_in_the_file_is_not_said_to_be_removed(
    file: SqliteFile, monkeypatch: pytest.MonkeyPatch, scrub: Callable[[SqliteFile], Awaitable[list[str]]]
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0)  # nobody waits for the reader
    await file.write(enter)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert rows_of_the_trail(reader)
        await file.write(lambda connection: connection.execute("DELETE FROM active_trail"))

        with pytest.raises(Unavailable, match="keeps removed data in it"):
            await scrub(file)
        reader.execute("COMMIT")

    assert await scrub(file) == []


async def test_the_last_notes_wait_for_a_lock(file: SqliteFile, hear: Callable[[str], Awaitable[None]]) -> None:
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await read_and_note(file, enter_later)
        closed = asyncio.create_task(file.close())
        await hear("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        await closed
        assert rows_of_the_trail(other)


def remove(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


@pytest.mark.parametrize("change", [remove, replace])
async def test_nothing_is_written_to_a_file_that_has_no_name_any_more(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """SQLite goes on writing to it, and what is written is gone when the file is closed."""
    file = SqliteFile(tmp_path / "data" / "fiml.db", Synchronous.FULL)
    await file.open()
    await file.write(enter)

    change(file.path)

    for call in (file.write(enter), file.read(rows_of_the_trail), file.transact(enter_later)):
        with pytest.raises(Unavailable, match="removed or replaced while it was open"):
            await call
    await file.close()
    await file.open()
    await file.write(enter)
    await file.close()


async def test_a_store_whose_file_was_removed_begins_a_new_one_when_it_is_opened_again(tmp_path: Path) -> None:
    store = SessionStore(Settings(data_dir=tmp_path / "data"))
    await store.initialize()
    session = await store.create_session(["AAPL"], "equity")

    remove(tmp_path / "data" / "fiml.db")

    with pytest.raises(Unavailable, match="removed or replaced"):
        await store.record_query(session.id, make_query())
    await store.shutdown()
    await store.initialize()
    assert await store.list_user_sessions(None) == []
    await store.shutdown()


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def test_others_can_not_read_the_file_in_a_folder_that_they_can_enter(open_folder: Path) -> None:
    async with SessionStore(Settings(data_dir=open_folder)) as store:
        await store.create_session(["AAPL"], "equity")

        assert modes_in(open_folder) == {"fiml.db": 0o600, "fiml.db-shm": 0o600, "fiml.db-wal": 0o600}


async def test_statistics_that_a_store_is_closed_under_leave_the_file_closed(tmp_path: Path) -> None:
    store = SessionStore(Settings(data_dir=tmp_path))
    await store.initialize()
    async with store.session_maker.begin() as computing:
        await computing.execute(text("SELECT count(*) FROM session_metrics"))
        await store.shutdown()
        assert files_open_in(tmp_path)

    assert files_open_in(tmp_path) == []


def files_open_in(folder: Path) -> list[str]:
    return [each.path for each in psutil.Process().open_files() if Path(each.path).is_relative_to(folder)]
