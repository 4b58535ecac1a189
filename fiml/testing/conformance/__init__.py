"""The tests that every backend of the session store passes. Subclass the suites, and give them a fixture `open_store`.

    from fiml.testing import conformance, open_store_over

    @pytest.fixture
    def open_store(tmp_path):
        return lambda **settings: open_store_over(MyBackend(tmp_path), Settings(**settings))

    class TestContract(conformance.ContractSuite): ...

`open_store(**settings)` opens a store; those of one test share their data, which is empty at its begin. `CrashSuite`
and `BudgetSuite` need one fixture more each: they say which.

Have pytest explain their assertions: `pytest.register_assert_rewrite("fiml.testing")` in `conftest.py`.
"""

from fiml.testing.conformance.contract import ContractSuite, PrincipalSuite
from fiml.testing.conformance.json_values import JsonValuesSuite
from fiml.testing.conformance.lifecycle import LifecycleSuite
from fiml.testing.conformance.limits import LimitsSuite
from fiml.testing.conformance.listing import ListingSuite
from fiml.testing.conformance.machine import MachineSuite
from fiml.testing.conformance.races import RacesSuite
from fiml.testing.conformance.suite import OpenStore, Suite
from fiml.testing.conformance.updates import UpdatesSuite

__all__ = [
    "ContractSuite",
    "JsonValuesSuite",
    "LifecycleSuite",
    "LimitsSuite",
    "ListingSuite",
    "MachineSuite", "OpenStore",
    "PrincipalSuite",
    "RacesSuite",
    "Suite",
    "UpdatesSuite",
]
