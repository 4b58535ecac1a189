"""What the tests share: the deployments under test, and an environment without the user's settings."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

pytest.register_assert_rewrite("fiml.testing")
pytest_plugins = [
    "fiml.testing.fixtures",
    "tests.support.coin_provider",
    "tests.support.encryption",
    "tests.support.exchange",
    "tests.support.faults",
    "tests.support.yahoo_provider",
]

from fiml.core.config import Settings, Synchronous  # noqa: E402  the rewriting comes first
from fiml.sessions.store import SessionStore  # noqa: E402
from fiml.testing import FrozenClock, open_temporary_store  # noqa: E402
from fiml.testing.conformance import OpenCrashingStore, OpenStore  # noqa: E402
from tests.support.backends import open_watched_store  # noqa: E402
from tests.support.deployment import Deployment, server_deployment  # noqa: E402

BACKENDS = ("sqlite", pytest.param("sqlite-without-waiting", marks=pytest.mark.soak), "valkey-postgresql")

# No test fails for its time: the machine may be busy.
_untimed = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile("untimed", _untimed)
hypothesis_settings.register_profile("thorough", _untimed, max_examples=2000)
hypothesis_settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Pass over what libraries cause: the market calendars are for pandas before 3.1, ccxt is for older Pythons too."""
    of_libraries = (
        *("Series.values returning an ndarray", "DatetimeIndex.weekday is deprecated"),
        "enable_cleanup_closed ignored",
    )
    for message in of_libraries:
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see none of the user's settings, and touch none of the user's data."""
    for name in list(os.environ):
        if name.startswith("FIML_") and not name.startswith("FIML_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FIML_DATA_DIR", str(tmp_path / "data"))
    # `auto` would be live where the extras are installed: no test reaches for the network.
    monkeypatch.setenv("FIML_MARKET_DATA", "sample")


@pytest.fixture(scope="session")
def servers() -> Iterator[Deployment]:
    """Valkey and PostgreSQL for the whole run."""
    with server_deployment() as deployment:
        yield deployment


@pytest.fixture
def deployment(servers: Deployment) -> Deployment:
    """Valkey and PostgreSQL, empty."""
    servers.clean()
    return servers


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture(params=BACKENDS)
def backend_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The settings of each deployment under test, over empty data."""
    match request.param:
        case "sqlite":
            return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.FULL)
        case "sqlite-without-waiting":
            return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF)
    deployment: Deployment = request.getfixturevalue("deployment")
    return deployment.settings()


@pytest.fixture
def settings(backend_settings: Settings) -> Settings:
    """Those of the test's `store`; a file of tests may have others."""
    return backend_settings


@pytest.fixture
async def store(settings: Settings, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with SessionStore(settings) as opened:
        yield opened


@pytest.fixture
def open_store(backend_settings: Settings) -> OpenStore:
    """Opens stores over the data of the test."""
    return opener(backend_settings)


@pytest.fixture
def open_crashing_store(backend_settings: Settings) -> OpenCrashingStore:
    return lambda faults: open_watched_store(backend_settings, faults.around)


def opener(settings: Settings) -> OpenStore:
    @asynccontextmanager
    async def open_store(**changes: Any) -> AsyncIterator[SessionStore]:
        changed = settings.model_dump(exclude_unset=True) | changes
        if settings.is_embedded:
            assert settings.data_dir is not None
            del changed["data_dir"]
            async with open_temporary_store(settings.data_dir, **changed) as store:
                yield store
        else:
            async with SessionStore(Settings(**changed)) as store:
                yield store

    return open_store
