"""The arguments of the tools, so that each is described in the same way by every tool that has it."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from fiml.sessions import values
from fiml.sessions.context_pack import MAX_TOKENS, MIN_TOKENS
from fiml.sessions.notes import MAX_CITATIONS, MAX_NOTE_CHARACTERS


def _also(name: str) -> AliasChoices:
    """The name in the schema, and its snake_case form, which models are prone to write."""
    return AliasChoices(name, snake_case(name))


def snake_case(name: str) -> str:
    """The name as the library writes it: `ttl_hours` for `ttlHours`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _no_boolean(value: object) -> object:
    """Refuse a boolean: pydantic would take `true` for 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a whole number")
    return value


_Whole = BeforeValidator(_no_boolean)
# A list is refused at its first wrong item: a body has room for a million, and describing each would take seconds and
# a gigabyte.
_list = partial(Field, fail_fast=True)
# A body has room for two hundred thousand entries, and writing them would keep everybody else waiting for seconds.
MAX_ENTRIES = 1000
_entries = partial(Field, max_length=MAX_ENTRIES)
SessionType = Literal["equity", "crypto", "portfolio", "comparative", "macro"]
SessionIdText = Field(
    validation_alias=_also("sessionId"),
    description="UUID from create-analysis-session, e.g. 550e8400-e29b-41d4-a716-446655440000",
    max_length=100,
)
SessionId = Annotated[str, SessionIdText]
OptionalSessionId = Annotated[str | None, SessionIdText]
RequestId = Annotated[
    str | None,
    Field(
        validation_alias=_also("requestId"),
        description="UUID that you choose for this query; if you repeat the call with it, the query is recorded once,"
        " e.g. 7d444840-9dc0-41d1-b245-5ffdce74fad2",
        max_length=100,
    ),
]
UserId = Annotated[
    str | None,
    Field(
        validation_alias=_also("userId"),
        description=f"user id, at most {values.MAX_USER_ID_CHARACTERS} characters, e.g. analyst_001; left out: the user"
        " of your token; without a token: no user for a new session, else all users",
    ),
]
OptionalSessionType = Annotated[
    SessionType | None, Field(validation_alias=_also("sessionType"), description="only of this type, e.g. equity")
]
Assets = Annotated[
    list[str], _list(description=f'1 to {values.MAX_ASSETS} symbols the analysis is about, e.g. ["AAPL", "MSFT"]')
]
RequiredSessionType = Annotated[
    SessionType, Field(validation_alias=_also("sessionType"), description="what kind of analysis it is, e.g. equity")
]
TtlHours = Annotated[
    int | None,
    Field(
        validation_alias=_also("ttlHours"),
        description="hours until the session expires, e.g. 24; default and maximum above",
    ),
    _Whole,
]
Tags = Annotated[list[str] | None, _list(description=f'at most {values.MAX_TAGS} labels, e.g. ["tech"]')]
Title = Annotated[
    str | None,
    Field(
        description=f"at most {values.MAX_TITLE_CHARACTERS} characters, to find it again, e.g. Apple before earnings"
    ),
]
IncludeArchived = Annotated[
    bool, Field(validation_alias=_also("includeArchived"), description="also sessions that have ended, e.g. true")
]
Limit = Annotated[int, Field(description=f"sessions per page, 1 to {values.MAX_PAGE}, e.g. 20"), _Whole]
Cursor = Annotated[
    str | None, Field(description="next_cursor of the previous page, unchanged, e.g. MTczNTA1NDIw...", max_length=500)
]
Tag = Annotated[str | None, Field(description="only with exactly this tag, e.g. tech")]
Asset = Annotated[
    str | None, Field(description="only about this asset, in the spelling it was created with, e.g. AAPL")
]
Hours = Annotated[
    int,
    Field(description="hours to add, 1 to the maximum above, e.g. 24; the new expiry is at most that maximum from now"),
    _Whole,
]
Days = Annotated[int, Field(description="sessions created in this many days up to now, 1 to 3650, e.g. 30"), _Whole]
Symbol = Annotated[str, Field(description="ticker, e.g. AAPL or ^GSPC", max_length=1000)]
CoinSymbol = Annotated[str, Field(description="coin, e.g. BTC", max_length=1000)]
Market = Annotated[str, Field(description="market of the ticker, e.g. US")]
Exchange = Annotated[
    str | None, Field(description="exchange of the price, e.g. Bitstamp; left out: the source's choice")
]
Pair = Annotated[str, Field(description="currency of the price, e.g. USD")]
Depth = Annotated[
    Literal["quick", "standard", "deep"],
    Field(
        description="quick: quote; standard: also technicals and fundamentals; deep: also comparisons with the"
        " session's other assets; e.g. standard"
    ),
]
MaxTokens = Annotated[
    int,
    Field(
        validation_alias=_also("maxTokens"),
        description=f"budget of the answer, {MIN_TOKENS} to {MAX_TOKENS} tokens of 4 bytes, e.g. 1000",
    ),
    _Whole,
]
_Entries = dict[str, Any] | None
Context = Annotated[_Entries, _entries(description='what the analysis is about, e.g. {"focus": "margins"}')]
Preferences = Annotated[_Entries, _entries(description='how the user wants answers, e.g. {"currency": "EUR"}')]
IntermediateResults = Annotated[
    _Entries,
    _entries(validation_alias=_also("intermediateResults"), description='what you computed, e.g. {"peg_AAPL": 1.9}'),
]
Note = Annotated[
    str | None,
    Field(description=f"text to remember, at most {MAX_NOTE_CHARACTERS} characters, e.g. the user holds no banks"),
]
Conclusion = Annotated[
    str | None,
    Field(description=f"what you concluded, at most {MAX_NOTE_CHARACTERS} characters, e.g. MSFT is dearer than AAPL"),
]
Cites = Annotated[
    list[str] | None,
    _list(
        description=f"ids of the records that the note and the conclusion rest on, at most {MAX_CITATIONS}, e.g."
        ' ["7d444840-9dc0-41d1-b245-5ffdce74fad2"]'
    ),
]
WithUser = Annotated[
    str | None, Field(validation_alias=_also("withUser"), description="the user to share with, e.g. analyst_002")
]
ShareRole = Annotated[
    Literal["viewer", "editor", "none"],
    Field(description="viewer: reads; editor: also records, extends, closes; none: stop sharing; e.g. editor"),
]
CodeHours = Annotated[
    int,
    Field(
        validation_alias=_also("codeHours"),
        description="hours to redeem a new code in, 1 to the maximum above, e.g. 24",
    ),
    _Whole,
]
RevokeCode = Annotated[
    str | None,
    Field(
        validation_alias=_also("revokeCode"),
        description="id of one of open_codes, e.g. 9b74c9897bac770ffc029102a200c5de",
        max_length=100,
    ),
]
RedeemCode = Annotated[
    str | None,
    Field(validation_alias=_also("redeemCode"), description="code that you were given, e.g. share_...", max_length=100),
]
ResumeHours = Annotated[
    int | None, Field(description="hours from now until it expires, 1 to the maximum above, e.g. 24"), _Whole
]
SearchText = Annotated[
    str | None,
    Field(
        description="words (word* for words that begin so), conditions on figures as answers name them, e.g. margin"
        " pe_ratio < 30 return_1y < -0.1"
    ),
]
SearchSymbol = Annotated[
    str | None, Field(description="a symbol among the assets or asked about, e.g. AAPL", max_length=1000)
]
CreatedFrom = Annotated[
    str | None,
    Field(
        validation_alias=_also("createdFrom"),
        description="created at or after this date in UTC, or time, e.g. 2024-12-24 or 2024-12-24T15:30:00Z",
    ),
]
CreatedBefore = Annotated[
    str | None,
    Field(
        validation_alias=_also("createdBefore"),
        description="created before this date in UTC, or time, e.g. 2024-12-25",
    ),
]
