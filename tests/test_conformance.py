"""The shipped conformance suite, on each deployment."""

import pytest

from fiml.core.config import Settings
from fiml.testing import conformance
from tests.support.backends import open_watched_store


class TestSharing(conformance.SharingSuite): ...


class TestContract(conformance.ContractSuite): ...


class TestPrincipal(conformance.PrincipalSuite): ...


class TestLifecycle(conformance.LifecycleSuite): ...


class TestUpdates(conformance.UpdatesSuite): ...


class TestListing(conformance.ListingSuite): ...


class TestSearch(conformance.SearchSuite): ...


class TestLimits(conformance.LimitsSuite): ...


class TestJsonValues(conformance.JsonValuesSuite): ...


class TestRaces(conformance.RacesSuite): ...


class TestMachine(conformance.MachineSuite): ...


class Watched:
    @pytest.fixture
    def open_crashing_store(self, backend_settings: Settings) -> conformance.OpenCrashingStore:
        return lambda faults: open_watched_store(backend_settings, faults.around)


class TestCrashes(Watched, conformance.CrashSuite): ...


class TestBudgets(Watched, conformance.BudgetSuite): ...
