"""A webhook on loopback that behaves as a test tells it: answers, is slow, hangs up, sends elsewhere."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import SecretStr

PATH = "/services/T0TEST/B0TEST/secretsecretsecret"


@dataclass(frozen=True)
class Behaviour:
    """How to answer one post: with a status, or (None) by taking the message and hanging up."""

    status: int | None = 200
    body: str = "ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None


@dataclass
class Webhook:
    """`script` is used up one behaviour a post, then every post is answered `ok`."""

    url: SecretStr
    script: list[Behaviour]
    received: list[dict[str, Any]]
    requests: list[str]
    posted_at: list[float]


@contextmanager
def webhook(*script: Behaviour) -> Iterator[Webhook]:
    """Serve on a free loopback port until the test ends."""
    import time

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.received.append(json.loads(body))
            state.posted_at.append(time.monotonic())
            behaviour = state.script.pop(0) if state.script else Behaviour()
            if behaviour.wait is not None:
                behaviour.wait.wait(30)
            if behaviour.status is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(behaviour.status)
            for name, value in behaviour.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(behaviour.body)))
            self.end_headers()
            self.wfile.write(behaviour.body.encode())

        def do_GET(self) -> None:
            state.requests.append(f"GET {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # hung up by intent
    state = Webhook(SecretStr(f"http://127.0.0.1:{server.server_port}{PATH}"), list(script), [], [], [])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
