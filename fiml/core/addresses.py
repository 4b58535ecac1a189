"""Addresses as they stand in settings: what is in them, and what of them may be shown."""

from urllib.parse import urlsplit


def host_in(url: str) -> str | None:
    """The host in a URL; `None` if there is none, or a port that can't be used."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return None if port == 0 else parts.hostname


def split_address(text: str) -> tuple[str, int]:
    """Host and port from `HOST:PORT`, with an IPv6 host in brackets.

    Raises:
        ValueError: the text doesn't have that form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not (port.isascii() and port.isdecimal()) or not 0 <= int(port) <= 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def without_secrets(url: str) -> str:
    """`url` without user, password and query, for messages and reports."""
    scheme, _, rest = url.partition("://")
    # Split at the last @: a password may contain one, even unescaped.
    account, _, location = rest.rpartition("@")
    # With both, what stands behind the @ may be the end of a password in the query.
    return f"{scheme}://{'***' if '?' in account else location.partition('?')[0]}"
