"""The shipped conformance suite over an encrypted store: encryption changes nothing but the search."""

from pathlib import Path

import pytest

from fiml.core.config import Settings, Synchronous
from fiml.sessions.keyring import KeyFile
from fiml.testing import conformance
from tests.support.deployment import Deployment


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    KeyFile(path).add()
    return path


@pytest.fixture
def backend_settings(tmp_path: Path, key_file: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", sqlite_synchronous=Synchronous.OFF, encryption_keys=key_file)


class TestContract(conformance.ContractSuite): ...


class TestPrincipal(conformance.PrincipalSuite): ...


class TestLifecycle(conformance.LifecycleSuite): ...


class TestUpdates(conformance.UpdatesSuite): ...


class TestListing(conformance.ListingSuite): ...


class TestSearch(conformance.SearchSuite):
    searches_values = False


class TestSharing(conformance.SharingSuite): ...


class TestLimits(conformance.LimitsSuite): ...


class TestJsonValues(conformance.JsonValuesSuite): ...


class TestRaces(conformance.RacesSuite): ...


class TestMachine(conformance.MachineSuite): ...


class TestCrashes(conformance.CrashSuite): ...


class TestBudgets(conformance.BudgetSuite): ...


class OnServers:
    """Where the engine's own scripts and types count: what values may be, and how they move."""

    @pytest.fixture
    def backend_settings(self, deployment: Deployment, key_file: Path) -> Settings:
        return deployment.settings(encryption_keys=key_file)


class TestUpdatesOnServers(OnServers, conformance.UpdatesSuite): ...


class TestSearchOnServers(OnServers, conformance.SearchSuite):
    searches_values = False


class TestLimitsOnServers(OnServers, conformance.LimitsSuite): ...


class TestJsonValuesOnServers(OnServers, conformance.JsonValuesSuite): ...
