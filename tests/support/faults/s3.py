"""An HTTP proxy before S3 and Secrets Manager that answers wrongly, slowly or not at all when it is told to."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


@dataclass
class Wrong:
    """What is wrong with answers.

    Attributes:
        kind: ``status``: an error instead of an answer; ``drip``: a byte now and then; ``truncated``; ``corrupt``;
            ``hole``: no answer at all.
        times: So many answers; later ones are right.
        at: Must be in the request's path.
    """

    kind: str
    times: int = 1_000_000
    status: int = 0
    body: bytes = b""
    at: str = ""


class FaultyHttp:
    """Listens on this machine, and passes requests on to the real endpoint."""

    def __init__(self, endpoint: str) -> None:
        self._target = urlsplit(endpoint).netloc
        self.wrong: Wrong | None = None
        self.n_faults = 0
        self.n_requests = 0
        self._lock = threading.Lock()
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with suppress(OSError):
                    faulty.answer(self)

            do_PUT = do_POST = do_HEAD = do_GET  # noqa: N815 names that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Pass a request on, and its answer back, unless something is to be wrong with it."""
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        wrong = self._strike(request.path)
        if wrong is not None and wrong.kind == "status":
            _reply(request, wrong.status, {"Content-Type": "application/xml"}, wrong.body)
            return
        if wrong is not None and wrong.kind == "hole":
            time.sleep(30)
            request.close_connection = True
            return
        upstream = http.client.HTTPConnection(self._target, timeout=30)
        upstream.request(request.command, request.path, sent, dict(request.headers))
        got = upstream.getresponse()
        body = got.read()
        headers = {name: value for name, value in got.getheaders() if name.lower() not in _HOP}
        upstream.close()
        ways: dict[str, Callable[[], None]] = {
            "truncated": lambda: _reply(request, got.status, headers, body[: len(body) // 2], length=len(body)),
            "corrupt": lambda: _reply(request, got.status, headers, body[:100] + b"\0\0\0\0" + body[104:]),
            "drip": lambda: _drip(request, got.status, headers, body),
        }
        ways.get(wrong.kind if wrong else "", lambda: _reply(request, got.status, headers, body))()

    def _strike(self, path: str) -> Wrong | None:
        with self._lock:
            self.n_requests += 1
            wrong = self.wrong
            if wrong is None or wrong.times <= 0 or wrong.at not in path:
                return None
            wrong.times -= 1
            self.n_faults += 1
            return wrong


def _reply(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, *, length: int | None = None
) -> None:
    _head(request, status, headers, len(body) if length is None else length)
    if request.command != "HEAD":
        request.wfile.write(body)
    request.close_connection = length is not None


def _head(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], length: int) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(length))
    request.end_headers()


def _drip(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    _head(request, status, headers, len(body))
    for i in range(len(body)):
        request.wfile.write(body[i : i + 1])
        request.wfile.flush()
        time.sleep(0.1)


@contextmanager
def faulty_http(endpoint: str) -> Iterator[FaultyHttp]:
    faulty = FaultyHttp(endpoint)
    try:
        yield faulty
    finally:
        faulty.close()
