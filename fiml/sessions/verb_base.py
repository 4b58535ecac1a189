"""What all verbs have: the settings, the backend, and the caller in whose name they act."""

from datetime import datetime
from typing import TypeVar
from uuid import UUID

from fiml.core.config import Settings
from fiml.core.errors import NotPermitted, SessionNotFound, echo
from fiml.sessions.backends.base import Backend
from fiml.sessions.backends.shapes import Ended
from fiml.sessions.rights import Caller

Found = TypeVar("Found")


class Verbs:
    """The base of the classes that have verbs; each has those about one matter."""

    def __init__(self, settings: Settings, caller: Caller) -> None:
        self.settings = settings
        self._caller = caller

    @property
    def user_id(self) -> str | None:
        """The user whose sessions these are; `None` for everybody's."""
        return self._caller.user

    @property
    def _backend(self) -> Backend:
        raise NotImplementedError

    def acting_as(self, user_id: str | None) -> str | None:
        """The user whose sessions are meant: the given one, or the caller.

        Raises:
            NotPermitted: the given user is somebody other than the caller.
        """
        own = self._caller.user
        if own is None or user_id is None or user_id == own:
            return own if user_id is None else user_id
        raise NotPermitted(f"you are not user {echo(user_id)}", "leave the user out to act as yourself")

    def _ended(self, at: datetime) -> Ended:
        return Ended(at, write_metrics=self.settings.session_enable_analytics)


def found_of(session_id: UUID, found: Found | None) -> Found:
    """What was found of a session.

    Raises:
        SessionNotFound: there is no such session.
    """
    if found is None:
        raise SessionNotFound(session_id)
    return found
