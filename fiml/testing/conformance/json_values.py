"""Stored values are JSON, and come back equal from every tier."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fiml.core.errors import InvalidInput
from fiml.sessions.models import Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing.conformance.suite import Suite, bounded, existing
from fiml.testing.samples import make_query

# What not every tier can store: NUL characters and lone surrogates.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(10**60), 10**60) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
TRICKY: dict[str, Any] = {
    "": "an empty key",
    " ": " ",
    "floats": [1e23, 1e22, 5e-324, 1.7976931348623157e308, -0.0, 0.1 + 0.2, 1.0, 100.0, 1e16, 123456789.123456789],
    "integers": [0, -1, 2**53 + 1, 2**63, 2**64 + 1, -(2**70), 10**999, -(10**999)],
    "empty": [[], {}, "", [[]], [{}], {"": {}}, {"a": []}],
    "booleans": [True, False, 1, 0, None],
    "texts": [
        "\u20ac",
        "\N{BAR CHART}",
        "\u2028\u2029",
        "\ufeff",
        "\uffff",
        "\x01\x1f\x7f",
        "\\u0000",
        "\\",
        '"',
        "/",
        "%",
    ],
    'key with " and \\ and \u20ac and \n': {"a.b[0]": 1, "a:b": 2, "c:": 3, "__proto__": 4},
    "normal forms": {"\u00e9": 1, "e\u0301": 2},
}


def _nested(depth: int) -> list[Any]:
    return [_nested(depth - 1)] if depth > 1 else []


REFUSED: dict[str, Any] = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "negative infinity": -float("inf"),
    "nul": "a\0b",
    "nul in a key": {"a\0b": 1},
    "high surrogate": "\ud800",
    "low surrogate": "a\udfffb",
    "surrogate pair in two halves": "\ud83d\ude00",
    "surrogate in a key": {"\ud800": 1},
    "integer key": {1: "a"},
    "None as a key": {None: "a"},
    "bytes as a key": {b"a": 1},
    "bytes": b"a",
    "bytearray": bytearray(b"a"),
    "set": {1},
    "frozenset": frozenset(),
    "tuple": (1, 2),
    "datetime": datetime(2024, 12, 24, tzinfo=UTC),
    "date": date(2024, 12, 24),
    "decimal": Decimal("1.5"),
    "uuid": uuid4(),
    "complex": 1j,
    "object": object(),
    "class": dict,
    "too deep": _nested(40),
    "huge integer": 10**100_000,
    "5 MB": "x" * 5_000_000,
}


class Text(str):
    """Like a member of an enumeration, or a value from a library."""

    __slots__ = ()


class Number(float):
    """Like numpy's floats."""


class Whole(int):
    """Like a member of an enumeration."""


class JsonValuesSuite(Suite):
    """JSON comes back equal: live, archived and resumed. Anything else is refused, with its path."""

    async def test_tricky_values_come_back_equal(self, store: SessionStore) -> None:
        await _assert_kept_in_every_tier(store, TRICKY)

    @bounded(25)
    @given(values=st.dictionaries(TEXTS, VALUES, max_size=6))
    @example(values={"": 1e23, "\u20ac": [5e-324, -0.0, [], {}]})
    async def test_any_json_comes_back_equal(self, store: SessionStore, values: dict[str, Any]) -> None:
        await _assert_kept_in_every_tier(store, values)

    @bounded(15)
    @given(
        query_type=TEXTS.filter(str.strip),
        parameters=st.dictionaries(TEXTS, VALUES, max_size=3),
        summary=st.none() | TEXTS,
        time_ms=st.none() | st.floats(0, 1e9) | st.integers(0, 10**9),
        cache_hit=st.booleans(),
        moment=st.datetimes(timezones=st.just(UTC)),
    )
    async def test_any_query_comes_back_equal(
        self,
        store: SessionStore,
        query_type: str,
        parameters: dict[str, Any],
        summary: str | None,
        time_ms: float | None,
        cache_hit: bool,  # noqa: FBT001  Hypothesis names it
        moment: datetime,
    ) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        query = make_query(
            query_type,
            parameters=parameters,
            result_summary=summary,
            execution_time_ms=time_ms,
            cache_hit=cache_hit,
            timestamp=moment,
        )
        totals = await store.record_query(session.id, query)

        assert (totals.first_query_at, totals.last_query_at) == (moment, moment)
        assert str(totals.first_query_at).endswith("+00:00")
        async for tier in _tiers(store, session):
            assert tier.state.history.queries == [query]
            assert tier.state.history.first_query_at == moment
            assert tier.state.history.get_query_types_summary() == {query_type: 1}
            assert _same(tier.state.history.queries[0].parameters, parameters)

    @bounded(15)
    @given(
        title=st.none() | TEXTS.filter(str.strip),
        names=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5, unique=True),
        user_id=st.none() | TEXTS.filter(str.strip),
    )
    async def test_any_names_come_back_equal(
        self, store: SessionStore, title: str | None, names: list[str], user_id: str | None
    ) -> None:
        session = await store.create_session(names, SessionType.EQUITY, user_id=user_id, tags=names, title=title)

        async for tier in _tiers(store, session):
            assert (tier.assets, tier.tags, tier.title, tier.user_id) == (names, names, title, user_id)
            assert len(await store.list_user_sessions(user_id, include_archived=True, tag=names[0])) >= 1

    async def test_values_of_subclasses_are_kept_as_plain_ones(self, store: SessionStore) -> None:
        session = await store.create_session([Text("AAPL")], SessionType.EQUITY, user_id=Text("ann"), title=Text("One"))
        queries = [
            make_query(Text("price"), execution_time_ms=Number(1.5), parameters={Text("days"): Whole(5)}),
            make_query(Text("technical"), execution_time_ms=Whole(2)),
        ]
        for query in queries:
            totals = await store.as_principal(Text("ann")).record_query(
                session.id, query, context={Text("a"): Number(0.5)}
            )
        read = await existing(store, session.id)
        read.title, read.tags, read.assets = Text("Two"), [Text("tech"), Text("new")], [Text("MSFT")]
        await store.update_session(session.id, read, expected_version=Whole(read.version))

        assert (totals.total_time_ms, totals.query_types) == (3.5, {"price": 1, "technical": 1})
        async for tier in _tiers(store, session):
            assert (tier.title, tier.tags, tier.assets) == ("Two", ["tech", "new"], ["MSFT"])
            assert tier.state.history.queries == queries
            assert tier.state.context == {"a": 0.5}

    @pytest.mark.parametrize("name", REFUSED)
    async def test_what_is_no_json_is_refused_with_its_path(self, store: SessionStore, name: str) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        bad = REFUSED[name]
        session.state.context["outer"] = {"fine": 1, "inner": [0, bad]}
        of_deep = name in ("too deep", "5 MB")

        with pytest.raises(InvalidInput) as raised:
            await store.update_session(session.id, session)

        path = "context.outer" if of_deep else "context.outer.inner[1]"
        assert path in str(raised.value)
        assert len(str(raised.value)) < 1000
        assert (await existing(store, session.id)).state.context == {}

    @pytest.mark.parametrize("name", REFUSED)
    async def test_it_is_refused_wherever_it_comes_in(self, store: SessionStore, name: str) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        bad = REFUSED[name]

        with pytest.raises(InvalidInput, match=r"context\.key"):
            session.state.update_context("key", bad)
        with pytest.raises(InvalidInput, match=r"intermediate_results\.key"):
            session.state.store_intermediate_result("key", bad)
        with pytest.raises(InvalidInput, match="parameters"):
            await store.record_query(session.id, make_query(parameters={"key": bad}))
        with pytest.raises(InvalidInput, match=r"context\.key"):
            await store.record_query(session.id, make_query(), context={"key": bad})

        assert session.state.context == session.state.intermediate_results == {}
        assert (await existing(store, session.id)).state.history.total_queries == 0

    @pytest.mark.parametrize("key", [1, None, b"a", "a\0b", "\ud800", ("a",)])
    async def test_a_key_of_a_map_is_text(self, store: SessionStore, key: Any) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        for name in ("context", "preferences", "intermediate_results", "metadata"):
            changed = await existing(store, session.id)
            getattr(changed.state, name)[key] = 1

            with pytest.raises(InvalidInput, match=name):
                await store.update_session(session.id, changed)

    async def test_a_value_that_holds_itself_is_refused(self, store: SessionStore) -> None:
        session = await store.create_session(["AAPL"], SessionType.EQUITY)
        endless: dict[str, Any] = {}
        endless["again"] = [endless]

        with pytest.raises(InvalidInput, match="deep"):
            session.state.update_context("endless", endless)


async def _assert_kept_in_every_tier(store: SessionStore, values: dict[str, Any]) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY)
    for key, value in values.items():
        session.state.update_context(key, value)
    session.state.metadata = dict(values)
    session.add_query(make_query(parameters=values))
    await store.update_session(session.id, session)

    async for tier in _tiers(store, session):
        assert _same(tier.state.context, values)
        assert _same(tier.state.metadata, values)
        assert _same(tier.state.history.queries[0].parameters, values)


async def _tiers(store: SessionStore, session: Session) -> Any:
    """The session as each tier returns it."""
    yield await existing(store, session.id)
    await store.archive_session(session.id)
    yield await existing(store, session.id)
    yield await store.resume_session(session.id)
    yield await existing(store, session.id)


def _same(found: Any, expected: Any) -> bool:
    """Equal, with equal types: 1, 1.0 and True are three values."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return bool(found == expected)
