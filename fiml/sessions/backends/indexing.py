"""The words of archived sessions that have none yet, since an older version archived them."""

from sqlalchemy import Connection

from fiml.core.errors import CorruptRecord
from fiml.sessions.backends import archive, words

AT_ONCE = 200


def index_lacking(connection: Connection, *, at_most: int = AT_ONCE) -> tuple[int, bool]:
    """Let a search find some more archived sessions by their words: how many, and whether there are more.

    One that can't be read gets no words: its reader is told, and the others are found.
    """
    lacking = words.lacking(connection, at_most=at_most)
    busy = archive.try_lock(connection, lacking) if lacking else set()
    chosen = [session_id for session_id in lacking if session_id not in busy]
    for session_id in chosen:
        try:
            record = archive.fetch(connection, session_id)
            if record is not None:
                words.put(connection, [record])
        except CorruptRecord:
            words.put_none(connection, session_id)
    return len(chosen), len(lacking) == at_most
