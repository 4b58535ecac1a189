"""A PostgreSQL database behind one pool: a call is one transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fiml.core.config import without_secrets
from fiml.core.errors import Misconfigured, RecordRefused, Unavailable
from fiml.core.observe import Timed, observed_call
from fiml.db import schema
from fiml.db.engines import postgres_engine

Result = TypeVar("Result")

# Classes of SQLSTATE: who we are, which database, and what is in it.
_CONFIGURATION = ("28", "3D", "42")
# Data, constraints and limits: what was sent is at fault, and will be at any time.
_REFUSAL = ("22", "23", "54")


class PostgresDatabase:
    """The database of the server deployment.

    Raises:
        Unavailable: from every call, when the server is away or refuses.
        Misconfigured: it is there, but doesn't let us in or lacks what we need.
    """

    def __init__(self, database_url: str) -> None:
        self._name = without_secrets(database_url)
        self.engine = postgres_engine(database_url)

    async def open(self) -> None:
        """Connect. An empty database gets its schema; one with another schema is refused."""
        await self.transact(_prepare_schema)

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()

    @observed_call(Timed.ENGINE, "postgresql")
    async def transact(self, function: Callable[[Connection], Result]) -> Result:
        """Run a function in a transaction; when it raises, nothing was written."""
        with translated(f"PostgreSQL at {self._name}"):
            async with self.engine.begin() as connection:
                return await connection.run_sync(function)

    async def view(self, function: Callable[[Connection], Result]) -> Result:
        """Run a function that only reads."""
        return await self.transact(function)


@contextmanager
def translated(name: str) -> Iterator[None]:
    """SQLAlchemy's errors as fiml's; `name` says which database, without secrets."""
    try:
        yield
    except (InterfaceError, PoolTimeoutError, OSError, TimeoutError) as exc:
        if isinstance(_driver_error(exc), ValueError):  # a value that asyncpg can't send
            raise RecordRefused("the record", str(_driver_error(exc))) from exc
        raise Unavailable(name, str(getattr(exc, "orig", None) or exc) or type(exc).__name__) from exc
    except DBAPIError as exc:
        state = getattr(exc.orig, "sqlstate", None) or ""
        if state.startswith(_CONFIGURATION):
            raise Misconfigured(f"{name} refuses ({exc.orig}); check FIML_DATABASE_URL") from exc
        if state.startswith(_REFUSAL):
            raise RecordRefused("the record", str(exc.orig)) from exc
        if isinstance(_driver_error(exc), ValueError):
            raise RecordRefused("the record", str(_driver_error(exc))) from exc
        raise Unavailable(name, str(exc.orig)) from exc


def _driver_error(exc: BaseException) -> BaseException | None:
    return getattr(getattr(exc, "orig", None), "__cause__", None)


async def upgrade(database_url: str) -> None:
    """Bring a database to the current schema."""
    database = PostgresDatabase(database_url)
    try:
        await database.transact(schema.upgrade)
    finally:
        await database.close()


def _prepare_schema(connection: Connection) -> None:
    found = schema.revision(connection)
    if found is None:
        schema.upgrade(connection)
    else:
        schema.check(found)
