"""A server on loopback that speaks as Yahoo, Kraken, Coinbase and Bitstamp do, and can be told to misbehave."""

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter

LONGEST_S = 30


@dataclass(frozen=True)
class Reply:
    """What the server sends; it keeps a slow one waiting until the server is closed."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    has_slow_headers: bool = False
    has_slow_body: bool = False


def json_reply(value: object, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status)


def truncated(value: object) -> Reply:
    body = json.dumps(value).encode()
    return Reply(body[: len(body) // 2])


def refusal(status: int, **headers: str) -> Reply:
    return Reply(b"{}", status, {name.replace("_", "-"): value for name, value in headers.items()})


def hanging() -> Reply:
    return Reply(has_slow_headers=True)


def dribbling() -> Reply:
    return Reply(b'{"chart": ', has_slow_body=True)


class MarketServer:
    """Answers by path, or by path and one argument: `/a?b=c`.

    A reply of `once` comes before the one of `always`; what has neither is 404.
    """

    def __init__(self, url: str, closing: threading.Event) -> None:
        self.url = url
        self.closing = closing
        self.requests: Counter[str] = Counter()
        self._always: dict[str, Reply] = {}
        self._next: defaultdict[str, list[Reply]] = defaultdict(list)
        self._changed = threading.Condition()

    def always(self, path: str, reply: Reply | object) -> None:
        self._always[path] = _as_reply(reply)

    def once(self, path: str, *replies: Reply | object) -> None:
        self._next[path].extend(map(_as_reply, replies))

    def wait_for(self, path: str, *, times: int = 1) -> None:
        """Return when the path has been asked for so many times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.requests[path] >= times, timeout=LONGEST_S)

    def reply(self, target: str) -> Reply:
        path, _, query = target.partition("?")
        with self._changed:
            self.requests[path] += 1
            self._changed.notify_all()
            if self._next[path]:
                return self._next[path].pop(0)
        keys = [f"{path}?{argument}" for argument in query.split("&")]
        return next((self._always[key] for key in (*keys, path) if key in self._always), refusal(404))


def _as_reply(reply: Reply | object) -> Reply:
    return reply if isinstance(reply, Reply) else json_reply(reply)


@contextmanager
def market_server() -> Iterator[MarketServer]:
    """A running server, empty; at the end it lets go of those that it keeps waiting."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = server.reply(unquote(self.path))
            if reply.has_slow_headers:
                closing.wait(LONGEST_S)
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            try:
                self.send_response(reply.status)
                for name, value in ({"Content-Type": "application/json"} | dict(reply.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
                while reply.has_slow_body and not closing.wait(0.05):
                    self.wfile.write(b" ")
            except ConnectionError:
                return  # the client has lost its patience, as it should

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as http:
        server = MarketServer(f"http://127.0.0.1:{http.server_address[1]}", closing)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            closing.set()
            http.shutdown()
            thread.join()


class LoopbackAdapter(HTTPAdapter):
    """Sends what is meant for Yahoo to the server; a host other than the API's becomes the path's first part."""

    def __init__(self, server: MarketServer) -> None:
        super().__init__()
        self._server = urlsplit(server.url)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        url = urlsplit(request.url or "")
        host = str(url.hostname)
        assert host.endswith(".yahoo.com"), host
        path = url.path if host.startswith("query") else f"/{host}{url.path}"
        local = request.copy()
        local.url = str(urlunsplit((self._server.scheme, self._server.netloc, path, url.query, "")))
        response = super().send(local, *args, **kwargs)
        response.url, response.request = str(request.url), request
        return response


@contextmanager
def yahoo_session(server: MarketServer) -> Iterator[requests.Session]:
    """A session that reaches the server instead of Yahoo."""
    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", LoopbackAdapter(server))
        yield session
