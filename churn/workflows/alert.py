"""Alerting: deliver the alerts that are queued in PostgreSQL through Apprise.

A receiver's URL contains secrets. It stays in memory: PostgreSQL and logs contain its schema and a fingerprint, and
what Apprise and its HTTP client log is suppressed.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from churn.database.incidents import Alert, Incidents
from churn.errors import UsageError
from churn.monitoring.incidents import RUNBOOK
from churn.wording import as_markdown

if TYPE_CHECKING:
    from apprise import NotifyBase

MAX_THREADS = 8
URL_DEFAULTS = {"cto": 10, "rto": 30, "overflow": "truncate", "redirect": "no"}
"""Defaults of Apprise's URL parameters: timeouts in seconds to connect and to read; a text that does not fit into one
message is truncated; no redirect, which would turn the message into an empty GET."""

logger = logging.getLogger(__name__)

_SCHEMA = re.compile(r"[a-z][a-z0-9]{0,19}(?=://)", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s,;]+(?=(?:[a-z][\w-]*=)?[a-z][a-z0-9]*://)|\s+", re.IGNORECASE)
_NAMED = re.compile(r"([a-z][\w-]{0,39})=(?=[a-z][a-z0-9]*://)", re.IGNORECASE)
# Services that read every text as Markdown; Apprise escapes it for the others.
_MARKDOWN = ("discord", "mmost", "mmosts", "rocket", "rockets", "zulip", "msteams", "workflow", "workflows", "gchat")
_FIELDS = {"json": "payload_extras", "jsons": "payload_extras", "pagerduty": "details"}
_STATUS = re.compile(r"\berror=(\d{3})\b")
_REASONS = {
    "timed out": "no answer in time", "refused": "connection refused", "failed to resolve": "host name not found",
    "certificate": "certificate not accepted", "connection aborted": "connection broken off",
    "authenticat": "login refused",
}  # fmt: skip


@dataclass(frozen=True)
class Links:
    """What messages name beside their incident: the environment, and where to read on."""

    environment: str = ""
    dagster_ui: str = ""
    runbook: str = RUNBOOK

    def fields(self, alert: Alert) -> dict[str, Any]:
        """Return an alert in fields, for receivers that are programs."""
        runs = (alert.reported[one].dagster_run_id for one in sorted(alert.members) if one in alert.reported)
        run, ui = next(filter(None, runs), None), self.dagster_ui.rstrip("/")
        urls = {"runbook": f"{self.runbook}#{alert.kind}", **({"run": f"{ui}/runs/{run}"} if ui and run else {})}
        named = {name: getattr(alert, name) for name in ("incident_id", "alert_id", "event", "kind", "severity")}
        resolved_at = alert.resolved_at and alert.resolved_at.isoformat()
        times = {"since": alert.opened_at.isoformat(), "resolved_at": resolved_at}
        return {"environment": self.environment, **named, "members": sorted(alert.members), **times, "urls": urls}

    def text(self, alert: Alert) -> str:
        """Return an alert's text; the links are first, since a receiver may truncate it."""
        first, since = f"Incident {alert.incident_id}, alert {alert.alert_id}", f"{alert.opened_at:%Y-%m-%d %H:%M} UTC"
        is_over, urls = alert.event == "resolved", self.fields(alert)["urls"]
        state = f"Well since {alert.resolved_at:%Y-%m-%d %H:%M} UTC; was wrong since" if is_over else "Since"
        to_do = [] if is_over else [f"What to do: {urls['runbook']}"]
        run = [f"Run: {urls['run']}"] if "run" in urls else []
        return "\n".join([first, f"{state} {since}", *to_do, "Full list: run churn report", *run, "", alert.body])


@dataclass(frozen=True)
class Receiver:
    """A service that alerts are sent to; its name is the one given, or the URL's schema and fingerprint."""

    name: str
    _service: "NotifyBase" = field(repr=False)
    _groups_by_incident: bool = False
    _is_markdown: bool = False
    _links: Links = Links()
    _fields: str = ""  # the service's attribute of further fields; empty if it takes none
    _own_fields: Mapping[str, Any] = field(default_factory=dict, repr=False)  # those of the URL

    def _as_text(self, text: str) -> str:
        """Return what a service shows as this text; Markdown would make links of it, and call people by ``@``."""
        lines = text.splitlines() if self._is_markdown else []
        return "\n".join(as_markdown(line).replace("@", "@\u200b") for line in lines) or text

    def send(self, alert: Alert) -> str | None:
        """Send one alert; returns the error, or ``None`` if the service accepted it. Never raises.

        An alert that a receiver gets twice has the same numbers twice.
        """
        from apprise import NotifyFormat, NotifyType

        if self._groups_by_incident:
            key = f"churn incident {alert.incident_id} of {alert.opened_at.isoformat()}"
            self._service.dedup = key  # type: ignore[attr-defined]
        if self._fields:
            setattr(self._service, self._fields, {**self._links.fields(alert), **self._own_fields})
        name = f"churn {self._links.environment}".strip()
        colour = NotifyType.FAILURE if alert.severity == "error" else NotifyType.WARNING
        with _suppressed_logs() as messages:
            try:
                is_accepted = self._service.notify(
                    title=f"[{name}] {self._as_text(alert.title)}",
                    body=self._as_text(self._links.text(alert)),
                    notify_type=NotifyType.SUCCESS if alert.event == "resolved" else colour,
                    body_format=NotifyFormat.TEXT,
                )
            except Exception as error:  # noqa: BLE001 over a hundred services' code; its message may contain the URL
                return f"failed with {type(error).__name__}"
        return None if is_accepted else _reason(messages)


class Receivers(dict[str, Receiver]):
    """Receivers by name, and what is wrong with those that alerts cannot be sent to, which stop no other."""

    def __init__(self) -> None:
        self.wrong: list[str] = []


def parse_receivers(text: str, links: Links | None = None) -> Receivers:
    """Parse Apprise URLs, separated by white space or commas, each perhaps with a name before it (``ops=slack://…``).

    Returns each receiver once, by its name. One that is not such a URL, or has the name of another, is described by its
    position and schema, never the URL, which the log says once.
    """
    receivers = Receivers()
    given = [(one, _NAMED.match(one)) for one in dict.fromkeys(_BETWEEN.split(text.strip(" \t\r\n,;"))) if one]
    for position, (one, match) in enumerate(given, start=1):
        try:
            opened = replace(_open(one[match.end() :] if match else one, position), _links=links or Links())
            opened = replace(opened, name=match[1]) if match else opened
            if match and opened.name in receivers:
                raise UsageError(f"CHURN_ALERT_URLS has several receivers named {opened.name}; rename one")
            receivers[opened.name] = opened
        except UsageError as error:
            receivers.wrong.append(str(error))
            _warn_once(str(error))
    return receivers


@lru_cache
def _warn_once(problem: str) -> None:
    logger.warning("%s; it gets no alerts, the other receivers do", problem)


@dataclass(frozen=True)
class Delivered:
    """The numbers of alerts that were sent, of attempts that failed and will be retried, and of alerts still queued."""

    n_sent: int
    n_failed: int
    n_waiting: int


def deliver(incidents: Incidents, receivers: Mapping[str, Receiver], budget_s: float) -> Delivered:
    """Send the alerts that are due, to each receiver in a separate thread, so that a slow one delays no other.

    Safe in concurrent processes: no alert is sent by two. A receiver that fails is not tried again until the next call.
    No attempt begins after ``budget_s``; one that has begun takes at most about 40 s more (``URL_DEFAULTS``).
    """
    until_s = time.monotonic() + budget_s
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        results = list(pool.map(lambda receiver: _deliver_to(receiver, incidents, until_s), receivers.values()))
    n_sent, n_failed = sum(n for n, _ in results), sum(is_failed for _, is_failed in results)
    return Delivered(n_sent, n_failed, sum(n for name, n in incidents.undelivered().items() if name in receivers))


def drop_waiting(incidents: Incidents, receivers: Mapping[str, Receiver], name: str) -> int:
    """Drop the alerts that wait for a receiver that is gone; returns their number.

    Raises ``UsageError`` if the receiver is still configured, or none waits for one of this name.
    """
    if name in receivers:
        raise UsageError(f"receiver {name!r} is in CHURN_ALERT_URLS and will get its alerts; remove it there first")
    return incidents.drop_undelivered(name)


def send_test(receivers: Mapping[str, Receiver], now: datetime) -> Iterator[tuple[str, str | None]]:
    """Send each receiver a test message; yields its name with the error, or ``None`` if it was accepted."""
    body = "No incident: somebody ran churn alerts --test. Alerts reach this receiver."
    alert = Alert(0, 0, "opened", "warning", "Test message", body, now, None, "alerts-are-stuck", {}, {})
    for name, receiver in receivers.items():
        yield name, receiver.send(alert)


def _deliver_to(receiver: Receiver, incidents: Incidents, until_s: float) -> tuple[int, bool]:
    """Return how many alerts one receiver accepted, and whether the last attempt failed."""

    def send(alert: Alert) -> str | None:
        error = receiver.send(alert)
        name = f"alert {alert.alert_id} of incident {alert.incident_id} ({alert.event})"
        if error is None:
            logger.info("%s accepted %s", receiver.name, name)
        else:
            logger.warning("%s did not accept %s: %s; it will be retried", receiver.name, name, error)
        return error

    n_sent = 0
    while time.monotonic() < until_s:
        is_accepted = incidents.deliver_next(receiver.name, send)
        if not is_accepted:
            return n_sent, is_accepted is False
        n_sent += 1
    return n_sent, False


def _open(url: str, position: int) -> Receiver:
    import apprise

    for name in ("apprise", "urllib3.connectionpool", "urllib3.util.retry"):  # all that log URLs
        logging.getLogger(name).addFilter(_is_loggable)
    logging.getLogger("apprise").setLevel(logging.DEBUG)  # the reasons for failures are logged at that level
    asset = apprise.AppriseAsset(app_id="churn", app_desc="churn scoring", app_url="")
    parts = apprise.plugins.url_to_dict(url)  # type: ignore[no-untyped-call]
    service = None
    if parts:
        # PagerDuty manages incidents itself: the key names the one that an alert opens, updates or resolves.
        groups = parts["schema"] == "pagerduty" and "dedup" not in parts
        more = {"action": "map"} if groups else {}
        service = apprise.Apprise.instantiate({**URL_DEFAULTS, **more, **parts}, asset=asset)
    if service is None:
        schema = _SCHEMA.match(url)
        kind = f"of schema {schema[0].lower()!r}" if schema else "without a schema"
        raise UsageError(
            f"CHURN_ALERT_URLS: number {position}, {kind}, is not a URL that Apprise can send to (it is not repeated "
            "here, since it may contain a secret); https://appriseit.com/services lists their forms"
        )
    fingerprint, is_markdown = hashlib.sha256(url.encode()).hexdigest()[:12], parts["schema"] in _MARKDOWN
    name, fields = f"{parts['schema']}-{fingerprint}", _FIELDS.get(parts["schema"], "")
    own = dict(getattr(service, fields)) if fields else {}
    return Receiver(name, service, groups, is_markdown, _fields=fields, _own_fields=own)


def _reason(messages: Sequence[str]) -> str:
    """Return why an alert was not accepted, without quoting Apprise, whose messages may contain the URL."""
    text = "\n".join(messages)
    if status := _STATUS.search(text):
        return f"HTTP {status[1]}"
    return next((reason for part, reason in _REASONS.items() if part in text.lower()), "not accepted, reason unknown")


_suppressed: ContextVar[list[str] | None] = ContextVar("suppressed", default=None)


def _is_loggable(record: logging.LogRecord) -> bool:
    """Suppress a log record that may contain a receiver's URL, and collect it instead."""
    messages, message = _suppressed.get(), record.getMessage()
    # Other records contain the alert's text, which may name such reasons, too.
    if messages is not None and (record.levelno >= logging.WARNING or "Exception" in message[:40]):
        messages.append(message)
    return messages is None and record.name != "apprise"


@contextmanager
def _suppressed_logs() -> Iterator[list[str]]:
    """Collect this thread's log records of a receiver instead of logging them."""
    token = _suppressed.set(messages := list[str]())
    try:
        yield messages
    finally:
        _suppressed.reset(token)
