"""Pages of sessions that a model can take in: if a page would be too long, the rest is left for the next one."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fiml.mcp.results import SessionLine
from fiml.sessions.context_pack import BYTES_PER_TOKEN
from fiml.sessions.listing import SummaryPage

# So that the default page of ten sessions, with everything around it, has at most 2,000 tokens.
_LINE_TOKENS = 180
_Page = TypeVar("_Page", bound=SummaryPage)


async def page_that_fits(look: Callable[[int], Awaitable[_Page]], limit: int) -> tuple[_Page, list[SessionLine]]:
    """At most `limit` sessions, which `look` returns; fewer if they have many assets and tags, but at least one."""
    page = await look(limit)
    lines = [SessionLine.of(summary) for summary in page]
    room = limit * _LINE_TOKENS * BYTES_PER_TOKEN
    fitting = 0
    for line in lines:
        room -= len(line.model_dump_json().encode())
        if room < 0:
            break
        fitting += 1
    if fitting == len(lines) or len(lines) == 1:
        return page, lines
    page = await look(max(fitting, 1))
    return page, [SessionLine.of(summary) for summary in page]
