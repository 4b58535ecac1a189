"""For your own tests: a fast store, a frozen clock, samples. `fiml.testing.conformance` tests a backend.

    from fiml.testing.fixtures import clock, store    # in conftest.py: pytest fixtures

    async def test_an_analysis_ends_after_its_day(store, clock):
        session = await store.create_session(["AAPL"], "equity", ttl_hours=24)

        clock.advance(hours=24)

        assert (await store.get_session(session.id)).is_expired

Outside of pytest, `open_temporary_store(folder)` opens such a store, and `fiml.core.clock.using(FrozenClock())`
installs such a clock. Needs the extra [testing].
"""

from fiml.testing.clock import FrozenClock
from fiml.testing.samples import make_query, make_session
from fiml.testing.stores import open_store_over, open_temporary_store

__all__ = ["FrozenClock", "make_query", "make_session", "open_store_over", "open_temporary_store"]
