"""The tests that every backend of the session store passes. Subclass the suites, and give them a fixture `open_store`.

    from fiml.testing import conformance, open_store_over

    @pytest.fixture
    def open_store(tmp_path):
        return lambda **settings: open_store_over(MyBackend(tmp_path), Settings(**settings))

    class TestContract(conformance.ContractSuite): ...

`open_store(**settings)` opens a store. All stores of a test share their data, which is empty when the test begins.
`CrashSuite` and `BudgetSuite` also need the fixture `open_crashing_store`: `open_crashing_store(faults)` opens a store
whose backend makes each call to an engine through `faults.around`.

For pytest to explain failed assertions, put `pytest.register_assert_rewrite("fiml.testing")` into `conftest.py`.
"""

from fiml.testing.conformance.budgets import BudgetSuite
from fiml.testing.conformance.contract import ContractSuite
from fiml.testing.conformance.crashes import Crash, CrashSuite, Faults, OpenCrashingStore
from fiml.testing.conformance.json_values import JsonValuesSuite
from fiml.testing.conformance.lifecycle import LifecycleSuite
from fiml.testing.conformance.limits import LimitsSuite
from fiml.testing.conformance.listing import ListingSuite
from fiml.testing.conformance.machine import MachineSuite
from fiml.testing.conformance.principals import PrincipalSuite
from fiml.testing.conformance.races import RacesSuite
from fiml.testing.conformance.searching import SearchSuite
from fiml.testing.conformance.sharing import SharingSuite
from fiml.testing.conformance.suite import OpenStore, Suite
from fiml.testing.conformance.updates import UpdatesSuite

__all__ = [
    "BudgetSuite",
    "ContractSuite",
    "Crash",
    "CrashSuite",
    "Faults",
    "JsonValuesSuite",
    "LifecycleSuite",
    "LimitsSuite",
    "ListingSuite",
    "MachineSuite",
    "OpenCrashingStore",
    "OpenStore",
    "PrincipalSuite",
    "RacesSuite",
    "SearchSuite",
    "SharingSuite",
    "Suite",
    "UpdatesSuite",
]
