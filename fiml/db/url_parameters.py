"""The parameters behind the question mark of a server's URL."""

import ssl
from collections.abc import Collection, Mapping
from pathlib import Path

from fiml.core.errors import Misconfigured, echo


def refuse_unknown(variable: str, query: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuse parameters that nobody knows.

    Raises:
        Misconfigured: there is one; the message contains no secret.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        # Where a password isn't percent-encoded, the name may be a part of it.
        may_be_secret = "pass" in query or "@" in query
        shown = "a parameter that is not known" if may_be_secret else f"the parameter {echo(unknown[0])}"
        hint = ", and in a password & is %26" if may_be_secret else ""
        raise Misconfigured(f"{variable} has {shown}; valid here are {', '.join(known)}{hint}")


def load_tls_files(
    variable: str, context: ssl.SSLContext, files: Mapping[str, str], *, authorities: str, certificate: str, key: str
) -> None:
    """Put the files that a URL names into a context; the last three arguments are the names of their parameters.

    Raises:
        Misconfigured: a file is missing or can't be used.
    """
    name = authorities
    try:
        if name in files:
            context.load_verify_locations(files[name])
        name = key
        if name in files:
            Path(files[name]).read_bytes()  # else a key that is missing would be told of the certificate
        name = certificate
        if name in files:
            # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
            context.load_cert_chain(files[name], files.get(key), password="")
    except OSError as exc:
        raise Misconfigured(
            f"{variable} has {name}={echo(files[name])}, which can't be used ({exc}); name a file in PEM"
        ) from exc
