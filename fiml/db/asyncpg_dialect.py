"""SQLAlchemy's dialect for asyncpg, with a ping of one round trip."""

from typing import Any

from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg


class AsyncpgDialect(PGDialect_asyncpg):
    """Pings outside a transaction. SQLAlchemy's own begins one for it and rolls it back: three trips for one.

    It does so for poolers such as PgBouncer, which may change the server with each transaction.
    """

    supports_statement_cache = True

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Whether a connection that lay idle is still good."""
        dbapi_connection.autocommit = True
        try:
            dbapi_connection.ping()
        finally:
            dbapi_connection.autocommit = False
        return True
