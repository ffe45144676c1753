"""Dagster's own webserver behind a guard: ``python -m orchestration.webserver``.

Dagster's webserver has no users and checks neither ``Host`` nor ``Origin``: a page of any site that somebody opens
could launch a job through their browser, or read everything under a host name that it lets point to this machine. The
guard lets three kinds of requests through: those of Dagster's own pages, those of no page (``curl``, a bookmark), and
links from elsewhere that open a page.
"""

import argparse
from collections.abc import Sequence
from fnmatch import fnmatch
from urllib.parse import SplitResult, parse_qs, urlsplit

import graphql
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from churn.deployment.settings import load_settings

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNGUARDED = "/server_info"  # versions only, for health checks, which address the machine by its number
_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _MAX_OVERFLOW = 15_000, 3600, 20  # as dagster-webserver


class Guard:
    """ASGI middleware that refuses requests to untrusted host names, and of other sites' pages.

    ``allowed_hosts`` are host names, or patterns with ``*``, trusted beside loopback.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._allowed = [name.strip().lower() for name in allowed_hosts if name.strip()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with status 403; a WebSocket is closed before it opens."""
        why = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if why is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        else:
            await PlainTextResponse(f"{why}\n", status_code=403)(scope, receive, send)

    def refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused, or ``None``."""
        headers, path = Headers(scope=scope), scope["path"].rstrip("/")
        host, method = headers.get("host", ""), scope.get("method", "GET")  # a WebSocket has no method
        if path == _UNGUARDED and method in ("GET", "HEAD"):
            return None
        if (name := _hostname(f"//{host}")) not in _LOOPBACK and not self._is_allowed(name):
            remedy = "whoever runs the webserver can add it to CHURN_ALLOWED_HOSTS"
            return f"Dagster is not served under the host name {name[:80]!r}; {remedy}"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        is_foreign = site not in ("same-origin", "none") or (origin is not None and not self._is_own(origin, host))
        opens_page = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if is_foreign and not (scope["type"] == "http" and method in ("GET", "HEAD") and opens_page):
            return "a page of another site sent this request; open Dagster's own page and repeat it there"
        if path.endswith("/graphql") and scope["type"] == "http" and method != "POST" and _changes(scope):
            return "GraphQL by GET may only query; send mutations by POST"
        return None

    def _is_allowed(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self._allowed)

    def _is_own(self, origin: str, host: str) -> bool:
        """Return whether an origin is of the pages served here; a proxy in front may serve another port."""
        return _split(origin).netloc.lower() == host.lower() or self._is_allowed(_hostname(origin))


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _hostname(url: str) -> str:
    return (_split(url).hostname or "").rstrip(".")


def _changes(scope: Scope) -> bool:
    """Return whether a GraphQL query in a URL is anything but a query; Dagster answers what cannot be parsed."""
    for query in parse_qs(scope["query_string"].decode("latin-1")).get("query", []):
        try:
            document = graphql.parse(query)
        except graphql.GraphQLError:
            continue
        operations = [one for one in document.definitions if isinstance(one, graphql.OperationDefinitionNode)]
        if any(one.operation != graphql.OperationType.QUERY for one in operations):
            return True
    return False


def main(argv: Sequence[str] | None = None) -> None:
    """Serve Dagster's UI until interrupted."""
    parser = argparse.ArgumentParser(prog="orchestration.webserver", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--workspace", required=True, help="workspace.yaml that names the code locations")
    chosen = parser.parse_args(argv)
    allowed = (load_settings().churn_allowed_hosts or "").split(",")

    import uvicorn  # and Dagster: seconds, which help and errors do without
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._utils.interrupts import setup_interrupt_handlers
    from dagster._utils.log import configure_loggers
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    configure_loggers(formatter="colored", log_level="INFO")
    setup_interrupt_handlers()
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _MAX_OVERFLOW)
        with WorkspaceProcessContext(instance, WorkspaceFileTarget([chosen.workspace]), __version__) as context:
            app = Guard(create_app_from_workspace_process_context(context), allowed)
            uvicorn.run(app, host=chosen.host, port=chosen.port, log_level="warning")


if __name__ == "__main__":
    main()
