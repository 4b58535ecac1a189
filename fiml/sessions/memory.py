"""The verbs of memory: a session's context, its notes and conclusions, and the search."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from fiml.core.errors import InvalidInput, echo
from fiml.sessions import stored_json, values
from fiml.sessions.backends.shapes import Found, PageQuery, WriteResult
from fiml.sessions.changes import Change
from fiml.sessions.context_pack import ContextPack, pack_context
from fiml.sessions.listing import Cursor, SearchPage, decode_cursor, next_cursor
from fiml.sessions.models import MAPS, Session, SessionType
from fiml.sessions.notes import Note, NoteKind, make_note, notes_in
from fiml.sessions.records import to_summary
from fiml.sessions.searching import parse_search
from fiml.sessions.verb_base import Verbs, found_of

DEFAULT_SEARCH_LIMIT = 20


class MemoryVerbs(Verbs):
    """Context, notes and search, in the name of a caller."""

    async def get_session(self, session_id: UUID | str, *, recent_queries: int | None = None) -> Session | None:
        raise NotImplementedError

    async def _write(self, session_id: UUID, change: Change) -> WriteResult:
        raise NotImplementedError

    async def pack_context(
        self, session_id: UUID | str, *, max_tokens: int = 2000, reserved_tokens: int = 0
    ) -> ContextPack:
        """What a session knows in at most `max_tokens` (of four bytes each), so that a conversation can carry on.

        `reserved_tokens` of them are left free, for what the caller puts around the pack.

        Raises:
            SessionNotFound: there is no such session.
            InvalidInput: the budget is out of bounds.
        """
        parsed = values.parse_session_id(session_id)
        session = found_of(parsed, await self.get_session(parsed))
        return pack_context(session, max_tokens=max_tokens, reserved_tokens=reserved_tokens)

    async def remember(
        self,
        session_id: UUID | str,
        *,
        context: dict[str, Any] | None = None,
        preferences: dict[str, Any] | None = None,
        intermediate_results: dict[str, Any] | None = None,
        notes: Sequence[str] = (),
        conclusions: Sequence[str] = (),
        cites: Sequence[UUID | str] = (),
        remove: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Note]:
        """Set and remove entries of a live session, and write down notes and conclusions. Returns the new notes.

        `cites` are the ids of the records (queries or notes) that each note and conclusion rests on. `remove` has lists
        of keys by map; a key that is also set is set. Either everything is written, in one step, or nothing.

        Raises:
            SessionNotFound, SessionExpired, SessionArchived: the session isn't live.
            InvalidInput: nothing is given, a value can't be stored, a key is kept for the market's answers, or a cited
                id is not a record of the session.
        """
        parsed = values.parse_session_id(session_id)
        for name, texts in (("notes", notes), ("conclusions", conclusions), ("cites", cites)):
            if not isinstance(texts, list | tuple):
                raise InvalidInput(name, f"is a {type(texts).__name__}", "give a list")
        written = [make_note(text, NoteKind.NOTE, cites) for text in notes]
        written += [make_note(text, NoteKind.CONCLUSION, cites) for text in conclusions]
        if cites and not written:
            raise InvalidInput("cites", "is given alone", "give a note or a conclusion that rests on these records")
        given = {"context": context, "preferences": preferences, "intermediate_results": intermediate_results}
        change = Change(
            entries_set=values.check_maps(given),
            entries_removed=_checked_removals(remove or {}),
        )
        _refuse_answers(change.entries_set.get("intermediate_results", {}))
        if written:
            encoded = values.check_entries("context", {note.key: note.to_dict() for note in written})
            change.entries_set["context"] = {**change.entries_set.get("context", {}), **encoded}
        if not change.entries_set and not change.entries_removed:
            raise InvalidInput("update", "is empty", "give entries, notes, conclusions or keys to remove")
        if cites:
            await self._check_cited(parsed, written[0].cites)
        await self._write(parsed, change)
        return written

    async def search_sessions(
        self,
        user_id: str | None,
        text: str | None = None,
        *,
        symbol: str | None = None,
        type: SessionType | str | None = None,  # noqa: A002  as in `list_user_sessions`
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        include_archived: bool = True,
        limit: int = DEFAULT_SEARCH_LIMIT,
        cursor: str | None = None,
    ) -> SearchPage:
        """A page of a user's sessions (everybody's, without a user) that match everything given, newest first.

        `text` has words and conditions on figures, such as `apple margin pe_ratio < 30`. `symbol` must be among the
        assets, or have been asked about. `since` and `until` bound the creation; `until` itself is excluded.

        Raises:
            InvalidInput: nothing is asked for, or a value is not valid.
        """
        if text is None and all(value is None for value in (symbol, type, tag, since, until)):
            raise InvalidInput("search", "has no criterion", "give words, a symbol, a type, a tag or a date")
        size = values.check_limit(limit)
        start = None if cursor is None else decode_cursor(cursor)
        query = PageQuery(
            limit=size + 1,
            include_archived=values.check_flag(include_archived, "include_archived"),
            user_id=self.acting_as(values.check_user_id(user_id)),
            type=None if type is None else SessionType.parse(type).value,
            tag=None if tag is None else values.check_name(tag, "tag"),
            after=None if start is None else start.position,
            given_to=self._caller.user,
            wanted=parse_search(
                text,
                symbol=None if symbol is None else values.check_name(symbol, "symbol"),
                since=None if since is None else values.check_moment(since, "since"),
                until=None if until is None else values.check_moment(until, "until"),
            ),
        )
        return _page_of(await self._backend.search(query), query, size, start)

    async def _check_cited(self, session_id: UUID, cites: Iterable[UUID]) -> None:
        session = found_of(session_id, await self.get_session(session_id))
        known = {query.id for query in session.state.history.queries}
        known |= {each.id for each in notes_in(session.state.context)}
        missing = [str(cited) for cited in cites if cited not in known]
        if missing:
            problem = f"names {missing[0]}, which is not a record of session {session_id}"
            raise InvalidInput(
                "cites", problem, "cite ids of the session's queries and notes, as its context shows them"
            )


def _page_of(found: Found, query: PageQuery, size: int, start: Cursor | None) -> SearchPage:
    rows, is_more = found.rows[:size], len(found.rows) > size
    readable = [row for row in rows if row[0].type in SessionType.__members__.values()]
    is_partial = found.is_partial or (start is not None and start.is_partial)
    return SearchPage(
        [to_summary(header, is_archived=is_archived) for header, is_archived in readable],
        next_cursor=next_cursor(rows[-1][0] if is_more else None, found.searched_to, is_partial=is_partial),
        truncated=found.searched_to is not None and not is_more,
        searched=("live", "archived") if query.include_archived and not found.is_partial else ("live",),
        unreadable=[*found.unreadable, *(row[0].id for row in rows if row not in readable)],
        not_indexed=found.not_indexed,
        partial=is_partial,
    )


def _refuse_answers(keys: Iterable[str]) -> None:
    """Refuse entries that a question would take for what the market said: otherwise anybody could invent a price."""
    for key in keys:
        if key.startswith(values.ANSWER_PREFIX):
            problem = f"is {echo(key)}, which is reserved for an answer of the market"
            raise InvalidInput(
                "a key of intermediate_results", problem, f"give one that doesn't begin with {values.ANSWER_PREFIX}"
            )


def _checked_removals(remove: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    if not isinstance(remove, Mapping):
        raise InvalidInput("remove", f"is a {type(remove).__name__}", "give a dict of lists of keys")
    for name, keys in remove.items():
        if name not in MAPS:
            raise InvalidInput("remove", f"names the map {echo(name)}", f"valid values are {', '.join(MAPS)}")
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
            raise InvalidInput(f"remove.{name}", "is not a list of keys", "give a list of strings")
        for key in keys:
            stored_json.to_json(key, f"remove.{name}")
    return {name: [str.__str__(key) for key in keys] for name, keys in remove.items() if keys}
