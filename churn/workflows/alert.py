"""Sending alerts: from where they wait in PostgreSQL to people, through Apprise.

A receiver's URL holds secrets. It stays in memory: PostgreSQL and logs have its schema and a fingerprint, and whatever
Apprise and its HTTP client log is kept back.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from churn.database.incidents import Alert, Incidents
from churn.errors import UsageError

if TYPE_CHECKING:
    from apprise import NotifyBase, NotifyType

MAX_THREADS = 8
URL_DEFAULTS = {"cto": 10, "rto": 30, "overflow": "truncate", "redirect": "no"}
"""Of Apprise's URL parameters, what holds unless a URL says otherwise: seconds to connect and to wait for an answer;
no second message for what does not fit; no redirect, which would make an empty GET of the message."""

_log = logging.getLogger(__name__)
_SCHEMA = re.compile(r"[a-z][a-z0-9]{0,19}(?=://)", re.IGNORECASE)
_STATUS = re.compile(r"\berror=(\d{3})\b")
_REASONS = {
    "timed out": "no answer in time",
    "refused": "connection refused",
    "failed to resolve": "host name not found",
    "certificate": "certificate not accepted",
    "connection aborted": "connection broken off",
    "authenticat": "login refused",
}


@dataclass(frozen=True)
class Receiver:
    """Somebody who is alerted.

    Attributes:
        name: Schema and fingerprint of the URL: the same for the same URL, and no secret.
    """

    name: str
    _service: "NotifyBase" = field(repr=False)
    _groups_by_incident: bool = False

    def send(self, alert: Alert) -> str | None:
        """Send one alert; return what went wrong, or ``None`` when it was taken. Never raises.

        What a receiver gets twice bears the same numbers twice.
        """
        from apprise import NotifyFormat

        if self._groups_by_incident:
            key = f"churn incident {alert.incident_id} of {alert.opened_at.isoformat()}"
            self._service.dedup = key  # type: ignore[attr-defined]
        with _kept_back() as heard:
            try:
                is_taken = self._service.notify(
                    title=f"[churn] {alert.title}",
                    body=f"Incident {alert.incident_id}, alert {alert.alert_id}\n{alert.body}",
                    notify_type=_colour(alert),
                    body_format=NotifyFormat.TEXT,
                )
            except Exception as error:  # noqa: BLE001 over a hundred services' code; what it says may hold the URL
                return f"failed with {type(error).__name__}"
        return None if is_taken else _reason(heard)


@dataclass(frozen=True)
class Receivers:
    """All who are alerted, each once."""

    each: tuple[Receiver, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Receivers":
        """Read Apprise URLs, separated by white space.

        Raises:
            UsageError: If one is not such a URL; names its position and schema, never the URL.
        """
        opened = [_open(url, position) for position, url in enumerate(text.split(), start=1)]
        return cls(tuple({receiver.name: receiver for receiver in opened}.values()))

    @property
    def names(self) -> list[str]:
        return [receiver.name for receiver in self.each]


@dataclass(frozen=True)
class Delivered:
    """How deliveries went.

    Attributes:
        n_sent: Alerts that receivers took.
        n_failed: Attempts that failed; each is made again later.
        n_waiting: Alerts that these receivers have not got yet.
    """

    n_sent: int
    n_failed: int
    n_waiting: int


def deliver(incidents: Incidents, receivers: Receivers, now: datetime, budget_s: float) -> Delivered:
    """Send what is due to every receiver, to each in a thread of its own, so that none waits for a slow one.

    Any number of processes may do so at once: no alert is sent by two. A receiver that fails is left alone until
    the next call.

    Args:
        budget_s: No attempt begins later; one that has begun takes at most some 40 s more (``URL_DEFAULTS``).
    """
    started = time.monotonic()

    def clock() -> datetime:
        return now + timedelta(seconds=time.monotonic() - started)

    until = now + timedelta(seconds=budget_s)
    n_sent = n_failed = 0
    if receivers.each:
        with ThreadPoolExecutor(min(MAX_THREADS, len(receivers.each))) as pool:
            sent = pool.map(lambda receiver: _deliver_to(receiver, incidents, clock, until), receivers.each)
            for n_taken, is_failed in sent:
                n_sent, n_failed = n_sent + n_taken, n_failed + is_failed
    return Delivered(n_sent, n_failed, incidents.count_undelivered(receivers.names))


def _deliver_to(
    receiver: Receiver, incidents: Incidents, clock: Callable[[], datetime], until: datetime
) -> tuple[int, bool]:
    """Return how many alerts one receiver took, and whether it failed to take the last."""

    def send(alert: Alert) -> str | None:
        error = receiver.send(alert)
        what = f"alert {alert.alert_id} of incident {alert.incident_id} ({alert.event})"
        if error is None:
            _log.info("%s took %s", receiver.name, what)
        else:
            _log.warning("%s did not take %s: %s; it is tried again", receiver.name, what, error)
        return error

    n_sent = 0
    while clock() < until:
        is_taken = incidents.deliver_next(receiver.name, clock, send)
        if not is_taken:
            return n_sent, is_taken is False
        n_sent += 1
    return n_sent, False


def _open(url: str, position: int) -> Receiver:
    """Open a receiver; nothing is sent."""
    import apprise

    _keep_back()
    asset = apprise.AppriseAsset(app_id="churn", app_desc="churn scoring", app_url="")
    parts = apprise.plugins.url_to_dict(url)  # type: ignore[no-untyped-call]
    service = None
    if parts:
        # PagerDuty keeps incidents of its own: tell it which one an alert opens, updates or ends.
        groups = parts["schema"] == "pagerduty" and "dedup" not in parts
        more = {"action": "map"} if groups else {}
        service = apprise.Apprise.instantiate({**URL_DEFAULTS, **more, **parts}, asset=asset)
    if service is None:
        schema = _SCHEMA.match(url)
        kind = f"of schema {schema[0].lower()!r}" if schema else "without a schema"
        raise UsageError(
            f"CHURN_ALERT_URLS: number {position}, {kind}, is not a URL that Apprise can send to (it is not repeated "
            "here, since it may hold a secret); https://appriseit.com/services lists their forms"
        )
    fingerprint = hashlib.sha256(url.encode()).hexdigest()[:12]
    return Receiver(f"{parts['schema']}-{fingerprint}", service, _groups_by_incident=groups)


def _colour(alert: Alert) -> "NotifyType":
    from apprise import NotifyType

    if alert.event == "resolved":
        return NotifyType.SUCCESS
    return NotifyType.FAILURE if alert.severity == "error" else NotifyType.WARNING


def _reason(heard: Sequence[str]) -> str:
    """Tell why an alert was not taken, in words of our own: those of Apprise may hold the URL."""
    text = "\n".join(heard)
    status = _STATUS.search(text)
    if status:
        return f"HTTP {status[1]}"
    return next((ours for theirs, ours in _REASONS.items() if theirs in text.lower()), "not taken, for no known reason")


_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def _is_ours(record: logging.LogRecord) -> bool:
    """Keep a record from being logged when it may hold a receiver's URL; listen to it instead."""
    heard, said = _heard.get(), record.getMessage()
    # Among the rest is the alert's own text, which may name such reasons, too.
    if heard is not None and (record.levelno >= logging.WARNING or "Exception" in said[:40]):
        heard.append(said)
    return heard is None and record.name != "apprise"


def _keep_back() -> None:
    """Put the filter before all that logs URLs; twice is once."""
    for name in ("apprise", "urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_is_ours)
    logging.getLogger("apprise").setLevel(logging.DEBUG)  # the reasons for failures are told at that level


@contextmanager
def _kept_back() -> Iterator[list[str]]:
    """Collect what this thread would log of a receiver."""
    heard: list[str] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)
