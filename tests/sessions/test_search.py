"""Search over sessions: the same answers from every engine, live or archived."""

import asyncio
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.util import await_only

from fiml.core.config import Settings
from fiml.core.errors import InvalidInput
from fiml.sessions import searching
from fiml.sessions.backends import shapes
from fiml.sessions.models import QueryRecord, SessionType
from fiml.sessions.searching import parse_search
from fiml.sessions.store import PrincipalStore, SessionStore
from fiml.testing import FrozenClock
from fiml.testing.conformance.searching import begin, found, looked_up
from fiml.testing.conformance.suite import OpenStore, existing
from tests.support.backends import open_watched_store
from tests.support.deployment import Deployment
from tests.support.interleaving import Frozen


async def test_a_look_through_many_live_sessions_stops_short_says_so_and_goes_on(
    deployment: Deployment, clock: FrozenClock
) -> None:
    """The engine of the live sessions has no full text: a thousand are read at a time."""
    async with SessionStore(deployment.settings()) as store:
        old = await begin(store, title="old needle")
        await store.archive_session((await begin(store, title="older needle")).id)
        for number in range(shapes.MAX_SEARCHED + 100):
            clock.advance(seconds=1)
            await begin(store, title="archived needle" if number == 500 else f"hay {number}")
        [middle] = await store.search_sessions(None, "archived needle")
        await store.archive_session(middle.id)

        first = await store.search_sessions(None, "needle", limit=5)
        second = await store.search_sessions(None, "needle", limit=5, cursor=first.next_cursor)

    assert [summary.title for summary in first] == ["archived needle"]
    assert (first.truncated, second.truncated, second.next_cursor) == (True, False, None)
    assert {summary.title for summary in second} == {"old needle", "older needle"}
    assert old.id in {summary.id for summary in second}


async def test_a_search_shows_nothing_that_was_written_after_the_session_was_taken_back(
    backend_settings: Settings, clock: FrozenClock
) -> None:
    """Whatever step of the search the owner comes before."""
    shown: list[str | None] = []
    async with SessionStore(backend_settings) as store:
        ann = store.as_principal("ann")
        session = await ann.create_session(["AAPL"], SessionType.EQUITY)

        for step in count(1):
            session.title = "shared"
            session = await ann.update_session(session.id, session)
            await ann.share_session(session.id, "bob")
            frozen = Frozen(partial(take_back, ann, session.id), does_die=False)
            async with open_watched_store(backend_settings, frozen.around) as watched:
                frozen.freeze_at(step)
                page = await watched.as_principal("bob").search_sessions(None, type=SessionType.EQUITY)
            shown += [summary.title for summary in page]
            session = await existing(ann, session.id)
            if not frozen.has_thawed:
                break

    assert "private" not in shown
    assert "shared" in shown


async def take_back(owner: PrincipalStore, session_id: UUID) -> None:
    """Take a session back from its reader, and write to it."""
    await owner.unshare_session(session_id, "bob")
    session = await existing(owner, session_id)
    session.title = "private"
    await owner.update_session(session_id, session)


async def test_sessions_that_an_older_version_archived_are_found_too(open_store: OpenStore) -> None:
    async with open_store() as store:
        session = await begin(store, title="veteran")
        await store.archive_session(session.id)
        await forget_words(store, session.id)

        assert await found(store, "veteran") == ["veteran"]


async def forget_words(store: SessionStore, session_id: UUID) -> None:
    """As an upgrade leaves a session that was archived before."""
    async with store.session_maker.begin() as connection:
        is_postgresql = connection.get_bind().dialect.name == "postgresql"
        table = "session_search" if is_postgresql else "session_words"
        stored = session_id if is_postgresql else session_id.hex
        await connection.execute(text(f"DELETE FROM {table} WHERE session_id = :id"), {"id": stored})  # noqa: S608
        await connection.execute(
            text("INSERT INTO search_pending (session_id) VALUES (:id) ON CONFLICT DO NOTHING"), {"id": stored}
        )


async def test_a_session_that_is_shared_while_it_is_indexed_is_found(deployment: Deployment) -> None:
    async with SessionStore(deployment.settings()) as store:
        session = await begin(store, title="veteran", user_id="ann")
        await store.archive_session(session.id)
        await forget_words(store, session.id)

        @event.listens_for(store.session_maker.kw["bind"].sync_engine, "before_cursor_execute")
        def share_before_its_words_are_stored(*args: Any) -> None:
            if "INSERT INTO session_search" in args[2] and not shared:
                shared.append(await_only(store.share_session(session.id, "bob")))

        shared: list[object] = []
        await found(store, "veteran")

        assert shared
        assert await found(store, "veteran") == ["veteran"]


async def test_a_search_finds_sessions_that_are_archived_and_resumed_meanwhile(deployment: Deployment) -> None:
    async with SessionStore(deployment.settings()) as store:
        ids = {(await begin(store, title="moving")).id for _ in range(5)}
        is_done = asyncio.Event()

        async def move(session_id: UUID) -> None:
            while not is_done.is_set():
                await store.archive_session(session_id)
                await store.resume_session(session_id)

        movers = [asyncio.create_task(move(session_id)) for session_id in ids]
        lacking = [ids - {summary.id for summary in await store.search_sessions(None, "moving")} for _ in range(60)]
        is_done.set()
        await asyncio.gather(*movers)

    # One that moves twice within a search, there and back, may be passed over; one that moves once may not.
    assert sum(map(len, lacking)) <= 3


async def test_retention_and_erasure_leave_no_words(deployment: Deployment, clock: FrozenClock) -> None:
    async with SessionStore(deployment.settings()) as store:
        for user in ("ann", "bob"):
            session = await begin(store, title="secret", user_id=user)
            await store.archive_session(session.id)
        await store.erase_user("ann")
        clock.advance(days=40)
        await store.delete_old_archived_sessions()
        async with store.session_maker() as connection:
            left = (await connection.execute(text("SELECT count(*) FROM session_search"))).scalar()

    assert left == 0


async def test_erasure_leaves_no_word_of_a_user_in_the_file(sqlite_settings: Settings) -> None:
    async with SessionStore(sqlite_settings) as store:
        session = await begin(store, title="xylophone", user_id="ann", queries=[looked_up("QQQQ", "marimba")])
        await begin(store, title="kept", user_id="bob")
        await store.archive_session(session.id)

        await store.erase_user("ann")

    files = sqlite_settings.embedded_file.parent.glob("fiml.db*")
    content = b"".join(file.read_bytes() for file in files)
    assert b"kept" in content
    assert b"xylophone" not in content
    assert b"marimba" not in content


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({}, "has no criterion"),
        ({"text": "pe_ratio <"}, "condition"),
        ({"text": "pe_ratio < cheap"}, "not a number"),
        ({"text": "price < 1,000"}, "not a number"),
        ({"text": "price != 5"}, "with one of < <= = >= >"),
        ({"text": "correlation:ko > 0.5"}, "correlation:KO > 0.5"),
        ({"text": "price < 1e400"}, "not a number"),
        ({"text": "price < nan"}, "not a number"),
        ({"text": "price < 1_000"}, "not a number"),
        ({"text": "π > 3"}, "not the name of a figure"),
        ({"text": "a" * 501}, "500"),
        ({"text": " ".join(f"w{n}" for n in range(21))}, "at most 20"),
        ({"text": "x > 1 " * 11}, "at most 10"),
        ({"text": "🚀 !"}, "no word"),
        ({"text": ""}, "text"),
        ({"text": "a\x00b"}, "text"),
        ({"symbol": "A" * 65}, "symbol"),
        ({"tag": ""}, "tag"),
        ({"type": "bonds"}, "session type"),
        ({"text": "a", "limit": 0}, "limit"),
        ({"text": "a", "limit": 10**9}, "limit"),
        ({"text": "a", "cursor": "x"}, "cursor"),
    ],
)
async def test_a_search_that_cannot_be_understood_is_refused(
    sqlite_settings: Settings, asked: dict[str, Any], problem: str
) -> None:
    async with SessionStore(sqlite_settings) as store:
        with pytest.raises(InvalidInput, match=problem):
            await store.search_sessions(None, **asked)


def test_dates_in_the_wrong_order_are_refused(clock: FrozenClock) -> None:
    with pytest.raises(InvalidInput, match="not before until"):
        parse_search(None, since=clock.now(), until=clock.now())


WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs", "S")), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(titles=st.lists(WORDS, min_size=1, max_size=4), wanted=WORDS)
async def test_every_engine_finds_what_the_model_finds(
    deployment: Deployment, sqlite_settings: Settings, titles: list[str], wanted: str
) -> None:
    try:
        parsed = parse_search(wanted or None, symbol="AAPL")
    except InvalidInput:
        return
    answers = [await numbers_found(chosen, titles, wanted) for chosen in (sqlite_settings, deployment.settings())]

    words = [searching._words([title, "fundamentals", "AAPL", "equity"]) for title in titles]
    model = [float(number) for number, known in enumerate(words) if searching._have(known, parsed.words)]
    assert answers == [model, model]


async def numbers_found(chosen: Settings, titles: list[str], wanted: str) -> list[float]:
    """Which of a new user's sessions are found; every other one is archived."""
    user = str(uuid4())
    async with SessionStore(chosen) as store:
        for number, title in enumerate(titles):
            query = QueryRecord("fundamentals", {"symbol": "AAPL"}, title, figures={"n": float(number)})
            session = await begin(store, user_id=user, queries=[query])
            if number % 2:
                await store.archive_session(session.id)
        page = await store.search_sessions(user, wanted or None, symbol="AAPL")
        hits = [await existing(store, summary.id) for summary in page]
    return sorted(hit.state.history.queries[0].figures["n"] for hit in hits)
