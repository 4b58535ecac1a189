"""What the tests of `fiml doctor` share: the command, its lines, and what it should find."""

import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import asyncpg
import pytest
import typer
from typer.testing import CliRunner, Result

from fiml.cli.doctor import doctor
from fiml.core import clock
from fiml.core.config import Settings
from fiml.db import schema
from fiml.db.engines import postgres_engine
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore

PASSWORD = "hunter2"  # noqa: S105 - nobody's
AWAY = "127.0.0.1:1"


class Earlier:
    """Two hours ago."""

    def now(self) -> datetime:
        return clock.SystemClock().now() - timedelta(hours=2)


def embedded_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let nothing be set but the folder of the embedded file."""
    for name in list(os.environ):
        if name.upper().startswith("FIML_") and name != "FIML_MARKET_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("FIML_DATA_DIR", str(folder))
    return folder


def forget_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the user have no home folder, as some users of containers."""

    def unknown(user: int) -> NoReturn:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def create_schema(url: str) -> None:
    engine = postgres_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(schema.upgrade)
    await engine.dispose()


async def leave_expired_sessions(settings: Settings, count: int) -> None:
    async with SessionStore(settings) as store:
        with clock.using(Earlier()):
            for _ in range(count):
                await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
        await store.create_session(["MSFT"], SessionType.EQUITY, ttl_hours=1)


async def sweep(settings: Settings) -> None:
    async with SessionStore(settings) as store:
        await store.cleanup_expired_sessions()


def run(**variables: str) -> Result:
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, env=variables)


def line_about(subject: str, result: Result) -> str:
    [line] = [line for line in result.output.splitlines() if line[8:].startswith(f"{subject}: ")]
    return line


def forget_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""
    monkeypatch.delitem(sys.modules, "fiml.db.redis_client", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "redis", None)
