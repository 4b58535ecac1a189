"""What the suites have in common: opening stores, and looking at what is stored."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from copy import deepcopy
from typing import Any, Protocol
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from fiml.core.clock import using
from fiml.sessions.models import Session, SessionSummary
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing.clock import FrozenClock

OWNER = "ann"
STRANGER = "eve"
_PAGE = 100


class OpenStore(Protocol):
    """The fixture `open_store`: opens stores. Those of one test share their data, which is empty when it begins."""

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[SessionStore]:
        """A store; `settings` change fields of `Settings`."""


class Suite:
    """The fixtures of every suite. You provide `open_store`."""

    @pytest.fixture(autouse=True)
    def clock(self) -> Iterator[FrozenClock]:
        frozen = FrozenClock()
        with using(frozen):
            yield frozen

    @pytest_asyncio.fixture
    async def store(
        self,
        open_store: OpenStore,
        clock: FrozenClock,
    ) -> AsyncIterator[SessionStore]:
        async with open_store() as opened:
            yield opened


def bounded(examples: int, **more: Any) -> settings:
    """Hypothesis settings for `examples` examples; more if the profile has more than Hypothesis's default of 100."""
    return settings(
        **more,
        max_examples=max(1, examples * settings().max_examples // 100),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


async def existing(store: SessionVerbs, session_id: UUID) -> Session:
    """A session that must be there."""
    session = await store.get_session(session_id)
    assert session is not None, f"session {session_id} is gone"
    return session


async def listing(store: SessionVerbs, user_id: str | None = OWNER, **filters: Any) -> list[SessionSummary]:
    """All pages of a listing, of both tiers."""
    page = await store.list_user_sessions(user_id, **({"include_archived": True, "limit": _PAGE} | filters))
    found = list(page)
    while page.next_cursor is not None:
        page = await store.list_user_sessions(
            user_id, **({"include_archived": True, "limit": _PAGE} | filters), cursor=page.next_cursor
        )
        found += page
    return found


def document(session: Session, *without: str) -> dict[str, Any]:
    """A session as JSON values, to compare; `without` names fields that may differ."""
    return deepcopy({name: value for name, value in session.to_dict().items() if name not in without})


def content(session: Session) -> dict[str, Any]:
    """The parts of a session that must survive every move between the tiers."""
    return document(session, "version", "expires_at", "last_accessed_at", "is_archived")
