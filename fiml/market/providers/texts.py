"""Text that a provider sends: it is data, and goes to readers that may take it for more."""

import unicodedata

MAX_TEXT_CHARACTERS = 80


def clean(text: object) -> str:
    """`text` on one line, without control and format characters, at most 80 characters; empty if it is no text."""
    if not isinstance(text, str):
        return ""
    # Enough to fill what is kept; a text of megabytes is not walked through.
    start = text[: 10 * MAX_TEXT_CHARACTERS]
    seen = "".join(" " if character.isspace() else character for character in start if _is_kept(character))
    line = " ".join(seen.split())
    return line if len(line) <= MAX_TEXT_CHARACTERS else line[: MAX_TEXT_CHARACTERS - 1] + "…"


def _is_kept(character: str) -> bool:
    # Format characters turn the direction of writing, or hide words from a person that a machine still reads.
    return character.isspace() or not unicodedata.category(character).startswith("C")
