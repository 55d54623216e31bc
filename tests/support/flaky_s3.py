"""A real S3 API server on this machine that fails one request in ten, each time in another way, or all it is told to."""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NoReturn

from moto.moto_server.threaded_moto_server import ThreadedMotoServer

BUCKET = "speech"
# What happens to a request: an answer that says so, no answer, half of it, none though the work was done.
FAULTS = ("503", "500", "drop", "cut", "lost", "429")
EVERY = 10


class FlakyApp:
    """A WSGI application around moto's. Where `one_in_ten` is set each tenth request fails; else those that `fails` names."""

    def __init__(self, app: Callable):
        self.app, self.numbers, self.faults = app, count(1), count()
        self.one_in_ten = False
        self.fails: Callable[[dict[str, Any]], str | None] = lambda environ: None
        self.seen: list[tuple[str, str, str | None]] = []  # method, path with query, the fault or None

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        fault = self._next_fault() if self.one_in_ten else self.fails(environ)
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"] + query, fault))
        if fault in ("cut", "lost"):
            return self._broken(environ, start_response, fault)
        if fault is None:
            return self.app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault == "drop":
            _hang_up(environ)
        reason = {"403": "AccessDenied", "500": "InternalError", "503": "SlowDown"}.get(fault, "Failed")
        body = f"<Error><Code>{reason}</Code><Message>told to fail</Message></Error>".encode()
        start_response(f"{fault} {reason}", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _next_fault(self) -> str | None:
        return FAULTS[next(self.faults) % len(FAULTS)] if next(self.numbers) % EVERY == 0 else None

    def _broken(self, environ: dict[str, Any], start_response: Callable, fault: str) -> Iterable[bytes]:
        """The request is done; of its answer comes the head with half of the body, or nothing."""
        body = b"".join(self.app(environ, start_response if fault == "cut" else lambda *head: None))
        if fault == "cut" and len(body) > 1:
            return _half(environ, body)
        return _hang_up(environ)


def _half(environ: dict[str, Any], body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError("told to hang up")  # werkzeug takes it for the client's


@contextmanager
def flaky_s3() -> Iterator[tuple[str, FlakyApp]]:
    """Yields the server's address and its application."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    app = FlakyApp(server._server.app)
    server._server.app = app
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}", app
    finally:
        server.stop()
