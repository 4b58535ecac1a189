"""SQLAlchemy's dialect for asyncpg, with a ping of one round trip."""

from typing import Any

from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg


class AsyncpgDialect(PGDialect_asyncpg):
    """Pings outside a transaction, in one round trip.

    SQLAlchemy's own dialect begins a transaction for the ping and rolls it back, which takes three. It does so for
    poolers such as PgBouncer, which may choose another server for each transaction.
    """

    supports_statement_cache = True

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Whether an idle connection still works."""
        dbapi_connection.autocommit = True
        try:
            dbapi_connection.ping()
        finally:
            dbapi_connection.autocommit = False
        return True
