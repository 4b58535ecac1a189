"""Puts a proxy or a relay between clients and a test server: where it listens, and the URL that leads there."""

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy import make_url

POSTGRES_SOCKET = ".s.PGSQL.5432"
Between = TypeVar("Between")
OverTcp = Callable[[str, int], AbstractAsyncContextManager[tuple[Between, int]]]
OverUnix = Callable[[Path, Path], AbstractAsyncContextManager[Between]]


@asynccontextmanager
async def before_redis(url: str, over_tcp: OverTcp[Between]) -> AsyncIterator[tuple[Between, str]]:
    """What `over_tcp` puts in front of a Redis server, and the URL at which that answers."""
    address = urlsplit(url)
    async with over_tcp(address.hostname or "localhost", address.port or 6379) as (between, port):
        account = f"{address.username or ''}:{address.password}@" if address.password else ""
        yield between, urlunsplit(address._replace(netloc=f"{account}127.0.0.1:{port}"))


@asynccontextmanager
async def before_postgres(
    url: str, over_tcp: OverTcp[Between], over_unix: OverUnix[Between]
) -> AsyncIterator[tuple[Between, str]]:
    """What is put in front of a PostgreSQL server, and the URL at which that answers."""
    address = make_url(url)
    if socket_folder := address.query.get("host"):
        # In /tmp, since a Unix socket's path has room for 104 bytes.
        with tempfile.TemporaryDirectory(prefix="fiml-", dir="/tmp") as folder:
            async with over_unix(Path(str(socket_folder)) / POSTGRES_SOCKET, Path(folder)) as between:
                yield between, address.set(query={"host": folder}).render_as_string(hide_password=False)
    else:
        async with over_tcp(address.host or "localhost", address.port or 5432) as (between, port):
            yield between, address.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
