"""The shipped conformance suite on a Cluster of three masters, and behind three Sentinels."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from fiml.core.config import Settings
from fiml.testing import conformance
from fiml.testing.conformance.budgets import BUDGET
from tests.support.deployment import Deployment
from tests.support.fleets import ValkeyCluster, Watched, valkey_cluster, watched_valkeys


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with valkey_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with watched_valkeys() as started:
        yield started


@pytest.fixture(params=["cluster", pytest.param("watched", marks=pytest.mark.soak)])
def backend_settings(request: pytest.FixtureRequest, deployment: Deployment) -> Settings:
    """The settings of each fleet, empty, with the archive of the other tests."""
    fleet: ValkeyCluster | Watched = request.getfixturevalue(request.param)
    fleet.empty()
    return Settings(redis_url=fleet.url, database_url=deployment.database_url)


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


class TestCrashes(conformance.CrashSuite): ...


class TestBudgets(conformance.BudgetSuite):
    # The indexes are on other masters than the session, and first.
    budget: ClassVar[dict[str, int]] = BUDGET | {"create": 2}


class BehindSentinels:
    """What is done at each change; the rest takes its time."""

    @pytest.fixture
    def backend_settings(self, watched: Watched, deployment: Deployment) -> Settings:
        watched.empty()
        return Settings(redis_url=watched.url, database_url=deployment.database_url)


class TestLifecycleBehindSentinels(BehindSentinels, conformance.LifecycleSuite): ...


class TestRacesBehindSentinels(BehindSentinels, conformance.RacesSuite): ...


class TestBudgetsBehindSentinels(BehindSentinels, conformance.BudgetSuite): ...
