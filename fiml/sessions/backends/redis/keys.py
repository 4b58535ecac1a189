"""The keys in Redis, without the installation's prefix, which the client adds.

The keys of one session share a hash tag, and so a slot of a Cluster.
"""

from uuid import UUID

PARTS = 64


def part(session_id: UUID) -> int:
    """The part of the indexes over all sessions in which a session is."""
    return session_id.int % PARTS


def header_key(session_id: UUID) -> str:
    """The hash of a session's header."""
    return f"{{{session_id.hex}}}:header"


def session_keys(session_id: UUID) -> list[str]:
    """Header, entries, queries, ids of the queries and audit trail of a session."""
    tag = f"{{{session_id.hex}}}"
    return [f"{tag}:header", f"{tag}:entries", f"{tag}:queries", f"{tag}:ids", f"{tag}:trail"]


def trail_key(session_id: UUID) -> str:
    """The list of a session's audit trail."""
    return f"{{{session_id.hex}}}:trail"


def floor_key(session_id: UUID) -> str:
    """The key of a session's floor: copies up to that version can't become live."""
    return f"{{{session_id.hex}}}:floor"


def user_key(user_id: str) -> str:
    """The index of a user's sessions."""
    return f"user:{user_id}"


def given_key(user_id: str) -> str:
    """The index of the sessions that are shared with a user."""
    return f"given:{user_id}"


def all_key(part_number: int) -> str:
    """A part of the index of all sessions."""
    return f"all:{part_number}"


def all_keys() -> list[str]:
    """All parts of the index of all sessions."""
    return [all_key(number) for number in range(PARTS)]


def expiry_key(part_number: int) -> str:
    """A part of the index of expiries."""
    return f"expiry:{part_number}"


def expiry_keys() -> list[str]:
    """All parts of the index of expiries."""
    return [expiry_key(number) for number in range(PARTS)]
