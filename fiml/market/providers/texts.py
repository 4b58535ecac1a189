"""Text from providers, made safe: it may reach a model, which could take it for instructions."""

import unicodedata

MAX_TEXT_CHARACTERS = 80


def clean(text: object) -> str:
    """`text` on one line, without control and format characters, at most 80 characters; empty if it isn't a string."""
    if not isinstance(text, str):
        return ""
    # Enough to get 80 characters; a text of megabytes isn't scanned as a whole.
    start = text[: 10 * MAX_TEXT_CHARACTERS]
    seen = "".join(" " if character.isspace() else character for character in start if _is_kept(character))
    line = " ".join(seen.split())
    return line if len(line) <= MAX_TEXT_CHARACTERS else line[: MAX_TEXT_CHARACTERS - 1] + "…"


def _is_kept(character: str) -> bool:
    # Format characters change the direction of writing, or hide words from people that machines still read.
    return character.isspace() or not unicodedata.category(character).startswith("C")
