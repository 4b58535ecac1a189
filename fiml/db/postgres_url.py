"""What `FIML_DATABASE_URL` says, in libpq's form: where the servers are, and how asyncpg connects to them."""

import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlencode

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from fiml.core.errors import Misconfigured, echo
from fiml.db.url_parameters import load_tls_files, refuse_unknown

CONNECT_TIMEOUT_S = 2
_ADDRESS = ("host", "port")
_ACCOUNT = {"user": "username", "password": "password", "dbname": "database"}
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey")
_TAKEN = ("sslmode", *_TLS_FILES, "connect_timeout", "application_name", "options", "target_session_attrs")
_TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# The value of sslrootcert for the authorities that the machine trusts.
_SYSTEM = "system"
# A server that takes no writes is of no use here.
_TARGETS = ("any", "primary", "read-write")
# What connections do anyway; another value asks for what asyncpg can't do.
_AS_IT_IS = {
    "channel_binding": ("prefer", "disable"),
    "client_encoding": ("UTF8",),
    "gssencmode": ("prefer", "disable"),
}
_IGNORED = ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count")
_KNOWN = (*_ADDRESS, *_ACCOUNT, *_TAKEN, *_AS_IT_IS, *_IGNORED)
_SEVERAL = re.compile(r"([^/?]*@)?([^/?@]*,[^/?@]*)([/?].*)?")
_PLACE = re.compile(r"\[([^\]]+)\](?::(\d+))?|([^:\[\]]+)(?::(\d+))?")
_SERVER_PORT = "5432"


def parse_postgres_url(database_url: str) -> tuple[URL, dict[str, Any]]:
    """The servers and the account as SQLAlchemy takes them, and the rest as asyncpg's arguments for each connection.

    A parameter counts more than what stands before the question mark, as with libpq.

    Raises:
        Misconfigured: the URL can't be parsed, or has an unknown parameter or one with a value that can't be used; the
            message contains no secret.
    """
    try:
        url = _parse(database_url)
    except (ArgumentError, ValueError):
        # The original message repeats the URL, and with it the password.
        raise Misconfigured(
            "FIML_DATABASE_URL is not a URL; write postgresql://user@host/name, with reserved characters in the "
            "password percent-encoded"
        ) from None
    refuse_unknown("FIML_DATABASE_URL", database_url.partition("?")[2], url.query.keys(), _KNOWN)
    # Of a parameter that is given twice, the last one counts.
    given = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    for name, valid in _AS_IT_IS.items():
        if name in given and not (name == "client_encoding" and _is_utf8(given[name])):
            _check_choice(name, given[name], valid)
    account = {ours: given[name] for name, ours in _ACCOUNT.items() if name in given}
    places = {name: value for name, value in url.query.items() if name in _ADDRESS}
    return url.set(query=places, **account), _connect_args(given)  # type: ignore[arg-type]  # names of its parameters


def _parse(database_url: str) -> URL:
    scheme, _, rest = database_url.partition("://")
    if (several := _SEVERAL.fullmatch(rest)) is None:
        url = make_url(database_url)
        # A folder of sockets is written with %2F, which SQLAlchemy leaves.
        return url if url.host is None else url.set(host=unquote(url.host))
    account, places, more = several.groups(default="")
    url = make_url(f"{scheme}://{account}{more}")
    if "host" in url.query:
        return url
    found = [_place(each) for each in places.split(",")]
    return url.update_query_dict({"host": ",".join(host for host, _ in found), "port": ",".join(p for _, p in found)})


def _place(text: str) -> tuple[str, str]:
    parts = _PLACE.fullmatch(text)
    if parts is None:
        raise ValueError("no host")
    return unquote(parts[1] or parts[3]), parts[2] or parts[4] or _SERVER_PORT


def _is_utf8(encoding: str) -> bool:
    return re.sub("[^a-z0-9]", "", encoding.lower()) in ("utf8", "unicode")


def _connect_args(given: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that libpq and asyncpg name differently."""
    arguments: dict[str, Any] = {"timeout": _seconds(given.get("connect_timeout")), **_tls(given)}
    if settings := {name: given[name] for name in ("application_name", "options") if name in given}:
        arguments["server_settings"] = settings
    if "target_session_attrs" in given:
        target = given["target_session_attrs"]
        arguments["target_session_attrs"] = _check_choice("target_session_attrs", target, _TARGETS)
    return arguments


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise Misconfigured(f"FIML_DATABASE_URL has {name}={echo(value)}; valid values are {', '.join(valid)}")
    return value


def _tls(given: Mapping[str, str]) -> dict[str, Any]:
    files = {name: given[name] for name in _TLS_FILES if name in given}
    if files.get("sslrootcert") == _SYSTEM:
        # A certificate from such an authority is easily had: without the name it says nothing.
        _check_choice("sslmode", given.get("sslmode", "verify-full"), ("verify-full",))
        return {"ssl": _load(files, ssl.create_default_context())}
    arguments: dict[str, Any] = {}
    if "sslmode" in given:
        arguments["ssl"] = _check_choice("sslmode", given["sslmode"], _TLS_MODES)
    if files:
        _load(files, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        arguments["dsn"] = f"postgresql://?{urlencode(files)}"  # asyncpg takes them only this way
    return arguments


def _load(files: Mapping[str, str], context: ssl.SSLContext) -> ssl.SSLContext:
    named = {name: file for name, file in files.items() if (name, file) != ("sslrootcert", _SYSTEM)}
    load_tls_files("FIML_DATABASE_URL", context, named, authorities="sslrootcert", certificate="sslcert", key="sslkey")
    return context


def _seconds(text: str | None) -> float | None:
    if text is None:
        return CONNECT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        raise Misconfigured(f"FIML_DATABASE_URL has connect_timeout={echo(text)}; give seconds") from None
    return seconds if seconds > 0 else None  # as with libpq, 0 is no limit
