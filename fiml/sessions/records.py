"""A session as the engines store it: a header, and JSON that travels as text."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from fiml.core import clock
from fiml.core.errors import CorruptRecord, InvalidInput, MissingKey, SchemaTooNew, echo
from fiml.core.log import get_logger
from fiml.sessions import sealed
from fiml.sessions.damage import DAMAGE, corrupt
from fiml.sessions.models import (
    MAPS,
    AnalysisHistory,
    QueryRecord,
    QueryTotals,
    Session,
    SessionState,
    SessionSummary,
    SessionType,
)
from fiml.sessions.queries import DecodedHistory, decode_queries
from fiml.sessions.query_json import EncodedQuery, encode_again, history_json
from fiml.sessions.rights import Grants

# A format has the number of the release that introduced it (major times 100 plus minor), so that an older fiml can say
# which release to install. Format 2 added `time_histogram` and `queries_by_day`, format 3 the origin and the figures of
# queries, format 4 shares and the audit trail.
FORMAT = 4
FORMAT_OF_ALL_TOTALS = 2

Entries = dict[str, dict[str, str]]
_TYPES = frozenset(SessionType)
_log = get_logger()


@dataclass(slots=True)
class Header:
    """Everything about a session except its entries and queries.

    `life` is the version at which it last became live.
    """

    id: UUID
    user_id: str | None
    type: str
    title: str | None
    assets: list[str]
    tags: list[str]
    created_at: datetime
    expires_at: datetime
    last_accessed_at: datetime
    version: int
    totals: QueryTotals = field(default_factory=QueryTotals)
    maps_bytes: int = 0
    history_bytes: int = 0
    life: int = 1
    format: int = FORMAT
    grants: Grants = field(default_factory=dict)


@dataclass(slots=True)
class SessionRecord:
    """A session with its entries as JSON texts and its history as a JSON array, which may have the last queries only.

    The audit trail is a JSON array too; it is empty if the reader didn't ask for it. Values may be encrypted; after
    decryption, the record `is_opened`.
    """

    header: Header
    entries: Entries = field(default_factory=dict)
    history: str = "[]"
    is_archived: bool = False
    trail: str = "[]"
    is_opened: bool = False


@dataclass(slots=True)
class Written:
    """What the store last read or wrote of a `Session` object."""

    session_id: UUID
    user_id: str | None
    created_at: datetime
    version: int
    is_archived: bool
    type: str
    title: str | None
    assets: list[str]
    tags: list[str]
    expires_at: datetime
    last_accessed_at: datetime
    entries: Entries
    history: str
    attempts: list["Written"] = field(default_factory=list)
    """The states that later writes would have led to, if nobody knows whether these writes were done."""


def entry_size(key: str, text: str) -> int:
    """How many bytes an entry counts towards the limit of a session's maps."""
    return len(key.encode()) + sealed.clear_size(text)


def header_of(session: Session) -> Header:
    """The header of a session, from the object's current values."""
    return Header(
        id=session.id,
        user_id=session.user_id,
        type=session.type.value,
        title=session.title,
        assets=list(session.assets),
        tags=list(session.tags),
        created_at=session.created_at,
        expires_at=session.expires_at,
        last_accessed_at=session.last_accessed_at,
        version=session.version,
        totals=session.state.history.totals,
    )


def to_session(record: SessionRecord, *, recent: int | None = None, begin: DecodedHistory | None = None) -> Session:
    """The session in a record. It remembers what was read, so that changes to it can be found.

    `recent` keeps only the last queries of an archived session; of a live one, only these were read. If the history
    begins with `begin`, only the rest is decoded, and the queries of `begin` become part of the session.

    Raises:
        CorruptRecord: the record can't be decoded.
        SchemaTooNew: a later fiml wrote it.
        MissingKey: the record is encrypted, and was not decrypted.
    """
    header = record.header
    try:
        check_format(header.format)
        entries = record.entries
        maps = {name: {key: msgspec.json.decode(text) for key, text in entries.get(name, {}).items()} for name in MAPS}
        queries = decode_queries(record.history) if begin is None else begin.go_on(record.history)
        if not record.is_opened:
            _refuse_sealed(record, queries)
        session = _session(header, maps, queries, is_archived=record.is_archived)
        if record.is_archived and recent is not None:
            totals = session.state.history.totals
            session.state.history = AnalysisHistory.stored(queries[len(queries) - min(recent, len(queries)) :], totals)
    except (*DAMAGE, InvalidInput) as exc:
        raise corrupt(f"session {header.id}", exc) from exc
    session._written = written_of(session, record.entries, record.history)  # noqa: SLF001 - it carries this for us
    return session


def _refuse_sealed(record: SessionRecord, queries: list[QueryRecord]) -> None:
    """Refuse a record with encrypted values, which would otherwise be taken for data."""
    texts = [text for entries in record.entries.values() for text in entries.values() if sealed.is_sealed(text)]
    found = [sealed.text_in(query.parameters) for query in queries if sealed.MEMBER in query.parameters]
    texts += [text for text in found if text is not None]
    key_id = sealed.key_id_of(texts[0]) if texts else None
    if key_id is not None:
        raise MissingKey(f"session {record.header.id}", key_id)


def format_when_written(format_number: int) -> int:
    """The format of a record after this fiml has written to it: the current one, or 1 if it was 1.

    A record of format 1 lacks totals, which only counting all queries again would provide.

    Raises:
        SchemaTooNew: a later fiml wrote the record; writing to it could lose what only that fiml knows.
    """
    check_format(format_number)
    return format_number if format_number < FORMAT_OF_ALL_TOTALS else FORMAT


def check_format(format_number: int) -> None:
    """Refuse a record that a later fiml wrote."""
    if format_number > FORMAT:
        needs = f"{format_number // 100}.{format_number % 100}.0"
        raise SchemaTooNew(str(format_number), str(FORMAT), what="record format", needs=needs)


def unreadable(record: str, format_number: object, problem: str) -> CorruptRecord | SchemaTooNew:
    """The error for a record that can't be decoded: a later fiml may have written it, in another layout.

    `format_number` is given as it is stored, and may be anything.
    """
    try:
        check_format(int(format_number))  # type: ignore[call-overload]  # what it raises is caught
    except SchemaTooNew as exc:
        return exc
    except DAMAGE:
        pass
    return CorruptRecord(record, problem)


@contextmanager
def decoding(record: str, format_number: object) -> Iterator[None]:
    """Turn the errors of decoding a record, in the block, into that of `unreadable`."""
    try:
        yield
    except CorruptRecord as exc:
        raise unreadable(exc.record, format_number, exc.problem) from exc
    except (*DAMAGE, InvalidInput) as exc:
        raise unreadable(record, format_number, str(exc)) from exc


def _session(
    header: Header, maps: dict[str, dict[str, Any]], queries: list[QueryRecord], *, is_archived: bool
) -> Session:
    return Session(
        id=header.id,
        user_id=header.user_id,
        type=SessionType(header.type),
        title=header.title,
        assets=list(header.assets),
        tags=list(header.tags),
        created_at=header.created_at,
        expires_at=header.expires_at,
        last_accessed_at=header.last_accessed_at,
        is_archived=is_archived,
        version=header.version,
        # The archive stores no totals by type: they are counted from the whole history, when somebody asks.
        state=SessionState(
            **maps,
            history=AnalysisHistory(queries) if is_archived else AnalysisHistory.stored(queries, header.totals),
        ),
    )


def written_of(session: Session, entries: Entries, history: str) -> Written:
    """What to remember of a session as it is now, with its entries and history in JSON."""
    return Written(
        session_id=session.id,
        user_id=session.user_id,
        created_at=session.created_at,
        version=session.version,
        is_archived=session.is_archived,
        type=session.type,
        title=session.title,
        # Each name once, as it is stored: otherwise every later write would set the whole list again.
        assets=list(dict.fromkeys(session.assets)),
        tags=list(dict.fromkeys(session.tags)),
        expires_at=session.expires_at,
        last_accessed_at=session.last_accessed_at,
        entries=entries,
        history=history,
    )


def revived(record: SessionRecord, *, until: datetime, now: datetime) -> tuple[SessionRecord, list[EncodedQuery]]:
    """An archived session as it becomes live again, at the next version, and its queries one by one."""
    session = to_session(replace(record, is_opened=True))  # encrypted values are moved without decrypting them
    queries = [encode_again(query) for query in session.state.history.queries]
    header = replace(
        record.header,
        expires_at=until,
        last_accessed_at=max(now, record.header.last_accessed_at),
        version=record.header.version + 1,
        life=record.header.version + 1,
        totals=session.state.history.totals,
        maps_bytes=sum(entry_size(key, text) for entries in record.entries.values() for key, text in entries.items()),
        history_bytes=sum(query.size for query in queries),
        format=FORMAT,
    )
    history = history_json(query.text for query in queries)
    return SessionRecord(header, record.entries, history, trail=record.trail), queries


def counted(record: SessionRecord) -> SessionRecord:
    """The record with its totals counted again from its history; the header of an old format lacks some.

    Raises:
        CorruptRecord: the history can't be decoded.
    """
    try:
        totals = AnalysisHistory(decode_queries(record.history)).totals
    except DAMAGE as exc:
        raise corrupt(f"session {record.header.id}", exc) from exc
    return replace(record, header=replace(record.header, totals=totals))


def check_whole(record: SessionRecord, query_count: int) -> SessionRecord:
    """The record, if all of its parts are there.

    Raises:
        CorruptRecord: a part is missing, as when a server short of memory evicts a key.
    """
    header = record.header
    lost = None
    totals = header.totals
    if not (_are_names(header.assets) and _are_names(header.tags)):
        lost = "its assets or tags are not lists of names"
    elif {type(header.version), type(totals.total_queries), type(totals.cache_hits)} != {int}:
        lost = "its version or its counts are not numbers"
    elif header.type not in _TYPES:
        lost = f"its type {echo(header.type)} is unknown"
    elif query_count != header.totals.total_queries:
        lost = f"its history holds {query_count} of {header.totals.total_queries} queries"
    elif header.maps_bytes and not record.entries:
        lost = "its entries are missing"
    if lost:
        raise CorruptRecord(f"live session {header.id}", lost)
    return record


def _are_names(value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {str}


def with_all_totals(record: SessionRecord) -> SessionRecord:
    """The record; its totals are counted again if its format has fewer of them than the current one."""
    return record if record.header.format >= FORMAT_OF_ALL_TOTALS else counted(record)


def to_summary(header: Header, *, is_archived: bool) -> SessionSummary:
    """How a listing shows a session.

    Raises:
        CorruptRecord: its type is unknown.
        SchemaTooNew: its type is unknown, and a later fiml wrote it.
    """
    if header.type not in _TYPES:
        raise unreadable(f"session {header.id}", header.format, f"its type {echo(header.type)} is unknown")
    return SessionSummary(
        id=header.id,
        user_id=header.user_id,
        type=SessionType(header.type),
        title=header.title,
        assets=header.assets,
        tags=header.tags,
        created_at=header.created_at,
        expires_at=header.expires_at,
        last_accessed_at=header.last_accessed_at,
        total_queries=header.totals.total_queries,
        is_expired=clock.now() >= header.expires_at,
        is_archived=is_archived,
    )


def to_summaries(rows: Iterable[tuple[Header, bool]]) -> list[SessionSummary]:
    """How a listing shows sessions, which come with whether they are archived; without those of a later fiml's types.

    Raises:
        CorruptRecord: the type of one is unknown.
    """
    summaries = []
    for header, is_archived in rows:
        try:
            summaries.append(to_summary(header, is_archived=is_archived))
        except SchemaTooNew as exc:
            _log.warning("session_not_listed", session_id=str(header.id), problem=str(exc))
    return summaries
