"""A search finds the sessions that match, live or archived, and no others, on every engine."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from fiml.core.errors import InvalidInput, NotSupported
from fiml.sessions.models import QueryRecord, Session
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OpenStore, Suite, existing


def looked_up(symbol: str, summary: str = "", **figures: float) -> QueryRecord:
    return QueryRecord("fundamentals", {"symbol": symbol}, summary or f"{symbol}: fine", figures=figures)


async def begin(store: SessionStore, *assets: str, queries: Iterable[QueryRecord] = (), **fields: Any) -> Session:
    session = await store.create_session(list(assets) or ["AAPL"], fields.pop("type", "equity"), **fields)
    for query in queries:
        await store.record_query(session.id, query)
    return session


async def found(
    store: SessionStore, words: str | None = None, *, user_id: str | None = None, **asked: Any
) -> list[str]:
    text: dict[str, Any] = {} if words is None else {"text": words}
    return [summary.title or "" for summary in await store.search_sessions(user_id, **text, **asked)]


needs_values = pytest.mark.usefixtures("values_are_searched")


class SearchSuite(Suite):
    """Words, figures, symbols and dates; changes, moves and owners; one cursor."""

    searches_values = True
    """Whether the store finds words and figures. Set it to `False` for an encrypted store, which must refuse to search
    for them."""

    @pytest.fixture
    def values_are_searched(self) -> None:
        if not self.searches_values:
            pytest.skip("this store searches no values")

    @property
    def about_aapl(self) -> dict[str, Any]:
        """A search that every store supports."""
        return {"text": "aapl"} if self.searches_values else {"symbol": "AAPL"}

    async def test_a_store_that_searches_no_values_says_what_it_can_search_by(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await begin(store, title="one", tags=["tech"])
            for asked in ("aapl", "pe_ratio < 30", "aapl pe_ratio < 30"):
                if self.searches_values:
                    await store.search_sessions(None, asked)
                else:
                    with pytest.raises(NotSupported, match="search by type, tag, dates, or a symbol among the assets"):
                        await store.search_sessions(None, asked)

    @needs_values
    async def test_words_are_found_in_names_entries_notes_and_queries_of_live_and_archived_ones(
        self, open_store: OpenStore, clock: FrozenClock
    ) -> None:
        async with open_store() as store:
            for title in ("live", "archived"):
                session = await begin(
                    store, "BRK.B", title=title, tags=["Value"], queries=[looked_up("BRK.B", "Größe: 9")]
                )
                await store.remember(
                    session.id,
                    context={"focus": "insurance float"},
                    conclusions=["The moat is wide"],
                    notes=["ask Omaha"],
                )
                await begin(store, "TSLA", title="other")
                clock.advance(minutes=1)
                if title == "archived":
                    await store.archive_session(session.id)

            for words in (
                "value",
                "brk",
                "insurance FLOAT",
                "moat",
                "omaha",
                "grösse",
                "GRÖSSE",
                "fundamentals insur*",
            ):
                assert await found(store, words) == ["archived", "live"], words
            assert await found(store, "insurance tesla") == []
            assert await found(store, "insur") == []
            assert await found(store, "moat", include_archived=False) == ["live"]

    @needs_values
    async def test_figures_are_compared_on_one_record_and_of_the_named_symbol(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            both = [looked_up("AAPL", pe_ratio=29.5, rsi_14=70.0), looked_up("KO", pe_ratio=22.0, rsi_14=40.0)]
            archived = await begin(store, "AAPL", "KO", title="both", queries=both)
            await begin(store, "NVDA", title="dear", queries=[looked_up("NVDA", pe_ratio=61.25)])
            for _ in range(2):
                assert await found(store, "pe_ratio < 30") == ["both"]
                assert await found(store, "pe_ratio>30") == ["dear"]
                assert await found(store, "pe_ratio = 61.25") == ["dear"]
                assert sorted(await found(store, "pe_ratio >= 22 pe_ratio <= 61.25")) == ["both", "dear"]
                assert await found(store, "pe_ratio < 25 rsi_14 > 60") == []
                assert await found(store, "pe_ratio < 25", symbol="AAPL") == []
                assert await found(store, "pe_ratio < 25 fine", symbol="KO") == ["both"]
                assert await found(store, "eps > 0") == []
                await store.archive_session(archived.id)

    async def test_a_symbol_is_among_the_assets(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            session = await begin(store, "KO", "AAPL", title="both", queries=[looked_up("KO")])
            await begin(store, "AAPL.L", title="another", queries=[looked_up("MSFT")])
            for _ in range(2):
                assert await found(store, symbol="aapl") == ["both"]
                await store.archive_session(session.id)

    @needs_values
    async def test_a_symbol_is_an_asset_or_was_asked_about(self, open_store: OpenStore, clock: FrozenClock) -> None:
        async with open_store() as store:
            asked = await begin(store, "SPY", title="asked", queries=[looked_up("AAPL")])
            clock.advance(minutes=1)
            await begin(store, "AAPL", title="asset")
            await begin(store, "AAPL.L", title="another")

            assert await found(store, symbol="AAPL") == ["asset", "asked"]
            await store.archive_session(asked.id)
            assert await found(store, symbol="AAPL") == ["asset", "asked"]

    @needs_values
    @pytest.mark.parametrize("state", ["live", "archived"])
    async def test_a_symbol_is_one_text(self, open_store: OpenStore, state: str) -> None:
        """A query whose parameter `symbol` is a list is about none of these symbols."""
        async with open_store() as store:
            session = await begin(store, "KO", title="odd")
            for symbol in (["AAPL"], {"AAPL": "AAPL"}, 5, None):
                await store.record_query(session.id, QueryRecord("price", {"symbol": symbol}))
            if state == "archived":
                await store.archive_session(session.id)

            for asked in ("AAPL", '["AAPL"]', "5"):
                assert await found(store, symbol=asked) == []

    async def test_type_tag_and_dates_narrow_a_search(self, open_store: OpenStore, clock: FrozenClock) -> None:
        async with open_store() as store:
            start = clock.now()
            await begin(store, title="first", tags=["tech"])
            clock.advance(hours=1)
            second = await begin(store, title="second", tags=["tech"], type="macro")
            await store.archive_session(second.id)

            assert await found(store, tag="tech") == ["second", "first"]
            assert await found(store, type="macro") == ["second"]
            assert await found(store, since=start + timedelta(hours=1)) == ["second"]
            assert await found(store, until=start + timedelta(hours=1)) == ["first"]
            of_type: dict[str, Any] = {"tag": "tech", "type": "equity"}
            until = start + timedelta(hours=2)
            assert await found(store, since=start, until=until, **of_type, **self.about_aapl) == ["first"]

    @needs_values
    async def test_what_is_changed_or_removed_is_found_no_more(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            session = await begin(store, title="Bananas")
            await store.remember(session.id, context={"fruit": "papaya", "root": "carrot"})
            changed = await existing(store, session.id)
            changed.title = "Cherries"
            await store.update_session(session.id, changed)
            await store.remember(session.id, context={"fruit": "mango"}, remove={"context": ["root"]})

            for _ in range(2):
                assert await found(store, "cherries mango") == ["Cherries"]
                for gone in ("bananas", "papaya", "carrot"):
                    assert await found(store, gone) == [], gone
                await store.archive_session(session.id)

    @needs_values
    async def test_a_session_is_found_after_it_came_back_and_never_after_it_was_deleted(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as store:
            session = await begin(store, title="phoenix")
            await store.archive_session(session.id)
            await store.resume_session(session.id)
            assert await found(store, "phoenix") == ["phoenix"]
            await store.archive_session(session.id)
            assert await found(store, "phoenix") == ["phoenix"]

            await store.delete_session(session.id)

            assert await found(store, "phoenix") == []

    async def test_another_users_sessions_are_not_found(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for user in ("ann", "bob"):
                for title in (f"{user} live", f"{user} archived"):
                    session = await begin(store, title=title, user_id=user)
                    if "archived" in title:
                        await store.archive_session(session.id)

            assert sorted(await found(store, user_id="ann", **self.about_aapl)) == ["ann archived", "ann live"]
            mine = await store.as_principal("bob").search_sessions(None, **self.about_aapl)
            assert sorted(summary.title or "" for summary in mine) == ["bob archived", "bob live"]

    async def test_one_cursor_leads_through_live_and_archived_ones_without_doubles(
        self, open_store: OpenStore, clock: FrozenClock
    ) -> None:
        async with open_store() as store:
            for number in range(11):
                session = await begin(store, title=f"{number:02}")
                clock.advance(seconds=1)
                if number % 3 == 0:
                    await store.archive_session(session.id)

            titles, cursor = [], None
            while True:
                page = await store.search_sessions(None, **self.about_aapl, limit=3, cursor=cursor)
                titles += [summary.title for summary in page]
                cursor = page.next_cursor
                if cursor is None:
                    break

        assert titles == [f"{number:02}" for number in reversed(range(11))]
        assert page.searched == ("live", "archived")

    @needs_values
    async def test_names_and_symbols_are_found_as_they_were_written_and_in_lower_case(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as store:
            session = await begin(store, "Brent", "KO", title="oil", queries=[looked_up("AAPL", PE=20.0)])
            for _ in range(2):
                for symbol in ("Brent", "ko", "aapl"):
                    assert await found(store, symbol=symbol) == ["oil"], symbol
                assert await found(store, "PE < 30", symbol="aapl") == ["oil"]
                assert await found(store, "pe < 30") == []
                await store.archive_session(session.id)

    @needs_values
    async def test_a_figure_of_a_comparison_can_be_asked_for(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            query = QueryRecord("comparative", {"symbol": "AAPL"}, figures={"correlation:BRK-B": 0.5, "big": 10**30})
            session = await begin(store, title="pair", queries=[query])
            for _ in range(2):
                assert await found(store, "correlation:BRK-B > 0.4") == ["pair"]
                assert await found(store, "big = 1e30") == ["pair"]
                assert await found(store, "correlation:KO > 0.4") == []
                await store.archive_session(session.id)

    @needs_values
    @pytest.mark.parametrize(
        "words", ["it's", '"quoted" OR x', "NEAR(a b)", "a AND b", "a:*", "a' | 'b", "-a", "(", "col: x a"]
    )
    async def test_the_engines_query_languages_stay_closed(self, open_store: OpenStore, words: str) -> None:
        """What an engine would take for an operator is searched for as a word, or ignored."""
        async with open_store() as store:
            session = await begin(store, title="nothing of that")
            await store.archive_session(session.id)
            await begin(store, title="nor here")

            if words == "(":
                with pytest.raises(InvalidInput):
                    await store.search_sessions(None, words)
            else:
                assert await found(store, words) == []
