"""Where sessions are kept. `open_backend` picks the deployment that the settings name."""

from fiml.core.config import Settings
from fiml.core.errors import MissingExtra
from fiml.sessions.backends.base import Backend


async def open_backend(settings: Settings) -> Backend:
    """The backend of the settings, connected.

    Raises:
        Misconfigured: a part is missing, or a database can't be used as it is.
        Unavailable: an engine is away.
    """
    backend = _embedded(settings) if settings.redis_url is None else _server(settings)
    await backend.open()
    return backend


def _embedded(settings: Settings) -> Backend:
    from fiml.db.sqlite_file import SqliteFile  # noqa: PLC0415 - one deployment doesn't load the other
    from fiml.sessions.backends.sqlite import SqliteBackend  # noqa: PLC0415 - as above

    file = SqliteFile(settings.embedded_file, settings.sqlite_synchronous)
    return SqliteBackend(file, settings.sqlite_synchronous)


def _server(settings: Settings) -> Backend:
    try:
        from fiml.sessions.backends.redis import RedisTier  # noqa: PLC0415 - as above
    except ModuleNotFoundError as exc:
        raise MissingExtra("Redis (FIML_REDIS_URL)", "server") from exc
    from fiml.sessions.backends.tiered import TieredBackend  # noqa: PLC0415 - as above

    assert settings.redis_url is not None  # noqa: S101  the settings have both or neither
    assert settings.database_url is not None  # noqa: S101
    return TieredBackend(RedisTier(settings.redis_url), settings.database_url)
