"""Which changes `update_session` finds, and how the changes of several writers are merged."""

import asyncio
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from fiml.core.errors import InvalidInput, SessionConflict
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, Suite, content, document, existing, listing
from fiml.testing.samples import make_query


def _replace_context(session: Session) -> None:
    session.state.context = {"kept": 1, "new": 2}


def _empty_context(session: Session) -> None:
    session.state.context.clear()


def _deep_change(session: Session) -> None:
    session.state.context["deep"]["list"][0]["number"] = 2


def _retitle(session: Session) -> None:
    session.title = "Other"


def _untitle(session: Session) -> None:
    session.title = None


def _retype(session: Session) -> None:
    session.type = SessionType.COMPARATIVE


def _rearrange(session: Session) -> None:
    session.assets.reverse()


def _assign_tags(session: Session) -> None:
    session.tags = ["assigned"]


CHANGES: dict[str, Callable[[Session], object]] = {
    "update_context": lambda session: session.state.update_context("key", "value"),
    "store_intermediate_result": lambda session: session.state.store_intermediate_result("pe", {"ratio": 28.5}),
    "add_query": lambda session: session.add_query(make_query()),
    "queries.append": lambda session: session.state.history.queries.append(make_query()),
    "an entry set": lambda session: session.state.metadata.update({"a": [1]}),
    "an entry replaced": lambda session: session.state.context.update({"kept": None}),
    "an entry removed": lambda session: session.state.context.pop("kept"),
    "a map assigned": _replace_context,
    "a map emptied": _empty_context,
    "a preference": lambda session: session.state.preferences.update({"currency": "EUR"}),
    "a list in an entry grown": lambda session: session.state.context["deep"]["list"].append(1),
    "a value deep in an entry": _deep_change,
    "a tag appended": lambda session: session.tags.append("b"),
    "a tag removed": lambda session: session.tags.remove("tech"),
    "tags assigned": _assign_tags,
    "an asset appended": lambda session: session.assets.append("NVDA"),
    "an asset inserted": lambda session: session.assets.insert(0, "NVDA"),
    "an asset removed": lambda session: session.assets.remove("AAPL"),
    "assets rearranged": _rearrange,
    "a title": _retitle,
    "no title": _untitle,
    "a type": _retype,
    "extend": lambda session: session.extend(5),
}
TITLE = "long " * 20  # so that Redis keeps a header's fields in no order
ALIKE: list[tuple[Any, Any]] = [
    (1, 1.0),
    (1, True),
    (0, False),
    (1.0, True),
    (None, False),
    ("1", 1),
    ([], {}),
    ("", None),
]


class UpdatesSuite(Suite):
    """Every change is found, written once, and overwrites nobody else's."""

    @pytest.mark.parametrize("name", CHANGES)
    async def test_a_change_is_found_and_comes_back(self, store: SessionStore, name: str) -> None:
        session = await _a_session(store)
        before = document(session, "last_accessed_at", "version")

        CHANGES[name](session)
        expected = document(session, "last_accessed_at", "version")
        merged = await store.update_session(session.id, session)

        assert expected != before
        assert document(merged, "last_accessed_at", "version") == expected
        assert document(session, "last_accessed_at", "version") == expected
        assert document(await existing(store, session.id)) == document(merged)

    @pytest.mark.parametrize("name", CHANGES)
    async def test_a_change_outlives_archive_and_resume(self, store: SessionStore, name: str) -> None:
        session = await _a_session(store)
        CHANGES[name](session)
        merged = await store.update_session(session.id, session)

        await store.archive_session(session.id)
        archived = await existing(store, session.id)
        await store.resume_session(session.id)

        assert content(archived) == content(merged) == content(await existing(store, session.id))

    @pytest.mark.parametrize(("before", "after"), ALIKE)
    async def test_values_that_only_look_alike_are_a_change(
        self, store: SessionStore, before: object, after: object
    ) -> None:
        session = await _a_session(store)
        session.state.context["value"] = before
        await store.update_session(session.id, session)

        session.state.context["value"] = after
        merged = await store.update_session(session.id, session)

        found = merged.state.context["value"]
        assert (found, type(found)) == (after, type(after))

    async def test_an_object_written_twice_appends_nothing_twice(self, store: SessionStore) -> None:
        session = await _a_session(store)
        for n in range(1, 4):
            session.add_query(make_query(f"{n}"))
            session.state.context["n"] = n
            session.tags.append(f"tag {n}")

            merged = await store.update_session(session.id, session)

            assert merged.state.history.total_queries == n
            assert merged.state.context["n"] == n
            assert merged.tags == session.tags

        again = await store.update_session(session.id, session)
        assert content(again) == content(merged)

    async def test_the_merged_session_can_be_written_as_well(self, store: SessionStore) -> None:
        session = await _a_session(store)
        session.add_query(make_query("first"))
        merged = await store.update_session(session.id, session)

        merged.add_query(make_query("second"))
        again = await store.update_session(session.id, merged)

        assert [query.query_type for query in again.state.history.queries] == ["first", "second"]

    async def test_the_merged_session_shares_nothing_with_the_one_that_was_written(self, store: SessionStore) -> None:
        session = await _a_session(store)
        session.add_query(make_query())
        await store.update_session(session.id, session)
        session.add_query(make_query())
        before = document(session, "last_accessed_at", "version")

        merged = await store.update_session(session.id, session)
        for query in merged.state.history.queries:
            query.parameters["symbol"] = "changed"

        assert document(session, "last_accessed_at", "version") == before
        again = await store.update_session(session.id, session)
        assert content(again) == content(session)

    async def test_an_own_change_does_not_bring_back_what_another_removed(self, store: SessionStore) -> None:
        mine, theirs = await _two_objects(store)
        theirs.state.context.pop("kept")
        theirs.tags.remove("tech")
        await store.update_session(theirs.id, theirs)

        mine.state.context["mine"] = 1
        mine.tags.append("mine")
        mine.title = None
        merged = await store.update_session(mine.id, mine)

        assert "kept" not in merged.state.context
        assert merged.tags == ["mine"]

    @pytest.mark.parametrize("turns", list(permutations(range(3))))
    async def test_writers_lose_nothing_in_any_order(self, store: SessionStore, turns: tuple[int, ...]) -> None:
        session = await _a_session(store)
        objects = [await existing(store, session.id) for _ in range(3)]
        for n, each in enumerate(objects):
            each.add_query(make_query(f"{n}"))
            each.add_query(make_query(f"{n} again"))
            each.state.context[f"{n}"] = n
            each.state.metadata[f"{n}"] = [n]
            each.tags.append(f"tag {n}")
            each.assets.append(f"ASSET{n}")

        for turn in turns:
            merged = await store.update_session(session.id, objects[turn])

        assert [query.query_type for query in merged.state.history.queries] == [
            name for turn in turns for name in (f"{turn}", f"{turn} again")
        ]
        assert merged.state.context == {**session.state.context, "0": 0, "1": 1, "2": 2}
        assert merged.state.metadata == {"0": [0], "1": [1], "2": [2]}
        assert merged.tags == ["tech", *(f"tag {turn}" for turn in turns)]
        assert merged.assets == ["AAPL", "MSFT", *(f"ASSET{turn}" for turn in turns)]

    async def test_an_object_written_beside_another_still_loses_nothing(self, store: SessionStore) -> None:
        """After its own write, an object lacks what others wrote; that must not count as a change to it."""
        mine, theirs = await _two_objects(store)
        for n in range(3):
            for who, each in (("mine", mine), ("theirs", theirs)):
                each.add_query(make_query(f"{who} {n}"))
                each.state.context[f"{who} {n}"] = n
                await store.update_session(each.id, each)

        merged = await existing(store, mine.id)

        assert merged.state.history.total_queries == 6
        assert set(merged.state.context) == {
            "kept",
            "deep",
            *(f"{who} {n}" for who in ("mine", "theirs") for n in range(3)),
        }

    async def test_of_two_values_of_one_entry_the_later_stays(self, store: SessionStore) -> None:
        mine, theirs = await _two_objects(store)
        mine.state.context["kept"] = "mine"
        theirs.state.context["kept"] = "theirs"

        await store.update_session(mine.id, mine)
        merged = await store.update_session(theirs.id, theirs)

        assert merged.state.context["kept"] == "theirs"

    async def test_a_stale_object_written_at_the_latest_version_does_not_hold_that_version(
        self, store: SessionStore
    ) -> None:
        mine, theirs = await _two_objects(store)
        theirs.state.context["theirs"] = 1
        theirs = await store.update_session(theirs.id, theirs)

        for name in ("mine", "mine again"):
            mine.state.context[name] = 1
            latest = (await existing(store, mine.id)).version
            merged = await store.update_session(mine.id, mine, expected_version=latest)
            assert mine.version < latest
            assert document(merged) == document(await existing(store, mine.id))

        assert {"theirs", "mine", "mine again"} < set(merged.state.context)

    async def test_a_query_that_is_appended_twice_at_once_is_there_once(self, store: SessionStore) -> None:
        session = await _a_session(store)
        query = make_query()
        session.add_query(query)
        session.add_query(query)

        merged = await store.update_session(session.id, session)

        assert merged.state.history.queries == [query]
        assert document(merged) == document(await existing(store, session.id))

    async def test_a_document_is_not_taken_for_what_is_stored(self, store: SessionStore) -> None:
        document_of_it = (await _a_session(store)).to_dict()
        del document_of_it["state"]["context"]["kept"]
        session = Session.from_dict(document_of_it)

        for name in ("new", "newer"):
            session.state.context[name] = 1
            merged = await store.update_session(session.id, session)
            assert document(merged) == document(await existing(store, session.id))

        assert set(merged.state.context) == {"kept", "deep", "new", "newer"}

    async def test_what_was_read_in_part_comes_back_whole(self, store: SessionStore) -> None:
        session = await _a_session(store)
        for _ in range(3):
            await store.record_query(session.id, make_query())
        part = await store.get_session(session.id, recent_queries=1)
        assert part is not None

        for n in range(4, 6):
            query = make_query()
            part.add_query(query)
            part.add_query(query)
            merged = await store.update_session(part.id, part)
            assert len(merged.state.history.queries) == n
            assert document(merged) == document(await existing(store, part.id))

    async def test_a_query_that_somebody_else_recorded_makes_no_object_current(self, store: SessionStore) -> None:
        mine = await _a_session(store)
        query = make_query()
        await store.record_query(mine.id, query, context={"theirs": 1})
        read_at = mine.version

        mine.add_query(query)
        merged = await store.update_session(mine.id, mine)

        assert document(merged) == document(await existing(store, mine.id))
        assert merged.state.context["theirs"] == 1
        assert mine.version == read_at
        with pytest.raises(SessionConflict):
            await store.update_session(mine.id, mine, expected_version=mine.version)

    async def test_an_object_may_be_written_by_several_calls_at_once(self, store: SessionStore) -> None:
        session = await _a_session(store)
        session.state.context["first"] = 1
        first = asyncio.create_task(store.update_session(session.id, session))
        await asyncio.sleep(0)  # now the call has read the object
        del session.state.context["first"]
        session.state.context["second"] = 1
        session.add_query(make_query())
        merged = await store.update_session(session.id, session)
        await first

        assert document(merged) == document(await existing(store, session.id))
        assert {"first", "second"} < set(merged.state.context)
        session.state.context["third"] = 1
        merged = await store.update_session(session.id, session)
        assert document(merged) == document(await existing(store, session.id))

    async def test_the_same_name_added_by_two_is_there_once(self, store: SessionStore) -> None:
        mine, theirs = await _two_objects(store)
        for each, names in ((mine, ["same"]), (theirs, ["later", "same"])):
            each.tags += names
            each.assets += names
            await store.update_session(each.id, each)

        merged = await existing(store, mine.id)

        assert (merged.tags, merged.assets) == (["tech", "same", "later"], ["AAPL", "MSFT", "same", "later"])

    async def test_a_name_that_is_there_twice_is_written_once(self, store: SessionStore) -> None:
        mine, theirs = await _two_objects(store)
        for each, names in ((mine, ["mine", "mine"]), (theirs, ["theirs"]), (mine, [])):
            each.tags += names
            each.assets += names
            merged = await store.update_session(each.id, each)

        assert (merged.tags, merged.assets) == (["tech", "mine", "theirs"], ["AAPL", "MSFT", "mine", "theirs"])

    async def test_an_extension_by_the_store_outlives_a_stale_object(self, store: SessionStore) -> None:
        stale = await _a_session(store)
        extended = await store.extend_session(stale.id, 10)

        stale.state.context["late"] = True
        merged = await store.update_session(stale.id, stale)

        assert merged.expires_at == extended.expires_at

    async def test_a_stale_object_can_be_written_after_archive_and_resume(self, store: SessionStore) -> None:
        stale = await _a_session(store)
        theirs = make_query("theirs")
        await store.record_query(stale.id, theirs)
        await store.archive_session(stale.id)
        await store.resume_session(stale.id)
        await store.record_query(stale.id, theirs)

        stale.add_query(make_query("mine"))
        merged = await store.update_session(stale.id, stale)

        assert [query.query_type for query in merged.state.history.queries] == ["theirs", "mine"]

    @pytest.mark.parametrize("field", ["user_id", "created_at", "version"])
    async def test_what_a_session_keeps_for_life_is_not_written(
        self, store: SessionStore, clock: FrozenClock, field: str
    ) -> None:
        session = await _a_session(store)
        before = document(await existing(store, session.id))
        setattr(session, field, {"user_id": "eve", "created_at": clock.now(), "version": 99}[field])
        if field == "created_at":
            session.created_at = clock.advance(hours=-1)
            clock.advance(hours=1)

        with pytest.raises(InvalidInput, match=field):
            await store.update_session(session.id, session)

        assert document(await existing(store, session.id)) == before

    async def test_history_can_not_be_rewritten(self, store: SessionStore) -> None:
        session = await _a_session(store)
        session.add_query(make_query("kept"))
        await store.update_session(session.id, session)

        session.state.history.queries.clear()
        with pytest.raises(InvalidInput, match="history"):
            await store.update_session(session.id, session)

        assert (await existing(store, session.id)).state.history.total_queries == 1

    async def test_a_write_counts_as_an_access(self, store: SessionStore, clock: FrozenClock) -> None:
        session = await _a_session(store)
        for title in (TITLE, "Other"):
            clock.advance(minutes=3)
            session.title = title

            await store.update_session(session.id, session)

            [summary] = await listing(store)
            assert summary.last_accessed_at == clock.now()


async def _a_session(store: SessionStore) -> Session:
    session = await store.create_session(
        ["AAPL", "MSFT"], SessionType.EQUITY, user_id=OWNER, tags=["tech"], title=TITLE, ttl_hours=24
    )
    session.state.context.update({"kept": 1, "deep": {"list": [{"number": 1}]}})
    await store.update_session(session.id, session)
    return session


async def _two_objects(store: SessionStore) -> tuple[Session, Session]:
    session = await _a_session(store)
    return await existing(store, session.id), await existing(store, session.id)
