"""Stores for tests."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fiml.core.config import Settings, Synchronous
from fiml.sessions.backends.base import Backend
from fiml.sessions.store import SessionStore

_empty_file: bytes | None = None


class _GivenSettings(Settings):
    """Settings that leave the environment alone."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@asynccontextmanager
async def open_temporary_store(folder: Path, **settings: Any) -> AsyncIterator[SessionStore]:
    """An embedded store in `folder` that doesn't wait for the disk: fast, but a power cut may destroy it.

    Its settings are the given ones only: the environment's may name the servers of a real installation. If the folder
    has no file yet, it gets a copy of an empty one, which takes less time than the migrations.
    """
    chosen = _GivenSettings(data_dir=folder, **({"sqlite_synchronous": Synchronous.OFF} | settings))
    await copy_empty_file(chosen.embedded_file)
    async with SessionStore(chosen) as store:
        yield store


@asynccontextmanager
async def open_store_over(backend: Backend, settings: Settings | None = None) -> AsyncIterator[SessionStore]:
    """A store over your own backend, which is opened and closed with the store."""
    store = SessionStore(settings)
    await backend.open()
    store._opened = backend  # noqa: SLF001  outside of tests, the settings choose the backend
    async with store:
        yield store


async def copy_empty_file(file: Path) -> None:
    """Put an embedded store's empty file at `file`, unless there is one."""
    global _empty_file  # noqa: PLW0603  made once for the process
    if _empty_file is None:
        _empty_file = await _make_empty_file()
    _write_new(file, _empty_file)


def _write_new(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_bytes(content)


async def _make_empty_file() -> bytes:
    with tempfile.TemporaryDirectory(prefix="fiml-") as folder:
        settings = _GivenSettings(data_dir=Path(folder), sqlite_synchronous=Synchronous.OFF)
        async with SessionStore(settings):
            pass
        return settings.embedded_file.read_bytes()
