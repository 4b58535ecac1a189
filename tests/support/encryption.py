"""Deployments that encrypt, sessions in them, and the change of their keys."""

from pathlib import Path
from typing import Any

import pytest

from fiml.core.config import Settings, Synchronous
from fiml.sessions.backends.reencryption import Progress
from fiml.sessions.keyring import KeyFile
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import make_query
from fiml.testing.conformance.suite import existing
from tests.support.deployment import Deployment

MARKER = "physalis"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    file = KeyFile(tmp_path / "keys")
    file.add("k1")
    return file


@pytest.fixture(params=["sqlite", "valkey-postgresql"])
def plain_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A deployment that encrypts nothing."""
    if request.param == "valkey-postgresql":
        deployment: Deployment = request.getfixturevalue("deployment")
        return deployment.settings()
    return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF)


def with_keys(settings: Settings, key_file: Path, **changes: Any) -> Settings:
    """The same deployment, encrypting."""
    return Settings(**settings.model_dump(exclude_unset=True) | {"encryption_keys": key_file} | changes)


def change_keys(keys: KeyFile, key_id: str) -> None:
    keys.add(key_id)
    keys.advance()


async def reencrypt(store: SessionStore, **how: Any) -> Progress:
    [*_, last] = [progress async for progress in store.reencrypt_sessions(**how)]
    return last


async def a_session(store: SessionStore, *, is_archived: bool = False) -> Session:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, tags=["tech"])
    for n in range(3):
        query = make_query(f"{n}", result_summary=f"{MARKER} {n}", figures={"n": n + 0.5})
        await store.record_query(session.id, query, context={f"{n}": f"{MARKER} {n}"})
    if is_archived:
        await store.archive_session(session.id)
    return await existing(store, session.id)
