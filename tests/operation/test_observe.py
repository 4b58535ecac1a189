"""What is measured and logged about what fiml does, and what is not."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from fiml.core import observe
from fiml.core.config import LogFormat, LogLevel, Settings
from fiml.core.errors import InvalidInput, Misconfigured, Unavailable
from fiml.core.log import configure_logging, in_request, is_in_request
from fiml.core.observe import Counted, Timed
from fiml.sessions.maintenance import JOBS, do
from fiml.sessions.models import QueryRecord
from fiml.sessions.store import SessionStore
from fiml.testing import open_temporary_store
from tests.support.deployment import Deployment
from tests.support.http_server import http_server

SECRETS = ("hunter2-title", "hunter2-context", "hunter2-summary", "hunter2-parameter", "hunter2-user")


def fail_in_two_steps() -> None:
    try:
        int(SECRETS[0])
    except ValueError as exc:
        raise RuntimeError(SECRETS[1]) from exc


class Notebook:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.times: list[tuple[Timed, str, str]] = []
        self.counts: list[tuple[Counted, tuple[str, ...], float]] = []

    def timed(self, kind: Timed, name: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.times.append((kind, name, code))

    def counted(self, what: Counted, *labels: str, by: float = 1) -> None:
        self.counts.append((what, labels, by))

    def of(self, kind: Timed) -> list[tuple[str, str]]:
        return [(name, code) for found, name, code in self.times if found is kind]


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    meter = Notebook()
    observe.measure_with(meter)
    yield meter
    observe.measure_with(None)


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """What is written to standard error; the logging is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield capfd
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def test_a_verb_of_the_store_is_one_operation_with_the_code_of_its_end(
    notebook: Notebook, tmp_path: Path
) -> None:
    async with open_temporary_store(tmp_path) as store:
        session = await store.create_session(["AAPL"], "equity")
        session.state.update_context("thesis", "below its mean")
        await store.update_session(session.id, session)
        await store.archive_session(session.id)
        with pytest.raises(InvalidInput):
            await store.get_session("malformed")
        with pytest.raises(Exception, match="archived"):
            await store.as_principal(None).record_query(session.id, QueryRecord("price"))

    assert notebook.of(Timed.OPERATION) == [
        ("create_session", "ok"),
        ("update_session", "ok"),
        ("archive_session", "ok"),
        ("get_session", "invalid_session_id"),
        ("record_query", "session_archived"),
    ]
    assert set(notebook.of(Timed.ENGINE)) == {("sqlite", "ok"), ("sqlite", "session_archived")}


async def test_each_exchange_with_redis_and_postgresql_is_measured(notebook: Notebook, deployment: Deployment) -> None:
    async with SessionStore(deployment.settings()) as store:
        notebook.times.clear()
        session = await store.create_session(["AAPL"], "equity")
        await store.archive_session(session.id)

    engines = notebook.of(Timed.ENGINE)
    assert {name for name, _ in engines} == {"redis", "postgresql"}
    assert {code for _, code in engines} == {"ok"}


async def test_an_unavailable_engine_is_measured_as_such(notebook: Notebook, deployment: Deployment) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", database_url=deployment.database_url)

    with pytest.raises(Unavailable):
        await SessionStore(settings).initialize()

    assert ("redis", "unavailable") in notebook.of(Timed.ENGINE)


async def test_what_a_job_processed_is_counted(notebook: Notebook, tmp_path: Path) -> None:
    async with open_temporary_store(tmp_path) as store:
        await do(JOBS[0], store)

    assert notebook.of(Timed.JOB) == [("cleanup_expired_sessions", "ok")]
    assert (Counted.JOB_SESSIONS, ("cleanup_expired_sessions", "archived"), 0) in notebook.counts


async def test_a_call_that_is_cancelled_is_no_error(notebook: Notebook) -> None:
    @observe.observed_call(Timed.ENGINE, "slow")
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hang(), 0.01)

    assert notebook.of(Timed.ENGINE) == [("slow", "cancelled")]


@pytest.mark.parametrize("form", LogFormat)
def test_a_traceback_is_one_line_without_the_words_of_the_error(
    logged: pytest.CaptureFixture[str], form: LogFormat
) -> None:
    configure_logging(LogLevel.INFO, form)

    for log in (structlog.get_logger(), logging.getLogger("library")):
        try:
            fail_in_two_steps()
        except RuntimeError:
            log.exception("went_wrong")

    lines = logged.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "went_wrong" in line
        assert "RuntimeError in fail_in_two_steps" in line
        assert "ValueError in" in line
        assert not [secret for secret in SECRETS if secret in line]


def test_a_row_that_postgresql_quotes_is_not_logged(logged: pytest.CaptureFixture[str]) -> None:
    configure_logging()

    structlog.get_logger().warning("refused", problem=f"it is too long\nDETAIL:  Failing row contains ({SECRETS[0]}).")

    line = logged.readouterr().err
    assert "it is too long" in line
    assert SECRETS[0] not in line


def test_a_json_line_names_its_request(logged: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.WARNING, LogFormat.JSON)

    with in_request("abc"):
        structlog.get_logger().info("too_low")
        structlog.get_logger().warning("within", number=1)
        logging.getLogger("library").warning("of a %s", "library")
    structlog.get_logger().error("outside")

    within, foreign, outside = (json.loads(line) for line in logged.readouterr().err.splitlines())
    assert (within["event"], within["number"], within["request_id"], within["level"]) == ("within", 1, "abc", "warning")
    assert (foreign["event"], foreign["request_id"], foreign["logger"]) == ("of a library", "abc", "library")
    assert "request_id" not in outside
    assert not is_in_request()


@pytest.mark.parametrize("text", ["9464", "127.0.0.1:", ":9464", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:٣"])
def test_an_invalid_metrics_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(Misconfigured, match="FIML_METRICS_ADDRESS: must be HOST:PORT"):
        Settings(metrics_address=text)


async def test_the_log_of_a_server_names_each_request_and_holds_nothing_that_users_wrote(tmp_path: Path) -> None:
    title, context, summary, parameter, user = SECRETS
    async with http_server(tmp_path / "data", FIML_LOG_FORMAT="json", FIML_LOG_LEVEL="debug") as server:
        async with server.caller() as caller:
            session_id = await caller.create("AAPL", title=title, userId=user, tags=[parameter])
            await caller.answer("search-by-symbol", symbol="AAPL", sessionId=session_id)
            await caller.answer("update-session-context", sessionId=session_id, context={context: summary})
            await caller.answer("search-sessions", text=summary)
            await caller.refusal("search-by-symbol", symbol=parameter, sessionId=session_id)
            await caller.refusal(title, sessionId=session_id)
            await caller.refusal("get-session-info", sessionId=context)
        named = await server.get("/health", **{"x-request-id": "my-request.1"})
        odd = [await server.get("/health", **{"x-request-id": given}) for given in ("a b", "x" * 65, 'a"b')]
        without = await server.get("/health")

    assert named.headers["x-request-id"] == "my-request.1"
    made = {answer.headers["x-request-id"] for answer in (*odd, without)}
    assert len(made) == 4
    assert all(len(name) == 32 for name in made)
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    answered = [line for line in lines if line["event"] == "answered"]
    assert {line["call"] for line in answered} >= {"create-analysis-session", "search-sessions", "unknown"}
    assert {line["code"] for line in answered} >= {"ok", "symbol_not_found", "unknown_tool", "invalid_session_id"}
    assert len({line["request_id"] for line in answered}) == len(answered)
    assert not [word for word in (*SECRETS, session_id, "AAPL") if word in text]
