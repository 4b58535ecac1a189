"""Encryption at rest over any backend: values are encrypted before an engine gets them, and decrypted afterwards."""

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from fiml.core.errors import NotSupported
from fiml.sessions.backends.base import Backend
from fiml.sessions.backends.shapes import (
    Ended,
    Found,
    Page,
    PageQuery,
    Part,
    StoreFigures,
    SweepReport,
    Updated,
    WriteResult,
    WriteRules,
)
from fiml.sessions.changes import Change
from fiml.sessions.cipher import Cipher
from fiml.sessions.records import SessionRecord
from fiml.sessions.rights import ANYBODY, Caller, GrantChange, Grants, Right, ShareRules

if TYPE_CHECKING:
    from fiml.sessions.backends.base import SessionMaker
    from fiml.sessions.backends.keeping import Keeping
    from fiml.sessions.backends.rewriting import Rewriting


class EncryptedBackend:
    """Implements `Backend` over another one, whose engines only see encrypted values.

    Archiving, sweeping, resuming and quarantining move values as they are, and need no key.
    """

    def __init__(self, backend: Backend, cipher: Cipher) -> None:
        self._inner = backend
        self.cipher = cipher

    @property
    def keeping(self) -> "Keeping":
        return self._inner.keeping

    @property
    def session_maker(self) -> "SessionMaker":
        return self._inner.session_maker

    async def open(self) -> None:
        self.cipher.keyring()  # before connecting, so that a mistake in the key file is reported first
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def create(self, record: SessionRecord) -> None:
        entries = self.cipher.of(record.header.id).seal_entries(record.entries)
        await self._inner.create(replace(record, entries=entries))

    async def read(
        self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY, recent: int | None = None
    ) -> SessionRecord | None:
        return self._opened(await self._inner.read(session_id, now=now, caller=caller, recent=recent))

    async def write(self, session_id: UUID, change: Change, rules: WriteRules) -> WriteResult | None:
        return await self._inner.write(session_id, self._sealed(session_id, change), rules)

    async def update(self, session_id: UUID, change: Change, rules: WriteRules) -> Updated | None:
        updated = await self._inner.update(session_id, self._sealed(session_id, change), rules)
        return None if updated is None else replace(updated, record=self._opened(updated.record))

    async def extend(
        self, session_id: UUID, *, by: timedelta, latest: datetime, rules: WriteRules
    ) -> SessionRecord | None:
        return self._opened(await self._inner.extend(session_id, by=by, latest=latest, rules=rules))

    async def archive(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        return await self._inner.archive(session_id, ended, caller=caller)

    def sweep(self, ended: Ended) -> AsyncIterator[SweepReport]:
        return self._inner.sweep(ended)

    async def resume(
        self, session_id: UUID, *, until: datetime, now: datetime, caller: Caller = ANYBODY
    ) -> SessionRecord | None:
        return self._opened(await self._inner.resume(session_id, until=until, now=now, caller=caller))

    async def delete(self, session_id: UUID, *, now: datetime, caller: Caller = ANYBODY) -> bool:
        return await self._inner.delete(session_id, now=now, caller=caller)

    async def share(self, session_id: UUID, change: GrantChange, rules: ShareRules) -> Grants | None:
        return await self._inner.share(session_id, change, rules)

    async def owners_view(self, session_id: UUID, *, caller: Caller = ANYBODY) -> tuple[Grants, str] | None:
        return await self._inner.owners_view(session_id, caller=caller)

    async def given_ids(self, user_id: str) -> set[UUID]:
        return await self._inner.given_ids(user_id)

    async def figures(self, now: datetime) -> StoreFigures:
        return await self._inner.figures(now)

    async def away(self) -> list[Part]:
        return await self._inner.away()

    async def exists(self, session_id: UUID, *, needs: Right = Right.OWN, caller: Caller = ANYBODY) -> bool:
        return await self._inner.exists(session_id, needs=needs, caller=caller)

    async def retry(self, session_id: UUID, ended: Ended, *, caller: Caller = ANYBODY) -> bool:
        return await self._inner.retry(session_id, ended, caller=caller)

    async def ids_of(self, user_id: str) -> set[UUID]:
        return await self._inner.ids_of(user_id)

    async def erase_traces(self, user_id: str, held: Collection[UUID]) -> list[str]:
        return await self._inner.erase_traces(user_id, held)

    async def purge_tombstones(self, before: datetime, *, at_most: int) -> int:
        return await self._inner.purge_tombstones(before, at_most=at_most)

    def all_ids(self) -> AsyncIterator[list[UUID]]:
        return self._inner.all_ids()

    async def rewrite(self, session_id: UUID, rewriting: "Rewriting") -> bool:
        """As the inner backend; the texts are encrypted."""
        return await self._inner.rewrite(session_id, rewriting)

    async def scrub(self) -> list[str]:
        return await self._inner.scrub()

    async def page(self, query: PageQuery) -> Page:
        return await self._inner.page(query)

    async def search(self, query: PageQuery) -> Found:
        """As the inner backend, by the parts that aren't encrypted.

        Raises:
            NotSupported: the search asks for words or figures.
        """
        if query.wanted is not None and (query.wanted.words or query.wanted.conditions):
            raise NotSupported(
                "encrypted sessions can't be searched by words or figures (FIML_ENCRYPTION_KEYS is set)",
                "search by type, tag, dates, or a symbol among the assets",
            )
        return await self._inner.search(query)

    def _sealed(self, session_id: UUID, change: Change) -> Change:
        cipher = self.cipher.of(session_id)
        return replace(
            change,
            queries=[cipher.seal_query(query.query) for query in change.queries],
            entries_set=cipher.seal_entries(change.entries_set),
        )

    def _opened(self, record: SessionRecord | None) -> SessionRecord | None:
        return None if record is None else self.cipher.of(record.header.id).open(record)
