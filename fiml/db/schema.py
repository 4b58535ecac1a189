"""The schema of a database: created if the database is empty, else checked; upgraded by Alembic."""

from pathlib import Path

from sqlalchemy import Connection, text

from fiml.core.errors import SchemaOutdated, SchemaTooNew

REVISIONS = ("0001", "0002_0.2.0", "0003_0.3.0", "0004_0.4.0")
"""Every revision, oldest first; a database at the last one is current.

From the second one on, a revision's name ends with the release that introduced it, so that an older fiml can say which
release to install.
"""

VERSION_TABLE = "fiml_schema_version"
MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_TIMEOUT_S = 30
_INITIALIZE_LOCK = 0x66696D6C


def revision(connection: Connection) -> str | None:
    """The revision of a database, or `None` if it is empty."""
    if not connection.dialect.has_table(connection, VERSION_TABLE):
        return None
    found = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608  a constant
    return None if found is None else str(found)


def check(found: str | None) -> None:
    """Refuse a database that this version of fiml can't work with.

    Raises:
        SchemaOutdated: its revision is older.
        SchemaTooNew: its revision is newer.
    """
    if found is None:
        raise SchemaOutdated("none", REVISIONS[-1])
    if found not in REVISIONS:
        raise SchemaTooNew(found, REVISIONS[-1], needs=found.partition("_")[2])
    if found != REVISIONS[-1]:
        raise SchemaOutdated(found, REVISIONS[-1])


def upgrade(connection: Connection) -> None:
    """Bring a database to the current revision, within the connection's transaction. An empty one gets the schema.

    Raises:
        SchemaTooNew: the database's revision is newer.
    """
    if connection.dialect.name == "postgresql":
        # Several processes may start at once; the second finds the work done.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _INITIALIZE_LOCK})
    found = revision(connection)
    if found == REVISIONS[-1]:
        return
    if found is not None and found not in REVISIONS:
        raise SchemaTooNew(found, REVISIONS[-1], needs=found.partition("_")[2])
    if connection.dialect.name == "postgresql":
        # Everybody who needs a table waits behind an upgrade that waits for it.
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    _run_alembic(connection)


def _run_alembic(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - a quarter of a second, needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
