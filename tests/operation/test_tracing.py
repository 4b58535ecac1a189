"""Traces: one tree from the tool to the engine, over HTTP and into tasks, and nothing in it that users wrote."""

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import httpx2
import pytest
from celery.contrib.testing.worker import start_worker
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fiml.core import observe
from fiml.core.config import Settings
from fiml.core.errors import SessionNotFound, Unavailable
from fiml.core.plain_spans import PlainSpans
from fiml.mcp.http import build_app
from fiml.mcp.requests import NamedRequests
from fiml.runtime import open_runtime
from fiml.sessions import tasks
from fiml.worker import make_app
from tests.support.deployment import Deployment
from tests.support.mcp_client import ERAS, Caller, mode_of

ROOT = Path(__file__).parents[2]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
SECRET = "hunter2"  # noqa: S105 - nobody's
PROGRAM = (
    "import asyncio\n"
    "from fiml.core.tracing import tracing\n"
    "from fiml.sessions.store import SessionStore\n"
    "async def use():\n"
    "    async with SessionStore() as store:\n"
    "        await store.create_session(['AAPL'], 'equity')\n"
    "with tracing():\n"
    "    asyncio.run(use())\n"
)


LOOKS = (
    "from opentelemetry import trace\n"
    "from opentelemetry.sdk.trace import TracerProvider\n"
    "from fiml.core.observe import is_traced\n"
    "print(is_traced())\n"
    "trace.set_tracer_provider(TracerProvider())\n"
    "print(is_traced())\n"
)


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    # One for all tests here: the MCP library keeps the first provider that it sees.
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(PlainSpans(memory)))
    trace.set_tracer_provider(provider)
    yield memory
    provider.shutdown()
    # OpenTelemetry takes one provider for the life of a process; the tests after these have none.
    trace._TRACER_PROVIDER = None
    trace._TRACER_PROVIDER_SET_ONCE = type(trace._TRACER_PROVIDER_SET_ONCE)()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


@asynccontextmanager
async def http_caller(settings: Settings, era: str) -> AsyncIterator[Caller]:
    """A client of the application on HTTP, both in this process."""
    async with open_runtime(settings) as runtime:
        app = build_app(runtime, "127.0.0.1")
        transport = httpx2.ASGITransport(app=NamedRequests(app))
        headers = {"traceparent": TRACEPARENT}
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, headers=headers) as http,
            Client(streamable_http_client("http://127.0.0.1:8765/mcp", http_client=http), mode=mode_of(era)) as client,
        ):
            yield Caller(client)


def path_to(span: ReadableSpan, spans: InMemorySpanExporter) -> list[str]:
    """The names from the first span of this process down to one."""
    by_id = {each.context.span_id: each for each in spans.get_finished_spans() if each.context is not None}
    parent = by_id.get(span.parent.span_id) if span.parent else None
    return [*(path_to(parent, spans) if parent else []), span.name]


def words(spans: InMemorySpanExporter) -> str:
    return "\n".join(each.to_json() for each in spans.get_finished_spans())


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_over_http_is_one_tree_from_the_tool_to_the_engines(
    spans: InMemorySpanExporter, deployment: Deployment, era: str
) -> None:
    async with http_caller(deployment.settings(), era) as caller:
        session_id = await caller.create("AAPL", title=SECRET)
        await caller.answer("search-by-symbol", symbol="AAPL", sessionId=session_id, depth="quick")
        await caller.answer("close-session", sessionId=session_id)

    paths = [path_to(span, spans) for span in spans.get_finished_spans()]
    # The client is traced too, and where it sends its context along, that is the parent.
    ends = [path[-3:] for path in paths]
    assert ["tools/call create-analysis-session", "create_session", "engine redis"] in ends
    assert ["tools/call search-by-symbol", "record_query", "engine redis"] in ends
    assert ["tools/call close-session", "archive_session", "engine postgresql"] in ends
    assert ["tools/call search-by-symbol", "fetch quote"] in [path[-2:] for path in paths]
    server = [span for span in spans.get_finished_spans() if span.name == "tools/call close-session"]
    assert len(server) == 1
    assert not [word for word in (SECRET, session_id, session_id.replace("-", "")) if word in words(spans)]


async def test_the_trace_of_the_caller_goes_on(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    async with open_runtime(Settings(data_dir=tmp_path / "data")) as runtime:
        app = build_app(runtime, "127.0.0.1")
        transport = httpx2.ASGITransport(app=NamedRequests(app))
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list-sessions", "arguments": {}}}
        headers = {
            "traceparent": TRACEPARENT,
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2025-11-25",
        }
        async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport) as http:
            answer = await http.post("http://127.0.0.1:8765/mcp", json=body, headers=headers)

    assert answer.status_code == 200
    finished = spans.get_finished_spans()
    within = [each for each in finished if each.context and format(each.context.trace_id, "032x") == TRACE_ID]
    assert {each.name for each in within} >= {"tools/call list-sessions", "list_user_sessions", "engine sqlite"}


async def test_the_name_of_an_unknown_tool_is_not_in_the_trace(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    async with http_caller(Settings(data_dir=tmp_path / "data"), ERAS[1]) as caller:
        with_id = await caller.create("AAPL")
        spans.clear()
        await caller.refusal("search-by-symbol", symbol=SECRET, sessionId=with_id)
        await caller.refusal(f"{SECRET}-tool")

    server = [each for each in spans.get_finished_spans() if each.kind is trace.SpanKind.SERVER]
    assert server
    assert not [each.to_json() for each in server if SECRET in each.to_json()]


async def test_only_faults_of_ours_and_of_engines_mark_a_span_as_failed(spans: InMemorySpanExporter) -> None:
    @observe.observed_call(observe.Timed.ENGINE, "redis")
    async def fail(error: Exception) -> None:
        raise error

    for error in (Unavailable("Redis", SECRET), SessionNotFound(UUID(int=0)), ZeroDivisionError(SECRET)):
        with pytest.raises(type(error)):
            await fail(error)

    ended = [(dict(each.attributes or {})["error.type"], each.status.is_ok) for each in spans.get_finished_spans()]
    assert ended == [("unavailable", False), ("session_not_found", True), ("error", False)]
    assert SECRET not in words(spans)


# Celery calls redis-py by names that it has newer ones for.
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_a_task_belongs_to_the_trace_of_whoever_sends_it(
    spans: InMemorySpanExporter, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIML_BROKER_URL", deployment.redis_url)
    app = make_app(Settings())

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        with trace.get_tracer("test").start_as_current_span("sender"):
            waiting = app.tasks[tasks.cleanup_expired_sessions.name].delay()
        waiting.get(timeout=30)
        tasks.close()

    paths = [path_to(each, spans) for each in spans.get_finished_spans()]
    assert ["sender", "job cleanup_expired_sessions", "sweep", "engine sqlite"] in paths


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, '"name": "create_session"'),
        ({"OTEL_TRACES_EXPORTER": "nonsense"}, "OTEL_TRACES_EXPORTER must be otlp, console or none"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, ""),
    ],
)
def test_the_standard_variables_switch_traces_on_and_off(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    environment = {"PATH": os.environ["PATH"], "FIML_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), **variables}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )

    said = done.stdout + done.stderr
    assert says in said
    assert bool(said) == bool(says)
    assert '"name"' not in done.stdout


@pytest.mark.parametrize(
    ("variables", "found"),
    [({}, ["False", "True"]), ({"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}, ["True", "True"])],
)
def test_a_provider_is_found_when_it_is_set_and_when_a_variable_names_it(
    variables: dict[str, str], found: list[str]
) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}

    done = subprocess.run([sys.executable, "-c", LOOKS], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.split() == found


class Collector(BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None: ...


def test_spans_are_sent_to_the_endpoint_that_is_named(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        environment = {
            "PATH": os.environ["PATH"],
            "FIML_DATA_DIR": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_SERVICE_NAME": "of-the-test",
        }
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, check=True)
        server.shutdown()

    assert {path for path, _ in Collector.received} == {"/v1/traces"}
    sent = b"".join(body for _, body in Collector.received)
    assert b"create_session" in sent
    assert b"of-the-test" in sent
    assert b"AAPL" not in sent
