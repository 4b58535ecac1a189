"""One SQLite file behind one thread: each call is one hop to the thread and back."""

import asyncio
import atexit
import os
import sqlite3
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from fiml.core.config import Synchronous
from fiml.core.errors import CorruptRecord, Misconfigured, RecordRefused, Unavailable
from fiml.core.log import get_logger
from fiml.core.observe import Timed, observed_call
from fiml.db import kept_copies, schema
from fiml.db.engines import (
    SQLITE_BEGIN,
    begin_to_read,
    begin_to_write,
    driver,
    empty_log,
    execute_when_free,
    sqlite_engine,
)

Result = TypeVar("Result")
_Begin = Callable[[sqlite3.Connection], None]

_DAMAGE = ("Could not decode to UTF-8", "malformed JSON")  # these errors have no codes of their own
# The record itself is at fault, and sending it again won't help.
_REFUSAL = ("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH")

_NOTES_WITHIN_S = 0.1
_LAST_NOTES_WAIT_S = 2

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Note:
    """What is to be written about something that was read `at` a moment."""

    at: datetime
    write: Callable[[Connection], object]


class SqliteFile:
    """The file of the embedded deployment, which several processes may have open.

    Raises:
        Unavailable: from every call, when the file is locked for too long or the disk refuses.
    """

    def __init__(self, path: Path, synchronous: Synchronous) -> None:
        self.path = path
        self._pid = 0  # of the process that opened it
        self._thread: ThreadPoolExecutor | None = None
        self._synchronous = synchronous
        self._engine = sqlite_engine(path, synchronous)
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None  # of the file that is open
        self._notes: dict[Hashable, Note] = {}  # changed in the thread only
        self._noting_on: asyncio.AbstractEventLoop | None = None  # the loop that has a timer for writing the notes

    async def open(self) -> None:
        """Open the file; if it is missing, create it with its folder and schema.

        Raises:
            Misconfigured: the folder can't be written, the file is no database, or a later fiml wrote it.
        """
        self._pid = os.getpid()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fiml-sqlite")
        try:
            await self._hop(self._open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the file after the calls under way, even if the caller is cancelled. Closing twice is harmless."""
        self._noting_on = None
        thread, self._thread = self._thread, None
        if thread is not None:
            closing = thread.submit(self._close)
            thread.shutdown(wait=False)  # the thread ends when the file is closed
            await asyncio.shield(asyncio.wrap_future(closing))
            thread.shutdown()

    async def write(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run a function in a transaction that writes; if it raises, nothing is written."""
        return await self._hop(lambda: self._in_transaction(function, begin_to_write))

    def note(self, about: Hashable, note: Note) -> None:
        """Write a note later, after the call was answered. Only for functions that a method of the file runs.

        Reading thus waits neither for the disk nor for another process that writes. The notes of a tenth of a second
        are written together, only that of the latest moment about each thing. They are written earlier if the process
        ends or the file is used for anything but reading and writing single sessions. If the file is locked, they are
        tried again; when it is closed, for two seconds at most. A crash may lose them.

        SQLite's log keeps the order of transactions, and a durable write also makes all earlier ones durable: what is
        acknowledged never depends on a note that a crash may lose.
        """
        before = self._notes.get(about)
        if before is None or before.at <= note.at:
            self._notes[about] = note
            _unwritten.add(self)

    async def read_single(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """As `read`, but leave the notes for later."""
        return await self._hop(lambda: self._in_transaction(function, begin_to_read))

    async def read(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run a function on one consistent view of the file, without waiting for writers."""

        def read() -> Result:
            self._write_notes()
            return self._in_transaction(function, begin_to_read)

        return await self._hop(read)

    async def view(self, function: Callable[[Connection], Result]) -> Result:
        """As `read`, with a connection of SQLAlchemy."""
        return await self._hop(lambda: self._in_sqlalchemy(function, begin_to_read))

    async def transact(self, function: Callable[[Connection], Result]) -> Result:
        """As `write`, with a connection of SQLAlchemy; `driver` returns the driver's connection under it."""
        return await self._hop(lambda: self._in_sqlalchemy(function))

    async def maintain(self, function: Callable[[Connection], Result]) -> Result:
        """As `transact`: the limits on time that `PostgresDatabase.maintain` raises don't exist here."""
        return await self.transact(function)

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        """Remove deleted rows from the file's free pages, and a user from its kept copies.

        Returns the names of the copies that had something of the user's.
        """

        def erase() -> list[str]:
            with translated(self.path):
                cleaned = kept_copies.erase_user(self.path, user_id, held)
                self._scrub()
                return cleaned

        return await self._hop(erase)

    async def scrub(self) -> list[str]:
        """Remove deleted and replaced rows from the file's free pages; the names of its kept copies, left unchanged."""

        def scrub() -> list[str]:
            with translated(self.path):
                self._scrub()
            return [copy.name for copy in kept_copies.copies_of(self.path)]

        return await self._hop(scrub)

    @observed_call(Timed.ENGINE, "sqlite")
    async def _hop(self, work: Callable[[], Result]) -> Result:
        if self._thread is None:
            raise Unavailable(f"the file {self.path}", "it is closed", "initialize the store first")
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._thread, work)
        if self._notes and self._noting_on is not loop:
            self._note_soon(loop)
        return result

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise Misconfigured(f"the folder {self.path.parent} can't be created ({exc}); set FIML_DATA_DIR") from exc
        _create_private(self.path)
        with translated(self.path):
            self._connection = self._engine.connect()
            # Usually the schema is current: then there is no need to wait for the write lock.
            if self._in_sqlalchemy(schema.revision, begin_to_read) != schema.REVISIONS[-1]:
                # This transaction holds the write lock, so that nobody writes between the copy and the upgrade.
                self._in_sqlalchemy(self._upgrade)
            self._identity = _identity_of(self.path)

    def _upgrade(self, connection: Connection) -> None:
        found = schema.revision(connection)
        if found in schema.REVISIONS[:-1]:
            kept_copies.keep(self.path, found=found, needed=schema.REVISIONS[-1])
        schema.upgrade(connection)

    def _scrub(self) -> None:
        connection = driver(self._opened)
        # The full-text index only marks words as removed, until its parts are merged.
        execute_when_free(connection.execute, "INSERT INTO session_fts (session_fts) VALUES ('optimize')")
        execute_when_free(connection.execute, "VACUUM")
        if not empty_log(connection):
            raise Unavailable(f"the file {self.path}", "a process that began to read earlier keeps removed data in it")

    def _close(self) -> None:
        if self._connection is not None:
            self.write_last_notes()
            self._connection.close()
            self._connection = None
            self._identity = None
        self._engine.dispose()

    def _in_transaction(self, function: Callable[[sqlite3.Connection], Result], begin: _Begin) -> Result:
        with translated(self.path):
            connection = driver(self._opened)
            begin(connection)
            try:
                result = function(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

    def _note_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._noting_on = loop
        loop.call_later(_NOTES_WITHIN_S, self._note, loop)

    def _note(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is not None:
            loop.run_in_executor(self._thread, self._write_notes).add_done_callback(partial(self._noted, loop))

    def _noted(self, loop: asyncio.AbstractEventLoop, written: asyncio.Future[None]) -> None:
        self._noting_on = None
        if self._notes and not written.cancelled():
            self._note_soon(loop)

    def __del__(self) -> None:
        """Warn of a file that nobody closed, as Python's own files do. Its thread and connection end with it."""
        if self._thread is not None and self._pid == os.getpid():
            warnings.warn(f"{self.path} was not closed", ResourceWarning, source=self, stacklevel=1)

    def write_last_notes(self) -> None:
        """Write the notes before the file is closed. What can't be written is lost."""
        if self._pid != os.getpid():
            return  # a forked process ends: the notes are its parent's, and so is the connection
        self._write_notes(wait_s=_LAST_NOTES_WAIT_S)
        if self._notes:
            _log.warning("notes_lost", file=str(self.path), count=len(self._notes))
            self._forget_notes()

    def _write_notes(self, *, wait_s: int = 0) -> None:
        """Write the notes, waiting for a lock at most `wait_s`. If they can't be written now, they are kept."""
        if not self._notes or self._connection is None:
            return
        connection = driver(self._connection)
        try:
            if self._synchronous is Synchronous.FULL:
                connection.execute(f"PRAGMA synchronous={Synchronous.NORMAL}")
            self._transact(self._write_all_notes, partial(begin_to_write, wait_s=wait_s))
        except (Unavailable, Misconfigured):
            return
        except Exception:  # noqa: BLE001 - whatever failed, it is not the fault of the reader whose call this is
            _log.exception("notes_lost", file=str(self.path), count=len(self._notes))
        finally:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
        self._forget_notes()

    def _forget_notes(self) -> None:
        self._notes.clear()
        _unwritten.discard(self)

    def _write_all_notes(self, connection: Connection) -> None:
        for note in self._notes.values():
            try:
                note.write(connection)
            except CorruptRecord as exc:  # the other notes are not at fault
                _log.warning("note_lost", problem=str(exc))

    def _in_sqlalchemy(self, function: Callable[[Connection], Result], begin: _Begin = begin_to_write) -> Result:
        self._write_notes()
        return self._transact(function, begin)

    def _transact(self, function: Callable[[Connection], Result], begin: _Begin) -> Result:
        connection = self._opened.execution_options(**{SQLITE_BEGIN: begin})
        with translated(self.path), connection.begin():
            return function(connection)

    @property
    def _opened(self) -> Connection:
        if self._connection is None:
            raise Unavailable(f"the file {self.path}", "it is closed", "initialize the store first")
        if self._is_gone():
            raise Unavailable(
                f"the file {self.path}",
                "it was removed or replaced while it was open",
                "restart, or shut the store down and initialize it",
            )
        return self._connection

    def _is_gone(self) -> bool:
        """Whether what is written would be lost: SQLite goes on writing to a file that no longer has a name."""
        try:
            return self._identity is not None and _identity_of(self.path) != self._identity
        except OSError:
            return True


def _create_private(path: Path) -> None:
    """Create the file if it is missing, for its owner only: SQLite would let everybody read it, and its log."""
    if not path.exists():
        with suppress(OSError):  # SQLite then says what is wrong with the file
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _identity_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


# The files that have notes, so that these are written even if nobody uses or closes the file any more.
_unwritten: set[SqliteFile] = set()


@atexit.register
def _write_last_notes() -> None:
    for file in list(_unwritten):
        file.write_last_notes()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into fiml's."""
    try:
        yield
    except DBAPIError as exc:
        raise _translate(path, exc.orig or exc) from exc
    except sqlite3.Error as exc:
        raise _translate(path, exc) from exc


def _translate(path: Path, exc: BaseException) -> Exception:
    if any(damage in str(exc) for damage in _DAMAGE):
        return CorruptRecord("a record", str(exc))
    match getattr(exc, "sqlite_errorname", ""):
        case "SQLITE_NOTADB":
            return Misconfigured(f"{path} is not a fiml database ({exc}); move it away, or set FIML_DATA_DIR")
        case name if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
            return Misconfigured(f"{path} can't be opened for writing ({exc}); set FIML_DATA_DIR to a writable folder")
        case name if name.startswith("SQLITE_CORRUPT"):
            return CorruptRecord(f"the file {path}", str(exc))
        case name if name.startswith(_REFUSAL):
            return RecordRefused("the record", str(exc))
    return Unavailable(f"the file {path}", str(exc))
