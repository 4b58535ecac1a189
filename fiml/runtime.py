"""The parts of a running fiml, wired up from the settings, for the command line and the MCP server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from fiml.core.config import Maintenance, Settings
from fiml.core.errors import Unavailable
from fiml.market.service import MarketService, open_market
from fiml.sessions.models import SessionType
from fiml.sessions.store import PrincipalStore, SessionStore
from fiml.sessions.values import check_user_id

if TYPE_CHECKING:  # SQLAlchemy, which few calls need
    from fiml.sessions.analytics import SessionAnalytics

FIRST_LOOK_S = 5
LOOK_EVERY_S = 60


class Runtime:
    """One store and one market, for as long as a command or a server runs. The store opens at its first use.

    Use it as an async context manager, or call `close`. A given `market` replaces the one that the settings name; the
    runtime closes it too.
    """

    def __init__(self, settings: Settings, market: MarketService | None = None) -> None:
        self.settings = settings
        self._store = SessionStore(settings)
        self._market = market
        self._is_closed = False

    @property
    def market(self) -> MarketService:
        """The market; it opens at its first use.

        Raises:
            MissingExtra: FIML_MARKET_DATA is `live`, and no live source is installed.
        """
        if self._market is None:
            self._market = open_market(self.settings)
        return self._market

    async def store(self) -> SessionStore:
        """The store, open.

        Raises:
            Misconfigured: the store can't be opened as configured.
            Unavailable: an engine is unavailable, and the next call tries again; or the runtime is closed.
        """
        if self._is_closed:
            raise Unavailable("the runtime", "it is closed", "open another one")
        await self._store.initialize()
        return self._store

    async def sessions(self, principal: str | None = None, *, name: str | None = None) -> PrincipalStore:
        """The sessions that a principal sees; `None` is the local user. Audit trails show the principal as `name`."""
        return (await self.store()).as_principal(principal, name=name)

    async def stats(
        self, user_id: str | None, session_type: SessionType | str | None, days: int, *, principal: str | None = None
    ) -> dict[str, Any]:
        """Statistics over live and ended sessions, as from `SessionAnalytics.get_session_stats`.

        A principal only gets statistics over its own sessions.

        Raises:
            InvalidInput: a filter is not valid.
            NotPermitted: the user is somebody other than the principal.
        """
        user_id = (await self.sessions(principal)).acting_as(check_user_id(user_id))
        analytics = await self.analytics()
        return await analytics.get_session_stats(user_id=user_id, session_type=session_type, days=days)

    async def analytics(self) -> "SessionAnalytics":
        """Analytics over live and ended sessions."""
        from fiml.sessions.analytics import SessionAnalytics  # noqa: PLC0415 - SQLAlchemy, which few calls need

        store = await self.store()
        return SessionAnalytics(store.session_maker, store)

    async def close(self) -> None:
        """Close the market and the store. Calling it again is harmless."""
        self._is_closed = True
        try:
            if self._market is not None:
                await self._market.aclose()
        finally:
            await self._store.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


def open_runtime(settings: Settings | None = None, *, market: MarketService | None = None) -> Runtime:
    """A runtime with these settings, by default those of the environment; an `async with` block closes it at its end.

    Where there is no block, as in a notebook, it stays open until `close`.
    """
    return Runtime(Settings() if settings is None else settings, market)


@asynccontextmanager
async def maintaining(runtime: Runtime) -> AsyncIterator[None]:
    """Run the maintenance jobs when they are due, while the block runs; not if the settings leave that to a worker."""
    if runtime.settings.maintenance is Maintenance.WORKER:
        yield
        return
    task = asyncio.create_task(_maintain(runtime))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})  # to await the task itself could take the caller's cancellation for the task's


async def _maintain(runtime: Runtime) -> None:
    # A client that has just connected should get its first answer before the maintenance begins to load the store.
    await asyncio.sleep(FIRST_LOOK_S)
    from fiml.sessions.maintenance import do_jobs_when_due  # noqa: PLC0415 - as above

    await do_jobs_when_due(runtime.store, look_every_s=LOOK_EVERY_S)
