"""Whom sessions are given to, and their audit trails."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004_0.4.0"
down_revision = "0003_0.3.0"

Json = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("sessions", sa.Column("grants", Json, nullable=False, server_default=sa.text("'{}'")))
    op.add_column("sessions", sa.Column("trail", sa.Text, nullable=False, server_default=sa.text("'[]'")))
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("sessions_by_grant", "sessions", ["grants"], postgresql_using="gin")
        return
    given = sa.text("grants <> '{}'")
    op.create_index("sessions_given", "sessions", [sa.text("created_at DESC"), "id"], sqlite_where=given)
    op.add_column("active_sessions", sa.Column("grants", sa.Text, nullable=False, server_default=sa.text("'{}'")))
    op.create_index("active_sessions_given", "active_sessions", [sa.text("created_at DESC"), "id"], sqlite_where=given)
    op.create_table(
        "active_trail",
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("session_id", sa.String(32), nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
    )
    op.create_index("active_trail_in_order", "active_trail", ["session_id", "n"])
