"""The shipped conformance suite, on each deployment."""

from fiml.testing import conformance


class TestContract(conformance.ContractSuite): ...


class TestPrincipal(conformance.PrincipalSuite): ...


class TestLifecycle(conformance.LifecycleSuite): ...


class TestUpdates(conformance.UpdatesSuite): ...


class TestListing(conformance.ListingSuite): ...


class TestLimits(conformance.LimitsSuite): ...


class TestJsonValues(conformance.JsonValuesSuite): ...


class TestRaces(conformance.RacesSuite): ...


class TestMachine(conformance.MachineSuite): ...
