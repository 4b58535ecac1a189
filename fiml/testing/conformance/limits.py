"""Limits: the limit itself is allowed, one more is refused by name, and a refusal leaves nothing half-written."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from fiml.core import clock
from fiml.core.errors import InvalidInput, SessionFull
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.clock import FrozenClock
from fiml.testing.conformance.suite import OWNER, OpenStore, Suite, content, document, existing, listing
from fiml.testing.samples import make_query

KIB = 1024
VALUE_BYTES = 256 * KIB
DEPTH = 32
QUERIES = 5

EDGES: list[dict[str, Any]] = [
    {"assets": [f"A{n}" for n in range(100)]},
    {"assets": ["A" * 64]},
    {"assets": ["\N{BAR CHART}" * 64]},
    {"assets": ["BRK.B", "^GSPC", "BTC/USD", "a:b", "{}", "'", "€"]},
    {"tags": []},
    {"tags": [f"t{n}" for n in range(50)]},
    {"tags": ["\N{BAR CHART}" * 64]},
    {"user_id": "u" * 255},
    {"user_id": "\N{BAR CHART}" * 255},
    {"title": "t" * 200},
    {"title": "\N{BAR CHART}" * 200},
    {"ttl_hours": 1},
    {"ttl_hours": 168},
    {"session_type": "portfolio"},
]
OVER: list[tuple[str, dict[str, Any]]] = [
    ("assets", {"assets": []}),
    ("assets", {"assets": [f"A{n}" for n in range(101)]}),
    ("assets", {"assets": ["A" * 65]}),
    ("assets", {"assets": [""]}),
    ("assets", {"assets": [5]}),
    ("assets", {"assets": None}),
    ("assets", {"assets": "AAPL"}),
    ("assets", {"assets": ["A\0"]}),
    ("assets", {"assets": ["A\ud800"]}),
    ("tags", {"tags": [f"t{n}" for n in range(51)]}),
    ("tags", {"tags": ["t" * 65]}),
    ("tags", {"tags": ["t", None]}),
    ("tags", {"tags": ["\0"]}),
    ("user_id", {"user_id": "u" * 256}),
    ("user_id", {"user_id": "\0"}),
    ("user_id", {"user_id": "\udfff"}),
    ("user_id", {"user_id": 5}),
    ("title", {"title": "t" * 201}),
    ("title", {"title": "a\0b"}),
    ("title", {"title": "\ud83d"}),
    ("ttl_hours", {"ttl_hours": 0}),
    ("ttl_hours", {"ttl_hours": -1}),
    ("ttl_hours", {"ttl_hours": 169}),
    ("ttl_hours", {"ttl_hours": 10**400}),
    ("ttl_hours", {"ttl_hours": 1.5}),
    ("ttl_hours", {"ttl_hours": "24"}),
    ("session type", {"session_type": "stocks"}),
    ("session type", {"session_type": None}),
]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def _text_of(size: int) -> str:
    """A text whose JSON has `size` bytes."""
    return "x" * (size - 2)


def _fill(session: Session) -> None:
    """Fill the maps up to their limit: keys and values together have 4 MiB."""
    for n in range(16):
        session.state.metadata[f"{n:02}"] = _text_of(VALUE_BYTES - 2)


def _fill_and_add(session: Session) -> None:
    _fill(session)
    session.state.context["a"] = 1


def _take_ages(session: Session) -> None:
    session.add_query(make_query(execution_time_ms=1.7e308))
    session.add_query(make_query(execution_time_ms=1.7e308))


def _set_title(session: Session) -> None:
    session.title = "t" * 201


def _set_expiry(session: Session) -> None:
    session.expires_at = clock.now() + timedelta(hours=168, microseconds=1)


def _drop_tags(session: Session) -> None:
    session.tags = None  # type: ignore[assignment]  # what is refused


def _empty_assets(session: Session) -> None:
    session.assets.clear()


def _many_queries(session: Session) -> None:
    for _ in range(QUERIES + 1):
        session.add_query(make_query())


def _loop(session: Session) -> None:
    endless: list[Any] = []
    endless.append(endless)
    session.state.context["endless"] = endless


REFUSED_CHANGES: dict[str, Callable[[Session], object]] = {
    "context": lambda session: session.state.context.update(bad=float("nan")),
    "preferences": lambda session: session.state.preferences.update(bad={1: 2}),
    "metadata": lambda session: session.state.metadata.update(bad=_nested(DEPTH + 1)),
    "intermediate": lambda session: session.state.intermediate_results.update(bad=_text_of(VALUE_BYTES + 1)),
    "endless": _loop,
    "maps": _fill_and_add,
    "title": _set_title,
    "too many tags": lambda session: session.tags.extend(f"t{n}" for n in range(51)),
    "too many assets": lambda session: session.assets.extend(f"A{n}" for n in range(101)),
    "no asset": _empty_assets,
    "no list of tags": _drop_tags,
    "expiry": _set_expiry,
    "parameters": lambda session: session.add_query(make_query(parameters={"x": float("inf")})),
    "parameters' size": lambda session: session.add_query(make_query(parameters={"x": _text_of(VALUE_BYTES)})),
    "summary": lambda session: session.add_query(make_query(result_summary="\0")),
    "time": lambda session: session.add_query(make_query(execution_time_ms=float("nan"))),
    "negative time": lambda session: session.add_query(make_query(execution_time_ms=-1)),
    "times that add up to infinity": _take_ages,
    "long time": lambda session: session.add_query(make_query(execution_time_ms=10**400)),
    "naive moment": lambda session: session.add_query(make_query(timestamp=datetime(2024, 1, 1))),  # noqa: DTZ001
    "moment off the calendar": lambda session: session.add_query(
        make_query(timestamp=datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))
    ),
    "moment's type": lambda session: session.add_query(make_query(timestamp="2024-01-01T00:00:00Z")),
    "query type": lambda session: session.add_query(make_query("\ud800")),
    "cache hit": lambda session: session.add_query(make_query(cache_hit="yes")),
    "too many queries": _many_queries,
}


class LimitsSuite(Suite):
    """The limits of the public contract."""

    @pytest.mark.parametrize("values", EDGES, ids=lambda values: next(iter(values)))
    async def test_the_edge_is_allowed_in_every_tier(self, store: SessionStore, values: dict[str, Any]) -> None:
        session = await store.create_session(
            **({"assets": ["AAPL"], "session_type": SessionType.EQUITY, "user_id": OWNER} | values)
        )

        await store.archive_session(session.id)
        archived = await existing(store, session.id)
        await store.resume_session(session.id)

        assert content(session) == content(archived) == content(await existing(store, session.id))
        for name, value in values.items():
            if name in ("assets", "tags", "user_id", "title"):
                assert getattr(archived, name) == value
        assert [found.id for found in await listing(store, session.user_id)] == [session.id]

    @pytest.mark.parametrize(("name", "values"), OVER)
    async def test_one_over_the_edge_is_refused_by_name(
        self, store: SessionStore, name: str, values: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput, match=name):
            await store.create_session(**({"assets": ["AAPL"], "session_type": SessionType.EQUITY} | values))

        assert await listing(store, None) == []

    @pytest.mark.parametrize("hours", [0, -1, 169, 1.5, "1", True])
    async def test_hours_have_limits_everywhere(self, store: SessionStore, hours: Any) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        before = document(await existing(store, session.id))

        with pytest.raises(InvalidInput, match="hours"):
            await store.extend_session(session.id, hours)
        with pytest.raises(InvalidInput, match="hours"):
            await store.resume_session(session.id, hours)

        assert document(await existing(store, session.id)) == before

    @pytest.mark.parametrize("name", REFUSED_CHANGES)
    async def test_a_refused_update_writes_nothing_of_it(self, open_store: OpenStore, name: str) -> None:
        async with open_store(session_max_queries_per_session=QUERIES) as store:
            session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, tags=["a"], title="T")
            await store.record_query(session.id, make_query(), context={"there": "before"})
            session = await existing(store, session.id)
            before = document(session)
            session.state.context["good"] = 1
            session.add_query(make_query("good"))
            session.tags.append("good")
            REFUSED_CHANGES[name](session)

            with pytest.raises((InvalidInput, SessionFull)):
                await store.update_session(session.id, session)

            assert document(await existing(store, session.id)) == before

    async def test_a_refused_object_can_be_mended_and_written(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        session.add_query(make_query("kept"))
        session.state.context["value"] = float("nan")
        with pytest.raises(InvalidInput):
            await store.update_session(session.id, session)

        session.state.context["value"] = None
        merged = await store.update_session(session.id, session)

        assert merged.state.context == {"value": None}
        assert merged.state.history.total_queries == 1

    async def test_a_refused_record_writes_nothing_of_it(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        before = document(await existing(store, session.id))

        with pytest.raises(InvalidInput):
            await store.record_query(session.id, make_query(), context={"good": 1, "bad": b"1"})
        with pytest.raises(InvalidInput):
            await store.record_query(session.id, make_query(result_summary="\ud800"), context={"good": 1})

        assert document(await existing(store, session.id)) == before

    async def test_a_value_has_256_kib(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        fits = {
            "ascii": _text_of(VALUE_BYTES),
            "wide": "€" * ((VALUE_BYTES - 2) // 3),
            "list": [0] * (VALUE_BYTES // 2 - 1),
        }
        for key, value in fits.items():
            session.state.update_context(key, value)
        await store.update_session(session.id, session)

        for value in (
            _text_of(VALUE_BYTES + 1),
            "€" * (VALUE_BYTES // 3),
            [0] * (VALUE_BYTES // 2),
            "x" * 5 * KIB * KIB,
        ):
            with pytest.raises(InvalidInput, match=r"context\.key"):
                session.state.update_context("key", value)

        await store.archive_session(session.id)
        assert (await existing(store, session.id)).state.context == fits

    async def test_a_value_has_a_depth_of_32(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        session.state.update_context("deep", _nested(DEPTH))
        session.add_query(make_query(parameters={"deep": _nested(DEPTH - 1)}))
        await store.update_session(session.id, session)

        with pytest.raises(InvalidInput, match=r"context\.deeper"):
            session.state.update_context("deeper", _nested(DEPTH + 1))

        await store.archive_session(session.id)
        assert (await existing(store, session.id)).state.context == {"deep": _nested(DEPTH)}

    async def test_the_maps_together_have_4_mib(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        _fill(session)
        merged = await store.update_session(session.id, session)

        with pytest.raises(InvalidInput, match="maps"):
            await store.record_query(session.id, make_query(), context={"": 1})

        # Room is made by removing and by replacing, and the limit stays what it was after archive and resume.
        await store.archive_session(session.id)
        session = await store.resume_session(session.id)
        assert session.state.metadata == merged.state.metadata
        with pytest.raises(InvalidInput, match="maps"):
            await store.record_query(session.id, make_query(), context={"": 1})
        del session.state.metadata["00"]
        session.state.metadata["01"] = None
        session.state.context["room"] = _text_of(VALUE_BYTES)
        await store.update_session(session.id, session)
        assert (await existing(store, session.id)).state.history.total_queries == 0

    async def test_what_is_removed_twice_or_set_as_well_counts_once(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        value = _text_of(VALUE_BYTES)
        await store.remember(session.id, context={"a": value}, preferences={"b": value})

        await store.remember(session.id, remove={"context": ["a", "a"], "preferences": ["b"]}, preferences={"b": 1})
        _fill(session)
        del session.state.metadata["00"]
        await store.update_session(session.id, session)
        with pytest.raises(InvalidInput, match="maps"):
            await store.remember(session.id, context={"a": value})

        assert (await existing(store, session.id)).state.preferences == {"b": 1}

    async def test_two_writers_together_stay_within_the_limits(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY, tags=["t"])
        first, second, third = [await existing(store, session.id) for _ in range(3)]
        first.assets += [f"A{n}" for n in range(60)]
        first.tags += [f"a{n}" for n in range(30)]
        second.assets += [f"B{n}" for n in range(60)]
        third.tags += [f"b{n}" for n in range(30)]
        second.add_query(make_query())
        third.state.context["half"] = "written"
        merged = await store.update_session(first.id, first)

        with pytest.raises(InvalidInput, match="assets"):
            await store.update_session(second.id, second)
        with pytest.raises(InvalidInput, match="tags"):
            await store.update_session(third.id, third)
        assert document(await existing(store, session.id)) == document(merged)
        merged.assets += [f"C{n}" for n in range(39)]
        merged.tags += [f"c{n}" for n in range(19)]
        full = await store.update_session(merged.id, merged)

        assert (len(full.assets), len(full.tags)) == (100, 50)

    async def test_the_last_asset_is_not_removed_by_two_writers(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL", "MSFT"], SessionType.EQUITY)
        first, second = await existing(store, session.id), await existing(store, session.id)
        first.assets.remove("AAPL")
        second.assets.remove("MSFT")
        await store.update_session(first.id, first)

        with pytest.raises(InvalidInput, match="assets"):
            await store.update_session(second.id, second)

        assert (await existing(store, session.id)).assets == ["MSFT"]

    async def test_extreme_queries_pass_through_every_tier(self, store: SessionStore, clock: FrozenClock) -> None:
        """Whatever is accepted can be archived and resumed."""
        session = await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER, ttl_hours=1)
        for moment in (datetime.min, datetime.max, datetime(1969, 12, 31, 23, 59, 59, 999999)):  # noqa: DTZ001, DTZ901
            await store.record_query(session.id, make_query(timestamp=moment.replace(tzinfo=UTC)))
        for duration_ms in (0, -0.0, 5e-324, 1e-7, 86_400_000, 1e12, 1e12):
            await store.record_query(session.id, make_query(execution_time_ms=duration_ms))
        before = await existing(store, session.id)
        clock.advance(hours=1)

        assert await store.cleanup_expired_sessions() == 1
        assert content(await existing(store, session.id)) == content(before)
        resumed = await store.resume_session(session.id)
        await store.record_query(session.id, make_query(execution_time_ms=1.0))

        assert content(resumed) == content(before)
        assert (await existing(store, session.id)).state.history.total_queries == 11

    @pytest.mark.parametrize("name", ["created_at", "expires_at", "last_accessed_at"])
    async def test_a_moment_without_a_zone_is_refused(self, store: SessionStore, name: str) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        setattr(session, name, datetime(2024, 12, 24))  # noqa: DTZ001

        with pytest.raises(InvalidInput, match=name):
            await store.update_session(session.id, session)
