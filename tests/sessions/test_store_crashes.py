"""A transaction of the embedded store that is interrupted anywhere has done nothing."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection

from fiml.core.config import Synchronous
from fiml.core.errors import Unavailable
from fiml.db.engines import driver
from fiml.db.sqlite_file import SqliteFile
from fiml.sessions.backends.sqlite.backend import SqliteBackend
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query, open_store_over
from fiml.testing.conformance.suite import document, existing, listing
from fiml.testing.stores import copy_empty_file

INSTRUCTIONS = 5  # of SQLite's virtual machine, between two places where a transaction is broken off
MOST_PLACES = 500
OWNER = "ann"
Result = TypeVar("Result")
Handle = TypeVar("Handle")
Verb = Callable[[SessionStore, Session], Awaitable[Any]]


async def _update(store: SessionStore, session: Session) -> Session:
    for n in range(3):
        session.add_query(make_query(f"more {n}"))
        session.state.context[f"more {n}"] = n
    del session.state.context["0"]
    session.tags.append("more")
    return await store.update_session(session.id, session)


VERBS: dict[str, Verb] = {
    "create": lambda store, _: store.create_session(["MSFT"], SessionType.EQUITY, user_id=OWNER),
    "update": _update,
    "record": lambda store, session: store.record_query(session.id, make_query(), context={"a": 1}),
    "extend": lambda store, session: store.extend_session(session.id, 1),
    "archive": lambda store, session: store.archive_session(session.id),
    "sweep": lambda store, _: store.cleanup_expired_sessions(),
    "resume": lambda store, session: store.resume_session(session.id),
    "share": lambda store, session: store.share_session(session.id, "bob", "editor"),
    "share an archived one": lambda store, session: store.share_session(session.id, "bob"),
    "delete": lambda store, session: store.delete_session(session.id),
    "delete from the archive": lambda store, session: store.delete_session(session.id),
}


class FragileFile(SqliteFile):
    """A file whose next transaction SQLite gives up at a place of its work."""

    place: int | None = None

    async def write(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        return await super().write(self._fragile(function, lambda connection: connection))

    async def transact(self, function: Callable[[Connection], Result]) -> Result:
        return await super().transact(self._fragile(function, driver))

    def _fragile(
        self, function: Callable[[Handle], Result], raw: Callable[[Handle], sqlite3.Connection]
    ) -> Callable[[Handle], Result]:
        place, self.place = self.place, None
        places = count(1)

        def work(connection: Handle) -> Result:
            raw(connection).set_progress_handler(lambda: next(places) == place, INSTRUCTIONS)
            try:
                return function(connection)
            finally:
                raw(connection).set_progress_handler(None, INSTRUCTIONS)

        return work


@pytest.fixture
async def file(tmp_path: Path) -> FragileFile:
    path = tmp_path / "fiml.db"
    await copy_empty_file(path)
    return FragileFile(path, Synchronous.OFF)


@pytest.fixture
async def store(file: FragileFile, clock: FrozenClock) -> AsyncIterator[SessionStore]:
    async with open_store_over(SqliteBackend(file, Synchronous.OFF)) as opened:
        yield opened


@pytest.mark.parametrize("verb", VERBS)
async def test_a_transaction_that_is_broken_off_has_done_nothing(
    store: SessionStore, file: FragileFile, clock: FrozenClock, verb: str
) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
    for n in range(3):
        await store.record_query(session.id, make_query(f"{n}"), context={f"{n}": n})
    if verb == "sweep":
        clock.advance(hours=1)
    if verb in ("resume", "delete from the archive", "share an archived one"):
        await store.archive_session(session.id)
    before = await everything(store)

    for place in range(1, MOST_PLACES):
        session = await existing(store, session.id)
        file.place = place
        try:
            await VERBS[verb](store, session)
        except Unavailable:
            assert await everything(store) == before
        else:
            break

    assert place > 2, "it was never broken off"
    assert await everything(store) != before


async def everything(store: SessionStore) -> Any:
    """All that can be seen of the sessions."""
    summaries = await listing(store, None)
    documents = [document(await existing(store, summary.id)) for summary in summaries]
    shares = [await store.list_shares(summary.id) for summary in summaries]
    trails = [await store.get_audit_trail(summary.id) for summary in summaries]
    return summaries, documents, shares, trails
