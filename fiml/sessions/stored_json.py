"""JSON that reads back equal from every tier: Redis, SQLite and PostgreSQL."""

import math
from datetime import datetime
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, NoReturn

import msgspec

from fiml.core import clock
from fiml.core.errors import InvalidInput, echo
from fiml.sessions.substitutes import substitute_for, type_name

MAX_VALUE_BYTES = 256 * 1024
MAX_VALUE_DEPTH = 32
MAX_INTEGER_DIGITS = 1000
# Between these, every JSON encoder writes floats without an exponent; integers below the upper one fit into 64 bits.
_LEAST_WITHOUT_EXPONENT, _LEAST_WITH_EXPONENT = 1e-4, 1e16
_TOO_LARGE_INTEGER = 10**MAX_INTEGER_DIGITS

_LITERALS = {None: "null", True: "true", False: "false"}


def plain(value: Any) -> str | int | float:
    """Convert a checked value of a subclass of str, int, float or datetime, which msgspec can't encode."""
    match value:
        case datetime():
            return clock.to_iso(value)
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case _:
            raise NotImplementedError(f"a {type(value).__name__} was not checked")


ENCODER = msgspec.json.Encoder(enc_hook=plain)
"""Encodes values that were checked before."""


def json_of(value: object) -> str:
    """Compact JSON of a value that was checked before."""
    return ENCODER.encode(value).decode()


def to_json(value: object, path: str, *, most_bytes: int = MAX_VALUE_BYTES) -> str:
    """Compact JSON that decodes to a value equal to `value` from Redis, SQLite and PostgreSQL alike.

    Floats are written without an exponent: otherwise JSONB would turn `1e23` into an integer, which is not equal.

    Raises:
        InvalidInput: a part is not JSON (the message has its path), or the whole exceeds a limit.
    """
    if (text := _encode_plain(value, path)) is not None or (text := _encode_flat(value)) is not None:
        return _within(text, path, most_bytes)
    encoder = _Encoder(path, most_bytes)
    encoder.encode(value, path, MAX_VALUE_DEPTH)
    return encoder.text()


class _Encoder:
    """Encodes one value, and stops at the size limit: a small value may contain the same list a million times."""

    def __init__(self, path: str, most_bytes: int) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._parts: list[str] = []
        self._characters = 0

    def text(self) -> str:
        return _within("".join(self._parts), self._path, self._most_bytes)

    def encode(self, value: object, path: str, depth_left: int) -> None:
        if (plain := _encode_plain(value, path)) is not None:
            self._add(plain)
        elif isinstance(value, dict | list):
            self._encode_nested(value, path, depth_left)
        else:
            _refuse_type(value, path)

    def _encode_nested(self, value: dict[object, object] | list[object], path: str, depth_left: int) -> None:
        if depth_left == 0:
            raise InvalidInput(
                shown_path(path),
                "is nested too deeply",
                f"a stored value may have a depth of at most {MAX_VALUE_DEPTH}",
            )
        if isinstance(value, list):
            self._encode_list(value, path, depth_left - 1)
        else:
            self._encode_dict(value, path, depth_left - 1)

    def _encode_list(self, value: list[object], path: str, depth_left: int) -> None:
        self._add("[")
        for index, item in enumerate(value):
            if index:
                self._add(",")
            self.encode(item, f"{path}[{index}]", depth_left)
        self._add("]")

    def _encode_dict(self, value: dict[object, object], path: str, depth_left: int) -> None:
        self._add("{")
        for index, (key, item) in enumerate(value.items()):
            if not isinstance(key, str):
                raise InvalidInput(
                    shown_path(path), f"has the key {echo(key)}, a {type(key).__name__}", "JSON keys are strings"
                )
            self._add(f"{',' if index else ''}{_encode_text(key, f'{path}.{key}')}:")
            self.encode(item, f"{path}.{key}", depth_left)
        self._add("}")

    def _add(self, part: str) -> None:
        self._parts.append(part)
        self._characters += len(part)
        if self._characters > self._most_bytes:
            _refuse_size(self._path, self._most_bytes)


def _refuse_type(value: object, path: str) -> NoReturn:
    valid = "stored values are JSON: None, bool, int, float, str, list, dict with string keys"
    if (substitute := substitute_for(value)) is not None:
        valid += f"; store {substitute} instead"
    raise InvalidInput(shown_path(path), f"is a {type_name(value)}", valid)


def _encode_plain(value: object, path: str) -> str | None:
    """The JSON of a scalar; `None` for a list or dict, and for anything that isn't JSON."""
    match value:
        case str():
            return _encode_text(value, path)
        case None | bool():
            return _LITERALS[value]
        case int():
            return _encode_integer(value, path)
        case float():
            return _encode_float(value, path)
    return None


def _encode_flat(value: object) -> str | None:
    """The JSON of a dict of ordinary scalars, encoded at once; `None` if the values must be encoded one by one."""
    if type(value) is not dict:
        return None
    for key, item in value.items():
        kind = type(item)
        if kind is float:
            is_ordinary = _LEAST_WITHOUT_EXPONENT <= abs(item) < _LEAST_WITH_EXPONENT or item == 0
        elif kind is str:
            is_ordinary = "\0" not in item
        elif kind is int:
            is_ordinary = abs(item) < _LEAST_WITH_EXPONENT
        else:
            is_ordinary = kind is bool or item is None
        if not is_ordinary or type(key) is not str or "\0" in key:
            return None
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return None


def _within(text: str, path: str, most_bytes: int) -> str:
    if (len(text) if text.isascii() else len(text.encode())) > most_bytes:
        _refuse_size(path, most_bytes)
    return text


def _refuse_size(path: str, most_bytes: int) -> NoReturn:
    raise InvalidInput(
        shown_path(path),
        f"is more than {most_bytes} bytes of JSON",
        f"one stored value may have at most {most_bytes // 1024} KiB",
    )


def _encode_text(value: str, path: str) -> str:
    check_characters(value, path)
    return encode_basestring(value)


def _encode_integer(value: int, path: str) -> str:
    if abs(value) >= _TOO_LARGE_INTEGER:
        raise InvalidInput(shown_path(path), "is too large an integer", f"at most {MAX_INTEGER_DIGITS} digits")
    return int.__repr__(value)


def _encode_float(value: float, path: str) -> str:
    if not math.isfinite(value):
        raise InvalidInput(shown_path(path), f"is {value}", "JSON has no NaN and no infinities; store None instead")
    text = float.__repr__(value)
    if "e" not in text:
        return text
    positional = format(Decimal(text), "f")
    return positional if "." in positional else positional + ".0"


def shown_path(path: str) -> str:
    """A path, made safe for a message."""
    return echo(path)[1:-1]


def check_characters(value: str, path: str) -> None:
    """Refuse characters that not every tier can store: NUL and lone surrogates."""
    if "\0" in value:
        raise InvalidInput(shown_path(path), "has a NUL character", "remove it: no database keeps it in text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                shown_path(path), "has a lone surrogate", "it is half a character: decode the text properly"
            ) from None
