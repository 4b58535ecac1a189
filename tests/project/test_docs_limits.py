"""The limits in the reference are those of the code."""

import re
from typing import Any

import pytest
from typer.main import get_command

from fiml.access.tokens import MAX_DAYS
from fiml.analysis import ANSWER_TIMEOUT_S, MAX_COMPARED
from fiml.cli import app
from fiml.core.config import MAX_TTL_HOURS, Settings
from fiml.market.providers.base import MAX_SYMBOL_CHARACTERS
from fiml.market.providers.texts import MAX_TEXT_CHARACTERS
from fiml.mcp.arguments import MAX_ENTRIES
from fiml.mcp.http import MAX_BODY_BYTES
from fiml.mcp.refusals import MAX_VALUES
from fiml.replay import MAX_TOLERANCE
from fiml.sessions import analytics, notes, rights, searching, stored_json, values
from fiml.sessions.backends.shapes import MAX_SEARCHED
from fiml.sessions.care import MAX_REASON_CHARACTERS
from fiml.sessions.context_pack import MAX_TOKENS, MIN_TOKENS
from tests.support.pages import REFERENCE, section

LIMITS = {
    "assets of a session": ["MAX_ASSETS"],
    "tags of a session": ["MAX_TAGS"],
    "one asset, tag or query type": ["MAX_NAME_CHARACTERS"],
    "`user_id`": ["MAX_USER_ID_CHARACTERS"],
    "`title`": ["MAX_TITLE_CHARACTERS"],
    "page of a listing": ["MAX_PAGE"],
    "one stored value, as JSON": ["MAX_VALUE_BYTES", "MAX_VALUE_DEPTH"],
    "a session's maps together, keys and values": ["MAX_MAPS_BYTES"],
    "an integer": ["MAX_INTEGER_DIGITS"],
    "queries of a session, as JSON": ["MAX_HISTORY_BYTES"],
    "`execution_time_ms` of a query": ["MAX_DURATION_MS"],
    "`expected_version`": ["MAX_VERSION"],
}
IN_CODE = {name: value for name, value in (vars(values) | vars(stored_json)).items() if name.startswith("MAX_")}


def limits_row(what: str) -> str:
    [row] = [line for line in (REFERENCE / "limits.md").read_text().splitlines() if line.startswith(f"| {what} |")]
    return row


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_in_the_reference_is_that_of_the_code(what: str) -> None:
    numbers = [IN_CODE[name] for name in LIMITS[what]]

    assert [number for number in numbers if not re.search(rf"\b{number}\b", limits_row(what))] == []


def test_every_limit_is_in_the_reference() -> None:
    named = {name for names in LIMITS.values() for name in names}

    assert IN_CODE.keys() == named


DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
ELSEWHERE: dict[str, list[float]] = {
    "TTL, hours to extend or resume by": [DEFAULTS["session_max_ttl_hours"]],
    "queries of a session": [DEFAULTS["session_max_queries_per_session"]],
    "days of statistics": [analytics.MAX_DAYS],
    "rows of `get_session_metrics`": [analytics.MAX_ROWS],
    "assets that one deep question compares with": [MAX_COMPARED],
    "a symbol": [MAX_SYMBOL_CHARACTERS],
    "a note or conclusion": [notes.MAX_NOTE_CHARACTERS],
    "records that one note cites": [notes.MAX_CITATIONS],
    "entries of each map in one call of `update-session-context`": [MAX_ENTRIES],
    "values in an MCP message, apart from the arguments of a tool": [MAX_VALUES],
    "budget of a packed context": [MIN_TOKENS, MAX_TOKENS],
    "text of a search": [searching.MAX_TEXT_CHARACTERS, searching.MAX_WORDS, searching.MAX_CONDITIONS],
    "words of a session that full-text search finds": [searching.MAX_INDEXED_BYTES, searching.MAX_WORD_CHARACTERS],
    "live sessions that one search reads in Redis": [MAX_SEARCHED],
    "live sessions that one page filtered by type, tag or asset looks at in Redis": [MAX_SEARCHED],
    "a text that a market provider sends": [MAX_TEXT_CHARACTERS],
    "one question to the market": [ANSWER_TIMEOUT_S],
    "tolerance of a replay": [MAX_TOLERANCE],
    "users a session is shared with": [rights.MAX_SHARES],
    "open codes of a session": [rights.MAX_CODES],
    "reason of a hold": [MAX_REASON_CHARACTERS],
    "calls of a principal on HTTP": [DEFAULTS["http_rate_per_minute"], DEFAULTS["http_rate_burst"]],
    "the body of an HTTP request": [MAX_BODY_BYTES],
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_limit_that_stands_elsewhere_is_that_of_the_code(what: str) -> None:
    assert [number for number in ELSEWHERE[what] if not re.search(rf"\b{number:.12g}\b", limits_row(what))] == []


def test_the_longest_ttl_that_can_be_set_is_in_the_reference() -> None:
    assert f" {MAX_TTL_HOURS} " in (REFERENCE / "settings.md").read_text()


def test_how_long_a_token_is_valid_is_the_same_in_the_help_and_in_the_reference() -> None:
    told = f"1 to {MAX_DAYS}"

    new: Any = get_command(app)
    for name in ("token", "new"):
        new = new.commands[name]
    [days] = [parameter for parameter in new.params if parameter.name == "days"]
    assert told in days.help
    assert told in section("cli.md", "fiml token new")
