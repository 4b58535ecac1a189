"""Fixtures for your own tests: import them into a `conftest.py`.

    from fiml.testing.fixtures import clock, store

`store` is an empty embedded store in the test's own folder, and `clock` is the frozen clock that it uses.
Needs pytest-asyncio.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from fiml.core.clock import using
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.stores import open_temporary_store


@pytest.fixture
def clock() -> Iterator[FrozenClock]:
    """The clock of the process for one test; it stands still until the test moves it."""
    frozen = FrozenClock()
    with using(frozen):
        yield frozen


@pytest_asyncio.fixture
async def store(clock: FrozenClock, tmp_path: Path) -> AsyncIterator[SessionStore]:
    """An open, empty, fast store."""
    async with open_temporary_store(tmp_path / "fiml") as opened:
        yield opened
