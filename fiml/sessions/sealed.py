"""The form of an encrypted value: a JSON string, which every engine stores like any other value.

An encrypted entry of a map is `"fiml-enc:1:KEY:BASE64"`. A query's parameters, summary and figures are encrypted into
one such string, which takes the place of its parameters. No code here knows a key.
"""

import binascii
import re
from typing import Any

PREFIX = "fiml-enc:1:"
MEMBER = "fiml-enc"
NONCE_BYTES = 12
_TAG_BYTES = 16
_START = '"' + PREFIX
_HEAD = re.compile(r'"fiml-enc:1:([\w.-]{1,32}):', re.ASCII)
KEY_ID = re.compile(r"[\w.-]{1,32}", re.ASCII)


def to_text(key_id: str, sealed: bytes) -> str:
    """The JSON of a value encrypted with a key."""
    encoded = binascii.b2a_base64(sealed, newline=False).rstrip(b"=").decode()
    return f'{_START}{key_id}:{encoded}"'


def is_sealed(text: object) -> bool:
    """Whether the JSON of a value is that of an encrypted one. In a damaged record, it may not even be text."""
    return key_id_of(text) is not None


def key_id_of(text: object) -> str | None:
    """The id of the key with which a value is encrypted; `None` if it isn't.

    A text with the prefix but without a key is not encrypted: releases before encryption took any text.
    """
    head = _HEAD.match(text) if isinstance(text, str) else None
    return None if head is None else head[1]


def parse(text: str) -> tuple[str, bytes]:
    """The id of the key with which a value is encrypted, and the encrypted bytes.

    Raises:
        ValueError: the text is cut off or damaged.
    """
    head = _HEAD.match(text)
    if head is None or not text.endswith('"'):
        raise ValueError("it has not the form of an encrypted value")
    encoded = text[head.end() : -1]
    return head[1], binascii.a2b_base64(encoded + "=" * (-len(encoded) % 4), strict_mode=True)


def clear_size(text: str) -> int:
    """The size of a value's JSON before encryption, in bytes, which the limits count. `write.lua` does the same."""
    head = _HEAD.match(text)
    if head is None:
        return len(text.encode())
    return (len(text) - head.end() - 1) * 3 // 4 - NONCE_BYTES - _TAG_BYTES


def sealed_parameters(text: str) -> str:
    """The parameters of an encrypted query, as JSON."""
    return f'{{"{MEMBER}":{text}}}'


def text_in(parameters: Any) -> str | None:
    """The encrypted part of a query, from its parameters; `None` if it isn't encrypted."""
    if not isinstance(parameters, dict) or parameters.keys() != {MEMBER}:
        return None
    sealed = parameters[MEMBER]
    text = f'"{sealed}"' if isinstance(sealed, str) else None
    return text if is_sealed(text) else None
