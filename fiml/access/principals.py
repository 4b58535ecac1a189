"""A principal, and what it may do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fiml.core.errors import InvalidInput, NotPermitted, echo


class Scope(StrEnum):
    """What a token lets its holder do. `admin` sees every user's sessions."""

    SESSIONS_READ = "sessions:read"
    SESSIONS_WRITE = "sessions:write"
    MARKET_READ = "market:read"
    ADMIN = "admin"


MAX_USER_CHARACTERS = 255
# fiml's own tokens begin with this; signed tokens never do.
TOKEN_PREFIX = "fiml_"  # noqa: S105 - no secret
USUAL_SCOPES = (Scope.SESSIONS_READ, Scope.SESSIONS_WRITE, Scope.MARKET_READ)


@dataclass(frozen=True, slots=True)
class Principal:
    """In whose name a call is made: a user with scopes. The local user has no `user_id`, and may do everything."""

    user_id: str | None
    scopes: frozenset[Scope]

    @property
    def owner(self) -> str | None:
        """The user whose sessions the principal sees; `None` if it sees everybody's."""
        return None if Scope.ADMIN in self.scopes else self.user_id

    def may(self, scope: Scope) -> bool:
        """Whether the principal has a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def check(self, *needed: Scope) -> None:
        """Demand scopes.

        Raises:
            NotPermitted: one is missing; the message names it.
        """
        for scope in needed:
            if not self.may(scope):
                raise NotPermitted(f"this token lacks the scope {scope}", "ask for a token that has it")


def is_user(name: str) -> bool:
    """Whether a name may be a user's: not blank, at most 255 characters, all of them printable."""
    return bool(name.strip()) and len(name) <= MAX_USER_CHARACTERS and name.isprintable()


LOCAL_USER = Principal(None, frozenset(Scope))


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by their names.

    Raises:
        InvalidInput: there is no such scope.
    """
    found = set()
    for name in names:
        if name not in Scope.__members__.values():
            raise InvalidInput("scope", f"{echo(name)} is unknown", f"valid values are {', '.join(Scope)}")
        found.add(Scope(name))
    return frozenset(found)


def known_scopes(names: Iterable[object]) -> frozenset[Scope]:
    """The scopes among the names in a token; other names are ignored, and permit nothing."""
    return frozenset(Scope(name) for name in names if isinstance(name, str) and name in Scope.__members__.values())
