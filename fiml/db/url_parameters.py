"""The parameters behind the question mark of a server's URL."""

from collections.abc import Collection

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
