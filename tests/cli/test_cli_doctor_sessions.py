"""`fiml doctor` reads the newest session, which tells whether this process has the right keys."""

import asyncio
from pathlib import Path

import pytest

from fiml.cli.checks import Check, Mark, newest_session
from fiml.core.config import Settings
from fiml.sessions.keyring import KeyFile
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from tests.support.doctor import embedded_in, line_about, run
from tests.support.encryption import with_keys

READABLE = [Check(Mark.OK, "sessions", "the newest one can be read")]


async def add_session(settings: Settings, *, is_archived: bool = False) -> None:
    async with SessionStore(settings) as store:
        session = await store.create_session(["AAPL"], "equity")
        await store.record_query(session.id, make_query(), context={"thesis": "the moat is wide"})
        if is_archived:
            await store.archive_session(session.id)


@pytest.mark.parametrize("is_archived", [False, True])
async def test_the_newest_session_is_read_without_an_access(
    backend_settings: Settings, clock: FrozenClock, is_archived: bool
) -> None:
    await add_session(backend_settings, is_archived=is_archived)
    async with SessionStore(backend_settings) as store:
        [before] = await store.list_user_sessions(None, include_archived=True)

    clock.advance(hours=1)
    checks = await newest_session(backend_settings)

    async with SessionStore(backend_settings) as store:
        assert await store.list_user_sessions(None, include_archived=True) == [before]
    assert checks == READABLE


async def test_without_sessions_there_is_nothing_to_say(backend_settings: Settings) -> None:
    assert await newest_session(backend_settings) == []


@pytest.mark.parametrize("is_archived", [False, True])
async def test_a_session_whose_key_is_missing_is_a_problem(
    plain_settings: Settings, tmp_path: Path, is_archived: bool
) -> None:
    files = [tmp_path / name for name in ("keys", "others")]
    for number, file in enumerate(files):
        KeyFile(file).add(f"key{number}")
    ours, others = (with_keys(plain_settings, file) for file in files)
    await add_session(ours, is_archived=is_archived)

    for settings in (others, plain_settings):
        [check] = await newest_session(settings)
        assert check.mark is Mark.PROBLEM
        assert "is encrypted with the key 'key0', which this process doesn't have" in check.finding
    assert await newest_session(ours) == READABLE


class TestCommand:
    @pytest.fixture(autouse=True)
    def folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        return embedded_in(tmp_path / "sessions", monkeypatch)

    def test_it_says_so(self) -> None:
        asyncio.run(add_session(Settings()))

        result = run()

        assert line_about("sessions", result) == "ok      sessions: the newest one can be read"
        assert result.exit_code == 0

    def test_a_key_that_is_missing_ends_with_1(self, tmp_path: Path) -> None:
        KeyFile(tmp_path / "keys").add("mine")
        asyncio.run(add_session(with_keys(Settings(), tmp_path / "keys")))

        result = run()

        assert line_about("sessions", result).endswith("(`fiml keys list` shows which keys a file has)")
        assert result.exit_code == 1

    def test_nothing_is_opened_where_the_settings_have_a_problem(self, tmp_path: Path) -> None:
        asyncio.run(add_session(Settings()))

        result = run(FIML_ENCRYPTION_KEYS=str(tmp_path / "none"))

        assert " sessions: " not in result.output
        assert result.exit_code == 1
