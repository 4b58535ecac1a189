"""Finding sessions, listings, searches and health over both tiers: live ones in Redis, archived ones in PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection, select

from fiml.core.errors import SessionArchived, Unavailable
from fiml.db.postgres import PostgresDatabase
from fiml.db.redis_client import RedisClient
from fiml.sessions.backends.pages import first_position, merge_pages, rows_down_to
from fiml.sessions.backends.redis.listing import RedisListing
from fiml.sessions.backends.redis.search import RedisSearch
from fiml.sessions.backends.redis.tier import RedisTier
from fiml.sessions.backends.shapes import Found, Page, PageQuery, Part
from fiml.sessions.backends.sql import archive, at_rest, indexing
from fiml.sessions.records import Header, SessionRecord
from fiml.sessions.rights import Caller, Right, right_of

Result = TypeVar("Result")


class TieredLooks:
    """Looks at live sessions first, at archived ones second, since sessions move that way, and at live ones again."""

    def __init__(self, client: RedisClient, live: RedisTier, listing: RedisListing, database: PostgresDatabase) -> None:
        self._client = client
        self._live = live
        self._listing = listing
        self._searching = RedisSearch(client, listing)
        self._database = database

    async def find(
        self, live: Callable[[], Awaitable[Result | None]], ended: Callable[[], Awaitable[Result | None]]
    ) -> Result | None:
        """What a look at the live sessions or one at the ended ones finds.

        A session may move between the tiers while it is looked for, but hardly twice within one call.
        """
        found: Result | None = await live()
        if found is None:
            found = await ended()
        return await live() if found is None else found

    async def on_live(
        self, session_id: UUID, caller: Caller, operation: Callable[[], Awaitable[Result | None]]
    ) -> Result | None:
        """The result of an operation on a live session; `None` if there is no such session.

        Raises:
            SessionArchived: the session is archived.
        """

        async def refuse_archived() -> None:
            if await self.read_archived(session_id, caller) is not None:
                raise SessionArchived(session_id)

        return await self.find(operation, refuse_archived)

    async def read_archived(self, session_id: UUID, caller: Caller) -> SessionRecord | None:
        """An archived session, whole.

        Raises:
            SessionQuarantined: it is in quarantine instead.
        """
        record = await self._database.view(lambda connection: at_rest.fetch(connection, session_id, caller))
        if record is None:
            return None
        right = right_of(record.header.user_id, record.header.grants, caller)
        return None if await self.is_overruled(session_id, right) else record

    async def is_overruled(self, session_id: UUID, right: Right | None) -> bool:
        """Whether the live copy of a session decides who may see it, and not the archived one that was found.

        The question is only asked if the session was shared with the caller, so that others can't learn from the
        commands whether a session exists.
        """
        return right is not None and right < Right.OWN and bool(await self._live.are_live([session_id]))

    async def away(self) -> list[Part]:
        """As `Backend.away`."""
        parts: list[Part] = []
        looks: list[tuple[Part, Awaitable[object]]] = [
            ("live", self._client.ask_all([("PING",)])),
            ("archive", self.look_at_archive()),
        ]
        outcomes = await asyncio.gather(*(look for _, look in looks), return_exceptions=True)
        for (part, _), outcome in zip(looks, outcomes, strict=True):
            if isinstance(outcome, Unavailable):
                parts.append(part)
            elif isinstance(outcome, BaseException):
                raise outcome
        return parts

    async def page(self, query: PageQuery) -> Page:
        """As `Backend.page`."""
        live = await self._listing.page(query)
        if not query.include_archived:
            return live
        try:
            ended = await self._ended(query, self._page_ended)
        except Unavailable:
            live.is_partial = True
            return live
        # A session that was resumed between the two looks is found by a third.
        again = await self._listing.page(query)
        found = {header.id: header for header, _ in [*again.rows, *live.rows]}
        rows = merge_pages(list(found.values()), ended, query.limit)
        searched_to = first_position(live.searched_to, again.searched_to)
        return Page(rows if searched_to is None else rows_down_to(rows, searched_to), searched_to=searched_to)

    async def _page_ended(self, query: PageQuery) -> list[Header]:
        if query.type is None and query.tag is None and query.asset is None:
            return await self._database.view(partial(archive.page, query=query))
        # The filters have no index: to find few among many sessions takes longer than a call may.
        return await self.look_long(partial(archive.page, query=query))

    async def search(self, query: PageQuery) -> Found:
        """As `Backend.search`."""
        if not query.include_archived:
            return await self._searching.search(query)
        # Find out soon whether the archive hangs, since searching it has a longer limit, for indexing. This comes
        # before the looks, which should follow each other closely.
        is_archive_there = await self._is_archive_there()
        found = await self._searching.search(query)

        async def search_ended(some: PageQuery) -> list[Header]:
            headers, found.not_indexed = await self._database.maintain(partial(_search_ended, query=some))
            return headers

        if not is_archive_there:
            found.is_partial = True
            return found
        try:
            ended = await self._ended(query, search_ended)
        except Unavailable:
            found.is_partial = True
            return found
        # A session that was resumed between the two looks is found by a third.
        found = await self._searching.search_again(query, found)
        found.rows = merge_pages([header for header, _ in found.rows], ended, query.limit)
        if found.searched_to is not None:
            found.rows = rows_down_to(found.rows, found.searched_to)
        return found

    async def look_at_archive(self) -> None:
        """Raise `Unavailable` unless PostgreSQL answers within two seconds."""
        await self._database.view(lambda connection: connection.execute(select(1)).one())

    async def look_long(self, function: Callable[[Connection], Result]) -> Result:
        """Read the archive for a minute at most, if PostgreSQL answers within two seconds."""
        await self.look_at_archive()
        return await self._database.maintain(function)

    async def _is_archive_there(self) -> bool:
        try:
            await self.look_at_archive()
        except Unavailable:
            return False
        return True

    async def _ended(self, query: PageQuery, page: Callable[[PageQuery], Awaitable[list[Header]]]) -> list[Header]:
        """Archived sessions, up to `query.limit`, without those that became live and were shared with the caller."""
        found: list[Header] = []
        while True:
            some = await page(query)
            found += await self._without_copies(some, query)
            if len(some) < query.limit or len(found) >= query.limit:
                return found[: query.limit]
            query = replace(query, after=(some[-1].created_at, some[-1].id))

    async def _without_copies(self, ended: list[Header], query: PageQuery) -> list[Header]:
        """The sessions without shared ones that are live: their live copies decide whether the caller may see them."""
        given = [] if query.given_to is None else [each.id for each in ended if each.user_id != query.given_to]
        live = await self._live.are_live(given)
        return [header for header in ended if header.id not in live]


def _search_ended(connection: Connection, query: PageQuery) -> tuple[list[Header], bool]:
    is_more = indexing.index_archived(connection)
    return archive.page(connection, query), is_more
