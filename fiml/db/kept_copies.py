"""Copies of the embedded file that are kept from before each upgrade of its schema."""

import filecmp
import os
import re
import sqlite3
import stat
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

from fiml.core.errors import Misconfigured
from fiml.core.log import get_logger

_BEFORE = ".before-"
_UNFINISHED = ".unfinished"
# The files that SQLite keeps beside a file in use, and the name of a copy that is not finished yet.
_BESIDE = re.compile(r"(-wal|-shm|-journal|\.unfinished)$")
# What goes even if sessions of the user are held.
_ALL_OF_USER = {
    "session_rollups": "DELETE FROM session_rollups WHERE user_id = ?",
    "access_tokens": "DELETE FROM access_tokens WHERE user_id = ?",
}

_log = get_logger()


def keep(file: Path, *, found: str, needed: str) -> Path:
    """Copy a file as it is, by SQLite's own backup; the caller holds the lock of those who write to it.

    The copy has the owner and the mode of the file; if this user can't give it away, only this user may read it. It
    replaces an equal one, which an interrupted upgrade left, and no other one.

    Raises:
        Misconfigured: the copy can't be made, or the file can't be written.
    """
    copy = file.with_name(f"{file.name}{_BEFORE}{needed}")
    unfinished = copy.with_name(copy.name + _UNFINISHED)
    was_interrupted = unfinished.exists()
    if not _may_write(file):  # every try would make a copy, and then fail
        raise Misconfigured(
            f"{file} has to be upgraded, but can't be written; give this user permission to write to it"
        )
    try:
        unfinished.unlink(missing_ok=True)
        _create_like(file, unfinished)
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(unfinished)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, with no log beside it
        with unfinished.open("r+b") as written:  # Windows syncs only what may be written
            os.fsync(written.fileno())
        copy = _free_name(copy, unfinished)
        was_interrupted = was_interrupted or copy.exists()
        unfinished.replace(copy)
    except (OSError, sqlite3.Error) as exc:
        raise Misconfigured(
            f"{file} has to be upgraded, but the backup {copy.name} can't be made first ({exc}); "
            "nothing was changed; free space in the folder, or set FIML_DATA_DIR"
        ) from exc
    if was_interrupted:
        _log.warning("upgrade_was_interrupted", file=str(file), schema=found, next_step="it is begun again")
    _log.info("upgrade_keeps_a_copy", file=str(file), copy=str(copy), schema=found)
    return copy


def _may_write(file: Path) -> bool:
    # Not by opening it: to close it again would end the locks that SQLite has on the file in this process.
    return os.access(file, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _create_like(file: Path, copy: Path) -> None:
    """Create an empty file that nobody may read who may not read the other one, and whose owner may write to it."""
    descriptor = os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.close(descriptor)
    like = file.stat()
    ours = copy.stat()
    if (like.st_uid, like.st_gid) != (ours.st_uid, ours.st_gid):
        try:
            os.chown(copy, like.st_uid, like.st_gid)
        except PermissionError:  # only root gives a file away; the mode could let in our group, not the file's
            return
    copy.chmod(stat.S_IMODE(like.st_mode))


def _free_name(copy: Path, finished: Path) -> Path:
    """The name for a copy, with a number where another one, with other content, has it already."""
    name, number = copy, 1
    while name.exists() and not filecmp.cmp(name, finished, shallow=False):
        number += 1
        name = copy.with_name(f"{copy.name}.{number}")
    return name


def erase_user(file: Path, user_id: str, held: Collection[UUID]) -> list[str]:
    """Remove a user's sessions, except held ones, and tokens from every kept copy of a file, and files left by crashes.

    Returns the names of the copies that had sessions, and of those that could not be cleaned, with the reason.
    """
    for path in list(_left_over(file)):
        path.unlink(missing_ok=True)
    return [told for copy in copies_of(file) if (told := _told_of(copy, user_id, held)) is not None]


def copies_of(file: Path) -> list[Path]:
    """The kept copies of a file, the oldest schema first."""
    return [path for path in _all_of(file) if not _BESIDE.search(path.name)]


def _all_of(file: Path) -> list[Path]:
    begin = file.name + _BEFORE
    return sorted(path for path in file.parent.iterdir() if path.name.startswith(begin))


def _left_over(file: Path) -> Iterator[Path]:
    """Files left by crashes: unfinished copies, and logs without their copy. SQLite itself uses a log beside a copy."""
    copies = {copy.name for copy in copies_of(file)}
    for path in _all_of(file):
        of, found = _BESIDE.subn("", path.name)
        if found and (of not in copies or path.name.endswith(_UNFINISHED)):
            yield path


def _told_of(copy: Path, user_id: str, held: Collection[UUID]) -> str | None:
    try:
        return copy.name if _erase_from(copy, user_id, held) else None
    except sqlite3.Error as exc:  # one bad copy must not keep the others from being cleaned
        _log.warning("kept_copy_not_cleaned", copy=str(copy), problem=str(exc), next_step="remove it")
        return f"{copy.name} (not cleaned: {exc}; remove it)"


def _erase_from(copy: Path, user_id: str, held: Collection[UUID]) -> bool:
    kept = {"user": user_id, **{f"held{n}": session_id.hex for n, session_id in enumerate(held)}}
    is_theirs = f"user_id = :user AND {{}} NOT IN ({', '.join(f':held{n}' for n in range(len(held)))})"
    theirs = f"SELECT id FROM active_sessions WHERE {is_theirs.format('id')}"  # noqa: S608 - constants, here and below
    with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=rw", uri=True)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")  # merges a log that a crash left behind
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        count = 0
        with connection:
            for table in tables & {"active_entries", "active_queries", "active_trail"}:
                connection.execute(f"DELETE FROM {table} WHERE session_id IN ({theirs})", kept)  # noqa: S608
            for table in ("active_sessions", "sessions", "session_quarantine"):
                if table in tables:
                    count += connection.execute(
                        f"DELETE FROM {table} WHERE {is_theirs.format('id')}",  # noqa: S608
                        kept,
                    ).rowcount
            count += connection.execute(
                f"DELETE FROM session_metrics WHERE {is_theirs.format('session_id')}",  # noqa: S608
                kept,
            ).rowcount
            for table in tables & _ALL_OF_USER.keys():
                connection.execute(_ALL_OF_USER[table], (user_id,))
        if "session_fts" in tables:  # the index only marks words as removed, until its parts are merged
            connection.execute("INSERT INTO session_fts (session_fts) VALUES ('optimize')")
            connection.commit()
        connection.execute("VACUUM")  # until then, deleted rows remain in the file's free pages
    return count > 0
