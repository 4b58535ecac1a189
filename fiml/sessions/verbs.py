"""The verbs of a session's life, over live and archived sessions alike, in the name of a caller."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from fiml.core import clock
from fiml.core.errors import (
    InvalidInput,
    SessionArchived,
    SessionExpired,
    SessionNotFound,
    Unavailable,
    Unconfirmed,
)
from fiml.sessions import values
from fiml.sessions.audit import Act, trail_json
from fiml.sessions.backends.shapes import PageQuery, WriteResult, WriteRules
from fiml.sessions.care import CareVerbs
from fiml.sessions.changes import Change, baseline_of, change_of, note_attempt, settle
from fiml.sessions.listing import SummaryPage, decode_cursor, next_cursor
from fiml.sessions.memory import MemoryVerbs
from fiml.sessions.models import QueryRecord, QueryTotals, Session, SessionType
from fiml.sessions.queries import DecodedHistory
from fiml.sessions.query_json import encode_query
from fiml.sessions.records import SessionRecord, header_of, to_session, to_summaries
from fiml.sessions.sharing import SharingVerbs
from fiml.sessions.smart_ttl import live_on
from fiml.sessions.verb_base import found_of

SessionId = UUID | str


class SessionVerbs(CareVerbs, MemoryVerbs, SharingVerbs):
    """What can be done with sessions, in the name of a caller.

    Ids are `UUID` or text; a malformed one raises `InvalidSessionId`. Every verb raises `Unavailable` when an engine
    is unavailable, `CorruptRecord` if the session is damaged, `SessionQuarantined` if it was moved to quarantine, and
    `SchemaTooNew` if a later fiml wrote it. A verb that changes a session raises `NotPermitted` if the caller may only
    read it.
    """

    async def create_session(
        self,
        assets: list[str],
        session_type: SessionType | str,
        user_id: str | None = None,
        ttl_hours: int | None = None,
        tags: list[str] | None = None,
        title: str | None = None,
    ) -> Session:
        """A new session, which lives `ttl_hours` (default: `session_default_ttl_hours`). One round trip.

        Raises:
            InvalidInput: a value exceeds a limit; nothing was written.
            Unconfirmed: the session was created, but is not on enough replicas; the error has its `session_id`.
        """
        hours = self._hours(ttl_hours, "ttl_hours")
        now = clock.now()
        session = Session(
            user_id=self.acting_as(values.check_user_id(user_id)),
            type=SessionType.parse(session_type),
            title=values.check_title(title),
            assets=values.check_assets(assets),
            tags=values.check_tags(tags),
            created_at=now,
            expires_at=now + timedelta(hours=hours),
            last_accessed_at=now,
        )
        trail = trail_json([Act("create", self._caller.name, now).at_version(session.version)])
        record = SessionRecord(header_of(session), trail=trail)
        try:
            await self._backend.create(record)
        except Unconfirmed as exc:
            raise Unconfirmed(exc.what, exc.reached, exc.wanted, session_id=session.id) from exc
        return to_session(record)

    async def get_session(self, session_id: SessionId, *, recent_queries: int | None = None) -> Session | None:
        """A session with its whole history, or only its last `recent_queries`; `None` if there is no such session.

        One round trip for a live session, whose last access moves to now. An archived or expired session can be read,
        but takes no changes.

        Raises:
            CorruptRecord: the stored session can't be read.
            SessionQuarantined: it was set aside because it couldn't be archived.
        """
        parsed = values.parse_session_id(session_id)
        if recent_queries is not None:
            values.check_whole(recent_queries, "recent_queries", at_least=0, at_most=values.MAX_VERSION)
        record = await self._backend.read(parsed, now=clock.now(), caller=self._caller, recent=recent_queries)
        return None if record is None else to_session(record, recent=recent_queries)

    async def update_session(
        self, session_id: SessionId, session: Session, expected_version: int | None = None
    ) -> Session:
        """Write what changed on `session` since it was read or last written. Returns the merged session.

        One round trip, or more if the expiry changes.

        Changes of several writers commute: queries are appended, entries set or removed one by one, names added or
        removed, scalars set. With `expected_version`, nothing is written unless the session has that version.

        Raises:
            SessionNotFound, SessionExpired, SessionArchived: the session isn't live.
            SessionConflict: the session doesn't have the expected version.
            SessionFull: it would have too many queries, or has had too many changes.
            InvalidInput: a value can't be stored.
        """
        parsed = values.parse_session_id(session_id)
        if not isinstance(session, Session):
            raise InvalidInput("session", f"is a {type(session).__name__}", "give the Session that was read")
        if session.id != parsed:
            raise InvalidInput("session", f"has the id {session.id}, not {parsed}", "update a session under its own id")
        if expected_version is not None:
            values.check_whole(expected_version, "expected_version", at_most=values.MAX_VERSION)
        before = baseline_of(session)
        if before is None:
            await self._refuse_unread(parsed)
        read = DecodedHistory.of(before.history)
        change, after = change_of(session, before, read.queries, max_ttl_hours=self.settings.session_max_ttl_hours)
        rules = self._rules(clock.now(), expected_version)
        try:
            updated = found_of(parsed, await self._backend.update(parsed, change, rules))
        except (Unavailable, asyncio.CancelledError):
            note_attempt(session, before, after)
            raise
        result = updated.result
        is_alone = result.is_new_version and result.version == after.version + 1
        last = await self._live_on(parsed, result, change)
        settle(session, after, last.version, last.expires_at, is_current=is_alone)
        if updated.record is not None and last is result:
            return to_session(updated.record, begin=read)
        return found_of(parsed, await self.get_session(parsed))

    async def record_query(
        self,
        session_id: SessionId,
        query: QueryRecord,
        *,
        context: dict[str, Any] | None = None,
        intermediate_results: dict[str, Any] | None = None,
    ) -> QueryTotals:
        """Append a query, and set entries that belong to it, without reading the session. Returns the new totals.

        One round trip. If a query with the same `query.id` is there already, none is appended.

        Raises:
            SessionNotFound, SessionExpired, SessionArchived, SessionFull: as `update_session`.
            InvalidInput: a value can't be stored; nothing was written.
        """
        given = {"context": context, "intermediate_results": intermediate_results}
        change = Change(queries=[encode_query(query)], entries_set=values.check_maps(given))
        parsed = values.parse_session_id(session_id)
        return (await self._write(parsed, change)).totals

    async def extend_session(self, session_id: SessionId, hours: int) -> Session:
        """Move the expiry `hours` later, at most to now plus the maximum TTL. Returns the session. One round trip.

        Raises:
            SessionNotFound, SessionExpired, SessionArchived: the session isn't live.
            SessionFull: it has had too many changes.
        """
        parsed = values.parse_session_id(session_id)
        max_hours = self.settings.session_max_ttl_hours
        by = timedelta(hours=values.check_hours(hours, "hours", max_hours=max_hours))
        now = clock.now()
        latest = now + timedelta(hours=max_hours)
        rules = self._rules(now)
        record = await self._backend.extend(parsed, by=by, latest=latest, rules=rules)
        return to_session(found_of(parsed, record))

    async def resume_session(self, session_id: SessionId, hours: int | None = None) -> Session:
        """Make an expired or archived session live again, for `hours`, with its whole history. A live one is unchanged.

        Raises:
            SessionNotFound: there is no such session.
        """
        parsed = values.parse_session_id(session_id)
        now = clock.now()
        until = now + timedelta(hours=self._hours(hours, "hours"))
        record = await self._backend.resume(parsed, until=until, now=now, caller=self._caller)
        return to_session(found_of(parsed, record))

    async def archive_session(self, session_id: SessionId) -> bool:
        """End a session now and move it to the archive; `False` if it isn't live."""
        parsed = values.parse_session_id(session_id)
        return await self._backend.archive(parsed, self._ended(clock.now()), caller=self._caller)

    async def delete_session(self, session_id: SessionId) -> bool:
        """Remove a session for good, from both tiers and the quarantine; `False` if there is no such session.

        Raises:
            SessionOnHold: it is on legal hold; nothing was removed.
        """
        return await self._backend.delete(values.parse_session_id(session_id), now=clock.now(), caller=self._caller)

    async def list_user_sessions(
        self,
        user_id: str | None,
        include_archived: bool = False,  # noqa: FBT001, FBT002  the contract's signature
        limit: int = 50,
        cursor: str | None = None,
        type: SessionType | str | None = None,  # noqa: A002  the contract's name
        tag: str | None = None,
        asset: str | None = None,
    ) -> SummaryPage:
        """A page of a user's sessions, newest first; of everybody's if `user_id` is `None`.

        A principal's page has its own sessions and those that are shared with it.

        Pages that follow each other by cursor are complete and without duplicates, even while sessions come and go.
        A page may have fewer sessions than `limit`, or none, before the end: with filters, a call
        looks at no more than a thousand live sessions in Redis. With `include_archived`, a page is `partial` while the
        archive is unavailable. A session that only a later fiml can read is left out.

        Raises:
            InvalidInput: a filter, the limit or the cursor is not valid.
        """
        size = values.check_limit(limit)
        start = None if cursor is None else decode_cursor(cursor)
        query = PageQuery(
            limit=size + 1,
            include_archived=values.check_flag(include_archived, "include_archived"),
            user_id=self.acting_as(values.check_user_id(user_id)),
            type=None if type is None else SessionType.parse(type).value,
            tag=None if tag is None else values.check_name(tag, "tag"),
            asset=None if asset is None else values.check_name(asset, "asset"),
            after=None if start is None else start.position,
            given_to=self._caller.user,
        )
        found = await self._backend.page(query)
        rows = found.rows[:size]
        is_partial = found.is_partial or (start is not None and start.is_partial)
        last = rows[-1][0] if len(found.rows) > size else None
        following = next_cursor(last, found.searched_to, is_partial=is_partial)
        return SummaryPage(to_summaries(rows), following, partial=is_partial)

    def _hours(self, hours: int | None, field: str) -> int:
        if hours is None:
            return self.settings.session_default_ttl_hours
        return values.check_hours(hours, field, max_hours=self.settings.session_max_ttl_hours)

    async def _write(self, session_id: UUID, change: Change) -> WriteResult:
        rules = self._rules(clock.now())
        result = found_of(session_id, await self._backend.write(session_id, change, rules))
        await self._live_on(session_id, result, change)
        return result

    def _rules(self, now: datetime, expected_version: int | None = None) -> WriteRules:
        return WriteRules(
            now=now,
            max_queries=self.settings.session_max_queries_per_session,
            max_changes=self.settings.session_max_changes,
            expected_version=expected_version,
            caller=self._caller,
        )

    async def _live_on(self, session_id: UUID, result: WriteResult, change: Change) -> WriteResult:
        """Extend a session after a write, if smart TTL is on and its end is near. Returns its state after that."""
        if not self.settings.session_smart_ttl or "expires_at" in change.scalars:
            return result
        return await live_on(self._backend, self.settings, session_id, result, caller=self._caller)

    async def _refuse_unread(self, session_id: UUID) -> NoReturn:
        """Refuse to write an object that never came from the store, since there is nothing to compare it with."""
        refuse_unless_live(session_id, await self.get_session(session_id, recent_queries=0))
        raise InvalidInput("session", "was not read from the store", "change and write what get_session returned")


def refuse_unless_live(session_id: UUID, session: Session | None) -> Session:
    """The session, if it takes changes.

    Raises:
        SessionNotFound, SessionArchived, SessionExpired: the session isn't live.
    """
    if session is None:
        raise SessionNotFound(session_id)
    if session.is_archived:
        raise SessionArchived(session_id)
    if session.is_expired:
        raise SessionExpired(session_id, session.expires_at)
    return session
