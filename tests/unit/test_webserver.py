"""The guard before Dagster's webserver: which requests pass it, and which a page of another site sent."""

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message

from orchestration.webserver import Guard

GUARD = Guard(PlainTextResponse("Dagster"), ["dagster.example.com", "*.churn.example.com", ""])
OWN = {"host": "127.0.0.1:3000", "origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-origin"}
FOREIGN = {"host": "127.0.0.1:3000", "sec-fetch-site": "cross-site"}
LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
MUTATION = 'mutation { wipeAssets(assetPartitionRanges: []) { __typename } }'  # fmt: skip


def request(path: str = "/graphql", method: str = "POST", kind: str = "http", **headers: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": kind, "method": method, "path": path, "query_string": query.encode(), "headers": pairs}


def get(path: str, **headers: str) -> dict[str, Any]:
    return request(path, "GET", **headers)


@pytest.mark.parametrize(
    "scope",
    [
        request(**OWN),
        request(host="localhost:3000"),  # curl
        request(host="[::1]:3000", origin="http://[::1]:3000"),
        request(host="127.0.0.1"),
        request(host="LOCALHOST:8080", origin="http://localhost:8080"),  # a forwarded port
        request(host="dagster.example.com", origin="https://dagster.example.com"),
        request(host="dagster.example.com", origin="https://dagster.example.com:8443"),  # a proxy that drops the port
        request(host="eu.churn.example.com."),
        request("/graphql", kind="websocket", **OWN),
        request("/graphql", kind="websocket", host="localhost:3000"),
        get("/runs/1", **FOREIGN, **LINK),  # a link in an alert or a mail
        get("/runs/1", **FOREIGN | {"sec-fetch-site": "same-site"}, **LINK),  # a link in MLflow
        get("/assets", host="127.0.0.1:3000", **{"sec-fetch-site": "none"}, **LINK),  # a bookmark
        get("/server_info", host="10.0.0.7:3000"),  # a load balancer's health check
        get(f"/graphql?query={quote('{ version }')}", **OWN),
        get(f"/graphql?query={quote('query a { version } query b { version }')}", **OWN),
        get("/graphql?query=%7B", **OWN),
    ],
)
def test_dagsters_own_pages_links_to_them_and_commands_pass(scope: dict[str, Any]) -> None:
    assert GUARD.refusal(scope) is None


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        (request(host="evil.example"), "'evil.example'"),  # a name that leads to this machine
        (request(host="evil.example:3000", origin="http://evil.example:3000"), "CHURN_ALLOWED_HOSTS"),
        (request(host="127.0.0.1.evil.example"), "host name"),
        (request(host="localhost.evil.example"), "host name"),
        (request(host="churn.example.com"), "host name"),  # the pattern wants a name before it
        (request(host="0.0.0.0:3000"), "host name"),
        (request(host="127.0.0.1:3000@evil.example"), "host name"),
        (request(host="[::1"), "host name"),
        (request(), "host name"),
        (get("/server_info/../graphql", host="evil.example"), "host name"),
        (request("/graphql", kind="websocket", host="evil.example"), "host name"),
        (request(**FOREIGN), "another site"),
        (request(**FOREIGN, **LINK), "another site"),  # a form that is sent
        (request(**FOREIGN | {"sec-fetch-site": "same-site"}), "another site"),  # another port of this machine
        (request(host="127.0.0.1:3000", origin="https://evil.example"), "another site"),  # a browser without sec-fetch
        (request(host="127.0.0.1:3000", origin="null"), "another site"),
        (request(host="127.0.0.1:3000", origin="http://127.0.0.1:8888"), "another site"),
        (request(host="127.0.0.1:3000", origin="http://[::1"), "another site"),
        (request(host="127.0.0.1:3000", origin="https://127.0.0.1:3000@evil.example"), "another site"),
        (request("/graphql", kind="websocket", host="127.0.0.1:3000", origin="https://evil.example"), "another site"),
        (request("/graphql", kind="websocket", **FOREIGN, **LINK), "another site"),
        (get("/runs/1", **FOREIGN, **LINK | {"sec-fetch-dest": "iframe"}), "another site"),
        (
            get(f"/graphql?query={quote(MUTATION)}", **FOREIGN, **{"sec-fetch-mode": "no-cors"}),
            "another site",
        ),  # an image
        (get(f"/graphql?query={quote(MUTATION)}", **FOREIGN, **LINK), "by GET"),  # a link that somebody clicks
        (get(f"/graphql?query={quote(MUTATION)}", **OWN), "by GET"),  # a picture in our own page's Markdown
        (request(f"/graphql?query={quote(MUTATION)}", "HEAD", host="localhost"), "by GET"),
        (get(f"/graphql/?query={quote(MUTATION)}", **OWN), "by GET"),
        (get(f"/dagster/graphql?query={quote(MUTATION)}", **OWN), "by GET"),
        (get(f"/graphql?query=%7Bversion%7D&query={quote(MUTATION)}", **OWN), "by GET"),
        (get(f"/graphql?query={quote('query a { version } ' + MUTATION)}&operationName=b", **OWN), "by GET"),
        (get(f"/graphql?query={quote('subscription { a }')}", **OWN), "by GET"),
    ],
)
def test_requests_of_other_sites_and_under_other_names_are_refused(scope: dict[str, Any], part: str) -> None:
    assert part in (GUARD.refusal(scope) or "")


def test_a_refusal_is_answered_and_never_reaches_dagster() -> None:
    def answered(scope: dict[str, Any]) -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        asyncio.run(GUARD(scope, receive, send))
        return sent

    start, body = answered(request(host="evil.example"))
    assert (start["status"], b"evil.example" in body["body"]) == (403, True)
    assert answered(request(kind="websocket", **FOREIGN))[0]["type"] == "websocket.close"
    start, body = answered(request(**OWN))
    assert (start["status"], body["body"]) == (200, b"Dagster")
