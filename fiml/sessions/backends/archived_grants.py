"""Whom ended sessions are given to, in SQL. The functions run in the caller's transaction."""

import json
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
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

from fiml.db.dialects import is_postgresql, json_members
from fiml.db.tables import sessions
from fiml.sessions.audit import longer_trail
from fiml.sessions.rights import Caller, GrantChange, Grants, act_of, changed, right_of


def seen_by(connection: Connection, caller: Caller) -> ColumnElement[bool]:
    """The condition that a session is the caller's, or was given to it."""
    if caller.user is None:
        return true()
    return or_(sessions.c.user_id == caller.user, given_to(connection, caller.user))


def given_to(connection: Connection, user_id: str) -> ColumnElement[bool]:
    """The condition that a session was given to a user."""
    return _has(connection, f"s:{user_id}")


def share(
    connection: Connection, session_id: UUID, change: GrantChange, *, now: datetime, caller: Caller
) -> Grants | None:
    """As `Backend.share`, for an ended session."""
    is_seen = seen_by(connection, caller)
    if change.what == "redeem":
        is_seen = or_(is_seen, *(_has(connection, f"{letter}:{change.field}") for letter in "ve"))
    columns = (sessions.c.user_id, sessions.c.grants, sessions.c.trail, sessions.c.version)
    row = connection.execute(
        select(*columns).where(sessions.c.id == session_id, is_seen).with_for_update()
    ).one_or_none()
    if row is None:
        return None
    before: Grants = json.loads(row.grants)
    held = right_of(row.user_id, before, caller)
    after = changed(session_id, before, change, held=held, caller=caller, now=now)
    if after is not None and after != before:
        version = row.version + 1
        entry = act_of(change, caller, now).at_version(version)
        new = {"grants": json.dumps(after), "trail": longer_trail(row.trail, entry), "version": version}
        connection.execute(update(sessions).where(sessions.c.id == session_id).values(new))
    return after


def given_ids(connection: Connection, user_id: str) -> set[UUID]:
    """Every ended session that is given to a user."""
    return set(connection.scalars(select(sessions.c.id).where(given_to(connection, user_id))))


def _has(connection: Connection, field: str) -> ColumnElement[bool]:
    if is_postgresql(connection):
        return sessions.c.grants.op("?", is_comparison=True)(bindparam(None, field, Text))
    members = json_members(connection, sessions.c.grants)
    has_it = select(members.c.key).where(members.c.key == field).exists()
    # The first term lets an index have only those that are given to anybody; CASE, since what is damaged is no JSON.
    return and_(text("sessions.grants <> '{}'"), case((func.json_valid(sessions.c.grants) == 1, has_it), else_=false()))
