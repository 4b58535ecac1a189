"""What `FIML_REDIS_URL` or `FIML_BROKER_URL` names: one server, the master that Sentinels name, or a Cluster."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio.connection import parse_url

from fiml.core.addresses import split_address, without_secrets
from fiml.core.config import REDIS_SCHEMES
from fiml.core.errors import Misconfigured
from fiml.db.url_parameters import load_tls_files, refuse_unknown

_SERVER_PORT = 6379
_SENTINEL_PORT = 26379
_PARAMETERS = {
    *("client_name", "db", "max_connections", "password", "protocol", "username"),
    *("socket_connect_timeout", "socket_timeout"),
}
# What other tools add for redis-py's client and pool, in whose place fiml has its own.
_IGNORED = {"decode_responses", "health_check_interval", "retry_on_timeout"}
_TCP_PARAMETERS = {"socket_keepalive"}
_TLS_PARAMETERS = {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}
_SENTINEL_PARAMETERS = {"sentinel_username", "sentinel_password"}
_EXAMPLES = {
    "": "redis://host:6379/0",
    "sentinel": "redis+sentinel://host:26379,host:26379/SERVICE/0",
    "cluster": "redis+cluster://host:6379,host:6379",
}


class Kind(StrEnum):
    """How many servers there are, and who says which one is meant."""

    SERVER = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where to connect, and with which options."""

    kind: Kind
    name: str
    """The URL without secrets, for messages."""
    hosts: tuple[tuple[str, int], ...]
    """The Sentinels, or some servers of the Cluster; empty for a single server, which `options` locate."""
    service: str
    """The name under which the Sentinels know the master."""
    options: dict[str, Any] = field(repr=False)
    """redis-py's options for each connection."""
    sentinel_options: dict[str, Any] = field(repr=False)
    is_tls: bool


def parse_redis_url(url: str, *, variable: str = "FIML_REDIS_URL") -> RedisAddress:
    """The address in a URL, which a variable sets.

    Raises:
        Misconfigured: the URL can't be used; the message says why and contains no secret.
    """
    scheme = url.partition("://")[0]
    transport, _, suffix = scheme.partition("+")
    if not url.startswith(REDIS_SCHEMES):
        raise Misconfigured(f"{variable} must begin with {', '.join(REDIS_SCHEMES)}")
    kind = Kind(suffix)
    try:
        parts = urlsplit(url)
        _check_parameters(variable, kind, transport, parts.query)
        account, at, location = parts.netloc.rpartition("@")
        service, database = ("", "") if transport == "unix" else _service_and_database(variable, kind, parts.path)
        if kind is Kind.SERVER:
            hosts, options = [], parse_url(url)
        else:
            hosts = _hosts(kind, location)
            options = parse_url(f"{transport}://{account}{at}localhost/{database}?{parts.query}")
    except ValueError:
        # The original message may contain a part of the password.
        raise Misconfigured(
            f"{variable} is not a URL; write {_EXAMPLES[kind]}, with reserved characters in the password "
            "percent-encoded"
        ) from None
    given: dict[str, Any] = {name: value for name, value in options.items() if name not in _IGNORED}
    if kind is not Kind.SERVER:
        given.pop("host")
    if kind is Kind.CLUSTER and given.get("db"):
        raise Misconfigured(f"{variable} names database {given['db']}; a Cluster has only database 0")
    if given.get("max_connections", 1) < 1:
        raise Misconfigured(f"{variable} has max_connections={given['max_connections']}; give 1 or more")
    _check_tls_files(variable, given)
    of_sentinels = {name: given.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    return RedisAddress(
        kind=kind,
        name=without_secrets(url),
        hosts=tuple(hosts),
        service=service,
        options=given,
        sentinel_options={name: value for name, value in of_sentinels.items() if value is not None},
        is_tls=transport == "rediss",
    )


def _check_parameters(variable: str, kind: Kind, transport: str, query: str) -> None:
    given = set(parse_qs(query))
    known = _PARAMETERS | _IGNORED
    known |= _TCP_PARAMETERS if transport != "unix" else set()
    known |= _SENTINEL_PARAMETERS if kind is Kind.SENTINEL else set()
    if transport == "rediss":
        known |= _TLS_PARAMETERS
    elif for_tls := sorted(given & _TLS_PARAMETERS):
        raise Misconfigured(f"{variable} has the parameter {for_tls[0]}, which needs TLS; begin the URL with rediss")
    refuse_unknown(variable, query, given, sorted(known))


def _check_tls_files(variable: str, given: Mapping[str, Any]) -> None:
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise Misconfigured(f"{variable} has ssl_keyfile, which belongs to a certificate; add ssl_certfile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_tls_files(variable, context, given, authorities="ssl_ca_certs", certificate="ssl_certfile", key="ssl_keyfile")


def _service_and_database(variable: str, kind: Kind, path: str) -> tuple[str, str]:
    names = [unquote(name) for name in path.split("/")[1:] if name]
    service = names.pop(0) if kind is Kind.SENTINEL and names else ""
    if kind is Kind.SENTINEL and not service:
        raise Misconfigured(
            f"{variable} lacks the name that the Sentinels have for the master; write {_EXAMPLES[kind]}"
        )
    database = "/".join(names) or "0"
    if not (database.isascii() and database.isdecimal()):
        raise ValueError("the database is no number")
    return service, database


def _hosts(kind: Kind, location: str) -> list[tuple[str, int]]:
    port = _SENTINEL_PORT if kind is Kind.SENTINEL else _SERVER_PORT
    return [split_address(each if _has_port(each) else f"{each}:{port}") for each in location.split(",")]


def _has_port(location: str) -> bool:
    return ":" in location.rpartition("]")[2]
