"""What every cache keeps and for how long; the same facts for both first caches and the second on both databases."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, text
from structlog.testing import capture_logs

from fiml.cache import AnswerCache, CacheEntry, cache_key, open_caches
from fiml.cache.forgiving import ForgivingCache
from fiml.cache.l1_cache import KEY_PREFIX, MemoryL1Cache, RedisL1Cache
from fiml.cache.l2_cache import PURGE_EVERY_PUTS, L2Cache
from fiml.core.config import Settings, Synchronous
from fiml.core.errors import Misconfigured, RecordRefused, Unavailable
from fiml.db.postgres import PostgresDatabase
from fiml.db.redis_client import RedisClient
from fiml.db.sqlite_file import SqliteFile
from fiml.db.tables import market_cache
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment

NOWHERE = "redis://127.0.0.1:1/0"
CACHES = ("memory", "redis", "sqlite", "postgresql")


def test_an_entry_of_the_first_of_all_moments_is_an_entry() -> None:
    last = datetime.max.replace(tzinfo=UTC)

    assert CacheEntry("text", datetime.min.replace(tzinfo=UTC), last, last).is_current


@pytest.fixture(params=CACHES)
def new_cache(request: pytest.FixtureRequest, tmp_path: Path) -> AnswerCache:
    return make_cache(request, tmp_path)


@pytest.fixture(params=CACHES[2:])
def new_second(request: pytest.FixtureRequest, tmp_path: Path) -> AnswerCache:
    return make_cache(request, tmp_path)


@pytest.fixture
async def answers(new_cache: AnswerCache, clock: FrozenClock) -> AsyncIterator[AnswerCache]:
    yield new_cache
    await new_cache.aclose()


@pytest.fixture
async def second(new_second: L2Cache, clock: FrozenClock) -> AsyncIterator[L2Cache]:
    yield new_second
    await new_second.aclose()


def make_cache(request: pytest.FixtureRequest, folder: Path) -> AnswerCache:
    match request.param:
        case "memory":
            return MemoryL1Cache()
        case "sqlite":
            return L2Cache(SqliteFile(folder / "fiml.db", Synchronous.OFF))
    deployment: Deployment = request.getfixturevalue("deployment")
    if request.param == "redis":
        return RedisL1Cache(RedisClient.of(deployment.settings()))
    return L2Cache(PostgresDatabase(deployment.database_url))


@pytest.fixture
def live(deployment: Deployment) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(deployment.redis_url) as client:
        yield client


def make_entry(now: datetime, value: str = '{"price": 1}', **times: float) -> CacheEntry:
    fresh_until = now + timedelta(seconds=times.get("fresh_s", 15))
    keep_until = now + timedelta(seconds=times.get("keep_s", 3600))
    known_at = now + timedelta(seconds=times.get("known_s", 0))
    return CacheEntry(value, known_at, fresh_until, keep_until)


async def count(cache: L2Cache) -> int:
    counted = select(func.count()).select_from(market_cache)
    return await cache._database.transact(lambda connection: connection.scalar(counted) or 0)


async def test_what_was_put_is_got_with_its_times(answers: AnswerCache, clock: FrozenClock) -> None:
    entry = make_entry(clock.now() + timedelta(microseconds=7), '{"name": "Nestlé \\u0000 \U0001f680"}')

    await answers.put("a", entry)

    assert await answers.get("a") == entry
    assert await answers.get("b") is None


async def test_a_later_answer_takes_the_place_of_an_earlier_one(answers: AnswerCache, clock: FrozenClock) -> None:
    await answers.put("a", make_entry(clock.now(), "1"))
    clock.advance(seconds=1)
    later = make_entry(clock.now(), "2")

    await answers.put("a", later)

    assert await answers.get("a") == later


async def test_an_answer_is_kept_past_its_time_until_keep_until(answers: AnswerCache, clock: FrozenClock) -> None:
    entry = make_entry(clock.now(), fresh_s=15, keep_s=60)
    await answers.put("a", entry)

    clock.advance(seconds=59)
    assert await answers.get("a") == entry

    clock.advance(seconds=1)
    assert await answers.get("a") is None


async def test_what_is_past_keep_until_is_not_kept(answers: AnswerCache, clock: FrozenClock) -> None:
    await answers.put("a", make_entry(clock.now(), keep_s=0))

    assert await answers.get("a") is None


async def test_a_cache_may_be_closed_twice_and_unused(answers: AnswerCache) -> None:
    await answers.aclose()
    await answers.aclose()


async def test_many_at_once_are_served(answers: AnswerCache, clock: FrozenClock) -> None:
    entries = {f"key{number}": make_entry(clock.now(), str(number)) for number in range(50)}

    await asyncio.gather(*(answers.put(key, entry) for key, entry in entries.items()))
    found = await asyncio.gather(*(answers.get(key) for key in entries))

    assert found == list(entries.values())


class TestMemory:
    async def test_the_least_recently_used_entry_is_dropped(self, clock: FrozenClock) -> None:
        cache, entry = MemoryL1Cache(max_entries=2), make_entry(clock.now())
        await cache.put("a", entry)
        await cache.put("b", entry)
        await cache.get("a")

        await cache.put("c", entry)

        assert [await cache.get(key) for key in "abc"] == [entry, None, entry]


class TestRedis:
    async def test_redis_removes_an_entry_itself(
        self, deployment: Deployment, live: "redis.Redis", clock: FrozenClock
    ) -> None:
        cache = RedisL1Cache(RedisClient.of(deployment.settings()))

        await cache.put("a", make_entry(clock.now(), keep_s=60))

        assert 0 < int(live.pttl(f"fiml:{KEY_PREFIX}a")) <= 60_000
        await cache.aclose()

    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"\xff\xfe",
            b"null",
            b"[]",
            b"{}",
            b"[" * 100_000,
            b'{"value": 1, "known_at": "x"}',
            json.dumps({"value": 1, **dict.fromkeys(("known_at", "fresh_until", "keep_until"), "2030-01-01T00Z")}),
            json.dumps({"value": "1", **dict.fromkeys(("known_at", "fresh_until", "keep_until"), "2030-01-01")}),
        ],
        ids=lambda damage: repr(damage)[:20],
    )
    async def test_a_damaged_value_is_a_miss_and_is_logged(
        self, deployment: Deployment, live: "redis.Redis", damage: bytes
    ) -> None:
        cache = RedisL1Cache(RedisClient.of(deployment.settings()))
        live.set(f"fiml:{KEY_PREFIX}a", damage)

        with capture_logs() as logs:
            assert await cache.get("a") is None

        assert [log["event"] for log in logs] == ["cache_value_damaged"]
        await cache.aclose()

    async def test_an_unreachable_server_is_unavailable(self, clock: FrozenClock) -> None:
        cache = RedisL1Cache(RedisClient(NOWHERE))

        with pytest.raises(Unavailable):
            await cache.put("a", make_entry(clock.now()))
        await cache.aclose()


class TestSecond:
    async def test_an_earlier_answer_never_takes_the_place_of_a_later_one(
        self, second: L2Cache, clock: FrozenClock
    ) -> None:
        later = make_entry(clock.now(), "later")
        await second.put("a", later)

        await second.put("a", make_entry(clock.now(), "earlier", known_s=-0.000001))

        assert await second.get("a") == later

    async def test_of_many_writers_the_one_who_learnt_last_wins(self, second: L2Cache, clock: FrozenClock) -> None:
        entries = [make_entry(clock.now(), str(number), known_s=number / 1000) for number in range(30)]

        await asyncio.gather(*(second.put("a", entry) for entry in entries[::2] + entries[1::2]))

        assert await second.get("a") == entries[-1]

    async def test_it_outlives_the_process(self, second: L2Cache, clock: FrozenClock) -> None:
        entry = make_entry(clock.now())
        await second.put("a", entry)

        await second.aclose()

        assert await second.get("a") == entry

    @pytest.mark.parametrize("damage", ["'soon'", "''", "7", "x'00ff'", "'2024-13-01 00:00:00.000000'"])
    @pytest.mark.parametrize("column", ["known_at", "fresh_until", "keep_until"])
    async def test_a_damaged_time_is_a_miss_and_is_logged(
        self, tmp_path: Path, clock: FrozenClock, column: str, damage: str
    ) -> None:
        cache = L2Cache(SqliteFile(tmp_path / "fiml.db", Synchronous.OFF))
        await cache.put("a", make_entry(clock.now()))
        await cache._database.transact(
            lambda connection: connection.execute(market_cache.update().values({column: text(damage)}))
        )

        with capture_logs() as logs:
            assert await cache.get("a") is None

        assert [log["event"] for log in logs] == ["cache_value_damaged"]
        await cache.aclose()

    async def test_old_rows_are_removed_now_and_then(self, second: L2Cache, clock: FrozenClock) -> None:
        for number in range(5):
            await second.put(f"old{number}", make_entry(clock.now(), keep_s=60))
        clock.advance(seconds=61)

        for number in range(PURGE_EVERY_PUTS):
            await second.put("new", make_entry(clock.now(), str(number)))

        assert await count(second) == 1

    async def test_a_purge_is_bounded_and_spares_what_is_kept(
        self, second: L2Cache, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fiml.cache.l2_cache.PURGE_ROWS", 3)
        now = clock.now()
        times = {"known_at": now, "fresh_until": now}
        rows = [{"key": f"old{n}", "value": "", "keep_until": now + timedelta(seconds=n), **times} for n in range(5)]
        await second._database.transact(lambda connection: connection.execute(insert(market_cache), rows[:1]))
        # What PostgreSQL plans for a table that it takes for one row is another plan than for five.
        await second._database.transact(lambda connection: connection.execute(text("ANALYZE market_cache")))
        await second._database.transact(lambda connection: connection.execute(insert(market_cache), rows[1:]))

        assert await second.purge(now + timedelta(seconds=4)) == 3
        assert await second.purge(now + timedelta(seconds=4)) == 1
        assert await second.purge(now + timedelta(seconds=4)) == 0
        assert await count(second) == 1

    async def test_purges_at_once_share_the_work(self, second: L2Cache, clock: FrozenClock) -> None:
        for number in range(20):
            await second.put(f"old{number}", make_entry(clock.now(), keep_s=60))

        removed = await asyncio.gather(*(second.purge(clock.now() + timedelta(minutes=2)) for _ in range(4)))

        assert sum(removed) == 20

    async def test_processes_that_renew_each_others_old_entries_do_not_wait_for_each_other(
        self, deployment: Deployment, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each purges with its first entry, and what one purges is what the other puts."""
        monkeypatch.setattr("fiml.cache.l2_cache.PURGE_ROWS", 1)
        monkeypatch.setattr("fiml.cache.l2_cache.PURGE_EVERY_PUTS", 1)
        caches = [L2Cache(PostgresDatabase(deployment.database_url)) for _ in range(2)]
        for n in range(5):
            await caches[0].put("a", make_entry(clock.now(), keep_s=10))
            await caches[1].put("b", make_entry(clock.now(), keep_s=20))
            clock.advance(seconds=30)
            renewed = make_entry(clock.now(), str(n))

            await asyncio.gather(caches[0].put("b", renewed), caches[1].put("a", renewed))

            assert [await caches[0].get(key) for key in "ab"] == [renewed, renewed]
            clock.advance(hours=2)
        for cache in caches:
            await cache.aclose()

    async def test_a_file_that_can_not_be_opened_is_an_error_each_time(self, tmp_path: Path) -> None:
        (tmp_path / "fiml.db").write_text("no database, and long enough to be taken for none" * 100)
        cache = L2Cache(SqliteFile(tmp_path / "fiml.db", Synchronous.OFF))

        for _ in range(2):
            with pytest.raises(Misconfigured):
                await cache.get("a")
        await cache.aclose()


class TestForgiving:
    """Over real caches whose engine is unavailable, and over one that hangs."""

    @pytest.mark.parametrize(
        "make", [lambda: RedisL1Cache(RedisClient(NOWHERE)), lambda: RedisL1Cache(RedisClient("redis://[no-url"))]
    )
    async def test_a_cache_that_is_away_is_a_miss_and_is_logged(
        self, make: Callable[[], AnswerCache], clock: FrozenClock
    ) -> None:
        cache = ForgivingCache("l1", make)

        with capture_logs() as logs:
            assert await cache.get("a") is None
            await cache.put("a", make_entry(clock.now()))

        assert [(log["event"], log["layer"], log["call"]) for log in logs] == [("cache_failed", "l1", "get")]
        await cache.aclose()

    async def test_it_is_asked_again_after_a_rest(self, monkeypatch: pytest.MonkeyPatch, clock: FrozenClock) -> None:
        monkeypatch.setattr("fiml.cache.forgiving.REST_S", 0)
        outcomes: list[Exception | None] = [Unavailable("the cache", "it restarts"), None]
        cache = ForgivingCache("l1", lambda: Scripted(outcomes))

        await cache.put("a", make_entry(clock.now()))
        await cache.put("a", make_entry(clock.now()))

        assert await cache.get("a") is not None

    async def test_an_entry_that_is_refused_says_nothing_about_the_others(self, clock: FrozenClock) -> None:
        cache = ForgivingCache("l2", lambda: Scripted([RecordRefused("the record", "too big"), None]))

        with capture_logs() as logs:
            await cache.put("a", make_entry(clock.now()))
        await cache.put("b", make_entry(clock.now()))

        assert [log["event"] for log in logs] == ["cache_failed"]
        assert await cache.get("b") is not None

    async def test_a_cache_that_hangs_is_given_up(self, monkeypatch: pytest.MonkeyPatch, clock: FrozenClock) -> None:
        monkeypatch.setattr("fiml.cache.forgiving.PATIENCE_S", 0.05)
        cache = ForgivingCache("l1", lambda: Scripted([asyncio.Event().wait]))

        async with asyncio.timeout(5):
            await cache.put("a", make_entry(clock.now()))


class Scripted(MemoryL1Cache):
    """An engine that fails or hangs at its next puts as told."""

    def __init__(self, outcomes: list[Any]) -> None:
        super().__init__()
        self._outcomes = outcomes

    async def put(self, key: str, entry: CacheEntry) -> None:
        outcome: Exception | Callable[[], Awaitable[object]] | None = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            await outcome()
        await super().put(key, entry)


async def test_each_deployment_has_a_first_and_a_second_cache(backend_settings: Settings, clock: FrozenClock) -> None:
    caches, entry = open_caches(backend_settings), make_entry(clock.now())

    for cache in caches:
        await cache.put("a", entry)

    assert [cache.layer for cache in caches] == ["l1", "l2"]
    assert [await cache.get("a") for cache in caches] == [entry, entry]
    for cache in caches:
        await cache.aclose()


def test_nothing_is_opened_before_the_first_use(sqlite_settings: Settings) -> None:
    open_caches(sqlite_settings)

    assert not sqlite_settings.embedded_file.exists()


class TestKeys:
    def test_a_key_can_be_read(self) -> None:
        assert cache_key("yahoo", "quote", "equity", "BRK-B", None, "USD") == "yahoo:quote:equity:BRK-B:=:USD"

    @given(
        st.lists(st.none() | st.text(max_size=60), max_size=4), st.lists(st.none() | st.text(max_size=60), max_size=4)
    )
    def test_other_names_have_another_key(self, some: list[str | None], others: list[str | None]) -> None:
        assert (cache_key("s", "p", *some) == cache_key("s", "p", *others)) == (some == others)

    @given(st.lists(st.none() | st.text(max_size=300), max_size=6))
    def test_a_key_is_short_and_holds_nothing_odd(self, names: list[str | None]) -> None:
        key = cache_key("live", "quote", *names)

        assert len(key) <= 200
        assert key.isascii()
        assert not any(character.isspace() or character in "*?\0\r\n" for character in key)

    @pytest.mark.parametrize("name", ["a:b", "=", "", "..", "sha256=0", "\ud800", "a" * 1000, "\r\nDEL x"])
    def test_an_unusual_symbol_has_a_key_of_its_own(self, name: str) -> None:
        others = {cache_key("s", "p", *names) for names in ((), (None,), ("a", "b"), ("a" * 1001,), ("x",))}

        assert cache_key("s", "p", name) not in others


TIMES = st.datetimes(timezones=st.just(UTC))


@given(st.builds(CacheEntry, st.text(), TIMES, TIMES, TIMES))
def test_an_entry_is_the_same_after_the_way_through_json(entry: CacheEntry) -> None:
    assert CacheEntry.from_json(entry.to_json()) == entry
