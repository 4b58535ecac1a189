"""A session's totals in Redis: the script counts as Python does, and brings a header of before to the new layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
import redis

from fiml.core.config import Settings
from fiml.core.errors import CorruptRecord, SessionFull, Unavailable, Unconfirmed
from fiml.sessions.models import AnalysisHistory, QueryRecord, QueryTotals, Session, SessionType
from fiml.sessions.records import FORMAT
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query
from fiml.testing.conformance.suite import content, existing, listing
from tests.support.deployment import Deployment
from tests.support.old_layout import header_key, is_laid_out_as_before, lay_out_as_before

OWNER = "ann"
MICROSECOND = timedelta(microseconds=1)
MOMENT = datetime(2024, 12, 24, 15, 30, tzinfo=UTC)
# What a number of Lua's, an array of msgpack's or a text of Redis' could take for something else.
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
# Ten to the sixteenth microseconds, which a number of Lua's doesn't tell from the one before.
FAR = datetime(2286, 11, 20, 17, 46, 40, tzinfo=UTC)
ODD = [
    make_query("1", timestamp=MOMENT),
    make_query("2", timestamp=MOMENT),
    make_query("preis é 数", timestamp=MOMENT, execution_time_ms=0),
    make_query("1", timestamp=MOMENT, execution_time_ms=0.3, cache_hit=True),
    *[make_query(timestamp=FAR + n * MICROSECOND) for n in (-1, 0)],
    *[make_query(timestamp=LAST - n * MICROSECOND, execution_time_ms=n / 10) for n in (2, 1, 3, 0, 1)],
    *[make_query(timestamp=FIRST + n * MICROSECOND, execution_time_ms=n * 1e-9) for n in (2, 1, 3, 0, 1)],
    make_query(
        "price", timestamp=datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), execution_time_ms=86_400_000
    ),
    make_query("price", timestamp=datetime(1970, 1, 1, tzinfo=UTC), execution_time_ms=1 / 3),
    make_query("-1", timestamp=MOMENT - timedelta(days=1), execution_time_ms=16_777_217),
]


@pytest.fixture
def settings(deployment: Deployment) -> Settings:
    return deployment.settings()


async def new_session(store: SessionStore) -> Session:
    return await store.create_session(["AAPL"], SessionType.EQUITY, user_id=OWNER)


async def stored_totals(store: SessionStore, session: Session) -> QueryTotals:
    return (await existing(store, session.id)).state.history.totals


def some_queries(random: Random, count: int) -> list[QueryRecord]:
    return [
        make_query(
            random.choice(["price", "technical", "1", "2", "3"]),
            timestamp=MOMENT + timedelta(microseconds=random.randrange(-(10**12), 10**12)),
            execution_time_ms=random.choice([None, 0, random.random(), random.randrange(10**6), random.expovariate(1)]),
            cache_hit=random.random() < 0.5,
        )
        for _ in range(count)
    ]


async def test_a_session_without_queries_has_the_totals_of_none(store: SessionStore) -> None:
    session = await new_session(store)

    session.state.update_context("a", 1)
    written = await store.update_session(session.id, session)

    assert written.state.history.totals == await stored_totals(store, session) == QueryTotals()


async def test_odd_queries_are_counted_as_python_counts_them(store: SessionStore) -> None:
    session = await new_session(store)

    for number, query in enumerate(ODD, 1):
        assert await store.record_query(session.id, query) == AnalysisHistory(ODD[:number]).totals

    assert await stored_totals(store, session) == AnalysisHistory(ODD).totals


@pytest.mark.parametrize("seed", range(5))
async def test_queries_of_one_change_are_counted_as_those_of_many(store: SessionStore, seed: int) -> None:
    random = Random(seed)  # noqa: S311 - no secret
    session = await new_session(store)
    written = []

    for count in (1, 20, 3, 100):
        queries = some_queries(random, count)
        for query in queries:
            session.state.history.add_query(query)
        written += queries
        merged = await store.update_session(session.id, session)
        assert merged.state.history.totals == AnalysisHistory(written).totals

    [known] = random.sample(written, 1)
    assert await store.record_query(session.id, known) == AnalysisHistory(written).totals


async def test_the_header_of_a_session_of_ten_queries_keeps_its_compact_form(
    store: SessionStore, settings: Settings
) -> None:
    session = await new_session(store)
    kinds = ("price", "fundamentals", "technical", "comparative")

    for n in range(10):
        query = make_query(kinds[n % 4], timestamp=MOMENT + timedelta(days=n // 3), execution_time_ms=2**n)
        await store.record_query(session.id, query)

    with redis.Redis.from_url(str(settings.redis_url)) as client:
        assert client.object("encoding", header_key(session.id)) == b"listpack"


@pytest.mark.parametrize("field", ["", "x", "later"])
async def test_a_field_that_nobody_knows_is_passed_over(store: SessionStore, settings: Settings, field: str) -> None:
    session = await new_session(store)
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        client.hset(header_key(session.id), field, "1")

    assert await store.record_query(session.id, ODD[0]) == await stored_totals(store, session)


async def test_as_many_kinds_as_queries_are_counted(store: SessionStore) -> None:
    session = await new_session(store)
    queries = [make_query(f"kind {n}", timestamp=MOMENT - timedelta(days=n)) for n in range(500)]

    for query in queries:
        totals = await store.record_query(session.id, query)

    assert totals == await stored_totals(store, session) == AnalysisHistory(queries).totals


async def test_a_query_too_many_changes_no_total(settings: Settings, clock: FrozenClock) -> None:
    async with SessionStore(settings.model_copy(update={"session_max_queries_per_session": 2})) as store:
        session = await new_session(store)
        for n in range(2):
            await store.record_query(session.id, make_query(f"{n}"))

        with pytest.raises(SessionFull):
            await store.record_query(session.id, make_query("one more"))

        assert (await stored_totals(store, session)).query_types == {"0": 1, "1": 1}


@pytest.mark.parametrize("queries", [[], ODD], ids=["no query", "odd queries"])
async def test_a_header_of_before_is_read_listed_and_brought_to_the_new_layout_by_a_write(
    store: SessionStore, settings: Settings, queries: list[QueryRecord]
) -> None:
    session = await new_session(store)
    for query in queries:
        await store.record_query(session.id, query, context={"a": 1})
    before = await existing(store, session.id)
    lay_out_as_before(settings, session.id)

    assert content(await existing(store, session.id)) == content(before)
    assert [summary.total_queries for summary in await listing(store)] == [len(queries)]
    assert is_laid_out_as_before(settings, session.id)
    one_more = make_query("raced", timestamp=MOMENT)
    totals = await store.record_query(session.id, one_more)

    assert totals == await stored_totals(store, session) == AnalysisHistory([*queries, one_more]).totals
    assert not is_laid_out_as_before(settings, session.id)
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        assert client.hget(header_key(session.id), "format") == str(FORMAT).encode()
    trail = await store.get_audit_trail(session.id)
    assert [entry.version for entry in trail] == list(range(1, len(queries) + 3))


async def test_an_update_of_a_header_of_before_gives_the_merged_session(
    store: SessionStore, settings: Settings
) -> None:
    session = await new_session(store)
    await store.record_query(session.id, ODD[0])
    read = await existing(store, session.id)
    lay_out_as_before(settings, session.id)

    read.state.update_context("a", 1)
    read.tags.append("tech")
    merged = await store.update_session(session.id, read)

    assert (merged.state.context, merged.tags, merged.version) == ({"a": 1}, ["tech"], 3)
    assert merged.state.history.totals == AnalysisHistory(ODD[:1]).totals


async def test_what_too_few_replicas_have_of_a_header_of_before_is_written(
    store: SessionStore, settings: Settings
) -> None:
    session = await new_session(store)
    lay_out_as_before(settings, session.id)

    async with SessionStore(settings.model_copy(update={"redis_wait_replicas": 1})) as waiting:
        with pytest.raises(Unconfirmed):
            await waiting.record_query(session.id, ODD[0])

    assert await stored_totals(store, session) == AnalysisHistory(ODD[:1]).totals


DAMAGES: dict[str, list[tuple[Any, ...]]] = {
    "totals that are a text": [("hset", "header", "totals", "half")],
    "totals of which one is missing": [("hset", "header", "totals", b"\x93\x01\x00\x00")],
    "totals that end too early": [("hset", "header", "totals", b"\x96\x01")],
    "types that are a number": [("hset", "header", "types", b"\x05")],
    "no types": [("hdel", "header", "types")],
    "no days": [("hdel", "header", "days")],
    "no life": [("hdel", "header", "life")],
    "a life that is no number": [("hset", "header", "life", "half")],
    "no size of the history": [("hdel", "header", "history_bytes")],
    "a size of the entries that is no number": [("hset", "header", "maps_bytes", "large")],
    "half a byte": [("hset", "header", "maps_bytes", "2.5")],
    "no last access": [("hdel", "header", "accessed")],
    "a format that is no number": [("hset", "header", "format", "1e3")],
    "no version": [("hdel", "header", "version")],
    "a version that is no number": [("hset", "header", "version", "nan")],
    "an expiry that is no moment": [("hset", "header", "expires", "inf")],
}
OTHER_DAMAGES: dict[str, list[tuple[Any, ...]]] = {
    "queries of another type": [("delete", "queries"), ("set", "queries", "text")],
    "ids of another type": [("delete", "ids"), ("set", "ids", "text")],
    "a trail of another type": [("delete", "trail"), ("set", "trail", "text")],
    "an order that is no number": [("hset", "header", "order", "2.5")],
}
PARTS = ("header", "entries", "queries", "ids", "trail")


@pytest.mark.parametrize("how", DAMAGES)
async def test_a_write_to_a_damaged_header_says_so_and_leaves_everything_as_it_was(
    store: SessionStore, settings: Settings, how: str
) -> None:
    session = await a_session_read(store)
    with damaged(settings, session, DAMAGES[how]):
        with pytest.raises(CorruptRecord, match=str(session.id)):
            await store.record_query(session.id, make_query(), context={"a": 1})
        session.title = "other"
        session.tags.append("tech")
        with pytest.raises(CorruptRecord, match=str(session.id)):
            await store.update_session(session.id, session)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hits", None),
        ("time_ms", None),
        ("total", "half"),
        ("time_ms", "half"),
        ("first", "x"),
        ("n:price", ""),
        ("n:price", "5x"),
        ("d:2024-12-24", "inf"),
    ],
)
async def test_a_damaged_header_of_before_is_not_packed(
    store: SessionStore, settings: Settings, field: str, value: str | None
) -> None:
    session = await a_session_read(store)
    lay_out_as_before(settings, session.id)
    damage = ("hdel", "header", field) if value is None else ("hset", "header", field, value)
    with damaged(settings, session, [damage]):
        for query in (make_query(timestamp=MOMENT), make_query(timestamp=MOMENT, execution_time_ms=None)):
            with pytest.raises(CorruptRecord):
                await store.record_query(session.id, query, context={"a": 1})


@pytest.mark.parametrize("how", OTHER_DAMAGES)
async def test_a_write_that_a_key_refuses_leaves_everything_as_it_was(
    store: SessionStore, settings: Settings, how: str
) -> None:
    session = await a_session_read(store)
    with damaged(settings, session, OTHER_DAMAGES[how]):
        session.title = "other"
        session.tags.append("tech")
        session.state.history.add_query(make_query())
        with pytest.raises((CorruptRecord, Unavailable), match=r"a string, not a (list|set)|refused"):
            await store.update_session(session.id, session)


async def a_session_read(store: SessionStore) -> Session:
    session = await new_session(store)
    await store.record_query(session.id, make_query())
    return await existing(store, session.id)


@contextmanager
def damaged(settings: Settings, session: Session, damage: list[tuple[Any, ...]]) -> Iterator[None]:
    """Damages a session; the block changes nothing about it."""
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        keys = {part: header_key(session.id).replace("header", part) for part in PARTS}
        for name, part, *arguments in damage:
            getattr(client, name)(keys[part], *arguments)
        before = [client.dump(key) for key in keys.values()]
        yield
        assert [client.dump(key) for key in keys.values()] == before
