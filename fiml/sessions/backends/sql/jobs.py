"""Which process holds which maintenance job, and when it was last done, in SQL. Each function is one transaction."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, or_, update

from fiml.db.dialects import insert_into
from fiml.db.tables import maintenance_jobs

_columns = maintenance_jobs.c


def claim(
    connection: Connection, name: str, *, holder: str, now: datetime, done_before: datetime, hold_for: timedelta
) -> bool:
    """Take a job, if it was last done before a moment and nobody holds it; whether it was taken."""
    connection.execute(insert_into(connection, maintenance_jobs).values(name=name).on_conflict_do_nothing())
    until = now + hold_for
    # A time far in the future was written by a clock that has been set back since, and doesn't count. A time just ahead
    # comes from a process with another clock, or from one that was faster while we waited for the row.
    is_ahead, is_held_ahead = _columns.finished_at > until, _columns.held_until > until + hold_for
    is_due = or_(_columns.finished_at.is_(None), _columns.finished_at < done_before, is_ahead)
    is_free = or_(_columns.held_until.is_(None), _columns.held_until <= now, is_held_ahead)
    taken = update(maintenance_jobs).where(and_(_columns.name == name, is_due, is_free))
    return connection.execute(taken.values(holder=holder, held_until=until)).rowcount == 1


def keep(connection: Connection, name: str, *, holder: str, until: datetime) -> bool:
    """Keep holding a job; `False` if another process has taken it."""
    mine = and_(_columns.name == name, _columns.holder == holder)
    return connection.execute(update(maintenance_jobs).where(mine).values(held_until=until)).rowcount == 1


def finish(connection: Connection, name: str, *, now: datetime, result: Mapping[str, Any]) -> None:
    """Record that a job is done, whoever held it."""
    done = {"holder": None, "held_until": None, "finished_at": now, "result": json.dumps(dict(result))}
    insert = insert_into(connection, maintenance_jobs).values(name=name, **done)
    connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=done))


def let_go(connection: Connection, name: str, *, holder: str) -> None:
    """Release a job that is not done, so that the next process can take it."""
    mine = and_(_columns.name == name, _columns.holder == holder)
    connection.execute(update(maintenance_jobs).where(mine).values(holder=None, held_until=None))
