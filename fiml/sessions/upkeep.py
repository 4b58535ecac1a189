"""What keeps a store in order: archiving expired sessions, removing old ones, writing what the statistics need."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING

from fiml.core import clock
from fiml.core.errors import NotSupported
from fiml.sessions.backends.shapes import StoreFigures, SweepReport
from fiml.sessions.verb_base import Verbs

if TYPE_CHECKING:  # SQLAlchemy, which few calls need
    from fiml.sessions.backends.encrypted import EncryptedBackend
    from fiml.sessions.backends.keeping import Keeping
    from fiml.sessions.backends.reencryption import Progress

_BATCH = 500
_A_DAY = timedelta(days=1)


class UpkeepVerbs(Verbs):
    """The verbs of maintenance, which concern everybody's sessions. Each may be repeated at any time."""

    @property
    def keeping(self) -> "Keeping":
        """What the database stores besides the sessions, such as the state of the jobs."""
        return self._backend.keeping

    async def cleanup_expired_sessions(self) -> int:
        """Move every expired session to the archive; how many were moved. Several sweeps at once share the work.

        Sessions that can't be archived are set aside in the quarantine; `sweep` counts those too.
        """
        return (await self.sweep()).archived

    async def sweep(self) -> SweepReport:
        """As `cleanup_expired_sessions`, but returns counts of everything that was done."""
        report = SweepReport()
        async for batch in self._backend.sweep(self._ended(clock.now())):
            report.add(batch)
        return report

    async def figures(self) -> StoreFigures:
        """The state of the store, for monitoring: how many sessions are live, waiting, archived or in quarantine."""
        return await self._backend.figures(clock.now())

    async def delete_old_archived_sessions(self) -> int:
        """Delete sessions that were archived more than `session_retention_days` ago; how many. Their metrics stay.

        A session on hold stays. Each batch is one transaction.
        """
        before = clock.now() - timedelta(days=self.settings.session_retention_days)
        total, after, is_done = 0, None, False
        while not is_done:
            deleted, after = await self._backend.keeping.delete_old(before, at_most=_BATCH, after=after)
            total += deleted
            is_done = after is None
        return total

    async def count_held_past_retention(self) -> int:
        """How many archived sessions past retention a hold keeps."""
        before = clock.now() - timedelta(days=self.settings.session_retention_days)
        return await self._backend.keeping.count_held(before)

    async def purge_tombstones(self) -> int:
        """Finish deletions older than the longest task plus a day, and forget them; how many."""
        before = clock.now() - timedelta(minutes=self.settings.task_time_limit_minutes) - _A_DAY
        total = 0
        while purged := await self._backend.purge_tombstones(before, at_most=_BATCH):
            total += purged
        return total

    async def write_missing_metrics(self) -> int:
        """Write the metrics that archived sessions lack; how many. Nothing is written if analytics is off."""
        if not self.settings.session_enable_analytics:
            return 0
        total, after, is_done = 0, None, False
        while not is_done:
            written, after = await self._backend.keeping.write_missing_metrics(at_most=_BATCH // 5, after=after)
            total += written
            is_done = after is None
        return total

    @property
    def current_key_id(self) -> str | None:
        """The id of the current encryption key; `None` if sessions aren't encrypted.

        Raises:
            Misconfigured: the key file is missing or not valid.
        """
        if self.settings.encryption_keys is None:
            return None
        return self._encrypted_backend().cipher.keyring().current.id

    def reencrypt_sessions(self, *, adopts_plaintext: bool = False) -> "AsyncIterator[Progress]":
        """Encrypt everything with the current key, while others read and write. Yields the progress after each batch.

        It may be stopped at any moment and started again. With `adopts_plaintext`, values in plaintext are encrypted
        too.

        Raises:
            NotSupported: sessions aren't encrypted.
        """
        from fiml.sessions.backends.reencryption import Reencryption  # noqa: PLC0415 - which few calls need

        return Reencryption(self._encrypted_backend(), adopts_plaintext=adopts_plaintext).run()

    async def count_key_usage(self) -> Counter[str]:
        """How many sessions need each key, by its id; under the empty id, those with values in plaintext.

        Reads every session.

        Raises:
            NotSupported: sessions aren't encrypted.
        """
        from fiml.sessions.backends.reencryption import key_usage  # noqa: PLC0415 - as above

        return await key_usage(self._encrypted_backend())

    def _encrypted_backend(self) -> "EncryptedBackend":
        from fiml.sessions.backends.encrypted import EncryptedBackend  # noqa: PLC0415 - as above

        if not isinstance(self._backend, EncryptedBackend):
            raise NotSupported("encryption at rest is off", "set FIML_ENCRYPTION_KEYS to a file of keys")
        return self._backend

    async def roll_up(self) -> int:
        """Recompute the rollups of the days whose metrics changed; how many days."""
        days = await self._backend.keeping.days_behind()
        for day in days:
            await self._backend.keeping.roll_up(day)
        return len(days)
