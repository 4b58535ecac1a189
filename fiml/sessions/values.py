"""What a session may contain: the limits, and checks of what a caller gives."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time
from typing import NoReturn
from uuid import UUID

from fiml.core.errors import InvalidInput, InvalidSessionId, echo
from fiml.sessions import sealed
from fiml.sessions.stored_json import MAX_VALUE_BYTES, check_characters, shown_path, to_json
from fiml.sessions.substitutes import shown

MAX_ASSETS = 100
MAX_TAGS = 50
MAX_NAME_CHARACTERS = 64
MAX_USER_ID_CHARACTERS = 255
MAX_TITLE_CHARACTERS = 200
MAX_PAGE = 200
MAX_VERSION = (1 << 53) - 1
MAX_MAPS_BYTES = 4 * 1024 * 1024
# PostgreSQL keeps at most 256 MiB in one JSONB value.
MAX_HISTORY_BYTES = 128 * 1024 * 1024
# Intermediate results with such keys are the market's last answers; the records of the queries say the same.
ANSWER_PREFIX = "answer:"
# The limit for encrypted values: large enough for a query's three parts together, each of the maximum size.
STORED_VALUE_BYTES = 2 * 1024 * 1024
# 32 years: the sum of a session's times can't become infinite.
MAX_DURATION_MS = 10**12


def check_entries(where: str, entries: object) -> dict[str, str]:
    """Check the entries of one of a session's maps; returns the JSON of each value."""
    if not isinstance(entries, dict):
        raise InvalidInput(where, f"is a {type(entries).__name__}", "give a dict")
    checked = ((key, check_entry(where, key, value)) for key, value in entries.items())
    return {str.__str__(key): text for key, text in checked}  # as in `check_text`


def check_maps(given: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """As `check_entries`, of several maps by their names; those that are `None` or empty are left out."""
    checked = {name: check_entries(name, entries) for name, entries in given.items() if entries is not None}
    return {name: texts for name, texts in checked.items() if texts}


def check_entry(where: str, key: object, value: object) -> str:
    """Check one entry of a session's maps; returns the JSON of its value.

    Raises:
        InvalidInput: the key isn't a string that every tier can store, or the value isn't JSON, or looks encrypted.
    """
    if isinstance(value, str) and value.startswith(sealed.PREFIX):
        refuse_sealed(f"{where}.{key}")
    return encode_entry(where, key, value, most_bytes=MAX_VALUE_BYTES)


def encode_entry(where: str, key: object, value: object, *, most_bytes: int = STORED_VALUE_BYTES) -> str:
    """As `check_entry`, for an entry that is stored already. It may be encrypted, and so may be longer."""
    if not isinstance(key, str):
        raise InvalidInput(where, f"has the key {echo(key)}, a {type(key).__name__}", "JSON keys are strings")
    check_characters(key, f"a key of {where}")
    return to_json(value, f"{where}.{key}", most_bytes=most_bytes)


def refuse_sealed(path: str) -> NoReturn:
    """Refuse a value that would be taken for an encrypted one."""
    raise InvalidInput(
        shown_path(path), f"begins with {sealed.PREFIX}", "this marks encrypted values; put it into a list or an object"
    )


def check_text(value: object, field: str, *, max_characters: int) -> str:
    """A text of 1 to `max_characters` characters."""
    if not isinstance(value, str):
        raise InvalidInput(field, f"is a {type(value).__name__}", "give a string")
    if not value.strip():
        raise InvalidInput(field, "is empty", f"give 1 to {max_characters} characters")
    if len(value) > max_characters:
        raise InvalidInput(field, f"has {len(value)} characters", f"at most {max_characters} are allowed")
    check_characters(value, field)
    return str.__str__(value)  # of a subclass, such as an enum, whose own text may be another one


def check_user_id(value: object) -> str | None:
    """A user's id, or `None` for a session that belongs to nobody."""
    return None if value is None else check_text(value, "user_id", max_characters=MAX_USER_ID_CHARACTERS)


def check_title(value: object) -> str | None:
    """A title, or `None`."""
    return None if value is None else check_text(value, "title", max_characters=MAX_TITLE_CHARACTERS)


def check_assets(value: object) -> list[str]:
    """1 to 100 names, each once, in the order given."""
    assets = _check_names(value, "assets", at_most=MAX_ASSETS)
    if not assets:
        raise InvalidInput("assets", "is empty", f"name 1 to {MAX_ASSETS} assets")
    return assets


def check_tags(value: object) -> list[str]:
    """At most 50 names, each once, in the order given."""
    return [] if value is None else _check_names(value, "tags", at_most=MAX_TAGS)


def check_name(value: object, field: str) -> str:
    """The name of an asset or a tag."""
    return check_text(value, field, max_characters=MAX_NAME_CHARACTERS)


def _check_names(value: object, field: str, *, at_most: int) -> list[str]:
    if not isinstance(value, list | tuple):
        raise InvalidInput(field, f"is a {type(value).__name__}", "give a list of strings")
    if len(value) > at_most:
        raise InvalidInput(field, f"has {len(value)} entries", f"at most {at_most} are allowed")
    names = [check_name(name, f"{field}[{index}]") for index, name in enumerate(value)]
    return list(dict.fromkeys(names))


def check_maps_size(size: int) -> None:
    """Refuse maps that together exceed 4 MiB."""
    if size > MAX_MAPS_BYTES:
        raise InvalidInput(
            "the session's maps", f"would hold {size} bytes", f"together they hold at most {MAX_MAPS_BYTES} (4 MiB)"
        )


def check_flag(value: object, field: str) -> bool:
    """True or False, and nothing else: a text such as "false" would count as true."""
    if not isinstance(value, bool):
        raise InvalidInput(field, f"is {shown(value)}", "give True or False")
    return value


def check_hours(value: object, field: str, *, max_hours: int) -> int:
    """A whole number of hours from 1 to the maximum TTL."""
    return check_whole(value, field, at_most=max_hours)


def check_limit(value: object) -> int:
    """The size of a page: 1 to 200."""
    return check_whole(value, "limit", at_most=MAX_PAGE)


def check_whole(value: object, field: str, *, at_least: int = 1, at_most: int) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, f"is {shown(value)}", f"give a whole number from {at_least} to {at_most}")
    if not at_least <= value <= at_most:
        raise InvalidInput(field, f"is {echo(value)}", f"it must lie between {at_least} and {at_most}")
    return value


def check_moment(value: object, field: str) -> datetime:
    """An aware time, in UTC."""
    if not isinstance(value, datetime):
        raise InvalidInput(field, f"is a {type(value).__name__}", "give an aware datetime")
    if value.tzinfo is UTC:
        return value
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInput(field, "has no time zone", "give an aware datetime, such as datetime.now(UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(field, f"is {echo(value)}", "give a time whose UTC lies in the years 1 to 9999") from None


def parse_moment(text: str, field: str) -> datetime:
    """A time in UTC from an ISO 8601 date (its midnight) or an ISO 8601 time with a zone.

    Raises:
        InvalidInput: the text is neither.
    """
    valid = "give a date such as 2024-12-24, or a time such as 2024-12-24T15:30:00Z"
    with suppress(ValueError):
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(field, f"{echo(text)} is not a time", valid) from None
    if parsed.tzinfo is None:
        raise InvalidInput(field, f"{echo(text)} has no time zone", valid)
    return check_moment(parsed, field)


def parse_session_id(value: object) -> UUID:
    """A session's id, from a `UUID` or its text form.

    Raises:
        InvalidSessionId: the value is neither.
    """
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and len(value) in (32, 36):
        try:
            parsed = UUID(value)
        except ValueError:
            raise InvalidSessionId(value) from None
        if value.lower() in (str(parsed), parsed.hex):
            return parsed
    raise InvalidSessionId(value)
