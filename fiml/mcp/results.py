"""The results of the tools, as output schemas."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import Field

from fiml.analysis import MAX_COMPARED, Answer
from fiml.core.model import Model
from fiml.looks import SinceLastLook
from fiml.sessions.models import QueryRecord, Session, SessionSummary

MAX_DAYS_SHOWN = 31
MAX_TYPES_SHOWN = 20
RECENT_QUERIES = 5
_MAX_SUMMARY_CHARACTERS = 200
_MAX_PARAMETERS_CHARACTERS = 400


class Result(Model):
    """An answer, told from a refusal by its status."""

    status: Literal["success"] = "success"


class _About(Model):
    session_id: UUID
    user_id: str | None
    type: str
    title: str | None
    assets: list[str]
    tags: list[str]


class _Standing(_About):
    created_at: datetime
    expires_at: datetime
    last_accessed_at: datetime
    total_queries: int
    is_expired: bool
    is_archived: bool


# The tools record four types; a program that writes to the same store may record any number.
_Types = Annotated[dict[str, int], Field(description=f"the {MAX_TYPES_SHOWN} most frequent")]


class CreatedSession(_About, Result):
    """A new session."""

    expires_at: datetime
    ttl_hours: int


class QueryLine(Model):
    """A query of a session's history, shortened."""

    id: UUID
    query_type: str
    parameters: dict[str, Any]
    result_summary: str | None
    cache_hit: bool
    timestamp: datetime

    @classmethod
    def of(cls, query: QueryRecord) -> Self:
        """The line of a query; a long summary is cut, and long parameters are replaced by a note that says so."""
        summary = query.result_summary
        if summary is not None and len(summary) > _MAX_SUMMARY_CHARACTERS:
            summary = summary[: _MAX_SUMMARY_CHARACTERS - 1] + "…"
        is_short = len(str(query.parameters)) <= _MAX_PARAMETERS_CHARACTERS
        return cls(
            id=query.id,
            query_type=query.query_type,
            parameters=query.parameters if is_short else {"truncated": True},
            result_summary=summary,
            cache_hit=query.cache_hit,
            timestamp=query.timestamp,
        )


class SessionInfo(_Standing, Result):
    """A session, without what it holds."""

    time_remaining_hours: float = Field(description="negative after the expiry")
    cache_hit_rate: float
    query_types: _Types
    recent_queries: list[QueryLine] = Field(description=f"the last {RECENT_QUERIES}, oldest first")

    @classmethod
    def of(cls, session: Session) -> Self:
        """From a session."""
        history = session.state.history
        return cls(
            session_id=session.id,
            user_id=session.user_id,
            type=session.type,
            title=session.title,
            assets=session.assets,
            tags=session.tags,
            created_at=session.created_at,
            expires_at=session.expires_at,
            last_accessed_at=session.last_accessed_at,
            is_expired=session.is_expired,
            is_archived=session.is_archived,
            time_remaining_hours=remaining_hours(session),
            total_queries=history.total_queries,
            cache_hit_rate=history.cache_hit_rate,
            query_types=_most_frequent(history.get_query_types_summary()),
            recent_queries=[QueryLine.of(query) for query in history.get_recent_queries(RECENT_QUERIES)],
        )


class SessionLine(_Standing):
    """A session in a listing."""

    @classmethod
    def of(cls, summary: SessionSummary) -> Self:
        """From a session's summary."""
        fields = summary.to_dict()
        return cls(session_id=fields.pop("id"), **fields)


class SessionList(Result):
    """One page of sessions, newest first."""

    sessions: list[SessionLine]
    next_cursor: str | None = Field(
        description="give it as cursor for the next page, also where this one is short or empty; null at the end"
    )
    partial: bool = Field(
        description="archived sessions are missing, since the archive is unavailable: list again later"
    )


class ExtendedSession(Result):
    """A session that lives longer."""

    session_id: UUID
    expires_at: datetime
    time_remaining_hours: float


class AssetCount(Model):
    """In how many sessions an asset is."""

    symbol: str
    count: int


class TagCount(Model):
    """In how many sessions a tag is."""

    tag: str
    count: int


class DayCount(Model):
    """How many queries were asked on a day."""

    day: str
    count: int


class Statistics(Result):
    """What sessions add up to."""

    total_sessions: int
    active_sessions: int
    archived_sessions: int
    total_queries: int
    avg_queries_per_session: float
    avg_duration_seconds: float
    abandonment_rate: float = Field(description="0 to 1: share that ended by expiry with fewer than two queries")
    cache_hit_rate: float
    type_breakdown: dict[str, int]
    top_assets: list[AssetCount]
    popular_tags: list[TagCount]
    query_type_distribution: _Types
    queries_over_time: list[DayCount] = Field(description=f"days in UTC, the last {MAX_DAYS_SHOWN} that had any")
    median_query_time_ms: float | None
    p95_query_time_ms: float | None
    query_time_error: float = Field(description="the two times are off by this fraction at most")
    analytics_enabled: bool

    @classmethod
    def of(cls, stats: dict[str, Any]) -> Self:
        """From statistics, with each pair as an object."""
        top = [AssetCount(symbol=symbol, count=count) for symbol, count in stats["top_assets"]]
        tags = [TagCount(tag=tag, count=count) for tag, count in stats["popular_tags"]]
        days = [DayCount(day=day, count=count) for day, count in stats["queries_over_time"][-MAX_DAYS_SHOWN:]]
        types = _most_frequent(stats["query_type_distribution"])
        shown = {"top_assets": top, "popular_tags": tags, "queries_over_time": days, "query_type_distribution": types}
        return cls(**{**stats, **shown})


Figures = dict[str, Any]


class SearchResult(Result):
    """The answer to a search, and what became of it in the session."""

    symbol: str
    depth: str
    quote: Annotated[
        Figures,
        Field(description="price, currency, exchange, source, as_of, is_stale, change, ...; change_percent: 1 is 1%"),
    ]
    technicals: Annotated[
        Figures | None, Field(description="volatility, drawdown, returns: 0.01 is 1%; RSI: 0 to 100; else prices")
    ]
    fundamentals: Annotated[
        Figures | None, Field(description="dividend_yield: 0.01 is 1%; null figures have a reason in `missing`")
    ]
    comparisons: Annotated[
        list[Figures], Field(description="per other asset: overlap, correlation, returns: 0.01 is 1%")
    ]
    not_compared: Annotated[dict[str, str], Field(description="symbol -> why it could not be compared")]
    truncated: Annotated[
        bool,
        Field(
            description=f"only the session's first {MAX_COMPARED} other assets were compared; for the rest begin a"
            " session of fewer"
        ),
    ]
    session_id: UUID | None
    cache_hit: Annotated[bool, Field(description="answered without asking the provider")]
    layer: Annotated[str, Field(description="who answered: session, l1, l2 or provider")]
    known_at: Annotated[datetime, Field(description="when the quote was obtained from its source")]
    stale: Annotated[list[str], Field(description="parts that are a failing provider's last answer: tell the user")]
    tracked: Annotated[bool, Field(description="the query is in the session's history")]
    record_id: Annotated[UUID | None, Field(description="id of the recorded query, to cite")]
    reason: Annotated[
        str | None, Field(description="why it is not tracked, could be lost, or has other figures in its record")
    ]
    total_queries: int | None
    since_last_look: Annotated[Figures | None, Field(description="what changed since the session's last answer")]

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """From an answer."""
        market = answer.market.model_dump(mode="json")
        quote = answer.market.delivery["quote"]
        market["quote"]["is_stale"] = quote.is_stale
        for part, names in (("quote", ("market_time", "note")), ("fundamentals", ("note",))):
            for name in names:
                if market[part] is not None and market[part][name] is None:
                    del market[part][name]
        return cls(
            symbol=market["quote"]["symbol"],
            depth=answer.depth,
            quote=market["quote"],
            technicals=market["technicals"],
            fundamentals=market["fundamentals"],
            comparisons=market["comparisons"],
            not_compared=market["not_compared"],
            truncated=answer.not_compared_count > 0,
            session_id=answer.session_id,
            cache_hit=answer.cache_hit,
            layer=answer.layer,
            known_at=quote.known_at,
            stale=[name for name, part in answer.market.delivery.items() if part.is_stale],
            tracked=answer.tracked,
            record_id=answer.record_id,
            reason=answer.reason,
            total_queries=answer.total_queries,
            since_last_look=_since(answer.since_last_look),
        )


def _most_frequent(types: dict[str, int]) -> dict[str, int]:
    return dict(sorted(types.items(), key=lambda each: (-each[1], each[0]))[:MAX_TYPES_SHOWN])


def remaining_hours(session: Session) -> float:
    """Hours until the expiry, negative after it."""
    return round(session.time_remaining.total_seconds() / 3600, 4)


def _since(since: SinceLastLook | None) -> Figures | None:
    return None if since is None else since.model_dump(mode="json")
