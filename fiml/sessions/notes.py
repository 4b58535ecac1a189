"""Notes and conclusions of a session, stored as entries of its context, and the records that they cite."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self
from uuid import UUID, uuid4

from fiml.core import clock
from fiml.core.errors import InvalidInput, echo
from fiml.sessions import values

KEY_PREFIX = "note:"
MAX_NOTE_CHARACTERS = 2000
MAX_CITATIONS = 50


class NoteKind(StrEnum):
    """Whether a note just records something, or is a conclusion from what the session found."""

    NOTE = "note"
    CONCLUSION = "conclusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A note or conclusion. `cites` are the ids of the queries and notes of the same session that it rests on."""

    text: str
    kind: NoteKind = NoteKind.NOTE
    cites: tuple[UUID, ...] = ()
    written_at: datetime = field(default_factory=clock.now)
    id: UUID = field(default_factory=uuid4)

    @property
    def key(self) -> str:
        """The key of the note in the session's context."""
        return f"{KEY_PREFIX}{self.id}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": str(self.id),
            "kind": self.kind.value,
            "text": self.text,
            "cites": [str(cited) for cited in self.cites],
            "written_at": clock.to_iso(self.written_at),
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError, InvalidInput: the dict is not a note, or its time lacks a time zone.
        """
        return cls(
            id=UUID(stored["id"]),
            kind=NoteKind(stored["kind"]),
            text=stored["text"],
            cites=tuple(UUID(cited) for cited in stored["cites"]),
            written_at=values.check_moment(datetime.fromisoformat(stored["written_at"]), "written_at"),
        )


def make_note(text: object, kind: NoteKind, cites: Iterable[object] = ()) -> Note:
    """A new note, checked.

    Raises:
        InvalidInput: the text is missing or too long, too much is cited, or a cited id is malformed.
    """
    checked = values.check_text(text, kind.value, max_characters=MAX_NOTE_CHARACTERS)
    cited = tuple(dict.fromkeys(_parse_cited(each) for each in cites))
    if len(cited) > MAX_CITATIONS:
        raise InvalidInput("cites", f"names {len(cited)} records", f"at most {MAX_CITATIONS} are allowed")
    return Note(text=checked, kind=kind, cites=cited)


def notes_in(context: Mapping[str, Any]) -> list[Note]:
    """The notes in a session's context, in the order in which they were written."""
    found = [_read(key, value) for key, value in context.items() if key.startswith(KEY_PREFIX)]
    return sorted((note for note in found if note is not None), key=lambda note: (note.written_at, note.id))


def is_note(key: str, value: Any) -> bool:
    """Whether an entry of the context is a note."""
    return key.startswith(KEY_PREFIX) and _read(key, value) is not None


def _read(key: str, value: Any) -> Note | None:
    try:
        note = Note.from_dict(value)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput):
        # Users may store anything in the context: an entry that isn't a note is shown as an ordinary entry.
        return None
    return note if note.key == key and isinstance(note.text, str) else None


def _parse_cited(value: object) -> UUID:
    try:
        return value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        raise InvalidInput(
            "cites",
            f"{echo(value)} is not the id of a record",
            "cite UUIDs of the session's queries and notes; its assets and the entries of its context can't be cited",
        ) from None
