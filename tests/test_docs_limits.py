"""The limits in the reference are those of the code."""

import re

import pytest

from fiml.analysis import ANSWER_TIMEOUT_S, MAX_COMPARED
from fiml.core.config import MAX_TTL_HOURS, Settings
from fiml.market.providers.base import MAX_SYMBOL_CHARACTERS
from fiml.market.providers.texts import MAX_TEXT_CHARACTERS
from fiml.mcp.arguments import MAX_ENTRIES
from fiml.mcp.http import MAX_BODY_BYTES
from fiml.mcp.refusals import MAX_VALUES
from fiml.replay import MAX_TOLERANCE
from fiml.sessions import analytics, notes, rights, searching, values
from fiml.sessions.backends.base import MAX_SEARCHED
from fiml.sessions.care import MAX_REASON_CHARACTERS
from fiml.sessions.context_pack import MAX_TOKENS, MIN_TOKENS
from tests.support.pages import REFERENCE

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


def limits_row(what: str) -> str:
    [row] = [line for line in (REFERENCE / "limits.md").read_text().splitlines() if line.startswith(f"| {what} |")]
    return row


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_in_the_reference_is_that_of_the_code(what: str) -> None:
    numbers = [getattr(values, name) for name in LIMITS[what]]

    assert [number for number in numbers if not re.search(rf"\b{number}\b", limits_row(what))] == []


def test_every_limit_is_in_the_reference() -> None:
    named = {name for names in LIMITS.values() for name in names}

    assert {name for name in vars(values) if name.startswith("MAX_")} == named


def test_limits_that_stand_elsewhere_are_in_the_reference_too() -> None:
    defaults = Settings()

    assert f" {defaults.session_max_ttl_hours} " in limits_row("TTL, hours to extend or resume by")
    assert f" {defaults.session_max_queries_per_session} " in limits_row("queries of a session")
    assert f" {analytics.MAX_DAYS} " in limits_row("days of statistics")
    assert f" {MAX_COMPARED};" in limits_row("assets that one deep question compares with")
    assert f" {MAX_SYMBOL_CHARACTERS} " in limits_row("a symbol")
    assert f" {notes.MAX_NOTE_CHARACTERS} " in limits_row("a note or conclusion")
    assert f" {notes.MAX_CITATIONS} " in limits_row("records that one note cites")
    assert f" {MIN_TOKENS} to {MAX_TOKENS} " in limits_row("budget of a packed context")
    text_row = limits_row("text of a search")
    for limit in (searching.MAX_TEXT_CHARACTERS, searching.MAX_WORDS, searching.MAX_CONDITIONS):
        assert f" {limit} " in text_row
    assert f" {MAX_SEARCHED};" in limits_row("live sessions that one search reads in Redis")
    filtered_row = limits_row("live sessions that one page filtered by type, tag or asset looks at in Redis")
    assert f" {MAX_SEARCHED};" in filtered_row
    words_row = limits_row("words of a session that full-text search finds")
    assert f" {searching.MAX_INDEXED_BYTES} " in words_row
    assert f" {searching.MAX_WORD_CHARACTERS} " in words_row
    assert f" {MAX_TEXT_CHARACTERS} " in limits_row("a text that a market provider sends")
    assert f" {ANSWER_TIMEOUT_S:g} seconds;" in limits_row("one question to the market")
    assert f" {MAX_TOLERANCE:g} " in limits_row("tolerance of a replay")
    assert f" {rights.MAX_SHARES} " in limits_row("users a session is shared with")
    assert f" {rights.MAX_CODES};" in limits_row("open codes of a session")
    assert f" {MAX_REASON_CHARACTERS} " in limits_row("reason of a hold")
    assert f" {analytics.MAX_ROWS};" in limits_row("rows of `get_session_metrics`")
    assert f" {defaults.http_rate_per_minute} by default, {defaults.http_rate_burst} " in limits_row(
        "calls of a principal on HTTP"
    )
    assert f" {MAX_BODY_BYTES} " in limits_row("the body of an HTTP request")
    assert f" {MAX_ENTRIES} " in limits_row("entries of each map in one call of `update-session-context`")
    assert f" {MAX_VALUES} " in limits_row("values in an MCP message, apart from the arguments of a tool")
    assert f" {MAX_TTL_HOURS} " in (REFERENCE / "settings.md").read_text()
