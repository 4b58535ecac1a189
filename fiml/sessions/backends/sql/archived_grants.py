"""Whom archived sessions are shared with, in SQL. The functions run in the caller's transaction."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    case,
    false,
    func,
    or_,
    select,
    text,
    true,
    update,
)

from fiml.core.errors import SessionConflict
from fiml.db.dialects import is_postgresql, json_members
from fiml.db.tables import sessions
from fiml.sessions import stored_json
from fiml.sessions.audit import longer_trail
from fiml.sessions.records import decoding, format_when_written
from fiml.sessions.rights import Caller, GrantChange, Grants, ShareRules, act_of, changed, decode_grants


def seen_by(connection: Connection, caller: Caller) -> ColumnElement[bool]:
    """The condition that a session is the caller's own, or shared with the caller."""
    if caller.user is None:
        return true()
    return or_(sessions.c.user_id == caller.user, given_to(connection, caller.user))


def given_to(connection: Connection, user_id: str) -> ColumnElement[bool]:
    """The condition that a session is shared with a user."""
    return _has(connection, f"s:{user_id}")


@dataclass(frozen=True, slots=True)
class EndedSession:
    """As much of an archived session as sharing it needs."""

    id: UUID
    owner: str | None
    grants: Grants
    trail: str
    version: int
    format: int


def find(connection: Connection, session_id: UUID, change: GrantChange, caller: Caller) -> EndedSession | None:
    """An archived session that the caller sees, or for which the caller redeems a code."""
    is_seen = seen_by(connection, caller)
    if change.what == "redeem":
        is_seen = or_(is_seen, *(_has(connection, f"{letter}:{change.field}") for letter in "ve"))
    columns = (sessions.c.user_id, sessions.c.grants, sessions.c.trail, sessions.c.version, sessions.c.format)
    row = connection.execute(select(*columns).where(sessions.c.id == session_id, is_seen)).one_or_none()
    if row is None:
        return None
    record = f"archived session {session_id}"
    with decoding(record, row.format):
        grants = decode_grants(record, row.grants)
        version, number = msgspec.convert((row.version, row.format), tuple[int, int])
    return EndedSession(session_id, row.user_id, grants, row.trail, version, number)


def share(connection: Connection, ended: EndedSession, change: GrantChange, rules: ShareRules) -> Grants | None:
    """As `Backend.share`, for an archived session that `find` found.

    Raises:
        SessionConflict: the session has changed since then, or is gone.
        SchemaTooNew: a later fiml wrote it.
    """
    after = changed(ended.id, ended.owner, ended.grants, ended.version, change, rules)
    if after is None or after == ended.grants:
        return after
    entry = act_of(change, rules.caller, rules.now).at_version(ended.version + 1)
    new = {
        "grants": stored_json.json_of(after),
        "trail": longer_trail(ended.trail, entry),
        "version": ended.version + 1,
        "format": format_when_written(ended.format),
    }
    row = and_(sessions.c.id == ended.id, sessions.c.version == ended.version)
    if connection.execute(update(sessions).where(row).values(new)).rowcount == 0:
        raise SessionConflict(ended.id, expected=ended.version, actual=0)
    return after


def given_ids(connection: Connection, user_id: str) -> set[UUID]:
    """Every archived session that is shared with a user."""
    return set(connection.scalars(select(sessions.c.id).where(given_to(connection, user_id))))


def among_given(connection: Connection, statement: Select[Any], user_id: str) -> Select[Any]:
    """A statement over `sessions`, restricted to those that are shared with a user.

    Without the materialized part, PostgreSQL would scan all sessions in order rather than sort the few that its index
    finds.
    """
    if not is_postgresql(connection):
        return statement.where(given_to(connection, user_id))
    given = select(sessions.c.id).where(given_to(connection, user_id)).cte("given").prefix_with("MATERIALIZED")
    return statement.where(sessions.c.id.in_(select(given.c.id)))


def _has(connection: Connection, field: str) -> ColumnElement[bool]:
    if is_postgresql(connection):
        return sessions.c.grants.op("?", is_comparison=True)(bindparam(None, field, Text))
    members = json_members(connection, sessions.c.grants)
    has_it = select(members.c.key).where(members.c.key == field).exists()
    # The first term matches a partial index, of sessions with any grants. CASE, since a damaged value isn't JSON.
    return and_(text("sessions.grants <> '{}'"), case((func.json_valid(sessions.c.grants) == 1, has_it), else_=false()))
