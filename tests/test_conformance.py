"""The shipped conformance suite, on each deployment."""

from fiml.testing import conformance


class TestContract(conformance.ContractSuite): ...


class TestPrincipal(conformance.PrincipalSuite): ...


class TestLifecycle(conformance.LifecycleSuite): ...
