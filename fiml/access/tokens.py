"""Tokens for small teams, stored in the database as digests."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, select, update

from fiml.access.principals import (
    MAX_USER_CHARACTERS,
    TOKEN_PREFIX,
    Principal,
    Scope,
    is_user,
    known_scopes,
    parse_scopes,
)
from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.deadlines import answer_within
from fiml.core.errors import InvalidInput, echo
from fiml.db.lazy import Database, LazyDatabase, database_of
from fiml.db.tables import access_tokens

MAX_DAYS = 366
# How long a process trusts a token without looking it up again: a revocation takes effect everywhere within this time.
KNOWN_FOR = timedelta(seconds=30)
MAX_KNOWN = 10_000
LOOKUP_TIMEOUT_S = 2.0
MAX_LISTED = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A token's record; the token itself is shown once, when it is issued, and never stored."""

    id: UUID
    user_id: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None

    @property
    def is_valid(self) -> bool:
        """Whether the token is accepted now."""
        return self.revoked_at is None and clock.now() < self.expires_at


class AccessTokens:
    """The tokens of an installation. The database is opened at the first call, and closed by `aclose`."""

    def __init__(self, database: Database) -> None:
        self._database = LazyDatabase(database)
        self._known: dict[str, tuple[datetime, IssuedToken]] = {}

    async def issue(self, user_id: str, *, scopes: Iterable[str], days: int) -> tuple[str, IssuedToken]:
        """A new token, which can't be shown again, and its record.

        Raises:
            InvalidInput: the user's name is not valid, a scope is unknown or missing, or the days are out of bounds.
        """
        if not is_user(user_id):
            valid = f"give 1 to {MAX_USER_CHARACTERS} printable characters"
            raise InvalidInput("user", f"{echo(user_id)} is not a user", valid)
        if not 1 <= days <= MAX_DAYS:
            raise InvalidInput("days", f"is {days}", f"give 1 to {MAX_DAYS}")
        wanted = parse_scopes(scopes)
        if not wanted:
            raise InvalidInput("scope", "is missing", f"give some of {', '.join(Scope)}")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        now = clock.now()
        issued = IssuedToken(
            id=uuid4(),
            user_id=user_id,
            scopes=wanted,
            created_at=now,
            expires_at=now + timedelta(days=days),
            revoked_at=None,
        )
        await self._database.transact(lambda connection: connection.execute(insert(access_tokens), _row(issued, token)))
        return token, issued

    async def list_tokens(self) -> list[IssuedToken]:
        """The tokens, newest first, including expired and revoked ones; at most 500."""
        newest = select(access_tokens).order_by(access_tokens.c.created_at.desc(), access_tokens.c.id).limit(MAX_LISTED)
        return await self._database.view(
            lambda connection: [_issued(row) for row in connection.execute(newest).mappings()]
        )

    async def revoke(self, token_id: UUID) -> bool:
        """Revoke a token, everywhere within thirty seconds; `False` if it doesn't exist or is revoked already."""
        row = (access_tokens.c.id == token_id) & access_tokens.c.revoked_at.is_(None)
        statement = update(access_tokens).where(row).values(revoked_at=clock.now())
        return await self._database.transact(lambda connection: connection.execute(statement).rowcount > 0)

    async def principal_of(self, token: str) -> Principal | None:
        """The principal that a token identifies; `None` if the token isn't accepted."""
        digest = _digest(token)
        looked_at, issued = self._known.get(digest, (None, None))
        if not clock.is_within(KNOWN_FOR, since=looked_at):
            issued = await self._find(digest)
            self._remember(digest, issued)
        return Principal(issued.user_id, issued.scopes) if issued is not None and issued.is_valid else None

    async def aclose(self) -> None:
        """Close the database."""
        await self._database.close()

    async def _find(self, digest: str) -> IssuedToken | None:
        wanted = select(access_tokens).where(access_tokens.c.digest == digest)
        async with answer_within(LOOKUP_TIMEOUT_S, "the database of tokens"):
            row = await self._database.view(lambda connection: connection.execute(wanted).mappings().one_or_none())
        return None if row is None else _issued(row)

    def _remember(self, digest: str, issued: IssuedToken | None) -> None:
        # Unknown tokens are not remembered: guesses would displace the known ones.
        if issued is not None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[digest] = (clock.now(), issued)


def open_tokens(settings: Settings) -> AccessTokens:
    """The tokens of the settings' database; it is opened at the first call."""
    return AccessTokens(database_of(settings))


def _digest(token: str) -> str:
    # A token is 32 random bytes, which can't be guessed: a slow hash would add nothing.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _row(issued: IssuedToken, token: str) -> dict[str, Any]:
    return {
        "id": issued.id,
        "digest": _digest(token),
        "user_id": issued.user_id,
        "scopes": " ".join(sorted(issued.scopes)),
        "created_at": issued.created_at,
        "expires_at": issued.expires_at,
        "revoked_at": None,
    }


def _issued(row: Any) -> IssuedToken:
    return IssuedToken(
        id=row["id"],
        user_id=row["user_id"],
        scopes=known_scopes(row["scopes"].split()),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
