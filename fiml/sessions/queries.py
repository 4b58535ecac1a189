"""The queries of a session's history, and their totals: plain values."""

import dataclasses
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec

from fiml.core import clock
from fiml.sessions.histogram import time_bucket

SESSION_LAYER = "session"
"""The `layer` of a query that the session itself answered."""


class QueryRecord(msgspec.Struct, frozen=True, gc=False):
    """One question and what came back. It never changes, and its `id` makes appending it twice harmless.

    `timestamp` is when the question was asked; `execution_time_ms` is `None` if it wasn't measured. The answer's origin
    is in `provider`, `as_of` (the market's time), `known_at` (when it was learnt), `currency`, `adjustment` (of past
    prices) and `layer` (who answered: `provider`, `l1`, `l2` or `session`). `figures` has the numbers that came back,
    by name. A question that failed has the code of its `error`, and no figures.

    The garbage collector ignores these objects (`gc=False`), since tracking them would take as long as decoding a long
    history. That is safe: the parameters are JSON, so no object is part of a cycle.
    """

    query_type: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    result_summary: str | None = None
    execution_time_ms: float | None = None
    cache_hit: bool = False
    timestamp: datetime = msgspec.field(default_factory=clock.now)
    id: UUID = msgspec.field(default_factory=uuid4)
    provider: str | None = None
    as_of: date | None = None
    known_at: datetime | None = None
    currency: str | None = None
    adjustment: str | None = None
    layer: str | None = None
    error: str | None = None
    figures: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def day(self) -> str:
        """The day of the question in UTC, as `2024-12-24`."""
        return self.timestamp.astimezone(UTC).date().isoformat()

    @property
    def symbol(self) -> str | None:
        """The symbol that was asked about, if the parameters name one."""
        symbol = self.parameters.get("symbol")
        return symbol if isinstance(symbol, str) else None

    @property
    def subject(self) -> str | None:
        """What was asked about: the symbol; for a coin with its pair and exchange, as in `BTC/USD@kraken`."""
        pair, exchange = self.parameters.get("pair"), self.parameters.get("exchange")
        if self.symbol is None or not isinstance(pair, str):
            return self.symbol
        return f"{self.symbol}/{pair}" + (f"@{exchange}" if isinstance(exchange, str) else "")

    def was_known_by(self, moment: datetime) -> bool:
        """Whether, by a moment, the question had been asked and its answer learnt."""
        return self.timestamp <= moment and (self.known_at is None or self.known_at <= moment)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; unknown parts of the answer's origin are left out."""
        return {
            "id": str(self.id),
            "query_type": self.query_type,
            "parameters": copied(self.parameters),
            "result_summary": self.result_summary,
            "execution_time_ms": self.execution_time_ms,
            "cache_hit": self.cache_hit,
            "timestamp": clock.to_iso(self.timestamp),
            **self.origin(),
        }

    def origin(self) -> dict[str, Any]:
        """The answer's origin and its figures, as JSON values, as far as they are known."""
        known = {
            "provider": self.provider,
            "as_of": None if self.as_of is None else market_moment_to_iso(self.as_of),
            "known_at": None if self.known_at is None else clock.to_iso(self.known_at),
            "currency": self.currency,
            "adjustment": self.adjustment,
            "layer": self.layer,
            "error": self.error,
            "figures": dict(self.figures or {}) or None,
        }
        return {name: value for name, value in known.items() if value is not None}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> "QueryRecord":
        """The inverse of `to_dict`.

        Raises:
            ValueError: the dict is not a query; the message says what is missing or has the wrong type.
        """
        try:
            return _restored(msgspec.convert(copied(record), StoredQuery))
        except msgspec.ValidationError as exc:
            raise ValueError(str(exc)) from exc


class StoredQuery(msgspec.Struct, gc=False, omit_defaults=True):
    """A query as it is stored in JSON, with the fields of `QueryRecord` in the same order.

    Fields that every format has are required, and no default depends on the time. When a query is written, a field may
    be a `msgspec.Raw`, which is JSON already.
    """

    query_type: str
    parameters: dict[str, Any]
    result_summary: str | None
    execution_time_ms: int | float | None
    cache_hit: bool
    timestamp: datetime
    id: UUID
    provider: str | None = None
    as_of: str | None = None
    known_at: datetime | None = None
    currency: str | None = None
    adjustment: str | None = None
    layer: str | None = None
    error: str | None = None
    figures: dict[str, int | float] = {}


_QUERIES = msgspec.json.Decoder(list[StoredQuery])


def decode_queries(text: str) -> list[QueryRecord]:
    """The queries of a JSON array.

    Raises:
        ValueError: the text is not an array of queries; the message says what is wrong, and where.
    """
    try:
        return [_restored(stored) for stored in _QUERIES.decode(text)]
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedHistory:
    """A history in JSON and its queries, which no other object refers to."""

    text: str
    queries: list[QueryRecord]

    @classmethod
    def of(cls, text: str) -> "DecodedHistory":
        """A history, decoded.

        Raises:
            ValueError: as `decode_queries`.
        """
        return cls(text, decode_queries(text))

    def go_on(self, text: str) -> list[QueryRecord]:
        """The queries of a later history. If it begins with this one, only the rest is decoded.

        This history's own query objects then become part of the result.

        Raises:
            ValueError: as `decode_queries`.
        """
        begin = self.text[:-1]
        further = text[len(begin) :]
        if not text.startswith(begin) or not further.startswith((",{", "]")):
            return decode_queries(text)
        return self.queries + decode_queries("[" + further.removeprefix(","))


def copied(value: Any) -> Any:
    """A JSON value, of which no part is shared."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def _restored(stored: StoredQuery) -> QueryRecord:
    if stored.as_of is not None:
        stored.as_of = market_moment_from_iso(stored.as_of)  # type: ignore[assignment]  # the type in `QueryRecord`
    return QueryRecord(*msgspec.structs.astuple(stored))  # both have their fields in the same order


def market_moment_to_iso(moment: date) -> str:
    """`2024-12-24` for a day, `2024-12-24T15:30:00Z` for a moment."""
    return clock.to_iso(moment) if isinstance(moment, datetime) else moment.isoformat()


def market_moment_from_iso(text: str) -> date:
    """The inverse of `market_moment_to_iso`."""
    return date.fromisoformat(text) if len(text) == len("2024-12-24") else datetime.fromisoformat(text)


@dataclasses.dataclass(slots=True)
class QueryTotals:
    """The totals of a session's queries, updated with each one, so that the thousandth costs no more than the first.

    `timed_queries` counts those whose execution time was measured; `total_time_ms` and `time_histogram` (by
    `time_bucket`) cover these. `queries_by_day` counts all of them by their day in UTC.
    """

    total_queries: int = 0
    cache_hits: int = 0
    first_query_at: datetime | None = None
    last_query_at: datetime | None = None
    query_types: dict[str, int] = dataclasses.field(default_factory=dict)
    timed_queries: int = 0
    total_time_ms: float = 0.0
    time_histogram: dict[int, int] = dataclasses.field(default_factory=dict)
    queries_by_day: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def cache_hit_rate(self) -> float:
        """From 0 to 1; 0 where there are no queries."""
        return self.cache_hits / self.total_queries if self.total_queries else 0.0

    def add(self, query: QueryRecord) -> None:
        """Count one more query."""
        self.total_queries += 1
        self.cache_hits += query.cache_hit
        asked_at = query.timestamp.astimezone(UTC)
        self.first_query_at = min(self.first_query_at or asked_at, asked_at)
        self.last_query_at = max(self.last_query_at or asked_at, asked_at)
        self.query_types[query.query_type] = self.query_types.get(query.query_type, 0) + 1
        self.queries_by_day[query.day] = self.queries_by_day.get(query.day, 0) + 1
        if query.execution_time_ms is not None:
            bucket = time_bucket(query.execution_time_ms)
            self.timed_queries += 1
            self.total_time_ms += query.execution_time_ms
            self.time_histogram[bucket] = self.time_histogram.get(bucket, 0) + 1
