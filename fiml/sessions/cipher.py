"""Encrypts and decrypts the values of sessions: AES-256-GCM, a key for each session, values bound to their place."""

import json
import os
from collections import OrderedDict
from dataclasses import replace
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fiml.core.errors import CorruptRecord, MissingKey, NotEncrypted, echo
from fiml.sessions import sealed
from fiml.sessions.damage import DAMAGE, corrupt
from fiml.sessions.keyring import Key, KeyFile, Keyring
from fiml.sessions.queries import QueryRecord
from fiml.sessions.query_json import EncodedQuery, encode_sealed, history_json
from fiml.sessions.records import Entries, SessionRecord

_KEYS_REMEMBERED = 4096
_SECRET_MEMBERS = ("parameters", "result_summary", "figures")
_QUERY = "query"
# A shared encoder: `json.dumps` with arguments would make a new one for each call.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Place = tuple[str, str]
"""A map's name and a key in it, or `query` and a query's id."""


class Cipher:
    """Encrypts with the current key of a key file, and decrypts with any of its keys.

    A value is bound to the installation, the session and its place there: moved elsewhere, it can't be decrypted.
    """

    def __init__(self, keys: KeyFile, installation: str) -> None:
        self._file = keys
        self._installation = installation
        self._keyring: Keyring | None = None
        self._derived: OrderedDict[tuple[str, UUID], AESGCM] = OrderedDict()

    def of(self, session_id: UUID) -> "SessionCipher":
        """The cipher of a session, with the current content of the key file.

        Raises:
            Misconfigured: the key file is missing or not valid.
        """
        keyring = self._file.keyring()
        if keyring is not self._keyring:
            self._derived.clear()
            self._keyring = keyring
        return SessionCipher(session_id, keyring, self._installation, self._derived)

    def keyring(self) -> Keyring:
        """The current content of the key file; raises as `of`."""
        return self._file.keyring()


class SessionCipher:
    """Encrypts and decrypts the values of one session."""

    def __init__(
        self,
        session_id: UUID,
        keyring: Keyring,
        installation: str,
        derived: OrderedDict[tuple[str, UUID], AESGCM],
    ) -> None:
        self._id = session_id
        self._keyring = keyring
        self._prefix = f"{sealed.PREFIX}{installation}:{session_id.hex}"
        self._derived = derived

    @property
    def record(self) -> str:
        """How errors name the session."""
        return f"session {self._id}"

    def is_current(self, text: str) -> bool:
        """Whether a value is encrypted with the current key."""
        return sealed.key_id_of(text) == self._keyring.current.id

    def seal_entries(self, entries: Entries) -> Entries:
        """The entries of maps, encrypted."""
        return {
            name: {key: self.seal_entry(name, key, text) for key, text in texts.items()}
            for name, texts in entries.items()
        }

    def seal_entry(self, name: str, key: str, text: str) -> str:
        """The JSON of an entry, encrypted."""
        return self._seal((name, key), text)

    def seal_query(self, query: QueryRecord) -> EncodedQuery:
        """A query whose parameters, summary and figures are encrypted."""
        secret: dict[str, Any] = {"parameters": query.parameters, "result_summary": query.result_summary}
        if query.figures:
            secret["figures"] = query.figures
        return encode_sealed(query, self._seal((_QUERY, str(query.id)), _to_json(secret)[1:-1]))

    def open(self, record: SessionRecord) -> SessionRecord:
        """The session with its values decrypted.

        Raises:
            NotEncrypted: a value is in plaintext.
            MissingKey: a value is encrypted with a key that the file doesn't have.
            CorruptRecord: a value was altered, or moved here from another place.
        """
        entries = {
            name: {key: self.open_entry(name, key, text) for key, text in texts.items()}
            for name, texts in record.entries.items()
        }
        history = history_json(self.open_query(query) for query in queries_of(record))
        return replace(record, entries=entries, history=history, is_opened=True)

    def open_entry(self, name: str, key: str, text: str) -> str:
        """The JSON of an entry, decrypted; raises as `open`."""
        if not sealed.is_sealed(text):
            raise NotEncrypted(self.record, _shown((name, key)))
        return self._open((name, key), text)

    def open_query(self, query: dict[str, Any]) -> str:
        """The JSON of a query, decrypted; raises as `open`."""
        place = (_QUERY, str(query.get("id")))
        text = sealed.text_in(query.get("parameters"))
        if text is None or query.get("result_summary") is not None or query.get("figures") is not None:
            raise NotEncrypted(self.record, _shown(place))
        clear = {name: value for name, value in query.items() if name not in _SECRET_MEMBERS}
        return f"{_to_json(clear)[:-1]},{self._open(place, text)}}}"

    def _seal(self, place: Place, text: str) -> str:
        key = self._keyring.current
        nonce = os.urandom(sealed.NONCE_BYTES)
        encrypted = self._derive(key).encrypt(nonce, text.encode(), self._bound_to(place))
        return sealed.to_text(key.id, nonce + encrypted)

    def _open(self, place: Place, text: str) -> str:
        try:
            key_id, found = sealed.parse(text)
        except ValueError as exc:
            raise CorruptRecord(self.record, f"{_shown(place)} is damaged: {exc}") from exc
        key = self._keyring.keys.get(key_id)
        if key is None:
            raise MissingKey(self.record, key_id)
        nonce, encrypted = found[: sealed.NONCE_BYTES], found[sealed.NONCE_BYTES :]
        try:
            return self._derive(key).decrypt(nonce, encrypted, self._bound_to(place)).decode()
        except (InvalidTag, ValueError) as exc:
            raise CorruptRecord(
                self.record,
                f"{_shown(place)} can't be decrypted with the key {echo(key.id)}: it was altered or moved there from "
                "another place, or the key or FIML_INSTALLATION isn't the one it was encrypted with",
            ) from exc

    def _derive(self, key: Key) -> AESGCM:
        """The key of the session, derived so that no key encrypts enough values for two random nonces to collide."""
        known = self._derived.get((key.id, self._id))
        if known is None:
            derive = HKDF(SHA256(), length=32, salt=None, info=self._prefix.encode())
            known = self._derived[key.id, self._id] = AESGCM(derive.derive(key.secret))
            if len(self._derived) > _KEYS_REMEMBERED:
                self._derived.popitem(last=False)
        return known

    def _bound_to(self, place: Place) -> bytes:
        name, key = place
        return f"{self._prefix}:{name}:{key}".encode()  # unambiguous: only `key` may contain a colon, and it comes last


def queries_of(record: SessionRecord) -> list[dict[str, Any]]:
    """The queries of a session as they are stored.

    Raises:
        CorruptRecord: the history is not a JSON array of objects.
    """
    try:
        queries = json.loads(record.history)
    except DAMAGE as exc:
        raise corrupt(f"session {record.header.id}", exc) from exc
    if not isinstance(queries, list) or not all(isinstance(query, dict) for query in queries):
        raise CorruptRecord(f"session {record.header.id}", "its history is not a list of JSON objects")
    return queries


def _shown(place: Place) -> str:
    name, key = place
    return f"its query {key}" if name == _QUERY else f"the entry {echo(key)} of its {name}"
