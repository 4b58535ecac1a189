"""Where sessions are stored. `open_backend` chooses the deployment by the settings."""

from fiml.core.config import Settings
from fiml.core.errors import MissingExtra
from fiml.sessions.backends.base import Backend


async def open_backend(settings: Settings) -> Backend:
    """The backend that the settings name, connected.

    Raises:
        Misconfigured: a part is missing, or a database can't be used as it is.
        Unavailable: an engine is away.
    """
    backend = with_encryption(_embedded(settings) if settings.redis_url is None else _server(settings), settings)
    backend.session_maker.configure(info={"settings": settings})
    await backend.open()
    return backend


def with_encryption(backend: Backend, settings: Settings) -> Backend:
    """The backend, with encryption at rest around it if the settings ask for it."""
    if settings.encryption_keys is None:
        return backend
    from fiml.sessions.backends.encrypted import EncryptedBackend  # noqa: PLC0415 - off by default, and slow to load
    from fiml.sessions.cipher import Cipher  # noqa: PLC0415 - as above
    from fiml.sessions.keyring import KeyFile  # noqa: PLC0415 - as above

    return EncryptedBackend(backend, Cipher(KeyFile(settings.encryption_keys), settings.installation))


async def upgrade_schema(settings: Settings) -> str:
    """Bring the database of the settings to this version's schema, and return its revision.

    Raises:
        SchemaTooNew: a later fiml wrote it.
        Unavailable: the database is away.
    """
    from fiml.db.schema import REVISIONS  # noqa: PLC0415 - loads SQLAlchemy, which only this function needs

    if settings.database_url is None:
        backend = _embedded(settings)
        await backend.open()
        await backend.close()
    else:
        from fiml.db.postgres import upgrade  # noqa: PLC0415 - one deployment doesn't load the other

        await upgrade(settings.database_url)
    return REVISIONS[-1]


def _embedded(settings: Settings) -> Backend:
    from fiml.db.sqlite_file import SqliteFile  # noqa: PLC0415 - one deployment doesn't load the other
    from fiml.sessions.backends.sqlite.backend import SqliteBackend  # noqa: PLC0415 - as above

    file = SqliteFile(settings.embedded_file, settings.sqlite_synchronous)
    return SqliteBackend(file, settings.sqlite_synchronous)


def _server(settings: Settings) -> Backend:
    try:
        from fiml.db.redis_client import RedisClient  # noqa: PLC0415 - as above
    except ModuleNotFoundError as exc:
        raise MissingExtra("Redis (FIML_REDIS_URL)", "server") from exc
    from fiml.db.postgres import PostgresDatabase  # noqa: PLC0415 - as above
    from fiml.sessions.backends.tiered.backend import SCRIPTS, TieredBackend  # noqa: PLC0415 - as above

    assert settings.database_url is not None  # noqa: S101  the settings have both or neither
    return TieredBackend(RedisClient.of(settings, SCRIPTS), PostgresDatabase(settings.database_url))
