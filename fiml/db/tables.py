"""The tables. `sessions` and `session_metrics` follow the specification, with further columns that have defaults."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    event,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

from fiml.core.errors import CorruptRecord

Value = TypeVar("Value")

shared = MetaData()
"""Tables of both databases: ended sessions, and what remains of removed ones."""

embedded = MetaData()
"""Tables of SQLite only: live sessions, which the server deployment keeps in Redis, and the words of all sessions."""

server = MetaData()
"""Tables of PostgreSQL only: the words of ended sessions."""

# The engines take and return JSON as text (see `engines.py`), so that it isn't decoded on the way.
Json = JSON().with_variant(JSONB(), "postgresql")


class _Checked(TypeDecorator[Value]):
    """A type of which SQLite stores anything as a value: one that can't be read raises `CorruptRecord`."""

    cache_ok = True
    what = "a value"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Value | None] | None:
        read = super().result_processor(dialect, coltype)
        if read is None or dialect.name != "sqlite":
            return read

        def read_checked(value: Any) -> Value | None:
            try:
                return read(value)
            except (TypeError, ValueError) as exc:
                raise CorruptRecord("a record", f"it holds {self.what} that can't be read: {exc}") from exc

        return read_checked


class UtcDateTime(_Checked[datetime]):
    """An aware time in UTC. SQLite stores no time zone: there, times are written and read as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True
    what = "a time"

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        # Without its zone also if asyncpg reads minus infinity, as which it writes the first of all moments.
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Id(_Checked[UUID]):
    """An id."""

    impl = Uuid
    cache_ok = True
    what = "an id"


class Day(_Checked[date]):
    """A day in UTC."""

    impl = Date
    cache_ok = True
    what = "a day"


sessions = Table(
    "sessions",
    shared,
    Column("id", Id, primary_key=True),
    Column("user_id", String(255)),
    Column("type", String(50), nullable=False),
    Column("title", String(200)),
    Column("assets", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("last_accessed_at", UtcDateTime, nullable=False),
    Column("archived_at", UtcDateTime),
    Column("is_archived", Boolean, nullable=False, server_default=false()),
    Column("tags", Json, nullable=False),
    Column("context", Json, nullable=False),
    Column("preferences", Json, nullable=False),
    Column("intermediate_results", Json, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("history_queries", Json, nullable=False),
    Column("total_queries", Integer, nullable=False, server_default=text("0")),
    Column("first_query_at", UtcDateTime),
    Column("last_query_at", UtcDateTime),
    Column("cache_hit_rate", Double, nullable=False),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("format", Integer, nullable=False, server_default=text("1")),
    Column("grants", Json, nullable=False, server_default=text("'{}'")),
    Column("trail", Text, nullable=False, server_default=text("'[]'")),
    Index("sessions_by_user", "user_id", text("created_at DESC"), "id"),
    Index("sessions_by_creation", text("created_at DESC"), "id"),
    Index("sessions_by_archiving", "archived_at"),
    Index("sessions_by_grant", "grants", postgresql_using="gin").ddl_if("postgresql"),
    Index("sessions_given", text("created_at DESC"), "id", sqlite_where=text("grants <> '{}'")).ddl_if("sqlite"),
)

session_metrics = Table(
    "session_metrics",
    shared,
    Column("id", Integer, primary_key=True),
    Column("session_id", Id, nullable=False),
    Column("user_id", String(255)),
    Column("session_type", String(50), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("duration_seconds", Integer, nullable=False),
    Column("total_queries", Integer, nullable=False),
    Column("cache_hit_rate", Double, nullable=False),
    Column("avg_query_time_ms", Double),
    Column("assets_analyzed", Json, nullable=False),
    Column("query_type_summary", Json, nullable=False),
    Column("completed_normally", Boolean, nullable=False),
    Column("abandoned", Boolean, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("tags", Json, nullable=False, server_default=text("'[]'")),
    Column("cache_hits", Integer, nullable=False, server_default=text("0")),
    Column("time_histogram", Json, nullable=False, server_default=text("'{}'")),
    Column("queries_by_day", Json, nullable=False, server_default=text("'{}'")),
    Column("format", Integer, nullable=False, server_default=text("1")),
    UniqueConstraint("session_id", name="session_metrics_session_id_key"),
    Index("session_metrics_by_creation", "created_at"),
    Index("session_metrics_by_user", "user_id", "created_at"),
)

tombstones = Table(
    "session_tombstones",
    shared,
    Column("id", Id, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=False),
)

# The totals of one day's metrics, by user and type, and again over all users (`everybody`). `user_id` is empty for
# sessions without a user, and in the rows over all users.
session_rollups = Table(
    "session_rollups",
    shared,
    Column("id", Integer, primary_key=True),
    Column("day", Day, nullable=False),
    Column("everybody", Boolean, nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("session_type", String(50), nullable=False),
    Column("sessions", BigInteger, nullable=False),
    Column("ended", BigInteger, nullable=False),
    Column("queries", BigInteger, nullable=False),
    Column("cache_hits", BigInteger, nullable=False),
    Column("duration_seconds", BigInteger, nullable=False),
    Column("abandoned", BigInteger, nullable=False),
    Column("assets", Json, nullable=False),
    Column("tags", Json, nullable=False),
    Column("query_types", Json, nullable=False),
    Column("time_histogram", Json, nullable=False),
    Column("queries_by_day", Json, nullable=False),
    Index("session_rollups_by_user", "user_id", "everybody", "day"),
    Index("session_rollups_by_day", "day"),
)

# A row says that a day's metrics have changed since its rollups were computed. Rows are only added and removed, never
# updated, so that processes that archive never wait for each other.
rollup_marks = Table(
    "rollup_marks",
    shared,
    Column("id", Integer, primary_key=True),
    Column("day", Day, nullable=False),
    Index("rollup_marks_by_day", "day"),
)

# A hold applies to a session whether it is live, archived or in quarantine, and is stored here only.
session_holds = Table(
    "session_holds",
    shared,
    Column("id", Id, primary_key=True),
    Column("reason", String(500), nullable=False),
    Column("held_at", UtcDateTime, nullable=False),
)

session_quarantine = Table(
    "session_quarantine",
    shared,
    Column("id", Id, primary_key=True),
    Column("user_id", String(255)),
    Column("reason", Text, nullable=False),
    Column("quarantined_at", UtcDateTime, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("session_quarantine_by_time", "quarantined_at", "id"),
)

maintenance_jobs = Table(
    "maintenance_jobs",
    shared,
    Column("name", String(50), primary_key=True),
    Column("holder", String(100)),
    Column("held_until", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("result", Json),
)

# Sessions that must be indexed before the next search: on SQLite those that changed, on PostgreSQL those that were
# archived by a version that had no search.
search_pending = Table("search_pending", shared, Column("session_id", Id, primary_key=True))

# Tokens for small teams. Only digests are stored, so that nobody who reads the table can use a token.
access_tokens = Table(
    "access_tokens",
    shared,
    Column("id", Id, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("user_id", String(255), nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
)

# The second cache, of answers from live market providers. It contains nothing of a user's.
market_cache = Table(
    "market_cache",
    shared,
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),
    Column("known_at", UtcDateTime, nullable=False),
    Column("fresh_until", UtcDateTime, nullable=False),
    Column("keep_until", UtcDateTime, nullable=False),
    Index("market_cache_by_keeping", "keep_until"),
)

# In the tables of live sessions, times are microseconds since 1970 in UTC, ids 32 hexadecimal digits, and JSON is text.
active_sessions = Table(
    "active_sessions",
    embedded,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(255)),
    Column("type", String(50), nullable=False),
    Column("title", String(200)),
    Column("assets", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("last_accessed_at", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("total_queries", Integer, nullable=False),
    Column("cache_hits", Integer, nullable=False),
    Column("first_query_at", BigInteger),
    Column("last_query_at", BigInteger),
    Column("query_types", Text, nullable=False),
    Column("timed_queries", Integer, nullable=False),
    Column("total_time_ms", Double, nullable=False),
    Column("maps_bytes", Integer, nullable=False),
    Column("history_bytes", Integer, nullable=False),
    Column("format", Integer, nullable=False),
    Column("time_histogram", Text, nullable=False, server_default=text("'{}'")),
    Column("queries_by_day", Text, nullable=False, server_default=text("'{}'")),
    Column("grants", Text, nullable=False, server_default=text("'{}'")),
    Index("active_sessions_by_user", "user_id", text("created_at DESC"), "id"),
    Index("active_sessions_by_creation", text("created_at DESC"), "id"),
    Index("active_sessions_by_expiry", "expires_at"),
    Index("active_sessions_given", text("created_at DESC"), "id", sqlite_where=text("grants <> '{}'")),
)

active_entries = Table(
    "active_entries",
    embedded,
    Column("session_id", String(32), primary_key=True),
    Column("map", String(20), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

active_queries = Table(
    "active_queries",
    embedded,
    Column("n", Integer, primary_key=True),
    Column("session_id", String(32), nullable=False),
    Column("id", String(32), nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("session_id", "id", name="active_queries_once"),
    Index("active_queries_in_order", "session_id", "n"),
)

active_trail = Table(
    "active_trail",
    embedded,
    Column("n", Integer, primary_key=True),
    Column("session_id", String(32), nullable=False),
    Column("entry", Text, nullable=False),
    Index("active_trail_in_order", "session_id", "n"),
)

session_words = Table(
    "session_words",
    embedded,
    Column("id", Integer, primary_key=True),
    Column("session_id", String(32), nullable=False, unique=True),
    Column("words", Text, nullable=False),
)

# Changed sessions are indexed when somebody searches, so that tracking a query costs no full-text work. OR IGNORE would
# have no effect here: the conflict clause of the statement that fires a trigger overrides the trigger's own.
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
"""SQLite's full-text index over `session_words`. Triggers keep both in step with the sessions."""

for _statement in FULL_TEXT:
    event.listen(session_words, "after_create", DDL(_statement))  # type: ignore[no-untyped-call]  # as SQLAlchemy has it

session_search = Table(
    "session_search",
    server,
    Column("session_id", Id, ForeignKey(sessions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("words", TSVECTOR, nullable=False),
    Index("session_search_by_word", "words", postgresql_using="gin"),
)
