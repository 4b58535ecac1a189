"""The file of encryption keys: one key a line, as `ID:BASE64` of 32 bytes, oldest first.

The key with a `*` before it is the current one: new values are encrypted with it. The others are kept to read older
values. A file with one key needs no mark; lines that begin with `#` are comments.
"""

import base64
import binascii
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from fiml.core.errors import InvalidInput, Misconfigured, echo
from fiml.sessions import sealed

SECRET_BYTES = 32
MAX_FILE_BYTES = 1024 * 1024
_LINE = re.compile(r"(\*?)\s*([^:\s]+):(\S+)")
_VALID = "a line is ID:BASE64 of 32 bytes, with a * before the current one; `fiml keys new` adds one"
_MINE_ONLY = 0o077
_ROOTS_FOR_A_GROUP = 0o037


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its name, which is stored with every value encrypted with it."""

    id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of a file, oldest first."""

    keys: dict[str, Key]
    current: Key

    @property
    def newest(self) -> Key:
        """The key that was added last."""
        return list(self.keys.values())[-1]


class KeyFile:
    """A file of keys. It is read again when it has changed, so that a running server learns of new keys.

    Raises:
        Misconfigured: from every method, when the file is missing or not valid; names the line, never shows a key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keyring: Keyring | None = None
        self._seen: tuple[int, ...] = ()

    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.exists()

    def keyring(self) -> Keyring:
        """The current content of the file."""
        try:
            found = self.path.stat()
        except OSError as exc:
            self._refuse(f"can't be read ({exc.strerror})", "put it back; `fiml keys new` creates a first one", exc)
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._keyring is None or seen != self._seen:
            self._check_mode(found)
            self._keyring, self._seen = self._parse(self._read()), seen
        return self._keyring

    def add(self, key_id: str | None = None) -> Key:
        """Add a new key; it is on the disk when this returns. Only the first key of a file becomes current at once.

        Raises:
            InvalidInput: the id is not valid, or taken.
        """
        added: list[Key] = []

        def append(lines: list[str]) -> list[str]:
            keyring = self._parse(lines) if any(_is_key(each) for each in lines) else None
            known = {} if keyring is None else keyring.keys
            name = _next_id(known) if key_id is None else _checked_id(key_id, known)
            added.append(Key(name, secrets.token_bytes(SECRET_BYTES)))
            current = name if keyring is None else keyring.current.id
            line = f"{name}:{base64.b64encode(added[0].secret).decode()}"
            return [_marked(each, current) for each in (*lines, line)]

        self._change(append)
        return added[0]

    def advance(self) -> Key:
        """Make the newest key the current one, and return it."""
        keyring = self.keyring()
        if keyring.newest is keyring.current:
            return keyring.current

        def mark_newest(lines: list[str]) -> list[str]:
            newest = self._parse(lines).newest
            return [_marked(line, newest.id) for line in lines]

        self._change(mark_newest)
        return self.keyring().current

    def _read(self) -> list[str]:
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                self._refuse("is too large for a file of keys", _VALID)
            return self.path.read_text(encoding="utf-8").splitlines()
        except OSError as exc:
            self._refuse(f"can't be read ({exc.strerror})", "give the user who runs fiml permission to read it", exc)
        except UnicodeDecodeError as exc:
            self._refuse("is not text", _VALID, exc)

    def _parse(self, lines: Sequence[str]) -> Keyring:
        keys: dict[str, Key] = {}
        current: Key | None = None
        for number, line in enumerate(lines, 1):
            if not _is_key(line):
                continue
            is_marked, key = self._parse_line(number, line)
            if key.id in keys:
                self._refuse(f"line {number} repeats the key {echo(key.id)}", "give each key an id of its own")
            if is_marked and current is not None:
                self._refuse(f"line {number} marks a second current key", "leave one * in the file")
            keys[key.id] = key
            current = key if is_marked else current
        if not keys:
            self._refuse("has no key", _VALID)
        if current is None and len(keys) > 1:
            self._refuse("marks no key as the current one", "write a * before one of them")
        return Keyring(keys, current or next(iter(keys.values())))

    def _parse_line(self, number: int, line: str) -> tuple[bool, Key]:
        found = _LINE.fullmatch(line.strip())
        if found is None or not sealed.KEY_ID.fullmatch(found[2]):
            self._refuse(f"line {number} is not a key", f"{_VALID}; an ID has 1 to 32 letters, digits, _ . -")
        try:
            secret = base64.b64decode(found[3], validate=True)
        except binascii.Error as exc:
            self._refuse(f"line {number} isn't valid BASE64 after the id", _VALID, exc)
        if len(secret) != SECRET_BYTES:
            self._refuse(f"line {number} has a key of {len(secret)} bytes", _VALID)
        return bool(found[1]), Key(found[2], secret)

    def _check_mode(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            self._refuse("is not a file", "give a file of keys; `fiml keys new` creates one")
        if os.name == "nt":
            return
        # A file of root's may be readable by a group: this is how secrets are mounted for other users.
        is_roots = found.st_uid == 0 and os.geteuid() != 0
        if found.st_mode & (_ROOTS_FOR_A_GROUP if is_roots else _MINE_ONLY):
            mode = stat.S_IMODE(found.st_mode)
            self._refuse(f"can be read by others (mode {mode:04o})", f"run: chmod 600 {self.path}")

    def _change(self, change: Callable[[list[str]], list[str]]) -> None:
        """Replace the file as a whole: readers see the old file or the new one, and only one process writes at a time.

        The file is on the disk before this returns, since encrypted values must never outlive their key.
        """
        target = Path(os.path.realpath(self.path))  # a link stays one, and who shares the file sees the change
        unfinished = target.with_name(target.name + ".new")
        if not target.parent.is_dir():
            self._make_folder(target.parent)
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as exc:
            next_step = f"wait for the other `fiml keys`, or remove {unfinished} if none is running"
            self._refuse("is being changed by another process", next_step, exc)
        except OSError as exc:
            self._refuse_to_write(exc)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in change(self._read() if self.exists() else []))
                file.flush()
                self._keep_owner(descriptor)
                os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException as exc:
            unfinished.unlink(missing_ok=True)  # from here on, this name may be another process's
            if isinstance(exc, OSError):
                self._refuse_to_write(exc)
            raise
        try:
            _sync_folder(target.parent)
        except OSError as exc:
            self._refuse_to_write(exc)

    def _keep_owner(self, descriptor: int) -> None:
        """When root changes the file, keep its owner and group, and the group's right to read it."""
        if os.name != "nt" and os.geteuid() == 0 and self.exists():
            found = self.path.stat()
            os.fchown(descriptor, found.st_uid, found.st_gid)
            if found.st_uid == 0:
                os.fchmod(descriptor, found.st_mode & 0o640)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as exc:
            self._refuse_to_write(exc)

    def _refuse_to_write(self, exc: OSError) -> NoReturn:
        next_step = "give the user who runs this permission to write it, or edit it by hand"
        self._refuse(f"can't be written ({exc.strerror})", next_step, exc)

    def _refuse(self, problem: str, next_step: str, cause: BaseException | None = None) -> NoReturn:
        error = Misconfigured(f"FIML_ENCRYPTION_KEYS: the file {self.path} {problem}; {next_step}")
        if isinstance(cause, OSError):
            raise error from cause
        raise error from None  # the cause may contain a part of a key


def _checked_id(key_id: str, known: dict[str, Key]) -> str:
    if not sealed.KEY_ID.fullmatch(key_id):
        raise InvalidInput("id", f"{echo(key_id)} is not valid", "give 1 to 32 letters, digits, _ . -")
    if key_id in known:
        raise InvalidInput("id", f"{echo(key_id)} is taken", "give each key an id of its own")
    return key_id


def _next_id(known: dict[str, Key]) -> str:
    """`k1`, `k2` and so on, with a random end: another machine may give the same number to a key of its own."""
    return f"k{len(known) + 1}-{secrets.token_hex(3)}"


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _marked(line: str, key_id: str) -> str:
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return line
    return f"{'*' if found[2] == key_id else ''}{found[2]}:{found[3]}"


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder can't be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
