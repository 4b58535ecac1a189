"""What is shipped for users' own tests."""

from datetime import UTC, datetime, timedelta, timezone
from inspect import getmembers, isclass
from pathlib import Path

import pytest

from fiml.core import clock as process_clock
from fiml.sessions.models import SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, conformance, make_query, make_session, open_temporary_store
from fiml.testing.fixtures import clock, store
from tests.sessions import test_conformance

__all__ = ["clock", "store"]  # as a user's conftest.py has them


async def test_the_fixtures_are_a_store_and_its_clock(store: SessionStore, clock: FrozenClock) -> None:
    session = await store.create_session(["AAPL"], SessionType.EQUITY, ttl_hours=24)

    clock.advance(hours=24)

    found = await store.get_session(session.id)
    assert found is not None
    assert found.is_expired
    assert process_clock.now() == clock.now()


async def test_each_test_has_an_empty_store(store: SessionStore) -> None:
    assert await store.list_user_sessions(None, include_archived=True) == []


async def test_a_temporary_store_never_opens_the_servers_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIML_REDIS_URL", "redis://localhost:1")
    monkeypatch.setenv("FIML_DATABASE_URL", "postgresql://localhost:1/production")
    monkeypatch.setenv("FIML_ENCRYPTION_KEYS", str(tmp_path / "keys"))

    async with open_temporary_store(tmp_path / "data", session_max_queries_per_session=1) as store:
        assert store.settings.is_embedded
        assert (store.settings.encryption_keys, store.settings.session_max_queries_per_session) == (None, 1)
        assert (await store.create_session(["AAPL"], SessionType.EQUITY)).version == 1


async def test_a_folder_keeps_its_store(tmp_path: Path) -> None:
    async with open_temporary_store(tmp_path) as first:
        session = await first.create_session(["AAPL"], SessionType.EQUITY)

    async with open_temporary_store(tmp_path, session_max_queries_per_session=1) as second:
        assert await second.get_session(session.id) is not None
        assert second.settings.session_max_queries_per_session == 1


def test_a_frozen_clock_stands_still_until_it_is_moved() -> None:
    frozen = FrozenClock(datetime(2024, 1, 1, tzinfo=UTC))
    assert frozen.now() == frozen.now()

    assert frozen.advance(days=1, microseconds=1) == datetime(2024, 1, 2, 0, 0, 0, 1, tzinfo=UTC)

    frozen.set(datetime(2023, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert frozen.now() == datetime(2023, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="time zone"):
        frozen.set(datetime(2023, 1, 1))  # noqa: DTZ001


def test_samples_show_only_what_matters() -> None:
    session, query = make_session(title="T", assets=["BTC"]), make_query("technical", cache_hit=True)

    assert (session.title, session.assets, session.type) == ("T", ["BTC"], SessionType.EQUITY)
    assert (query.query_type, query.cache_hit, query.parameters) == ("technical", True, {"symbol": "AAPL"})


def test_every_suite_runs_on_every_deployment() -> None:
    shipped = {each for name, each in getmembers(conformance, isclass) if name.endswith("Suite") and name != "Suite"}
    run = {base for _, each in getmembers(test_conformance, isclass) for base in each.__mro__}

    assert shipped <= run
    assert {each.__name__ for each in shipped} | {"Suite"} == {
        name for name in conformance.__all__ if name.endswith("Suite")
    }
