"""`fiml sessions` and `fiml db`, as a user at a shell meets them."""

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from fiml.cli import app
from fiml.core.clock import using
from fiml.core.config import Settings
from fiml.core.errors import FimlError, InvalidInput, InvalidSessionId, SessionNotFound
from fiml.db.schema import REVISIONS
from fiml.sessions.backends.shapes import MAX_SEARCHED
from fiml.sessions.models import QueryRecord, Session, SessionType
from fiml.sessions.store import SessionStore
from fiml.testing import FrozenClock
from tests.support.cli import ROOT, run_fiml
from tests.support.deployment import Deployment

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


def fiml(*arguments: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=answer)
    if isinstance(result.exception, FimlError):
        raise result.exception
    return result


def make_session(**values: object) -> Session:
    async def make() -> Session:
        async with SessionStore() as store:
            session = await store.create_session(["AAPL", "MSFT"], SessionType.EQUITY, **values)  # type: ignore[arg-type]
            summary = "AAPL: close 173.93 USD"
            await store.record_query(session.id, QueryRecord("price", {"symbol": "AAPL"}, summary, 12.5))
            return session

    return asyncio.run(make())


def test_a_listing_shows_each_session_with_its_state() -> None:
    session = make_session(title="Large tech", tags=["tech"])

    result = fiml("sessions", "list")

    assert result.exit_code == 0
    assert f"{session.id}  equity  1 query  live until" in result.stdout
    assert "Large tech: AAPL, MSFT  [tech]" in result.stdout


def test_an_empty_listing_says_so() -> None:
    assert fiml("sessions", "list").stdout == "no sessions\n"


def test_a_listing_that_has_not_looked_through_everything_says_so(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIML_REDIS_URL", deployment.redis_url)
    monkeypatch.setenv("FIML_DATABASE_URL", deployment.database_url)

    async def many() -> None:
        async with SessionStore() as store:
            for number in range(MAX_SEARCHED + 1):
                await store.create_session(["AAPL"], SessionType.EQUITY, tags=[] if number else ["rare"])

    asyncio.run(many())

    first = fiml("sessions", "list", "--tag", "rare").stdout
    found = re.fullmatch(r"no sessions\nnot all were looked at; more: --cursor (\S+)\n", first)
    assert found
    assert "AAPL  [rare]" in fiml("sessions", "list", "--tag", "rare", "--cursor", found[1]).stdout


def test_pages_of_a_listing_lead_to_each_other() -> None:
    ids = {str(make_session().id) for _ in range(3)}

    first = json.loads(fiml("sessions", "list", "--limit", "2", "--json").stdout)
    second = json.loads(fiml("sessions", "list", "--limit", "2", "--json", "--cursor", first["next_cursor"]).stdout)

    assert {line["id"] for line in first["sessions"] + second["sessions"]} == ids
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("option", "value", "is_found"),
    [
        ("--user", "ann", True),
        ("--user", "bob", False),
        ("--type", "equity", True),
        ("--type", "crypto", False),
        ("--tag", "tech", True),
        ("--asset", "NVDA", False),
    ],
)
def test_a_listing_is_filtered(option: str, value: str, is_found: bool) -> None:
    session = make_session(user_id="ann", tags=["tech"])

    assert (str(session.id) in fiml("sessions", "list", option, value).stdout) is is_found


def test_a_session_is_shown_with_its_last_queries() -> None:
    session = make_session()

    shown = fiml("sessions", "show", str(session.id)).stdout

    assert "queries  1, 0% from the session or a cache" in shown
    assert "price: AAPL: close 173.93 USD" in shown


def test_a_query_that_a_cache_answered_is_not_shown_as_the_sessions() -> None:
    session = make_session()

    async def record() -> None:
        async with SessionStore() as store:
            for layer in ("session", "l1"):
                await store.record_query(session.id, QueryRecord("price", {}, f"by {layer}", 1, True, layer=layer))

    asyncio.run(record())
    shown = fiml("sessions", "show", str(session.id)).stdout

    assert "price, from the session: by session" in shown
    assert "price, from a cache: by l1" in shown


def test_control_characters_are_not_shown() -> None:
    make_session(title="red\x1b[31m\nand more")

    assert "\x1b" not in fiml("sessions", "list").stdout
    assert "red�[31m�and more" in fiml("sessions", "list").stdout


@pytest.mark.parametrize(
    "command",
    [
        "sessions show ID --json",
        "sessions export ID",
        "sessions context ID",
        "sessions replay ID --json",
        "sessions trail ID --json",
        "sessions erase USER --yes",
        "analytics show",
    ],
)
def test_json_has_no_control_characters_and_the_same_texts(command: str) -> None:
    """JSON may have those above 127 as they are, and some terminals obey them."""
    text = "red\x9b31m\u202e"
    session_id = str(make_session(title=text, user_id=text, tags=[text]).id)
    fiml("sessions", "share", session_id, f"{text} too")
    asyncio.run(record(session_id, {"symbol": text}))
    named = {"ID": session_id, "USER": text}

    shown = fiml(*(named.get(word, word) for word in command.split())).stdout

    assert shown.replace("\n", "").isprintable()
    assert text in json.dumps(json.loads(shown), ensure_ascii=False)


def test_an_archived_session_is_found_and_resumed() -> None:
    session_id = str(make_session().id)

    assert "archived" in fiml("sessions", "archive", session_id).stdout
    assert session_id not in fiml("sessions", "list").stdout
    assert f"{session_id}  equity  1 query  archived" in fiml("sessions", "list", "--archived").stdout
    assert "is already archived" in fiml("sessions", "archive", session_id).stdout
    assert "1 query" in fiml("sessions", "resume", session_id, "--hours", "5").stdout
    assert session_id in fiml("sessions", "list").stdout


def test_a_session_is_deleted_only_after_confirmation() -> None:
    session_id = str(make_session().id)

    refused = fiml("sessions", "delete", session_id, answer="n\n")
    assert refused.exit_code == 1
    assert session_id in fiml("sessions", "list").stdout

    assert fiml("sessions", "delete", session_id, "--yes").stdout == "deleted\n"
    assert fiml("sessions", "list", "--archived").stdout == "no sessions\n"


def damage(session: Session) -> None:
    with closing(sqlite3.connect(Settings().embedded_file)) as connection, connection:
        connection.execute("UPDATE active_sessions SET type = 'poetry' WHERE id = ?", [session.id.hex])


@pytest.mark.parametrize("is_quarantined", [False, True])
def test_an_unreadable_session_is_deleted_after_confirmation(clock: FrozenClock, is_quarantined: bool) -> None:
    with using(clock):
        session = make_session(ttl_hours=1)
        damage(session)
        clock.advance(hours=2 if is_quarantined else 0)
        assert ("1 moved to quarantine" in fiml("sessions", "sweep").stdout) is is_quarantined

        refused = fiml("sessions", "delete", str(session.id), answer="n\n")
        deleted = fiml("sessions", "delete", str(session.id), answer="y\n")

        assert (refused.exit_code, deleted.exit_code) == (1, 0)
        assert f"Delete session {session.id}, which can't be read" in refused.stdout
        with pytest.raises(SessionNotFound):
            fiml("sessions", "show", str(session.id))


def test_a_session_of_a_later_fiml_is_deleted_after_confirmation() -> None:
    session = make_session()
    with closing(sqlite3.connect(Settings().embedded_file)) as connection, connection:
        connection.execute("UPDATE active_sessions SET format = 999")

    deleted = fiml("sessions", "delete", str(session.id), answer="y\n")

    assert f"Delete session {session.id}, which can't be read (a newer fiml wrote it)?" in deleted.stdout
    assert fiml("sessions", "list").stdout == "no sessions\n"


@pytest.mark.parametrize("command", ["show", "retry"])
def test_a_healthy_session_is_said_not_to_be_in_quarantine(command: str) -> None:
    session_id = str(make_session().id)

    with pytest.raises(InvalidInput, match=f"session {session_id} isn't in quarantine"):
        fiml("sessions", "quarantine", command, session_id)


def test_an_export_holds_the_whole_session(tmp_path: Path) -> None:
    session = make_session()
    file = tmp_path / "session.json"

    fiml("sessions", "export", str(session.id), "--output", str(file))

    exported = Session.from_dict(json.loads(file.read_text()))
    assert exported.id == session.id
    assert exported.state.history.queries[0].parameters == {"symbol": "AAPL"}
    assert json.loads(fiml("sessions", "export", str(session.id)).stdout)["id"] == str(session.id)


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    session = make_session()
    file = tmp_path / "session.json"
    file.write_text("mine")

    with pytest.raises(InvalidInput, match="already exists"):
        fiml("sessions", "export", str(session.id), "--output", str(file))

    assert file.read_text() == "mine"


async def record(session_id: str, parameters: dict[str, str]) -> None:
    async with SessionStore() as store:
        await store.record_query(session_id, QueryRecord("price", parameters))


def test_an_export_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    session_id, file = str(make_session().id), tmp_path / "session.json"
    asyncio.run(record(session_id, {"text": "x" * 100_000}))
    fiml("sessions", "archive", session_id)  # reading it writes nothing
    limited = (
        "import resource; limit = resource.RLIMIT_FSIZE;"
        "resource.setrlimit(limit, (40_000, resource.getrlimit(limit)[1]));"
        "from fiml.cli import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", limited, "sessions", "export", session_id, "--output", str(file)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, file.exists()) == (1, False)
    assert done.stderr == f"fiml: --output {file} can't be written (File too large); name another file\n"


def test_the_id_of_a_note_is_all_that_is_on_standard_output() -> None:
    session_id = str(make_session().id)

    written = fiml("sessions", "note", session_id, "margins fall")

    assert f"margins fall  [{UUID(written.stdout.strip())}]" in fiml("sessions", "show", session_id).stdout
    assert "added" in written.stderr


def test_the_replay_of_a_query_without_figures_says_no_more_than_that() -> None:
    session_id = str(make_session().id)

    shown = fiml("sessions", "replay", session_id).stdout

    assert "  AAPL: it holds no figures that can be asked for again\n" in shown


def test_the_trail_names_a_query_as_the_session_does() -> None:
    session_id = str(make_session().id)
    [query_id] = re.findall(r"USD  \[([0-9a-f-]{36})\]", fiml("sessions", "show", session_id).stdout)

    assert f"record {query_id}\n" in fiml("sessions", "trail", session_id).stdout


def test_a_sweep_archives_what_has_expired(clock: FrozenClock) -> None:
    with using(clock):
        session_id = str(make_session(ttl_hours=1).id)
        clock.advance(hours=2)

        assert fiml("sessions", "sweep").stdout == "1 session moved to the archive\n"
        assert "archived" in fiml("sessions", "show", session_id).stdout
        assert fiml("sessions", "sweep").stdout == "0 sessions moved to the archive\n"


@pytest.mark.parametrize("command", ["show", "resume", "export", "archive", "delete"])
def test_an_unknown_session_is_a_typed_error(command: str) -> None:
    with pytest.raises(SessionNotFound):
        fiml("sessions", command, UNKNOWN)


def test_a_malformed_id_is_a_typed_error() -> None:
    with pytest.raises(InvalidSessionId):
        fiml("sessions", "show", "tomorrow")


def test_the_database_is_upgraded_from_nothing() -> None:
    assert fiml("db", "upgrade").stdout == f"the database is at schema {REVISIONS[-1]}\n"
    assert Settings().embedded_file.exists()


def test_an_error_is_one_line_on_standard_error_and_exit_code_1() -> None:
    done = run_fiml("sessions", "show", UNKNOWN)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"fiml: no session {UNKNOWN}")
    assert done.stderr.count("\n") == 1


def test_a_full_device_causes_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fiml", "sessions", "list"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_what_a_terminal_can_not_write_is_escaped() -> None:
    session_id = str(make_session(title="“Quarter”").id)

    shown = run_fiml("sessions", "show", session_id, PYTHONIOENCODING="latin-1")
    refused = run_fiml("sessions", "list", "--type", "“", PYTHONIOENCODING="ascii")

    assert (shown.returncode, refused.returncode) == (0, 1)
    assert "\\u201cQuarter\\u201d: AAPL, MSFT" in shown.stdout
    assert "Traceback" not in refused.stderr


def test_a_session_is_shared_taken_back_and_its_trail_shown() -> None:
    session_id = str(make_session(user_id="ann").id)

    fiml("sessions", "share", session_id, "bob", "--role", "editor")
    made = fiml("sessions", "share", session_id, "--hours", "2")
    shown = fiml("sessions", "shares", session_id).stdout
    [code_id] = re.findall(r"^code (\w+)  viewer", shown, re.MULTILINE)
    unshared = fiml("sessions", "unshare", session_id, "bob").stdout
    with pytest.raises(InvalidInput, match="isn't shared with 'bob'"):
        fiml("sessions", "unshare", session_id, "bob")
    fiml("sessions", "unshare", session_id, "--code", code_id)
    trail = fiml("sessions", "trail", session_id).stdout.splitlines()
    entries = json.loads(fiml("sessions", "trail", session_id, "--json").stdout)

    assert made.stdout.startswith("share_")
    assert "bob  editor" in shown
    assert unshared == "no longer shared with bob\n"
    assert made.stdout.strip() not in shown
    assert fiml("sessions", "shares", session_id).stdout == "not shared\n"
    assert [entry["did"] for entry in entries] == ["create", "record", "share", "share", "revoke", "revoke"]
    assert "v3  the local user: share bob editor" in trail[2]


def test_a_share_code_lasts_at_most_the_maximum_ttl_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIML_SESSION_DEFAULT_TTL_HOURS", "4")
    monkeypatch.setenv("FIML_SESSION_MAX_TTL_HOURS", "8")
    session_id = str(make_session(user_id="ann").id)

    made = fiml("sessions", "share", session_id)

    assert made.stdout.startswith("share_")


@pytest.mark.parametrize("arguments", [(), ("bob", "--code", "0"), ("--code", "0")])
def test_taking_back_names_a_user_or_an_open_code(arguments: tuple[str, ...]) -> None:
    session_id = str(make_session(user_id="ann").id)

    with pytest.raises(InvalidInput):
        fiml("sessions", "unshare", session_id, *arguments)
