"""Who does which job of the maintenance, and when it was done last, in SQL. Each function is one transaction."""

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
    """Take a job that was last done before a moment and that nobody has in hand."""
    connection.execute(insert_into(connection, maintenance_jobs).values(name=name).on_conflict_do_nothing())
    until = now + hold_for
    # Times far in the future come from a clock that has jumped back since; those just ahead from another's clock, or
    # from one who was faster while we waited for our turn.
    is_ahead, is_held_ahead = _columns.finished_at > until, _columns.held_until > until + hold_for
    is_due = or_(_columns.finished_at.is_(None), _columns.finished_at < done_before, is_ahead)
    is_free = or_(_columns.held_until.is_(None), _columns.held_until <= now, is_held_ahead)
    taken = update(maintenance_jobs).where(and_(_columns.name == name, is_due, is_free))
    return connection.execute(taken.values(holder=holder, held_until=until)).rowcount == 1


def keep(connection: Connection, name: str, *, holder: str, until: datetime) -> bool:
    """Go on holding a job; `False` where somebody else has taken it."""
    mine = and_(_columns.name == name, _columns.holder == holder)
    return connection.execute(update(maintenance_jobs).where(mine).values(held_until=until)).rowcount == 1


def finish(connection: Connection, name: str, *, now: datetime, result: Mapping[str, Any]) -> None:
    """Note that a job is done, whoever did it."""
    done = {"holder": None, "held_until": None, "finished_at": now, "result": json.dumps(dict(result))}
    insert = insert_into(connection, maintenance_jobs).values(name=name, **done)
    connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=done))


def let_go(connection: Connection, name: str, *, holder: str) -> None:
    """Leave a job that is not done to the next one who asks."""
    mine = and_(_columns.name == name, _columns.holder == holder)
    connection.execute(update(maintenance_jobs).where(mine).values(holder=None, held_until=None))
