"""The sessions of an installation, as trusted code sees them and as a single user sees them."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn, Self

from fiml.core.config import Settings
from fiml.core.errors import FimlError, InvalidInput, Unavailable
from fiml.core.observe import observed_verbs
from fiml.sessions import values
from fiml.sessions.backends import open_backend
from fiml.sessions.backends.base import Backend
from fiml.sessions.backends.shapes import PageQuery, Part
from fiml.sessions.records import Header
from fiml.sessions.rights import ANYBODY, Caller
from fiml.sessions.upkeep import UpkeepVerbs
from fiml.sessions.verbs import SessionVerbs

if TYPE_CHECKING:
    from fiml.sessions.backends.base import SessionMaker


@observed_verbs()
class PrincipalStore(SessionVerbs):
    """A store as one user sees it: other users' sessions don't exist, unless they were shared with this user."""

    def __init__(self, store: "SessionStore", caller: Caller) -> None:
        super().__init__(store.settings, caller)
        self._store = store

    @property
    def _backend(self) -> Backend:
        return self._store._backend  # noqa: SLF001  a view of that store


@observed_verbs("initialize", "shutdown", "figures")
class SessionStore(SessionVerbs, UpkeepVerbs):
    """The sessions of one installation, for trusted code, which sees everybody's.

    Use it as an async context manager, or call `initialize` and `shutdown`. It starts no background work: call
    `cleanup_expired_sessions` regularly.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Take the settings, by default the environment's.

        Raises:
            InvalidInput: they are something else, such as a path.
        """
        if settings is not None and not isinstance(settings, Settings):
            raise InvalidInput("settings", f"is a {type(settings).__name__}", "give Settings(data_dir=...), or nothing")
        super().__init__(settings or Settings(), ANYBODY)
        self._opened: Backend | None = None
        self._pid = 0  # of the process that opened it
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that the connections to servers belong to
        self._closing: asyncio.Future[None] | None = None
        self._opening = asyncio.Lock()
        self._tries = 0
        self._failure: FimlError | None = None

    async def initialize(self) -> None:
        """Connect, and create the schema in an empty database. Calling it again is harmless.

        If only the archive is unavailable, live sessions work; its schema is checked when it is back.

        Raises:
            Misconfigured: a part is missing, or a database can't be used as it is.
            Unavailable: Redis or the file is unavailable, or the store is open in another event loop or process.
        """
        tries = self._tries
        async with self._opening:
            self._check_origin()
            if self._opened is None:
                if self._failure is not None and self._tries > tries:
                    raise self._failure  # a try failed while this call waited: don't wait for the engine again
                await self._finish_closing()
                await self._open()

    async def _open(self) -> None:
        self._failure = None
        try:
            self._opened = await open_backend(self.settings)
            self._pid = os.getpid()
            self._loop = None if self.settings.is_embedded else asyncio.get_running_loop()
        except FimlError as exc:
            self._failure = exc
            raise
        finally:
            self._tries += 1

    async def shutdown(self) -> None:
        """Close all connections, even if the caller is cancelled meanwhile. Calling it again is harmless.

        Raises:
            Unavailable: the store is open in another event loop or process.
        """
        async with self._opening:
            self._check_origin()
            if self._opened is not None:
                backend, self._opened, self._loop, self._pid = self._opened, None, None, 0
                self._closing = asyncio.ensure_future(backend.close())
            await self._finish_closing()

    async def _finish_closing(self) -> None:
        closing = self._closing
        if closing is not None:
            try:
                await asyncio.shield(closing)
            finally:
                self._closing = None if closing.done() else closing

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.shutdown()

    def __reduce__(self) -> NoReturn:
        """Refuse copies, and what sends objects to other processes: the connections can't go along."""
        raise TypeError("a SessionStore can't be copied or pickled: open one in each process that needs one")

    @property
    def session_maker(self) -> "SessionMaker":
        """SQLAlchemy sessions over the database of ended sessions, for `SessionAnalytics`."""
        return self._opened_backend.session_maker

    async def away(self) -> list[Part]:
        """The parts, `live` and `archive`, whose engine doesn't answer within two seconds."""
        return await self._backend.away()

    def as_principal(self, user_id: str | None, *, name: str | None = None) -> PrincipalStore:
        """A view of this store, with the same verbs, of what `user_id` owns or was shared with.

        `None` is the local user, who sees everything. The audit trail shows the view's changes under `name`, by default
        the `user_id`.
        """
        user = values.check_user_id(user_id)
        return PrincipalStore(self, Caller(user, values.check_user_id(name) or user))

    async def live_headers(
        self, *, user_id: str | None, session_type: str | None, since: datetime
    ) -> AsyncIterator[Header]:
        """The headers of live sessions created since a moment, newest first, in pages."""
        query = PageQuery(limit=values.MAX_PAGE, user_id=user_id, type=session_type)
        while True:
            page = await self._backend.page(query)
            headers = [header for header, _ in page.rows]
            for header in headers:
                if header.created_at >= since:
                    yield header
            is_full = len(headers) == query.limit
            after = (headers[-1].created_at, headers[-1].id) if is_full else page.searched_to
            if after is None or after[0] < since:
                return
            query = replace(query, after=after)

    @property
    def _backend(self) -> Backend:
        self._check_origin()
        return self._opened_backend

    @property
    def _opened_backend(self) -> Backend:
        if self._opened is None:
            raise Unavailable("the session store", "it is not open", "await store.initialize() first")
        return self._opened

    def _check_origin(self) -> None:
        if self._pid and self._pid != os.getpid():
            where, next_step = "before this process was forked", "open another store in this process"
        elif self._loop is not None and self._loop is not asyncio.get_running_loop():
            where, next_step = "in another event loop", "use it only there, and open another store in this loop"
        else:
            return
        raise Unavailable("the session store", f"it was opened {where}", next_step)


# Connections belong to the event loop that made them; a process has one loop at a time, tests have many.
_stores: dict[asyncio.AbstractEventLoop, tuple[SessionStore, AsyncGenerator[None]]] = {}


async def get_session_store() -> SessionStore:
    """The store of this event loop, opened from the environment's settings at the first call.

    It is closed when `asyncio.run` ends (or whoever runs the loop shuts its asynchronous generators down).
    """
    loop = asyncio.get_running_loop()
    for other in list(_stores):
        if other.is_closed():
            _stores.pop(other, None)
    if loop not in _stores:
        store = SessionStore()
        closing = _closed_with_the_loop(store)
        _stores[loop] = store, closing
        await anext(closing)
    store, _ = _stores[loop]
    await store.initialize()
    return store


async def _closed_with_the_loop(store: SessionStore) -> AsyncGenerator[None]:
    """A generator that has begun, and that the event loop ends before it is closed."""
    try:
        yield
    finally:
        await store.shutdown()
