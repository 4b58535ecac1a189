"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

json_type = sa.JSON().with_variant(JSONB(), "postgresql")
moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_sessions()
    _create_session_metrics()
    op.create_table(
        "session_tombstones",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("deleted_at", moment, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _create_active_tables()


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.String(255)),
        sa.Column("type", sa.String(50), nullable=False),
        sa.Column("title", sa.String(200)),
        sa.Column("assets", json_type, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("last_accessed_at", moment, nullable=False),
        sa.Column("archived_at", moment),
        sa.Column("is_archived", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("tags", json_type, nullable=False),
        sa.Column("context", json_type, nullable=False),
        sa.Column("preferences", json_type, nullable=False),
        sa.Column("intermediate_results", json_type, nullable=False),
        sa.Column("metadata", json_type, nullable=False),
        sa.Column("history_queries", json_type, nullable=False),
        sa.Column("total_queries", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("first_query_at", moment),
        sa.Column("last_query_at", moment),
        sa.Column("cache_hit_rate", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("format", sa.Integer, nullable=False, server_default=sa.text("1")),
    )
    op.create_index("sessions_by_user", "sessions", ["user_id", sa.text("created_at DESC"), "id"])
    op.create_index("sessions_by_creation", "sessions", [sa.text("created_at DESC"), "id"])
    op.create_index("sessions_by_archiving", "sessions", ["archived_at"])


def _create_session_metrics() -> None:
    op.create_table(
        "session_metrics",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("session_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("session_type", sa.String(50), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("duration_seconds", sa.Integer, nullable=False),
        sa.Column("total_queries", sa.Integer, nullable=False),
        sa.Column("cache_hit_rate", sa.Double, nullable=False),
        sa.Column("avg_query_time_ms", sa.Double),
        sa.Column("assets_analyzed", json_type, nullable=False),
        sa.Column("query_type_summary", json_type, nullable=False),
        sa.Column("completed_normally", sa.Boolean, nullable=False),
        sa.Column("abandoned", sa.Boolean, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.UniqueConstraint("session_id", name="session_metrics_session_id_key"),
    )
    op.create_index("session_metrics_by_creation", "session_metrics", ["created_at"])
    op.create_index("session_metrics_by_user", "session_metrics", ["user_id", "created_at"])


def _create_active_tables() -> None:
    op.create_table(
        "active_sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(255)),
        sa.Column("type", sa.String(50), nullable=False),
        sa.Column("title", sa.String(200)),
        sa.Column("assets", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("last_accessed_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("total_queries", sa.Integer, nullable=False),
        sa.Column("cache_hits", sa.Integer, nullable=False),
        sa.Column("first_query_at", sa.BigInteger),
        sa.Column("last_query_at", sa.BigInteger),
        sa.Column("query_types", sa.Text, nullable=False),
        sa.Column("timed_queries", sa.Integer, nullable=False),
        sa.Column("total_time_ms", sa.Double, nullable=False),
        sa.Column("maps_bytes", sa.Integer, nullable=False),
        sa.Column("history_bytes", sa.Integer, nullable=False),
        sa.Column("format", sa.Integer, nullable=False),
    )
    op.create_index("active_sessions_by_user", "active_sessions", ["user_id", sa.text("created_at DESC"), "id"])
    op.create_index("active_sessions_by_creation", "active_sessions", [sa.text("created_at DESC"), "id"])
    op.create_index("active_sessions_by_expiry", "active_sessions", ["expires_at"])
    op.create_table(
        "active_entries",
        sa.Column("session_id", sa.String(32), primary_key=True),
        sa.Column("map", sa.String(20), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "active_queries",
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("session_id", sa.String(32), nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.UniqueConstraint("session_id", "id", name="active_queries_once"),
    )
    op.create_index("active_queries_in_order", "active_queries", ["session_id", "n"])
