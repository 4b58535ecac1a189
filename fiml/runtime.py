"""The parts of a running fiml, wired from the settings: for the doors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from fiml.core.config import Settings
from fiml.core.errors import FimlError
from fiml.market.service import MarketService, open_market
from fiml.sessions.models import SessionType
from fiml.sessions.store import PrincipalStore, SessionStore

FIRST_SWEEP_S = 5

_log = structlog.get_logger()


class Runtime:
    """One store and one market for the life of a door; the store opens at its first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store = SessionStore(settings)
        self._market: MarketService | None = None

    @property
    def market(self) -> MarketService:
        """The market.

        Raises:
            NotSupported: the settings name a source that this version doesn't have.
        """
        if self._market is None:
            self._market = open_market(self.settings)
        return self._market

    async def store(self) -> SessionStore:
        """The store, open.

        Raises:
            Misconfigured: it can't be opened as it is configured.
            Unavailable: an engine is away; the next call tries again.
        """
        await self._store.initialize()
        return self._store

    async def sessions(self, principal: str | None = None) -> PrincipalStore:
        """The sessions that a principal sees; `None` is the local user."""
        return (await self.store()).as_principal(principal)

    async def stats(self, user_id: str | None, session_type: SessionType | str | None, days: int) -> dict[str, Any]:
        """Statistics over live and ended sessions, as `SessionAnalytics.get_session_stats`."""
        from fiml.sessions.analytics import SessionAnalytics  # noqa: PLC0415 - SQLAlchemy, which few calls need

        store = await self.store()
        analytics = SessionAnalytics(store.session_maker, store)
        return await analytics.get_session_stats(user_id=user_id, session_type=session_type, days=days)

    async def close(self) -> None:
        """Let go of everything."""
        if self._market is not None:
            await self._market.aclose()
        await self._store.shutdown()


@asynccontextmanager
async def open_runtime(settings: Settings | None = None) -> AsyncIterator[Runtime]:
    """A runtime, closed at the end of the block."""
    runtime = Runtime(settings or Settings())
    try:
        yield runtime
    finally:
        await runtime.close()


@asynccontextmanager
async def sweeping(runtime: Runtime) -> AsyncIterator[None]:
    """Archive expired sessions now and then while the block runs."""
    task = asyncio.create_task(_sweep_now_and_then(runtime))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _sweep_now_and_then(runtime: Runtime) -> None:
    # A client that has just come waits for its first answer, not for the sweeper to load the store.
    await asyncio.sleep(FIRST_SWEEP_S)
    while True:
        try:
            moved = await (await runtime.store()).cleanup_expired_sessions()
        except FimlError as exc:
            _log.warning("sweep_failed", code=exc.code, problem=str(exc))
        except Exception:
            _log.exception("sweeping_ended")  # at once: who awaits the task does so at the very end
            raise
        else:
            if moved:
                _log.info("sessions_archived", count=moved)
        await asyncio.sleep(runtime.settings.session_cleanup_interval_minutes * 60)
