"""What the maintenance needs: rollups, holds, quarantine and the state of its jobs; more figures of a session."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002_0.2.0"
down_revision = "0001"

json_type = sa.JSON().with_variant(JSONB(), "postgresql")
moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    _add_figures()
    _create_rollups()
    op.create_table(
        "session_holds",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("held_at", moment, nullable=False),
    )
    op.create_table(
        "session_quarantine",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.String(255)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("quarantined_at", moment, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_index("session_quarantine_by_time", "session_quarantine", ["quarantined_at", "id"])
    op.create_table(
        "maintenance_jobs",
        sa.Column("name", sa.String(50), primary_key=True),
        sa.Column("holder", sa.String(100)),
        sa.Column("held_until", moment),
        sa.Column("finished_at", moment),
        sa.Column("result", json_type),
    )


def _add_figures() -> None:
    for column in (
        sa.Column("tags", json_type, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("cache_hits", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("time_histogram", json_type, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("queries_by_day", json_type, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("format", sa.Integer, nullable=False, server_default=sa.text("1")),
    ):
        op.add_column("session_metrics", column)
    if op.get_bind().dialect.name == "sqlite":
        for name in ("time_histogram", "queries_by_day"):
            op.add_column("active_sessions", sa.Column(name, sa.Text, nullable=False, server_default=sa.text("'{}'")))


def _create_rollups() -> None:
    numbers = ("sessions", "ended", "queries", "cache_hits", "duration_seconds", "abandoned")
    maps = ("assets", "tags", "query_types", "time_histogram", "queries_by_day")
    op.create_table(
        "session_rollups",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("everybody", sa.Boolean, nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("session_type", sa.String(50), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in numbers),
        *(sa.Column(name, json_type, nullable=False) for name in maps),
    )
    op.create_index("session_rollups_by_user", "session_rollups", ["user_id", "everybody", "day"])
    op.create_index("session_rollups_by_day", "session_rollups", ["day"])
    op.create_table(
        "rollup_marks", sa.Column("id", sa.Integer, primary_key=True), sa.Column("day", sa.Date, nullable=False)
    )
    op.create_index("rollup_marks_by_day", "rollup_marks", ["day"])
    # The metrics that are there already have no rollups yet.
    day = "(created_at AT TIME ZONE 'UTC')::date" if op.get_bind().dialect.name == "postgresql" else "date(created_at)"
    op.execute(f"INSERT INTO rollup_marks (day) SELECT DISTINCT {day} FROM session_metrics")  # noqa: S608  constants
