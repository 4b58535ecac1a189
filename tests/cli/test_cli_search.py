"""`fiml sessions search`, as a user at a shell meets it."""

import asyncio
import json

from typer.testing import CliRunner

from fiml.cli import app
from fiml.core.clock import using
from fiml.sessions.models import Session
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock, make_query


def search(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["sessions", "search", *arguments], catch_exceptions=False)
    return result.stdout


def make_session(*, title: str | None = None, ttl_hours: int = 24) -> Session:
    async def make() -> Session:
        async with SessionStore() as store:
            session = await store.create_session(["KO"], "equity", title=title, ttl_hours=ttl_hours)
            await store.record_query(session.id, make_query(figures={"pe_ratio": 24.5}))
            return session

    return asyncio.run(make())


def test_a_session_that_has_expired_is_not_shown_as_live(clock: FrozenClock) -> None:
    with using(clock):
        session = make_session(ttl_hours=1)
        assert f"{session.id}  2024-12-23  live  KO\n" in search("--symbol", "KO")

        clock.advance(hours=1)

        assert f"{session.id}  2024-12-23  expired  KO\n" in search("--symbol", "KO")


def test_what_was_found_is_shown_as_json() -> None:
    session = make_session(title="Getränke")

    shown = search("pe_ratio < 30", "--json")

    found = json.loads(shown)
    assert [one["id"] for one in found.pop("sessions")] == [str(session.id)]
    assert found == {
        "next_cursor": None,
        "searched": ["live", "archived"],
        "truncated": False,
        "partial": False,
        "not_indexed": False,
        "unreadable": [],
    }
    assert "Getränke" in shown


def test_a_listing_as_json_has_titles_as_they_are_written() -> None:
    make_session(title="Getränke")

    assert '"title": "Getränke"' in CliRunner().invoke(app, ["sessions", "list", "--json"]).stdout


def test_the_help_begins_with_what_is_needed_first() -> None:
    shown = CliRunner().invoke(app, ["sessions", "--help"]).stdout

    assert shown.index("List sessions") < shown.index("Show a session") < shown.index("Find sessions by")
