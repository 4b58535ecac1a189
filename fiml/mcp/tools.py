"""The session and search tools: each is one task for the user, and calls one verb."""

from uuid import UUID

from mcp.server.mcpserver.tools import Tool

from fiml.access.principals import Scope
from fiml.analysis import Question, ask
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, Misconfigured, SessionNotFound, Unavailable, echo
from fiml.market.models import AssetKind, Depth
from fiml.market.providers.base import SAMPLE
from fiml.market.service import MarketService, market_source
from fiml.mcp import arguments as args
from fiml.mcp.auth import current_principal
from fiml.mcp.pages import page_that_fits
from fiml.mcp.results import (
    RECENT_QUERIES,
    CreatedSession,
    ExtendedSession,
    SearchResult,
    SessionInfo,
    SessionList,
    Statistics,
    remaining_hours,
)
from fiml.mcp.tooling import make_tool, sessions_of
from fiml.runtime import Runtime
from fiml.sessions.values import parse_session_id

EXTENSION_HOURS = 24
PAGE = 10


class SessionTools:
    """The tools over one runtime; each call is in the name of its principal."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def _market(self) -> MarketService:
        return self._runtime.market  # opened by the first question, since a client waits for the server to start

    async def create_analysis_session(
        self,
        assets: args.Assets,
        sessionType: args.RequiredSessionType,
        userId: args.UserId = None,
        ttlHours: args.TtlHours = None,
        tags: args.Tags = None,
        title: args.Title = None,
    ) -> CreatedSession:
        sessions = await sessions_of(self._runtime)
        # An admin may create sessions for any user. Without a user, the session is its own, and not nobody's.
        owner = current_principal().user_id if userId is None else userId
        session = await sessions.create_session(
            assets, sessionType, user_id=owner, ttl_hours=ttlHours, tags=tags, title=title
        )
        return CreatedSession(
            session_id=session.id,
            user_id=session.user_id,
            type=session.type,
            title=session.title,
            assets=session.assets,
            tags=session.tags,
            expires_at=session.expires_at,
            ttl_hours=ttlHours or self._runtime.settings.session_default_ttl_hours,
        )

    async def get_session_info(self, sessionId: args.SessionId) -> SessionInfo:
        parsed = parse_session_id(sessionId)
        session = await (await sessions_of(self._runtime)).get_session(parsed, recent_queries=RECENT_QUERIES)
        if session is None:
            raise SessionNotFound(parsed)
        return SessionInfo.of(session)

    async def list_sessions(
        self,
        userId: args.UserId = None,
        includeArchived: args.IncludeArchived = False,  # noqa: FBT002 - an argument of the protocol
        limit: args.Limit = PAGE,
        cursor: args.Cursor = None,
        sessionType: args.OptionalSessionType = None,
        tag: args.Tag = None,
        asset: args.Asset = None,
    ) -> SessionList:
        sessions = await sessions_of(self._runtime)
        page, lines = await page_that_fits(
            lambda most: sessions.list_user_sessions(userId, includeArchived, most, cursor, sessionType, tag, asset),
            limit,
        )
        return SessionList(sessions=lines, next_cursor=page.next_cursor, partial=page.partial)

    async def extend_session(self, sessionId: args.SessionId, hours: args.Hours = EXTENSION_HOURS) -> ExtendedSession:
        session = await (await sessions_of(self._runtime)).extend_session(sessionId, hours)
        return ExtendedSession(
            session_id=session.id, expires_at=session.expires_at, time_remaining_hours=remaining_hours(session)
        )

    async def get_session_analytics(
        self, userId: args.UserId = None, sessionType: args.OptionalSessionType = None, days: args.Days = 30
    ) -> Statistics:
        return Statistics.of(await self._runtime.stats(userId, sessionType, days, principal=current_principal().owner))

    async def search_by_symbol(
        self,
        symbol: args.Symbol,
        market: args.Market = "US",
        depth: args.Depth = "standard",
        sessionId: args.OptionalSessionId = None,
        requestId: args.RequestId = None,
    ) -> SearchResult:
        question = Question(symbol=symbol, market=market, depth=Depth(depth))
        return await self._search(question, sessionId, requestId)

    async def search_by_coin(
        self,
        symbol: args.CoinSymbol,
        exchange: args.Exchange = None,
        pair: args.Pair = "USD",
        depth: args.Depth = "standard",
        sessionId: args.OptionalSessionId = None,
        requestId: args.RequestId = None,
    ) -> SearchResult:
        question = Question(symbol=symbol, kind=AssetKind.COIN, exchange=exchange, pair=pair, depth=Depth(depth))
        return await self._search(question, sessionId, requestId)

    async def _search(self, question: Question, session_id: str | None, request_id: str | None) -> SearchResult:
        record_id = None if request_id is None else _parse_request_id(request_id)
        parsed = None if session_id is None else parse_session_id(session_id)
        if parsed is not None:
            current_principal().check(Scope.SESSIONS_WRITE)
        try:
            sessions = None if parsed is None else await sessions_of(self._runtime)
        except (Unavailable, Misconfigured) as exc:
            answer = await ask(question, market=self._market)
            return SearchResult.of(answer.model_copy(update={"session_id": parsed, "reason": str(exc)}))
        answer = await ask(question, market=self._market, sessions=sessions, session_id=parsed, record_id=record_id)
        return SearchResult.of(answer)


def _parse_request_id(text: str) -> UUID:
    try:
        return UUID(text.strip())
    except ValueError:
        raise InvalidInput("requestId", f"{echo(text)} is not a UUID", "give a new UUID, or leave it out") from None


def session_tools(runtime: Runtime) -> list[Tool]:
    """The session and search tools."""
    tools = SessionTools(runtime)
    is_open = market_source(runtime.settings) != SAMPLE
    create_text = _create_text(runtime.settings)
    return [
        make_tool(tools.create_analysis_session, "Create analysis session", create_text, kind="adds"),
        make_tool(tools.get_session_info, "Get session info", GET_TEXT, kind="reads"),
        make_tool(tools.list_sessions, "List sessions", LIST_TEXT, kind="reads"),
        make_tool(
            tools.extend_session,
            "Extend session",
            _extend_text(runtime.settings),
            kind="adds",
            defaults={"hours": min(EXTENSION_HOURS, runtime.settings.session_max_ttl_hours)},
        ),
        make_tool(tools.get_session_analytics, "Get session analytics", STATS_TEXT, kind="reads"),
        make_tool(tools.search_by_symbol, "Search by symbol", SYMBOL_TEXT, kind="asks", is_open_world=is_open),
        make_tool(tools.search_by_coin, "Search by coin", COIN_TEXT, kind="asks", is_open_world=is_open),
    ]


def _create_text(settings: Settings) -> str:
    return (
        "Begin an analysis that remembers: returns a session_id to give as sessionId to the search tools, which then"
        " record each query and report what changed. Use it once at the start of an analysis, not for single lookups."
        f" A session lives ttlHours (default {settings.session_default_ttl_hours}, at most"
        f" {settings.session_max_ttl_hours}); then it is archived, still readable, and can be resumed. Assets are not"
        " checked against the market data."
    )


def _extend_text(settings: Settings) -> str:
    return (
        "Extend a live session by `hours` from its expiry. Use it when an analysis takes longer than its"
        " session lives. An expired or archived session can't be extended. Returns the new expiry, at most"
        f" {settings.session_max_ttl_hours} hours from now."
    )


GET_TEXT = (
    "What a session is about and its state: assets, times, number and types of queries, cache hit rate and the"
    f" last {RECENT_QUERIES} queries, each with its result in a line. Use it to pick up an analysis by its id. Archived"
    " and expired sessions are shown too, and say so."
)
LIST_TEXT = (
    f"Find sessions: a page of them, {PAGE} by default, newest first, with title, assets, tags and times. Use it when"
    " the user means an earlier analysis whose id you don't have. Give next_cursor as cursor for the next page."
    " Archived sessions are included only with includeArchived."
)
STATS_TEXT = (
    "Statistics over sessions: how many, queries per session, duration, abandonment, the most frequent assets and"
    " types of queries. Use it for questions about the user's own working habits, not for market figures. It covers"
    " live and ended sessions that were created within `days`."
)
SYMBOL_TEXT = (
    "Figures of a stock or index: price, technicals, fundamentals, by depth. With sessionId the query is recorded, a"
    " question that the session can answer already is answered from it, since_last_look says what changed, and deep"
    " compares with the session's other assets. Every figure has its source and as_of date: state them. Source"
    " `sample` is real history, not today's prices."
)
COIN_TEXT = (
    "Figures of a cryptocurrency: price and technicals, by depth. With sessionId it works as search-by-symbol does."
    " Every figure has its source and as_of date: state them. Source `sample` is real history, not today's prices."
    " For stocks use search-by-symbol."
)
