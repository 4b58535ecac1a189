"""`fiml sessions quarantine`, as a user at a shell meets it."""

import asyncio
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from fiml.cli import app
from fiml.core.config import Settings
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock


def listed(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["sessions", "quarantine", "list", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.fixture
def quarantined(clock: FrozenClock) -> list[str]:
    """Sessions in quarantine, in the order in which they were set aside."""

    async def create() -> list[str]:
        async with SessionStore() as store:
            return [str((await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)).id) for _ in range(205)]

    async def sweep() -> None:
        async with SessionStore() as store:
            await store.cleanup_expired_sessions()

    created = asyncio.run(create())
    with closing(sqlite3.connect(Settings().embedded_file)) as connection, connection:
        connection.execute("UPDATE active_sessions SET type = 'poetry'")
    clock.advance(hours=1)
    asyncio.run(sweep())
    return created


def test_a_listing_goes_on_beyond_a_page_of_the_library(quarantined: list[str]) -> None:
    lines = listed("--limit", "205")

    ids = [line.split()[0] for line in lines[::2]]
    assert set(ids) == set(quarantined)
    assert len(ids) == 205


def test_a_listing_says_if_there_are_more(quarantined: list[str]) -> None:
    *lines, last = listed("--limit", str(len(quarantined) - 1))

    assert len(lines) == 2 * (len(quarantined) - 1)
    assert last == "there are more: give a larger --limit"
