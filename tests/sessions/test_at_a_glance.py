"""How sessions look where they are shown, such as at the end of a notebook's cell."""

import pandas
import pytest

from fiml.sessions.models import AnalysisHistory, SessionState
from fiml.sessions.store import SessionStore
from fiml.testing import make_query


async def test_a_large_session_is_shown_on_less_than_a_page(store: SessionStore) -> None:
    """A notebook keeps what it shows: a cell that ended with an update put megabytes into its file."""
    session = await store.create_session(["AAPL"], "equity")
    session.state.context.update({f"table {index}": [{"close": 1.5, "note": "x" * 500}] * 100 for index in range(50)})
    session.state.intermediate_results["range"] = {"low": 165, "high": 190}

    shown = repr(await store.update_session(session.id, session))

    assert len(shown) < 4000
    assert "'range': {'high': 190, 'low': 165}" in shown


def test_what_is_short_is_shown_whole() -> None:
    state = SessionState(context={"thesis": "below its 50-day mean; wait"}, preferences={"currency": "USD"})

    assert repr(state) == (
        "SessionState(context={'thesis': 'below its 50-day mean; wait'}, preferences={'currency': 'USD'}, "
        "intermediate_results={}, metadata={}, history=AnalysisHistory(0 queries))"
    )


@pytest.mark.parametrize(
    ("recent", "shown"),
    [(None, "AnalysisHistory(3 queries)"), (1, "AnalysisHistory(3 queries, the last 1 of them here)")],
)
async def test_a_history_says_how_much_of_it_is_here(store: SessionStore, recent: int | None, shown: str) -> None:
    session = await store.create_session(["AAPL"], "equity")
    for _ in range(3):
        await store.record_query(session.id, make_query())

    read = await store.get_session(session.id, recent_queries=recent)

    assert read is not None
    assert repr(read.state.history) == shown
    assert repr(AnalysisHistory([make_query()])) == "AnalysisHistory(1 query)"


async def test_a_page_and_the_queries_of_a_session_are_tables_in_pandas(store: SessionStore) -> None:
    """As the pages on finding sessions and on usage say."""
    session = await store.create_session(["AAPL", "KO"], "comparative", title="Phones or drinks")
    await store.record_query(session.id, make_query("price", figures={"price": 230.5}))

    page = await store.list_user_sessions(None)
    read = await store.get_session(session.id)

    assert read is not None
    [row] = pandas.DataFrame(page).to_dict("records")
    assert (row["id"], row["title"], row["assets"], row["total_queries"]) == (
        session.id,
        session.title,
        session.assets,
        1,
    )
    [query] = pandas.DataFrame(query.to_dict() for query in read.state.history.queries).to_dict("records")
    assert (query["query_type"], query["figures"]) == ("price", {"price": 230.5})
