"""At stake: who reads an error of MLflow learns what the other side said, and only what may pass is retried."""

import re
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from mlflow import MlflowClient

from churn.errors import RegistryError, TransientError
from churn.registry.errors import errors_translated

PAGE = b"<html><head><title>Sign in</title></head><body>secret form</body></html>"
JSON_DENIED = b'{"error_code": "PERMISSION_DENIED", "message": "user ann may not read"}'
ANSWERS: dict[str, tuple[int, bytes, str, bool]] = {
    "401 in text": (401, b"You are not authenticated.", "refused the login.*HTTP 401.*MLFLOW_TRACKING_USERNAME", False),
    "401 as a page": (401, PAGE, "refused the login.*HTTP 401", False),
    "403 of a proxy": (403, b"Forbidden by policy 7", "refused the login.*Forbidden by policy 7", False),
    "403 of MLflow": (403, JSON_DENIED, "MLflow denied reading: .*user ann may not read", False),
    "407": (407, b"proxy", "refused the login.*HTTP 407", False),
    "404 in text": (404, b"no such path", "has no MLflow API.*HTTP 404.*path in MLFLOW_TRACKING_URI", False),
    "404 as a page": (404, PAGE, "answered with a page 'Sign in'.*no MLflow API", False),
    "a login page": (200, PAGE, "answered with a page 'Sign in'.*login page or a proxy", False),
    "text": (200, b"It works!", "answered with a page", False),
    "400": (400, b"bad header", "MLflow failed at reading: .*400", False),
    "405": (405, b"no", "MLflow failed at reading: .*405", False),
    "429": (429, b"slow down", "did not answer while reading", True),
    "500": (500, b"oops", "did not answer while reading", True),
    "502 as a page": (502, b"bad gateway", "did not answer while reading", True),
    "503": (503, b"starting", "did not answer while reading", True),
}


class Server(BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, bytes]] = (200, b"{}")

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 the name that its base class calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 its name in the standard library
        pass


class Threading(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Threading(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(uri: str) -> RegistryError:
    with pytest.raises(RegistryError) as failed, errors_translated("reading"):
        MlflowClient(uri, registry_uri=uri).search_registered_models()
    assert "hunter2" not in str(failed.value)
    assert "secret form" not in str(failed.value)
    return failed.value


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_a_server_answered_is_passed_on_and_only_a_missing_answer_is_transient(kind, port):
    status, body, message, is_transient = ANSWERS[kind]
    Server.answer = (status, body)

    error = ask(f"http://ann:hunter2@127.0.0.1:{port}")

    assert re.search(message, str(error)), error
    assert isinstance(error, TransientError) == is_transient


def test_a_server_that_does_not_listen_is_transient_and_one_without_tls_is_not(port):
    assert isinstance(ask("http://127.0.0.1:9"), TransientError)
    without_tls = ask(f"https://127.0.0.1:{port}")
    assert not isinstance(without_tls, TransientError)
    assert "TLS with the MLflow server failed" in str(without_tls)
