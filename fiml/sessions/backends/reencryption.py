"""Encrypts every session with the current key, while others read and write."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from fiml.core.errors import CorruptRecord, MissingKey, SchemaTooNew, Unavailable
from fiml.core.log import get_logger
from fiml.sessions import sealed
from fiml.sessions.backends.encrypted import EncryptedBackend
from fiml.sessions.backends.rewriting import Texts
from fiml.sessions.cipher import SessionCipher, queries_of
from fiml.sessions.damage import DAMAGE, corrupt
from fiml.sessions.queries import QueryRecord
from fiml.sessions.records import SessionRecord, check_format

# A session may move to where a round has already been, and a call that began before the change of keys may still write
# with the old one. The next round finds both, so the pass ends after two rounds that find nothing.
_ROUNDS = 8
_LAST_ROUNDS = 2

_log = get_logger()


@dataclass(slots=True)
class Progress:
    """How far the pass got: sessions that were looked at, rewritten, or left as they are."""

    looked_at: int = 0
    rewritten: int = 0
    unreadable: int = 0
    """Sessions that can't be decrypted or decoded; the log names them."""
    in_clear: int = 0
    """Sessions with values that aren't encrypted."""
    kept_copies: list[str] = field(default_factory=list)
    """Copies of the embedded file that still have the replaced values."""


class Reencryption:
    """A pass over all sessions. It may be stopped at any moment and started again."""

    def __init__(self, backend: EncryptedBackend, *, adopts_plaintext: bool) -> None:
        self._backend = backend
        self._adopts_plaintext = adopts_plaintext
        self._named: set[UUID] = set()  # in the log; each round meets them again

    async def run(self) -> AsyncIterator[Progress]:
        """Re-encrypt until two whole rounds find nothing more to do. Yields the progress after each batch.

        Raises:
            Unavailable: somebody keeps writing with an older key; what was done stays done.
        """
        total = in_order = 0
        for _ in range(_ROUNDS):
            progress = Progress(rewritten=total)
            async for ids in self._backend.all_ids():
                for session_id in ids:
                    await self._rewrite(session_id, progress)
                yield progress
            in_order = in_order + 1 if progress.rewritten == total else 0
            if in_order == _LAST_ROUNDS:
                break
            total = progress.rewritten
        else:
            raise Unavailable("the key rotation", "a process with an older key file keeps writing with an older key")
        if self._adopts_plaintext:
            progress.kept_copies = await self._backend.scrub()
        yield progress

    async def _rewrite(self, session_id: UUID, progress: Progress) -> None:
        cipher = self._backend.cipher.of(session_id)
        found_clear: set[UUID] = set()

        def rewriting(record: SessionRecord) -> Texts | None:
            if not self._adopts_plaintext and _is_in_clear(record):
                found_clear.add(session_id)
                return None
            return _new_texts(cipher, record)

        progress.looked_at += 1
        try:
            progress.rewritten += await self._backend.rewrite(session_id, rewriting)
        except (CorruptRecord, MissingKey, SchemaTooNew) as exc:
            progress.unreadable += 1
            if session_id not in self._named:
                self._named.add(session_id)
                _log.warning("session_not_reencrypted", session_id=str(session_id), problem=str(exc))
        progress.in_clear += len(found_clear)


async def key_usage(backend: EncryptedBackend) -> Counter[str]:
    """How many sessions need each key, by its id; under the empty id, those with values in plaintext."""
    usage: Counter[str] = Counter()

    def count(record: SessionRecord) -> None:
        usage.update({sealed.key_id_of(text) or "" for text in _texts_of(record)})

    async for ids in backend.all_ids():
        for session_id in ids:
            try:
                await backend.rewrite(session_id, count)
            except (CorruptRecord, SchemaTooNew) as exc:
                _log.warning("session_not_counted", session_id=str(session_id), problem=str(exc))
    return usage


def _texts_of(record: SessionRecord) -> list[str]:
    """Every value of a session as it is stored; an empty text for a query in plaintext."""
    entries = [text for texts in record.entries.values() for text in texts.values()]
    return entries + [sealed.text_in(query.get("parameters")) or "" for query in queries_of(record)]


def _is_in_clear(record: SessionRecord) -> bool:
    return any(sealed.key_id_of(text) is None for text in _texts_of(record))


def _new_texts(cipher: SessionCipher, record: SessionRecord) -> Texts | None:
    check_format(record.header.format)
    if all(cipher.is_current(text) for text in _texts_of(record)):
        return None
    entries = {
        name: {key: _new_entry(cipher, name, key, text) for key, text in texts.items()}
        for name, texts in record.entries.items()
    }
    queries = [cipher.seal_query(_decoded(cipher, query)) for query in queries_of(record)]
    return Texts(entries, [(query.id, query.text) for query in queries])


def _new_entry(cipher: SessionCipher, name: str, key: str, text: str) -> str:
    return cipher.seal_entry(name, key, cipher.open_entry(name, key, text) if sealed.is_sealed(text) else text)


def _decoded(cipher: SessionCipher, query: dict[str, Any]) -> QueryRecord:
    try:
        if sealed.text_in(query.get("parameters")) is not None:
            query = json.loads(cipher.open_query(query))
        return QueryRecord.from_dict(query)
    except DAMAGE as exc:
        raise corrupt(cipher.record, exc) from exc
