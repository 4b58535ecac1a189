"""What a search over sessions asks for, and whether a session matches: the same on every engine.

Words match as a whole, ignoring case; `word*` matches any word that begins with it. All words must be somewhere in the
session, in any order. Conditions are on the figures of query records: a single record must meet all of them, and be
about the symbol, if one is given.
"""

import json
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from fiml.core.errors import InvalidInput, echo
from fiml.sessions.records import Header, SessionRecord
from fiml.sessions.sealed import PREFIX
from fiml.sessions.values import ANSWER_PREFIX, check_text

MAX_TEXT_CHARACTERS = 500
MAX_WORDS = 20
MAX_CONDITIONS = 10
# A tsvector of PostgreSQL's holds at most a mebibyte of words; with more, it gets them wrong.
MAX_INDEXED_BYTES = 768 * 1024
MAX_WORD_CHARACTERS = 64

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}
_CONDITION = re.compile(r"([^\s<>=]+)\s*(<=|>=|<|>|=)\s*([^\s<>=]+)")
_CONDITIONS = "write a condition as pe_ratio < 30 or correlation:KO > 0.5, with one of < <= = >= >"
_FIGURE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}(?::[A-Z0-9.^=/-]{1,32})?")
_WORD = re.compile(r"[^\W_]+")
_BLANKED = "".join(letter if letter.isalnum() else " " for letter in map(chr, range(128)))
_WANTED = re.compile(r"[^\W_]+\*?")


@dataclass(frozen=True, slots=True)
class Condition:
    """A figure compared with a number, such as `pe_ratio < 30`."""

    figure: str
    sign: str
    number: float

    def holds(self, figures: dict[str, Any]) -> bool:
        """Whether the figures of one record meet the condition."""
        value = figures.get(self.figure)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            return OPERATORS[self.sign](float(value), self.number)
        except OverflowError:  # an integer too large for a float
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a session must contain. One of `symbols` must be among its assets, or the subject of a query."""

    words: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    symbols: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def lets_pass(self, header: Header) -> bool:
        """Whether the creation is in the wanted span: from `since` on, and before `until`."""
        return (self.since is None or header.created_at >= self.since) and (
            self.until is None or header.created_at < self.until
        )

    def is_met_by(self, record: SessionRecord) -> bool:
        """Whether a session, read whole, matches."""
        queries = [query for query in json.loads(record.history) if isinstance(query, dict)]
        return (
            self.lets_pass(record.header)
            and self._knows_symbol(record.header, queries)
            and (not self.conditions or any(self._holds(query) for query in queries))
            and (not self.words or _have(words_of(record), self.words))
        )

    def _knows_symbol(self, header: Header, queries: list[dict[str, Any]]) -> bool:
        return (
            not self.symbols
            or any(asset in self.symbols for asset in header.assets)
            or any(_about(query) in self.symbols for query in queries)
        )

    def _holds(self, query: dict[str, Any]) -> bool:
        figures = query.get("figures")
        if not isinstance(figures, dict) or (self.symbols and _about(query) not in self.symbols):
            return False
        return all(condition.holds(figures) for condition in self.conditions)


def parse_search(
    text: str | None, *, symbol: str | None = None, since: datetime | None = None, until: datetime | None = None
) -> Wanted:
    """What a search asks for: a text of words and conditions, and the other criteria. A symbol may be in lower case.

    Raises:
        InvalidInput: the text is too long, has too many words or conditions, or a condition that can't be parsed.
    """
    checked = "" if text is None else check_text(text, "text", max_characters=MAX_TEXT_CHARACTERS)
    conditions = tuple(_condition(*found.groups()) for found in _CONDITION.finditer(checked))
    rest = _CONDITION.sub(" ", checked)
    if stray := re.search(r"\S*[<>=]\S*", rest):
        raise InvalidInput("text", f"has {echo(stray[0])}", _CONDITIONS)
    words = tuple(dict.fromkeys(_cut(found) for found in _WANTED.findall(_folded(rest))))
    if rest.strip() and not words:
        raise InvalidInput("text", f"{echo(rest.strip())} has no word", "give words of letters or digits")
    for what, count, most in (("words", len(words), MAX_WORDS), ("conditions", len(conditions), MAX_CONDITIONS)):
        if count > most:
            raise InvalidInput("text", f"has {count} {what}", f"at most {most} are allowed")
    if since is not None and until is not None and since >= until:
        raise InvalidInput("since", "is not before until", "give an earlier since, or a later until")
    symbols = () if symbol is None else tuple(dict.fromkeys((symbol, symbol.upper())))
    return Wanted(words=words, conditions=conditions, symbols=symbols, since=since, until=until)


def _condition(figure: str, sign: str, number: str) -> Condition:
    if not _FIGURE.fullmatch(figure):
        raise InvalidInput("text", f"compares {echo(figure)}, which is not the name of a figure", _CONDITIONS)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in number:
        raise InvalidInput("text", f"compares {figure} with {echo(number)}, which is not a number", _CONDITIONS)
    return Condition(figure, sign, value)


def words_of(record: SessionRecord) -> set[str]:
    """The words of a session that a search can find, up to a limit: of its names, entries and queries.

    Raises:
        One of `DAMAGE`: a part is not JSON.
    """
    header = record.header
    first = _words([header.title or "", *header.assets, *header.tags])
    words = first | _words([header.type])
    for entries in record.entries.values():
        for key, text in entries.items():
            # The market's last answers are left out, since the records of the queries say the same.
            if not key.startswith(ANSWER_PREFIX):
                words |= _words([key, *_texts(msgspec.json.decode(text))])
    for query in msgspec.json.decode(record.history):
        if isinstance(query, dict):
            said = [query.get("query_type"), query.get("parameters"), query.get("result_summary")]
            words |= _words(_texts(said))
    return _within_limit(words, first=first)


def _within_limit(words: set[str], *, first: set[str]) -> set[str]:
    """The words, as many as fit into the limit: those of the names first, then the others in alphabetical order."""
    if len(words) * (4 * MAX_WORD_CHARACTERS + 1) <= MAX_INDEXED_BYTES:
        return words
    kept: set[str] = set()
    left = MAX_INDEXED_BYTES
    for word in (*sorted(first), *sorted(words - first)):
        left -= len(word.encode()) + 1
        if left < 0:
            break
        kept.add(word)
    return kept


def _words(texts: Iterable[str]) -> set[str]:
    folded = _folded("\n".join(texts))
    # For ASCII, replacing all but letters and digits by blanks and splitting is several times faster than the pattern.
    found = folded.translate(_BLANKED).split() if folded.isascii() else _WORD.findall(folded)
    return {word[:MAX_WORD_CHARACTERS] for word in set(found)}


def _cut(wanted: str) -> str:
    is_prefix = wanted.endswith("*") or len(wanted) > MAX_WORD_CHARACTERS
    return wanted.rstrip("*")[:MAX_WORD_CHARACTERS] + ("*" if is_prefix else "")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not value.startswith(PREFIX):  # encrypted text has no words
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _about(query: dict[str, Any]) -> Any:
    parameters = query.get("parameters")
    return parameters.get("symbol") if isinstance(parameters, dict) else None


def _have(words: set[str], wanted: Iterable[str]) -> bool:
    return all(
        any(word.startswith(each[:-1]) for word in words) if each.endswith("*") else each in words for each in wanted
    )
