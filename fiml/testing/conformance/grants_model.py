"""Whom a session is given to, by the plain rules of `rights`, to compare what an engine's own steps come to."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from fiml.core import clock as time
from fiml.core.errors import FimlError, SessionNotFound
from fiml.sessions.models import Session, SessionType
from fiml.sessions.rights import (
    Caller,
    GrantChange,
    Grants,
    Role,
    ShareCode,
    ShareRules,
    changed,
    codes_in,
    give,
    redeem,
    shares_in,
    take_back,
    take_back_code,
)
from fiml.sessions.store import SessionStore
from fiml.sessions.verbs import SessionVerbs
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, STRANGER
from fiml.testing.samples import make_query

VIEWER, EDITOR = "vic", "ed"


async def refusal_of(call: Awaitable[object]) -> type[FimlError] | None:
    """The error that a call is refused with, if it is."""
    try:
        await call
    except FimlError as exc:
        return type(exc)
    return None


class GrantsModel:
    """A session's grants as `rights.changed` has them, beside those of a store."""

    def __init__(self, store: SessionStore, session_id: UUID, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._store = store
        self._session_id = session_id
        self._draw = draw
        self._grants: Grants = {}
        self._codes: list[ShareCode] = []

    async def step(self) -> None:
        """Do something on both."""
        steps = [self._give, self._take, self._make_code, self._move]
        await self._draw(st.sampled_from([*steps, self._redeem, self._revoke] if self._codes else steps))()

    async def check(self) -> None:
        """They have come to the same."""
        assert await self._store.list_shares(self._session_id) == shares_in(self._grants)
        assert await self._store.list_share_codes(self._session_id) == codes_in(self._grants, time.now())

    async def _give(self) -> None:
        user, role = self._draw(st.sampled_from([VIEWER, EDITOR, STRANGER])), self._draw(st.sampled_from(Role))
        await self._both(give(user, role), lambda view: view.share_session(self._session_id, user, role))

    async def _take(self) -> None:
        user = self._draw(st.sampled_from([VIEWER, EDITOR, STRANGER]))
        await self._both(take_back(user), lambda view: view.unshare_session(self._session_id, user))

    async def _make_code(self) -> None:
        code = await self._store.create_share_code(self._session_id, self._draw(st.sampled_from(Role)))
        self._codes.append(code)
        self._grants[take_back_code(code).field] = time.to_micros(code.expires_at)

    async def _redeem(self) -> None:
        code = str(self._draw(st.sampled_from(self._codes)).code)
        await self._both(redeem(code), lambda view: view.redeem_share_code(self._session_id, code))

    async def _revoke(self) -> None:
        code = self._draw(st.sampled_from(self._codes))
        assert await self._store.revoke_share_code(self._session_id, code.id) == (
            take_back_code(code).field in self._grants
        )
        self._grants.pop(take_back_code(code).field, None)

    async def _move(self) -> None:
        if not await self._store.archive_session(self._session_id):
            await self._store.resume_session(self._session_id)

    async def _both(self, change: GrantChange, call: Callable[[SessionVerbs], Awaitable[object]]) -> None:
        name = self._draw(st.sampled_from([OWNER, VIEWER, EDITOR, STRANGER]))
        rules = ShareRules(now=time.now(), max_changes=1000, caller=Caller(name, name))
        try:
            after = changed(self._session_id, OWNER, self._grants, 1, change, rules)
            expected: type[FimlError] | None = SessionNotFound if after is None else None
        except FimlError as exc:
            after, expected = None, type(exc)
        assert await refusal_of(call(self._store.as_principal(name))) is expected
        self._grants = self._grants if after is None else after


async def shared_session(store: SessionStore, clock: FrozenClock, state: str) -> UUID:
    """A session of the owner's, given to a viewer and an editor, in a state."""
    session: Session = await store.as_principal(OWNER).create_session(["AAPL"], SessionType.EQUITY, ttl_hours=1)
    await store.as_principal(OWNER).record_query(session.id, make_query())
    await store.as_principal(OWNER).share_session(session.id, VIEWER)
    await store.as_principal(OWNER).share_session(session.id, EDITOR, Role.EDITOR)
    if state != "live":
        clock.advance(hours=1)
    if state == "archived":
        await store.archive_session(session.id)
    return session.id
