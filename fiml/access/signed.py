"""Signed tokens (JWT) of an identity provider."""

import math
from typing import Any

import jwt
from jwt.exceptions import PyJWTError

from fiml.access.keys import IssuerKeys
from fiml.access.principals import Principal, Scope, is_user, known_scopes
from fiml.core import clock
from fiml.core.config import Settings

MAX_TOKEN_CHARACTERS = 16_384
# The last one: PyJWT before 2.14 doesn't catch the RecursionError of a header that is nested too deeply for `json`.
_NOT_TO_BE_TRUSTED = (PyJWTError, ValueError, TypeError, LookupError, RecursionError)


class SignedTokens:
    """Verifies tokens: signature (with pinned algorithms), issuer, audience, times (with a leeway) and subject.

    Raises:
        Misconfigured: from the constructor, when the file of keys can't be read.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.auth_jwks is not None  # noqa: S101 - the settings have all three or none
        self._settings = settings
        self._keys = IssuerKeys(settings.auth_jwks)

    async def principal_of(self, token: str) -> Principal | None:
        """The principal that a token identifies; `None` if the token can't be trusted.

        Raises:
            Unavailable: the token's key isn't known, and the issuer's keys can't be fetched.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        try:
            header = jwt.get_unverified_header(token)
            # The header doesn't choose the algorithm: only pinned ones are used, and only with keys of their kind.
            if header.get("alg") not in self._settings.signature_algorithms:
                return None
            claims = self._claims(token, await self._keys.key_of(header.get("kid")))
        except _NOT_TO_BE_TRUSTED:
            return None
        subject = claims.get("sub")
        if not self._is_time(claims) or not isinstance(subject, str) or not is_user(subject):
            return None
        return Principal(subject, _scopes(claims))

    async def aclose(self) -> None:
        """Stop fetching keys."""
        await self._keys.aclose()

    def _claims(self, token: str, key: Any) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=self._settings.signature_algorithms,
            issuer=self._settings.auth_issuer,
            audience=self._settings.auth_audience,
            options={
                "require": ["exp", "iss", "aud", "sub"],
                # Checked below, with fiml's clock.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
        return claims

    def _is_time(self, claims: dict[str, Any]) -> bool:
        now, leeway = clock.now().timestamp(), self._settings.auth_leeway_seconds
        expires, begins = _number(claims.get("exp")), _number(claims.get("nbf", claims.get("iat", 0)))
        return expires is not None and begins is not None and begins - leeway <= now < expires + leeway


def _scopes(claims: dict[str, Any]) -> frozenset[Scope]:
    """The known scopes in the claim `scope` (separated by blanks) or `scp` (a list)."""
    given = claims.get("scope", claims.get("scp", ""))
    return known_scopes(given.split(" ") if isinstance(given, str) else given if isinstance(given, list) else [])


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
