"""The file of encryption keys: what it may hold, how it is changed, and that it shows no key."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, Misconfigured
from fiml.sessions.keyring import KeyFile
from fiml.sessions.store import SessionStore


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    KeyFile(path).add("k1")
    return path


def test_keys_are_never_shown(key_file: Path) -> None:
    [line] = key_file.read_text().splitlines()
    secret = line.partition(":")[2]

    keyring = KeyFile(key_file).keyring()

    assert secret not in repr(keyring) + str(keyring)
    assert repr(keyring.current.secret) not in repr(keyring) + repr(keyring.current)


GOOD, OTHER = "A" * 43 + "=", "B" * 43 + "="
MISTAKES: dict[str, tuple[str, str]] = {
    "nothing": ("", "has no key; a line is ID:BASE64 of 32 bytes"),
    "only a comment": ("# keys\n\n", "has no key"),
    "no id": (f"# mine\n{GOOD}\n", "line 2 is not a key"),
    "an empty id": (f":{GOOD}", "line 1 is not a key"),
    "an id with a space": (f"my key:{GOOD}", "line 1 is not a key"),
    "an id too long": (f"{'k' * 33}:{GOOD}", "1 to 32 letters, digits"),
    "no base64": (f"k1:{GOOD[:-5]}%%%%=", "line 1 isn't valid BASE64"),
    "a key too short": ("k1:AAAA", "line 1 has a key of 3 bytes"),
    "the same id twice": (f"*k1:{GOOD}\nk1:{OTHER}", "line 2 repeats the key 'k1'"),
    "two current keys": (f"*k1:{GOOD}\n*k2:{OTHER}", "line 2 marks a second current key"),
    "no current key": (f"k1:{GOOD}\nk2:{OTHER}", "marks no key as the current one"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(key_file: Path, mistake: str) -> None:
    text, says = MISTAKES[mistake]
    key_file.write_text(text)

    with pytest.raises(Misconfigured, match="FIML_ENCRYPTION_KEYS") as raised:
        KeyFile(key_file).keyring()

    assert says in str(raised.value)
    assert "AAAAAAAA" not in str(raised.value) + repr(raised.value.__cause__)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "put it back; `fiml keys new` creates a first one"),
    "a folder": (make_directory, "is not a file"),
    "readable by others": (lambda path: path.chmod(0o644), "chmod 600"),
    "writable by a group": (lambda path: path.chmod(0o620), "mode 0620"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "is not text"),
    "too large": (lambda path: path.write_bytes(b"#" * 1024 * 1024 + b"#"), "too large"),
}


@pytest.mark.parametrize("how", BROKEN_FILES)
async def test_a_bad_file_keeps_a_store_from_opening(tmp_path: Path, key_file: Path, how: str) -> None:
    breaks, says = BROKEN_FILES[how]
    breaks(key_file)

    with pytest.raises(Misconfigured, match="FIML_ENCRYPTION_KEYS") as raised:
        async with SessionStore(Settings(data_dir=tmp_path / "data", encryption_keys=key_file)):
            pass

    assert says in str(raised.value)


def test_comments_and_blank_lines_survive_a_change_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the desk\n\nk1:{GOOD}\n")
    path.chmod(0o600)
    file = KeyFile(path)

    added = file.add()
    assert file.keyring().current.id == "k1"
    file.advance()

    assert path.read_text().splitlines()[:3] == ["# of the desk", "", f"k1:{GOOD}"]
    assert (file.keyring().current.id, list(file.keyring().keys)) == (added.id, ["k1", added.id])
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_can_not_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match="can't be written"):
        KeyFile(tmp_path / "file" / "keys").add()


def test_the_first_key_makes_the_file_with_its_folder_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "config" / "fiml" / "keys"

    key = KeyFile(path).add()

    assert KeyFile(path).keyring().current == key
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_link_to_the_file_stays_a_link(tmp_path: Path, key_file: Path) -> None:
    """Others may share the file."""
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(key_file)

    KeyFile(link).add("k2")
    KeyFile(link).advance()

    assert (link.readlink(), KeyFile(key_file).keyring().current.id) == (key_file, "k2")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that are root's")
def test_a_file_of_roots_may_be_readable_by_a_group(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is how secrets are mounted for a process that isn't root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    key_file.chmod(0o640)
    assert KeyFile(key_file).keyring().current.id == "k1"
    key_file.chmod(0o644)

    with pytest.raises(Misconfigured, match="mode 0644"):
        KeyFile(key_file).keyring()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the files of others")
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o600), (0, 0o640)])
def test_a_file_that_root_changes_can_be_read_by_whom_it_was_for(key_file: Path, owner: int, mode: int) -> None:
    os.chown(key_file, owner, 65533)
    key_file.chmod(mode)

    KeyFile(key_file).add()

    found = key_file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (owner, 65533, mode)


def test_two_processes_that_add_keys_lose_none(key_file: Path) -> None:
    unfinished = key_file.with_name("keys.new")
    unfinished.touch()
    before = key_file.read_text()

    with pytest.raises(Misconfigured, match=r"keys\.new"):
        KeyFile(key_file).add()

    assert key_file.read_text() == before
    unfinished.unlink()
    KeyFile(key_file).add()
    assert len(KeyFile(key_file).keyring().keys) == 2


def test_a_finished_writer_leaves_the_next_writers_file_alone(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins to write as soon as the file of the first one has its place."""
    unfinished = key_file.with_name("keys.new")
    put_in_place = Path.replace

    def put_in_place_and_go_on(file: Path, target: Path) -> None:
        put_in_place(file, target)
        unfinished.touch()

    monkeypatch.setattr(Path, "replace", put_in_place_and_go_on)

    KeyFile(key_file).add()

    assert unfinished.exists()


def test_a_change_that_is_refused_leaves_nothing_unfinished(key_file: Path) -> None:
    with pytest.raises(InvalidInput, match="taken"):
        KeyFile(key_file).add("k1")

    assert [path.name for path in key_file.parent.iterdir()] == ["keys"]


@pytest.mark.parametrize("text", ["", "\n", "# of the desk\n"])
def test_a_file_without_a_key_gets_its_first(key_file: Path, text: str) -> None:
    key_file.write_text(text)

    key = KeyFile(key_file).add()

    assert KeyFile(key_file).keyring().current == key


@pytest.mark.parametrize(("key_id", "says"), [("k1", "taken"), ("a b", "letters"), ("", "letters"), ("k" * 33, "32")])
def test_an_id_of_a_key_is_checked(key_file: Path, key_id: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        KeyFile(key_file).add(key_id)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65])
def test_the_name_of_an_installation_is_checked(name: str) -> None:
    with pytest.raises(Misconfigured, match="FIML_INSTALLATION"):
        Settings(installation=name)
