"""The benchmarks' arithmetic and output, and that each baseline does the work it stands for; no time is asserted."""

import json
import platform
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import asyncpg
import pytest
from redis.asyncio import Redis

from benchmarks import archive, embedded, memory, peers
from benchmarks.bare_file import bare_connection
from benchmarks.engines import looked_up
from benchmarks.peer_rounds import AFTER_FILLING, Bench, Call
from benchmarks.plots import Line, draw
from benchmarks.plotting import plot
from benchmarks.raw import RawSession
from benchmarks.report import Facts, Report, machine
from benchmarks.timing import OURS, Batch, Comparison, in_turn
from fiml.core.config import Settings
from fiml.sessions.records import SessionRecord
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.deployment import Deployment

SVG = "{http://www.w3.org/2000/svg}"


def compared(ours: list[float], theirs: list[float], *, limit: float | None = None) -> Comparison:
    rounds = {OURS: [[ms] for ms in ours], "raw": [[ms] for ms in theirs]}
    return Comparison("track, history 100", rounds, "raw", limit)


def test_a_ratio_compares_what_ran_in_the_same_round() -> None:
    """The second half of the run was on a machine ten times slower."""
    comparison = compared([1, 1, 10, 10, 10], [2, 2, 20, 20, 20])

    assert comparison.ratio() == 0.5


@pytest.mark.parametrize(("limit", "is_met"), [(1.5, True), (1.4, False), (None, None)])
def test_a_limit_is_kept_up_to_its_value(limit: float | None, is_met: bool | None) -> None:
    assert compared([3.0], [2.0], limit=limit).is_met is is_met


async def test_every_other_round_goes_backwards() -> None:
    order = []

    def way(name: str) -> Batch:
        async def batch(count: int) -> list[float]:
            order.append(name)
            return [1.0] * count

        return batch

    measured = await in_turn({"a": way("a"), "b": way("b")}, rounds=2, calls=3)

    assert order == ["a", "b", "b", "a"]
    assert measured == {"a": [[1.0] * 3] * 2, "b": [[1.0] * 3] * 2}


def test_a_report_says_which_limits_are_missed_in_both_forms(tmp_path: Path) -> None:
    sizes = Facts("Bytes", ["history", "in all"], [[0.0, 676.5]])
    report = Report({"cores": "2"}, [compared([3.0], [1.0], limit=1.5)], [sizes])

    report.write(tmp_path)

    table = (tmp_path / "results.md").read_text()
    read = json.loads((tmp_path / "results.json").read_text())
    assert "| track, history 100 | 3.000 (3.000 to 3.000) | raw 1.000 (1.000 to 1.000) | 3.00 | 1.5 missed |" in table
    assert "| 0 | 676 |" in table
    [operation] = read["operations"]
    assert (operation["is_met"], operation["ways"]["raw"]["ours_to_this"]) == (False, 3.0)
    assert read["facts"] == [{"title": "Bytes", "columns": ["history", "in all"], "rows": [[0.0, 676.5]]}]


def test_the_report_tells_nothing_of_whose_machine_it_was() -> None:
    found = " ".join(machine(valkey="9", postgres="18").values())

    assert platform.node() not in found
    assert str(Path(__file__).parents[2]) not in found


def test_a_plot_has_every_point_also_one_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"

    draw(path, "Track & read", "history", "ms", [Line("fiml", [(0, 0.3), (100, 0.3), (1000, 0.4)])])

    drawn = ElementTree.parse(path)  # noqa: S314 - drawn by us
    places = [(float(point.attrib["cx"]), float(point.attrib["cy"])) for point in drawn.iter(f"{SVG}circle")]
    assert [x for x, _ in places] == sorted({x for x, _ in places})
    assert places[0][1] == places[1][1] > places[2][1]


def test_only_what_has_two_points_is_plotted(tmp_path: Path) -> None:
    rates = Facts("Tracked", ["writers", "own, a second", "own, ms"], [[1.0, 2500.0, 0.4], [16.0, 4400.0, 3.4]])

    plot(Report({}, [compared([3.0], [1.0])], [rates]), tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["writers-ms.svg", "writers-rate.svg"]


async def test_the_raw_engine_reads_the_whole_session_with_what_was_written(deployment: Deployment) -> None:
    async with Redis.from_url(deployment.redis_url) as redis:
        session = await RawSession(redis).fill(2)
        await session.track()

        found = [await session.read(), await session.update(), await session.extend()]

        stored = await redis.hgetall(session.header)
        await redis.delete(session.header, session.queries, "raw:recent")
    assert [[query["figures"]["n"] for query in each] for each in found] == [[0.0, 1.0, 1.0]] * 3
    assert (stored[b"total"], stored[b"version"], stored[b"c:last_symbol"]) == (b"1", b"2", b'"AAPL"')


async def test_a_raw_session_is_created_without_encoding_a_query(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what `create` is timed beside."""
    async with Redis.from_url(deployment.redis_url) as redis:
        monkeypatch.delattr("benchmarks.raw.encode_query")
        session = RawSession(redis)

        await session.create()

        assert await redis.hget(session.header, "title") == b"One"
        await redis.delete(session.header, "raw:user", "raw:all", "raw:expiry")


@pytest.fixture
async def bench(deployment: Deployment, clock: FrozenClock) -> AsyncIterator[archive.Bench]:
    connection = await asyncpg.connect(deployment.database_url)
    async with SessionStore(deployment.settings()) as store, Redis.from_url(deployment.redis_url) as redis:
        yield archive.Bench(store, redis, connection, clock)
    await connection.close()


async def records_of(bench: archive.Bench, count: int) -> list[SessionRecord]:
    """New sessions of two queries, as the raw pipeline is given them."""
    found = [await bench._read(await bench._create(number, 2)) for number in range(count)]
    return [record for record in found if isinstance(record, SessionRecord)]


async def test_the_raw_pipeline_leaves_what_a_sweep_leaves(
    bench: archive.Bench, clock: FrozenClock, deployment: Deployment
) -> None:
    """Otherwise it couldn't be compared with a sweep."""
    records = await records_of(bench, 3)
    clock.advance(hours=2)

    await bench.raw(records)

    assert [key async for key in bench._redis.scan_iter("fiml:*")] == []
    assert await bench._connection.fetchval("SELECT count(*) FROM session_metrics") == 3
    async with SessionStore(deployment.settings()) as store:
        found = [await store.get_session(record.header.id) for record in records]
        assert [each and (each.is_archived, each.state.history.total_queries) for each in found] == [(True, 2)] * 3
        assert len(await store.search_sessions(None, "aapl")) == 3


async def test_the_raw_pipeline_removes_the_keys_of_a_session_with_one_command(bench: archive.Bench) -> None:
    commands = archive._prepared(await records_of(bench, 1)).leaving

    assert [len(keys) for name, *keys in commands if name == "DEL"] == [5]


async def test_the_bare_statements_find_what_a_search_finds(sqlite_settings: Settings) -> None:
    """One hit is live, the other archived."""
    async with SessionStore(sqlite_settings) as store:
        await memory._fill(store, 102)
        while (await store.search_sessions(None, "needle")).not_indexed:
            pass
        with closing(bare_connection(sqlite_settings.embedded_file)) as bare:
            for asked in memory.SEARCHES:
                ours = {each.id for each in await store.search_sessions(None, asked.text)}
                assert memory.find(bare, asked) == ours, asked.what
                assert len(ours) == (1 if asked.what == "a figure" else 2)


async def test_the_floor_of_the_embedded_file_is_what_fiml_itself_does_to_it(sqlite_settings: Settings) -> None:
    """The same statements in their order, but for the wait for the lock; and fiml reads all that was appended."""
    seen: dict[str, list[str]] = {"fiml": [], "floor": []}
    async with SessionStore(sqlite_settings) as store:
        session = await store.create_session(["S1"], "equity")
        file = store._backend._file  # type: ignore[attr-defined]
        await file.read(lambda connection: connection.set_trace_callback(seen["fiml"].append))
        seen["fiml"].clear()
        await store.record_query(session.id, looked_up(0))
        await file.read(lambda connection: connection.set_trace_callback(None))

        with closing(bare_connection(sqlite_settings.embedded_file)) as bare:
            first, second = embedded.prepared(bare, session.id, 2)
            bare.set_trace_callback(seen["floor"].append)
            embedded.append_as_ours(bare, first)
            bare.set_trace_callback(None)
            embedded.append_as_ours(bare, second)

        read = await store.get_session(session.id)
        trail = await store.get_audit_trail(session.id)
    begun = {
        who: [statement.split()[:3] for statement in found if "busy_timeout" not in statement]
        for who, found in seen.items()
    }
    assert begun["floor"] == begun["fiml"][: len(begun["floor"])]
    assert begun["floor"][-1] == ["COMMIT"]
    assert read is not None
    assert (read.state.history.total_queries, len(read.state.history.queries), read.version) == (3, 3, 4)
    assert [entry.did for entry in trail] == ["create", "record", "record", "record"]


async def test_the_busy_writer_writes_and_ends_well(sqlite_settings: Settings) -> None:
    assert sqlite_settings.data_dir is not None
    async with SessionStore(sqlite_settings) as store, embedded.busy_writer(sqlite_settings.data_dir):
        while await queries_of(store) < 50:
            pass


async def queries_of(store: SessionStore) -> int:
    return sum(summary.total_queries for summary in await store.list_user_sessions(None))


class CountingPeer:
    """Notes how long the history was at each call."""

    def __init__(self) -> None:
        self.made = 0
        self.seen: list[int] = []

    async def calls(self, history: int) -> dict[str, Call]:
        self.made += 1
        queries = list(range(history))

        async def track() -> None:
            self.seen.append(len(queries))
            queries.append(0)

        async def read() -> None:
            self.seen.append(len(queries))

        return {"track": track, "read": read}


async def test_each_round_of_a_peer_that_writes_begins_with_the_same_history() -> None:
    peer = CountingPeer()
    bench = Bench({"peer": peer})

    for _ in range(3):
        measured = await bench.measure({"peer": "peer", "operation": "track", "history": 10, "calls": 5})
        assert measured is not None
        assert len(measured) == 5

    one_round = list(range(10, 10 + AFTER_FILLING + 1 + 5))
    assert peer.seen == one_round * 3


async def test_a_peers_session_that_is_read_is_made_once_and_never_the_one_that_was_written() -> None:
    peer = CountingPeer()
    bench = Bench({"peer": peer})

    for operation in ("track", "read", "track", "read"):
        await bench.measure({"peer": "peer", "operation": operation, "history": 0, "calls": 1})

    assert peer.made == 3
    assert peer.seen.count(0) == 2 + 4  # two fresh ones, and each read of the third
    assert await bench.measure({"peer": "peer", "operation": "lacking", "history": 0, "calls": 1}) is None


async def test_what_a_peer_lists_is_made_once_and_what_it_read_before_is_made_anew() -> None:
    """Creating what is listed may remove everything that was there."""

    class Listing(CountingPeer):
        prepared = 0

        async def prepare_page(self) -> None:
            self.prepared += 1

    peer = Listing()
    bench = Bench({"peer": peer})

    for operation in ("read", "page", "page", "read"):
        await bench.measure({"peer": "peer", "operation": operation, "history": 5, "calls": 1})

    assert (peer.prepared, peer.made) == (1, 2)


async def test_without_the_peers_it_says_how_to_get_them_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "missing")

    async with peers.open_peers("redis://unused", "postgresql://unused") as none:
        assert none.ways("track", peers.REDIS) == {}

    assert "make bench-peers" in capsys.readouterr().out
    assert peers.versions() == {}
