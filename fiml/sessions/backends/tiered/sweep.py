"""The sweep of the server deployment: moves expired sessions from Redis to PostgreSQL, and cleans the indexes up."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from secrets import SystemRandom
from uuid import UUID

from fiml.core.errors import CorruptRecord, RecordRefused, SchemaTooNew
from fiml.core.log import get_logger
from fiml.db.postgres import PostgresDatabase
from fiml.sessions.backends.redis import keys
from fiml.sessions.backends.redis.dump import has_other_life, is_empty, number_of, user_in
from fiml.sessions.backends.redis.index import LATER, ExpiryEntry, place_of
from fiml.sessions.backends.redis.sweep import Look, RedisSweep
from fiml.sessions.backends.redis.tier import RedisTier
from fiml.sessions.backends.shapes import Ended, SweepReport
from fiml.sessions.backends.sql import archive, quarantine, words
from fiml.sessions.records import FORMAT, Header, SessionRecord

# A sweeper looks at a few parts of the index at a time, so that its memory doesn't grow with the backlog.
_PARTS_A_LOOK = 8
# Two batches at a time: while the engines work on one, the other one is prepared.
_LANES = 2
_ENTRIES_A_PART = 64
_BATCH_BYTES = 8 * 1024 * 1024
_RECORD_BYTES = 1024

_log = get_logger()
_random = SystemRandom()


class Sweep:
    """One sweep over everything that expired by `ended.at`, with two batches at a time.

    Several sweeps may run at once: each goes through the parts of the index in its own order, and skips the sessions
    that another one has locked.
    """

    def __init__(self, live: RedisTier, sweeping: RedisSweep, database: PostgresDatabase, ended: Ended) -> None:
        self._live = live
        self._sweeping = sweeping
        self._database = database
        self._ended = ended

    async def run(self) -> AsyncIterator[SweepReport]:
        """Sweep; yields a report for each batch."""
        parts = list(range(keys.PARTS))
        _random.shuffle(parts)
        lanes = going_on = [self._sweep_lane(parts[lane::_LANES]) for lane in range(_LANES)]
        try:
            while going_on:
                reports = await asyncio.gather(*map(_next, going_on), return_exceptions=True)
                for report in reports:
                    if isinstance(report, SweepReport):
                        yield report
                for problem in reports:
                    if isinstance(problem, BaseException):
                        raise problem
                going_on = [lane for lane, report in zip(going_on, reports, strict=True) if report is not None]
        finally:
            for lane in lanes:
                await lane.aclose()

    async def _sweep_lane(self, parts: list[int]) -> AsyncGenerator[SweepReport, None]:
        for start in range(0, len(parts), _PARTS_A_LOOK):
            async for report in self._sweep_parts(parts[start : start + _PARTS_A_LOOK]):
                yield report

    async def _sweep_parts(self, parts: list[int]) -> AsyncIterator[SweepReport]:
        before: set[ExpiryEntry] = set()
        while entries := await self._sweeping.due(self._ended.at, parts, _ENTRIES_A_PART):
            fresh = [entry for entry in entries if entry not in before]
            if not fresh:
                return  # other sweeps have locked all of them
            before = set(entries)
            report = SweepReport()
            await self._sweep_entries(fresh, report)
            yield report

    async def _sweep_entries(self, entries: list[ExpiryEntry], report: SweepReport) -> None:
        looks = list(zip(entries, await self._sweeping.look(entries), strict=True))
        found = [(entry, look) for entry, look in looks if isinstance(look, Look) and look.life == entry.life]
        gone = [entry for entry, look in looks if look is None or (isinstance(look, Look) and look.life != entry.life)]
        alive = [(entry, _next_look(entry, look)) for entry, look in found if look.expires_at > self._ended.at]
        expired = [(entry, look) for entry, look in found if look.expires_at <= self._ended.at]
        newer = [entry for entry, look in expired if look.format > FORMAT]
        newer += [entry for entry, look in looks if isinstance(look, SchemaTooNew)]
        damaged = [(entry, look.problem) for entry, look in looks if isinstance(look, CorruptRecord)]
        if absent := [entry for entry, look in looks if look is None and not entry.place.given_to]:
            headless = await self._sweeping.without_header(absent)
            damaged += [(entry, "its header is missing") for entry in headless]
            gone = [entry for entry in gone if entry not in headless]
        if gone:
            await self._sweeping.drop(gone)
        if moves := alive + [(entry, self._ended.at + LATER) for entry in newer]:
            await self._sweeping.reindex(moves)
        report.dropped += len(gone)
        report.postponed += len({entry.session_id for entry in newer})
        for entry, problem in damaged:
            await self._set_aside(entry, problem, report)
        for batch in _batches([(entry, look) for entry, look in expired if look.format <= FORMAT]):
            await self._archive(batch, report)

    async def _archive(self, entries: Sequence[ExpiryEntry], report: SweepReport) -> None:
        records: list[SessionRecord] = []
        places = _by_session(entries)
        for entry, record in zip(places.values(), await self._sweeping.read(list(places)), strict=True):
            if isinstance(record, CorruptRecord):
                await self._set_aside(entry, record.problem, report)
            elif record is not None and record.header.expires_at <= self._ended.at:
                records.append(record)
        async for record, problem in self._put(records, await words.read_apart(records), report):
            await self._set_aside(places[record.header.id], problem, report)

    async def _put(
        self, records: list[SessionRecord], texts: Mapping[UUID, str], report: SweepReport
    ) -> AsyncIterator[tuple[SessionRecord, str]]:
        """Archive sessions. Yields those that the database refuses even on their own, with the reason."""
        if not records:
            return
        try:
            put = await self._database.maintain(
                lambda connection: archive.put(connection, records, self._ended, texts=texts)
            )
        except RecordRefused as exc:
            if len(records) == 1:
                yield records[0], exc.problem
                return
            middle = len(records) // 2
            for half in (records[:middle], records[middle:]):
                async for refused in self._put(half, texts, report):
                    yield refused
            return
        for record in records:
            if record.header.id in put.buried:
                await self._live.remove_for_good(record.header.id, place_of(record.header))
        await self._evict([record.header for record in records if put.has(record.header.id)], report)

    async def _evict(self, headers: list[Header], report: SweepReport) -> None:
        """Archive first, then evict: a crash leaves a copy too many, never one too few."""
        if not headers:
            return
        outcomes = await self._live.remove(headers)
        report.archived += outcomes.count("removed")
        changed = [header for header, outcome in zip(headers, outcomes, strict=True) if outcome == "changed"]
        if changed:
            # They were written to while they were being copied, so the copies are outdated: remove them.
            await self._database.maintain(lambda connection: archive.remove_all(connection, changed))

    async def _set_aside(self, entry: ExpiryEntry, problem: str, report: SweepReport) -> None:
        """Copy a session that can't be archived into the quarantine, then remove it from the live sessions."""
        session_id = entry.session_id
        dump = await self._sweeping.dump(session_id)
        if is_empty(dump) or has_other_life(dump, entry.life):
            await self._sweeping.drop([entry])  # another sweeper was faster
            return
        user_id = entry.place.user_id or user_in(dump)
        put = await self._database.maintain(
            lambda connection: quarantine.put(
                connection,
                session_id,
                user_id=user_id,
                reason=problem,
                dump=dump,
                now=self._ended.at,
                version=number_of(dump),
            )
        )
        if put == "busy":
            return  # a later sweep finds it, if it is still there
        outcome = await self._sweeping.take_out(session_id, dump)
        if outcome == "changed":
            await self._database.maintain(lambda connection: quarantine.take_back(connection, session_id, dump))
            return
        await self._sweeping.drop([entry])
        if put == "kept" and outcome == "removed":
            report.quarantined += 1
            _log.error("session_quarantined", session_id=str(session_id), problem=problem)


async def _next(lane: AsyncIterator[SweepReport]) -> SweepReport | None:
    """The report of a lane's next batch; `None` if there is none."""
    return await anext(lane, None)


def _next_look(entry: ExpiryEntry, look: Look) -> datetime:
    """When to look at a live session again: at its expiry; for an entry of a user it is shared with, somewhat later."""
    return look.expires_at + LATER if entry.place.given_to else look.expires_at


def _by_session(entries: Sequence[ExpiryEntry]) -> dict[UUID, ExpiryEntry]:
    """One entry for each session: its own one, rather than those of users it is shared with."""
    entries_of_owners_last = sorted(entries, key=lambda entry: not entry.place.given_to)
    return {entry.session_id: entry for entry in entries_of_owners_last}


def _batches(expired: list[tuple[ExpiryEntry, Look]]) -> Iterator[list[ExpiryEntry]]:
    """Split sessions into batches that stay within the memory for one batch."""
    batch: list[ExpiryEntry] = []
    size = 0
    for entry, look in expired:
        if batch and size + look.size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += look.size + _RECORD_BYTES
    if batch:
        yield batch
