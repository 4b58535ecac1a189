"""Full-text search over sessions, and the second cache of market answers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0003_0.3.0"
down_revision = "0002_0.2.0"

moment = sa.DateTime(timezone=True)

FULL_TEXT = (
    "CREATE VIRTUAL TABLE session_fts USING fts5(words, content='session_words', content_rowid='id',"
    " tokenize='unicode61 remove_diacritics 0')",
    "CREATE TRIGGER session_words_added AFTER INSERT ON session_words BEGIN"
    " INSERT INTO session_fts (rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER session_words_removed AFTER DELETE ON session_words BEGIN"
    " INSERT INTO session_fts (session_fts, rowid, words) VALUES ('delete', old.id, old.words); END",
    "CREATE TRIGGER session_words_changed AFTER UPDATE ON session_words BEGIN"
    " INSERT INTO session_fts (session_fts, rowid, words) VALUES ('delete', old.id, old.words);"
    " INSERT INTO session_fts (rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER session_words_of_archived AFTER DELETE ON sessions"
    " WHEN NOT EXISTS (SELECT 1 FROM active_sessions WHERE id = old.id)"
    " BEGIN DELETE FROM session_words WHERE session_id = old.id; END",
    "CREATE TRIGGER session_words_of_live AFTER DELETE ON active_sessions"
    " WHEN NOT EXISTS (SELECT 1 FROM sessions WHERE id = old.id)"
    " BEGIN DELETE FROM session_words WHERE session_id = old.id; END",
)


def upgrade() -> None:
    op.create_table(
        "market_cache",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("known_at", moment, nullable=False),
        sa.Column("fresh_until", moment, nullable=False),
        sa.Column("keep_until", moment, nullable=False),
    )
    op.create_index("market_cache_by_keeping", "market_cache", ["keep_until"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_table(
            "session_search",
            sa.Column("session_id", sa.Uuid, sa.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
            sa.Column("words", TSVECTOR, nullable=False),
        )
        op.create_index("session_search_by_word", "session_search", ["words"], postgresql_using="gin")
        return
    op.create_table(
        "session_words",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("session_id", sa.String(32), nullable=False),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.UniqueConstraint("session_id", "part", name="session_words_once"),
    )
    for statement in FULL_TEXT:
        op.execute(statement)
