"""The public keys of an identity provider."""

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
from jwt.exceptions import PyJWTError

from fiml.core import clock
from fiml.core.addresses import without_secrets
from fiml.core.errors import Misconfigured, Unavailable
from fiml.core.log import get_logger

FETCH_TIMEOUT_S = 3.0
MAX_KEYS_BYTES = 256 * 1024
# Keys are fetched again after KEPT_FOR, and earlier if a token names an unknown one, but never within AGAIN_AFTER.
KEPT_FOR = timedelta(minutes=5)
AGAIN_AFTER = timedelta(seconds=30)

# The provider doesn't answer, its address is no URL to httpx, or its answer is no set of keys.
_NO_KEYS = (
    *(httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError),
    *(ValueError, TypeError, RecursionError, PyJWTError),
)

_log = get_logger()


class IssuerKeys:
    """Keys by id, from a file or an address.

    A known key is returned at once, even while the address doesn't answer. No token can make us ask the address, or
    read the file, more often than every thirty seconds.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._is_file = "://" not in location
        self._keys = _of_file(location) if self._is_file else {}
        self._fetched_at = clock.now() if self._is_file else None
        self._tried_at: datetime | None = None
        self._failed: str | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def key_of(self, key_id: object) -> Any:
        """The key with the id that a token names; if the token names none, the only key there is.

        Raises:
            LookupError: there is no such key.
            Unavailable: the key isn't known, and the address doesn't answer, or the file can't be read.
        """
        is_known = self._find(key_id) is not None
        if not is_known or not clock.is_within(KEPT_FOR, since=self._fetched_at):
            self._begin()
        if not is_known and self._fetching is not None:
            await asyncio.shield(self._fetching)
        if not is_known and self._find(key_id) is None and self._failed is not None:
            raise Unavailable("the identity provider's key set", self._failed)
        return self._known(key_id)

    async def aclose(self) -> None:
        """Cancel a fetch that is under way."""
        fetching = self._fetching
        if fetching is not None:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    def _known(self, key_id: object) -> Any:
        found = self._find(key_id)
        if found is None:
            raise LookupError("no such key")
        return found

    def _find(self, key_id: object) -> Any:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    def _begin(self) -> None:
        if self._fetching is None and not clock.is_within(AGAIN_AFTER, since=self._tried_at):
            self._tried_at = clock.now()
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                self._keys = await self._look()
            self._fetched_at, self._failed = clock.now(), None
        except _NO_KEYS as exc:
            self._failed = type(exc).__name__
            _log.warning("keys_not_fetched", address=without_secrets(self._location), problem=self._failed)
        finally:
            self._fetching = None

    async def _look(self) -> dict[str | int, Any]:
        if self._is_file:
            return await asyncio.to_thread(_read_file, self._location)
        async with httpx2.AsyncClient() as client:
            return _read(json.loads(await _fetched(client, self._location)))


async def _fetched(client: httpx2.AsyncClient, address: str) -> bytes:
    body = bytearray()
    async with client.stream("GET", address) as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > MAX_KEYS_BYTES:
                raise ValueError("too long")
    return bytes(body)


def _read_file(location: str) -> dict[str | int, Any]:
    return _read(json.loads(Path(location).read_text(encoding="utf-8")))


def _of_file(location: str) -> dict[str | int, Any]:
    try:
        return _read_file(location)
    except (OSError, ValueError, TypeError, PyJWTError) as exc:
        raise Misconfigured(
            f"FIML_AUTH_JWKS {location} is not a file of keys ({type(exc).__name__}); "
            "give a file with a JWK set, or an https:// URL"
        ) from exc


def _read(document: Any) -> dict[str | int, Any]:
    """The public signature keys of a JWK set. Shared secrets, encryption keys and unusable keys are skipped.

    RFC 7517, section 5, says to ignore keys that aren't understood.

    Raises:
        ValueError: there is no usable key.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    keys: dict[str | int, Any] = {}
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, Mapping) and _is_for_signatures(each):
            try:
                key_id = each.get("kid")
                # A key without an id gets a number, which no token names.
                keys[len(keys) if key_id is None else key_id] = jwt.PyJWK(dict(each)).key
            except (PyJWTError, ValueError, TypeError) as exc:
                _log.warning("key_passed_over", key_id=each.get("kid"), problem=type(exc).__name__)
    if not keys:
        raise ValueError("no keys")
    return keys


def _is_for_signatures(key: Mapping[str, Any]) -> bool:
    is_named = isinstance(key.get("kid"), str | None)
    return is_named and key.get("kty") in {"RSA", "EC", "OKP"} and key.get("use", "sig") == "sig" and "d" not in key
