"""What callers pass: enums, subclasses, odd times, and values that they go on changing."""

from datetime import UTC, datetime
from enum import Enum
from zoneinfo import ZoneInfo

import numpy
import pytest

from fiml.core.errors import InvalidInput
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import existing


class Name(str, Enum):  # noqa: UP042 - as people write it; its text is Name.ANN
    """Names as an application may have them."""

    ANN = "ann"
    KEY = "key"


async def test_a_member_of_an_enum_is_its_value_wherever_it_is_stored(store: SessionStore) -> None:
    session = await store.create_session([Name.KEY], "equity", user_id=Name.ANN, title=Name.KEY, tags=[Name.KEY])
    await store.record_query(session.id, make_query(), context={Name.KEY: 1})
    await store.share_session(session.id, Name.KEY)
    await store.as_principal("ann").remember(session.id, remove={"context": [Name.KEY]}, context={"b": Name.KEY})

    for _ in range(2):
        [listed] = await store.list_user_sessions("ann", include_archived=True)
        assert (listed.assets, listed.tags, listed.title, listed.user_id) == (["key"], ["key"], "key", "ann")
        assert [
            found.id for found in await store.as_principal("key").list_user_sessions("key", include_archived=True)
        ] == [session.id]
        assert (await existing(store, session.id)).state.context == {"b": "key"}
        await store.archive_session(session.id)

    assert (await store.erase_user("ann")).erased == [session.id]


async def test_a_session_that_ends_at_the_first_of_all_moments_can_be_archived_and_listed(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], "equity", user_id="ann")
    session.expires_at = datetime.min.replace(tzinfo=UTC)
    await store.update_session(session.id, session)
    await store.create_session(["MSFT"], "equity", user_id="ann")

    assert await store.archive_session(session.id)

    assert (await existing(store, session.id)).is_expired
    assert len(await store.list_user_sessions("ann", include_archived=True)) == 2


async def test_changing_a_document_changes_no_session(store: SessionStore) -> None:
    created = await store.create_session(["AAPL"], "equity")
    query = QueryRecord("price", {"nested": {"a": [1]}}, figures={"price": 1.0})
    await store.record_query(created.id, query, context={"plan": {"step": "t"}, "own": 1})
    session = await existing(store, created.id)

    document = session.to_dict()
    document["state"]["context"].pop("own")
    document["state"]["context"]["plan"]["step"] = "***"
    document["state"]["history"]["queries"][0]["parameters"]["nested"]["a"].append(2)
    session.title = "t"
    await store.update_session(session.id, session)

    after = await existing(store, created.id)
    assert after.state.context == {"plan": {"step": "t"}, "own": 1}
    assert after.state.history.queries == [query]
    again = Session.from_dict(document)
    document["state"]["context"]["plan"]["step"] = "changed"
    document["state"]["history"]["queries"][0]["parameters"]["nested"]["a"].append(3)
    assert again.state.context["plan"] == {"step": "***"}
    assert again.state.history.queries[0].parameters == {"nested": {"a": [1, 2]}}


async def test_an_object_is_written_again_after_a_query_in_the_hour_when_the_clocks_change(store: SessionStore) -> None:
    """Python takes such a time for unequal to the same moment in another zone."""
    session = await store.create_session(["AAPL"], "equity")
    session.add_query(QueryRecord("price", timestamp=datetime(2024, 11, 3, 1, 30, tzinfo=ZoneInfo("America/New_York"))))
    await store.update_session(session.id, session)

    session.state.update_context("a", 1)
    await store.update_session(session.id, session)

    after = await existing(store, session.id)
    assert (after.state.context, after.state.history.total_queries) == ({"a": 1}, 1)


class Extended(QueryRecord, frozen=True):
    """A query with a field that no tier knows."""

    further: int = 0


async def test_a_query_with_fields_that_would_be_lost_is_refused(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], "equity")

    with pytest.raises(InvalidInput, match="query is a Extended; give a QueryRecord"):
        await store.record_query(session.id, Extended("price", further=1))


async def test_a_name_given_twice_brings_nothing_back_that_another_removed(store: SessionStore) -> None:
    mine = await store.create_session(["AAPL", "MSFT"], SessionType.EQUITY, tags=["tech"])
    mine.assets, mine.tags = ["AAPL", "AAPL", "MSFT"], ["tech", "tech", "old"]
    theirs = await store.update_session(mine.id, mine)
    theirs.assets.remove("MSFT")
    theirs.tags.remove("old")
    await store.update_session(mine.id, theirs)

    mine.title = "Mine"
    merged = await store.update_session(mine.id, mine)

    assert (merged.title, merged.assets, merged.tags) == ("Mine", ["AAPL"], ["tech"])


async def test_an_update_without_a_change_is_an_access_and_no_version(store: SessionStore, clock: FrozenClock) -> None:
    session = await store.create_session(["AAPL"], "equity")
    clock.advance(minutes=1)

    for _ in range(3):
        merged = await store.update_session(session.id, session, expected_version=1)

    assert (merged.version, merged.last_accessed_at) == (1, clock.now())
    assert [entry.did for entry in await store.get_audit_trail(session.id)] == ["create"]


@pytest.mark.parametrize("empty", [[], 0, "", False])
async def test_what_is_no_dict_is_refused_even_if_it_is_empty(store: SessionStore, empty: object) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)

    with pytest.raises(InvalidInput, match="context is a"):
        await store.record_query(session.id, make_query(), context=empty)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="context is a"):
        await store.remember(session.id, context=empty, notes=["n"])  # type: ignore[arg-type]


async def test_a_flag_is_true_or_false(store: SessionStore) -> None:
    wanted = "include_archived is 'false'; give True or False"

    with pytest.raises(InvalidInput, match=wanted):
        await store.list_user_sessions(None, include_archived="false")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=wanted):
        await store.search_sessions(None, "word", include_archived="false")  # type: ignore[arg-type]


async def test_a_type_of_another_module_is_named_with_it(store: SessionStore) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)

    with pytest.raises(InvalidInput, match=r"context\.v is a numpy\.bool"):
        await store.record_query(session.id, make_query(), context={"v": numpy.True_})


def test_hours_are_added_in_utc(clock: FrozenClock) -> None:
    before = datetime(2024, 11, 3, 0, 30, tzinfo=ZoneInfo("America/New_York"))
    session = Session(user_id=None, type=SessionType.EQUITY, assets=["AAPL"], expires_at=before)
    session.expires_at = before

    session.extend(2)

    assert session.expires_at == datetime(2024, 11, 3, 6, 30, tzinfo=UTC)
