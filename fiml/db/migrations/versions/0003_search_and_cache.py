"""Full-text search over sessions, the second cache of market answers, and access tokens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0003_0.3.0"
down_revision = "0002_0.2.0"

moment = sa.DateTime(timezone=True)

# What changed is indexed when somebody searches: a tracked query costs no full text. No OR IGNORE, since the statement
# that fires a trigger decides on conflicts.
_PENDING = (
    "CREATE TRIGGER {name} AFTER {event} BEGIN INSERT INTO search_pending (session_id)"
    " SELECT {id} WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = {id}); END"
)
_NAMES_CHANGED = (
    "old.title IS NOT new.title OR old.assets <> new.assets OR old.tags <> new.tags OR old.type <> new.type"
)
FULL_TEXT = (
    "CREATE VIRTUAL TABLE session_fts USING fts5(words, content='session_words', content_rowid='id',"
    " tokenize='unicode61 remove_diacritics 0')",
    "CREATE TRIGGER session_words_added AFTER INSERT ON session_words BEGIN"
    " INSERT INTO session_fts (rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER session_words_removed AFTER DELETE ON session_words BEGIN"
    " INSERT INTO session_fts (session_fts, rowid, words) VALUES ('delete', old.id, old.words); END",
    "CREATE TRIGGER session_words_of_archived AFTER DELETE ON sessions"
    " WHEN NOT EXISTS (SELECT 1 FROM active_sessions WHERE id = old.id)"
    " BEGIN DELETE FROM session_words WHERE session_id = old.id;"
    " DELETE FROM search_pending WHERE session_id = old.id; END",
    "CREATE TRIGGER session_words_of_live AFTER DELETE ON active_sessions"
    " WHEN NOT EXISTS (SELECT 1 FROM sessions WHERE id = old.id)"
    " BEGIN DELETE FROM session_words WHERE session_id = old.id;"
    " DELETE FROM search_pending WHERE session_id = old.id; END",
    *(
        _PENDING.format(name=name, event=event, id=session_id)
        for name, event, session_id in (
            ("pending_session", "INSERT ON active_sessions", "new.id"),
            ("pending_names", f"UPDATE ON active_sessions WHEN {_NAMES_CHANGED}", "new.id"),
            ("pending_query", "INSERT ON active_queries", "new.session_id"),
            ("pending_entry", "INSERT ON active_entries", "new.session_id"),
            ("pending_change", "UPDATE ON active_entries", "new.session_id"),
            ("pending_removal", "DELETE ON active_entries", "old.session_id"),
            ("pending_archived", "INSERT ON sessions", "new.id"),
        )
    ),
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
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("scopes", sa.String(200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("revoked_at", moment),
    )
    op.create_table("search_pending", sa.Column("session_id", sa.Uuid, primary_key=True))
    op.execute("INSERT INTO search_pending (session_id) SELECT id FROM sessions")
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
        sa.Column("session_id", sa.String(32), nullable=False, unique=True),
        sa.Column("words", sa.Text, nullable=False),
    )
    op.execute("INSERT OR IGNORE INTO search_pending (session_id) SELECT id FROM active_sessions")
    for statement in FULL_TEXT:
        op.execute(statement)
