"""Who may do what with a session: its owner, the users it is shared with, and holders of a share code."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import NoReturn
from uuid import UUID

import msgspec

from fiml.core.clock import from_micros, to_micros
from fiml.core.errors import CorruptRecord, InvalidInput, NotPermitted, echo
from fiml.sessions.audit import Act, refuse_more_changes
from fiml.sessions.damage import DAMAGE

MAX_SHARES = 100
MAX_CODES = 20
CODE_PREFIX = "share_"

Grants = dict[str, int]
"""Whom a session is shared with, as it is stored: `s:` and a user -> the user's right; `v:` or `e:` and the digest of a
code, for a viewer or an editor -> the microsecond at which the code expires."""


GRANT_LETTERS = "sve"


class Role(StrEnum):
    """What a user may do with a shared session: read it, or also write, extend, resume and close it."""

    VIEWER = "viewer"
    EDITOR = "editor"

    @classmethod
    def parse(cls, value: object) -> "Role":
        """A role by its name.

        Raises:
            InvalidInput: there is no such role.
        """
        if isinstance(value, str) and value in cls.__members__.values():
            return cls(value)
        raise InvalidInput("role", f"{echo(value)} is unknown", f"valid values are {', '.join(cls)}")


class Right(IntEnum):
    """The right that an operation needs; a greater right includes the lesser ones."""

    READ = 1
    WRITE = 2
    OWN = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `user` sees the sessions that it owns or that are shared with it; `None` sees all.

    `name` is the caller in the audit trail.
    """

    user: str | None = None
    name: str | None = None


ANYBODY = Caller()
"""The caller that sees everything: trusted code, and the local user."""

_RIGHTS = {Role.VIEWER: Right.READ, Role.EDITOR: Right.WRITE}
_ROLES = {right: role for role, right in _RIGHTS.items()}
_CODE_LETTERS = {Role.VIEWER: "v", Role.EDITOR: "e"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A user with whom a session is shared."""

    user_id: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareCode:
    """A code that gives a role to the first user who redeems it; `code` is known only when it is created."""

    id: str
    role: Role
    expires_at: datetime
    code: str | None = None


@dataclass(frozen=True, slots=True)
class GrantChange:
    """A change to a session's grants: `what` is `set` or `drop` of a field, or `redeem` of a code's digest."""

    what: str
    field: str
    value: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRules:
    """What a change to grants must respect, checked in the same step as the change."""

    now: datetime
    max_changes: int
    caller: Caller = ANYBODY


def right_of(owner: str | None, grants: Mapping[str, int], caller: Caller) -> Right | None:
    """What a caller may do with a session; `None` if the caller doesn't see it."""
    if caller.user is None or caller.user == owner:
        return Right.OWN
    held = grants.get(f"s:{caller.user}")
    return None if held is None else Right(held)


def demand(session_id: UUID, held: Right, needed: Right) -> None:
    """Refuse an operation that needs more than the held right.

    Raises:
        NotPermitted: the held right is less than the needed one.
    """
    if held >= needed:
        return
    if needed is Right.OWN:
        raise NotPermitted(f"session {session_id} belongs to another user", "ask its owner: nobody else may do this")
    raise NotPermitted(
        f"session {session_id} was shared with you for reading only", "ask its owner for the role editor"
    )


def give(user_id: str, role: Role) -> GrantChange:
    """Give a role to a user, replacing the one the user may have."""
    return GrantChange("set", f"s:{user_id}", int(_RIGHTS[role]))


def take_back(user_id: str) -> GrantChange:
    """Take a user's role back."""
    return GrantChange("drop", f"s:{user_id}")


def new_code(role: Role, expires_at: datetime) -> tuple[GrantChange, ShareCode]:
    """A new code for a role, which can be redeemed until a time: what to store of it, and the code."""
    code = CODE_PREFIX + secrets.token_urlsafe(24)
    digest = digest_of(code)
    change = GrantChange("set", f"{_CODE_LETTERS[role]}:{digest}", to_micros(expires_at))
    return change, ShareCode(id=digest, role=role, expires_at=expires_at, code=code)


def take_back_code(code: ShareCode) -> GrantChange:
    """Revoke a code."""
    return GrantChange("drop", f"{_CODE_LETTERS[code.role]}:{code.id}")


def redeem(code: str) -> GrantChange:
    """Give the caller the role of a code, and use the code up."""
    return GrantChange("redeem", digest_of(code))


def digest_of(code: str) -> str:
    """The digest of a code, which is all that is stored: whoever reads the store can't redeem it."""
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def user_given(change: GrantChange) -> str | None:
    """The user that a change is about; `None` if it is about a code."""
    return change.field[2:] if change.field.startswith("s:") else None


def act_of(change: GrantChange, caller: Caller, now: datetime) -> Act:
    """A change to grants as an entry of the audit trail."""
    did = {"set": "share", "drop": "revoke", "redeem": "redeem"}[change.what]
    user_id = user_given(change)
    if user_id is not None:
        detail = {"with": user_id} | ({"role": _ROLES[Right(change.value)].value} if change.what == "set" else {})
    else:
        detail = {"code": change.field.rpartition(":")[2]}
    return Act(did, caller.name, now, detail)


def users_in(grants: Mapping[str, int]) -> list[str]:
    """The users with whom a session is shared."""
    return [field[2:] for field in grants if field.startswith("s:")]


def role_in(grants: Mapping[str, int], caller: Caller) -> Role | None:
    """The caller's role; `None` if the session isn't shared with the caller."""
    held = None if caller.user is None else grants.get(f"s:{caller.user}")
    return None if held is None else _ROLES[Right(held)]


def decode_grants(record: str, stored: str) -> Grants:
    """Grants from their JSON.

    Raises:
        CorruptRecord: the JSON doesn't contain grants.
    """
    try:
        return {field: int(value) for field, value in msgspec.json.decode(stored).items()}
    except DAMAGE as exc:
        raise CorruptRecord(record, f"its grants can't be read: {exc}") from exc


def right_in(record: str, owner: str | None, stored: str, caller: Caller) -> Right | None:
    """As `right_of`, with grants in JSON. They are only decoded if the caller's right depends on them.

    Raises:
        CorruptRecord: the grants are needed, and can't be decoded.
    """
    if caller.user is None or caller.user == owner:
        return Right.OWN
    return right_of(owner, decode_grants(record, stored), caller)


def shares_in(grants: Mapping[str, int]) -> list[Share]:
    """The users with whom a session is shared, and their roles, sorted by user."""
    return [Share(user_id=user, role=_ROLES[Right(grants[f"s:{user}"])]) for user in sorted(users_in(grants))]


def codes_in(grants: Mapping[str, int], now: datetime) -> list[ShareCode]:
    """The codes that can be redeemed, the first to expire first."""
    roles = {letter: role for role, letter in _CODE_LETTERS.items()}
    codes = [
        ShareCode(id=field[2:], role=roles[field[0]], expires_at=from_micros(value))
        for field, value in grants.items()
        if field[0] in roles and value > to_micros(now)
    ]
    return sorted(codes, key=lambda code: (code.expires_at, code.id))


def changed(
    session_id: UUID, owner: str | None, grants: Mapping[str, int], version: int, change: GrantChange, rules: ShareRules
) -> Grants | None:
    """The grants of a session after a change; `None` if the caller doesn't see the session.

    `share.lua` does the same.

    Raises:
        NotPermitted: the caller is neither the owner nor giving up its own role.
        InvalidInput: there would be too many grants, or the owner would get one.
        SessionFull: the session has had too many changes. A grant can be taken back nevertheless.
    """
    after = _changed(session_id, owner, grants, change, rules)
    if after not in (None, grants) and change.what != "drop" and version >= rules.max_changes:
        refuse_more_changes(session_id, rules.max_changes)
    return after


def _changed(
    session_id: UUID, owner: str | None, grants: Mapping[str, int], change: GrantChange, rules: ShareRules
) -> Grants | None:
    held = right_of(owner, grants, rules.caller)
    if change.what == "redeem":
        return _redeemed(grants, change.field, held=held, caller=rules.caller, now=rules.now)
    if held is None:
        return None
    if not (change.what == "drop" and change.field == f"s:{rules.caller.user}"):
        demand(session_id, held, Right.OWN)
    if change.what == "drop":
        return {field: value for field, value in grants.items() if field != change.field}
    if owner is not None and change.field == f"s:{owner}":
        refuse_owner(owner)
    if grants.get(change.field) == change.value:
        return dict(grants)
    after = {field: value for field, value in grants.items() if field[0] == "s" or value > to_micros(rules.now)}
    after[change.field] = change.value
    check_count(after)
    return after


def _redeemed(
    grants: Mapping[str, int], digest: str, *, held: Right | None, caller: Caller, now: datetime
) -> Grants | None:
    for letter, right in (("e", Right.WRITE), ("v", Right.READ)):
        if grants.get(f"{letter}:{digest}", 0) > to_micros(now) and right > (held or 0):
            after = {field: value for field, value in grants.items() if field != f"{letter}:{digest}"}
            after[f"s:{caller.user}"] = int(right)
            check_count(after)
            return after
    # A caller with a role has redeemed this code before, or doesn't need it.
    return None if held is None else dict(grants)


def refuse_owner(owner: str) -> NoReturn:
    """Refuse to share a session with its owner.

    Raises:
        InvalidInput: always.
    """
    raise InvalidInput("user_id", f"{echo(owner)} owns the session", "share it with somebody else")


def check_count(grants: Mapping[str, int]) -> None:
    """Refuse too many shares or codes.

    Raises:
        InvalidInput: there are more than allowed.
    """
    users = len(users_in(grants))
    if users > MAX_SHARES:
        refuse_users(users)
    if len(grants) - users > MAX_CODES:
        refuse_codes()


def refuse_users(count: int) -> NoReturn:
    """Refuse to share a session with too many users.

    Raises:
        InvalidInput: always.
    """
    raise InvalidInput("shares", f"would be {count}", f"at most {MAX_SHARES} are allowed; revoke some")


def refuse_codes() -> NoReturn:
    """Refuse one more code.

    Raises:
        InvalidInput: always.
    """
    raise InvalidInput("share codes", "would be too many", f"at most {MAX_CODES} are allowed; revoke some")
