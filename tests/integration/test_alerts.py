"""At stake: every alert reaches every receiver once and in order, be it down, slow or failing, and no URL leaks."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Lock, Thread
from typing import Any

import pytest

from churn.cli.main import main as churn
from churn.database.connection import OWNER, create_engine
from churn.database.incidents import LONGEST_RETRY_S, Incidents
from churn.deployment.services import Deployment
from churn.monitoring.incidents import Condition, Mark
from churn.workflows.alert import Delivered, Links, Receiver, deliver, parse_receivers
from tests.support import ROOT
from tests.support.children import bound
from tests.support.site import Run, Site, wait_until

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
"""After any retry."""
Receivers = dict[str, Receiver]
SECRET = "s3cr3t-t0ken"  # noqa: S105
DRIFTED = "input_drifted"
KINDS = [DRIFTED, "data_stale", "variants_failed"]


class WebHook:
    """A receiver of alerts that answers as it is told, and remembers what it took.

    Attributes:
        answers: Seconds to wait and status, for each request in turn; then 200 at once.
        seen: The titles of all requests.
        taken: The messages of those it answered with 200.
    """

    def __init__(self, port: int = 0) -> None:
        hook = self
        self.answers: list[tuple[float, int]] = []
        self.seen: list[str] = []
        self.taken: list[Mapping[str, Any]] = []
        self._lock = Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with hook._lock:
                    hook.seen.append(message.get("title", ""))
                    delay, status = hook.answers.pop(0) if hook.answers else (0, 200)
                time.sleep(delay)
                if status == 200:
                    with hook._lock:
                        hook.taken.append(message)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/")
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def titles(self) -> list[str]:
        return [message["title"].removeprefix("[churn] ") for message in self.taken]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def url_of(port: int) -> str:
    return f"json://user:{SECRET}@127.0.0.1:{port}/{SECRET}?+X-Key={SECRET}"


@pytest.fixture
def hook() -> Iterator[WebHook]:
    hook = WebHook()
    yield hook
    hook.stop()


class DatedIncidents(Incidents):
    """Incidents in a database that lives at the time last named."""

    def at(self, now: datetime) -> "DatedIncidents":
        clock = f"CREATE OR REPLACE FUNCTION churn_now() RETURNS timestamptz LANGUAGE sql RETURN timestamptz '{now}'"
        with create_engine(self._url, role=OWNER).begin() as connection:
            connection.exec_driver_sql(clock)
        return self


@pytest.fixture
def incidents(deployment: Deployment) -> DatedIncidents:
    return DatedIncidents(deployment.database)


@pytest.fixture
def receivers(hook: WebHook) -> Receivers:
    return parse_receivers(url_of(hook.port))


def stale(*variants: str) -> Condition:
    return Condition("data_stale", dict.fromkeys(variants, "the file is 9 days old"))


def drifted(*variants: str) -> Condition:
    return Condition(DRIFTED, dict.fromkeys(variants, "PSI 0.31 of deposits_30d"))


def due(site: Site) -> list[tuple[Any, ...]]:
    query = "SELECT n_attempts, last_error, next_attempt_at FROM alert_deliveries WHERE delivered_at IS NULL"
    return site.rows(site.churn, query)


def test_two_that_look_at_once_open_one_incident(site: Site, deployment: Deployment):
    together = Barrier(6, timeout=20)
    failed = [Condition("run_failed", {"6f1c": "no memory"}, f"job {number}") for number in range(10)]

    def look(_: int) -> int:
        mine = Incidents(deployment.database)
        mine.open()  # connected, so that all begin at the same time
        n_changes = 0
        for number in range(1, 11):
            together.wait()
            n_changes += len(mine.reconcile(failed[:number], ["run_failed"], ["json-1"]))
        return n_changes

    with ThreadPoolExecutor(6) as pool:
        n_changes = sum(pool.map(look, range(6)))

    assert n_changes == 10
    assert site.rows(site.churn, "SELECT count(*) FROM incidents") == [(10,)]
    assert site.rows(site.churn, "SELECT event, count(*) FROM alerts GROUP BY event") == [("opened", 10)]


def test_what_comes_back_after_it_was_over_is_a_new_incident(site: Site, incidents: DatedIncidents):
    hours = [NOW + timedelta(hours=hour) for hour in range(4)]
    incidents.at(hours[0]).reconcile([drifted("geography-us", "geography-eu")], KINDS, [])
    assert incidents.at(hours[1]).reconcile([drifted("geography-eu")], KINDS, []) == []
    assert [dict(found.members) for found in incidents.open()] == [{"geography-eu": "PSI 0.31 of deposits_30d"}]
    ended = incidents.at(hours[2]).reconcile([], KINDS, [])
    again = incidents.at(hours[3]).reconcile([drifted("geography-us")], KINDS, [])

    assert [(change.event, change.incident_id) for change in ended + again] == [("resolved", 1), ("opened", 2)]
    query = "SELECT opened_at, updated_at, resolved_at FROM incidents ORDER BY incident_id"
    oldest, newest = site.rows(site.churn, query)
    assert newest == (hours[3], hours[3], None)
    assert oldest == tuple(hours[:3])


def test_no_incident_is_written_without_its_alerts(site: Site, incidents: DatedIncidents):
    with pytest.raises(ValueError, match="NUL"):
        incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, ["no receiver\x00"])

    assert incidents.open() == []
    changes = incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, ["json-1"])
    assert [change.event for change in changes] == ["opened"]


def test_a_receiver_that_is_down_gets_the_whole_story_once_and_in_order_when_it_is_up(
    site: Site, incidents: DatedIncidents
):
    gone = WebHook()
    gone.stop()
    receivers = parse_receivers(url_of(gone.port))
    incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, receivers)
    assert deliver(incidents.at(NOW), receivers, 10) == Delivered(n_sent=0, n_failed=1, n_waiting=1)
    [(n_attempts, error, _)] = due(site)
    assert (n_attempts, error) == (1, "connection refused")
    incidents.at(LATER).reconcile([drifted("geography-us", "geography-eu")], KINDS, receivers)
    incidents.at(LATER).reconcile([], KINDS, receivers)
    assert deliver(incidents.at(LATER), receivers, 10).n_failed == 1

    hook = WebHook(gone.port)
    # The second and third are due, and wait for the first.
    site.rows(site.churn, "UPDATE alert_deliveries SET next_attempt_at = '2026-03-03' WHERE alert_id = 1")
    assert deliver(incidents.at(LATER), receivers, 10).n_sent == 0
    sent = deliver(incidents.at(NOW + timedelta(days=2)), receivers, 10)
    again = deliver(incidents.at(NOW + timedelta(days=3)), receivers, 10)
    hook.stop()

    assert (sent, again.n_sent) == (Delivered(n_sent=3, n_failed=0, n_waiting=0), 0)
    assert hook.titles == [
        "Input drifted: 1 variant",
        "Input drifted: 1 more variant, 2 in total",
        "Resolved: Input drifted: 2 variants",
    ]
    assert [message["type"] for message in hook.taken] == ["warning", "warning", "success"]
    assert [message["message"].splitlines()[0] for message in hook.taken] == [
        "Incident 1, alert 1",
        "Incident 1, alert 2",
        "Incident 1, alert 3",
    ]


def test_an_answer_that_is_not_200_is_no_delivery_and_is_tried_again(
    site: Site, incidents: DatedIncidents, receivers: Receivers, hook: WebHook
):
    statuses = [500, 302, 401, 500]
    hook.answers = [(0, status) for status in statuses]
    incidents.at(NOW).reconcile([drifted("geography-us"), stale("geography-us")], KINDS, receivers)

    hours = [NOW + timedelta(hours=hour) for hour in range(6)]
    for now, status in zip(hours, statuses, strict=False):
        # Left alone after a failure: the other alert is not even tried.
        assert deliver(incidents.at(now), receivers, 10) == Delivered(n_sent=0, n_failed=1, n_waiting=2)
        assert f"HTTP {status}" in [error for _, error, _ in due(site)]
    assert deliver(incidents.at(hours[4]), receivers, 10).n_sent == 2
    assert deliver(incidents.at(hours[5]), receivers, 10).n_sent == 0
    assert sorted(hook.titles) == ["Data is stale or a stand-in: 1 variant", "Input drifted: 1 variant"]
    assert len(hook.seen) == 6


@pytest.mark.slow
def test_a_slow_receiver_gets_it_once_and_holds_up_nobody_else(incidents: DatedIncidents, hook: WebHook):
    slow = WebHook()
    slow.answers = [(8, 200)]
    receivers = parse_receivers(f"{url_of(slow.port)}\n{url_of(hook.port)}")
    incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, receivers)
    with ThreadPoolExecutor(1) as pool:
        delivering = pool.submit(deliver, incidents.at(NOW), receivers, 20)
        wait_until(lambda: bool(hook.taken) and bool(slow.seen))
        assert not slow.taken
        # Meanwhile another process delivers, too, and finds nothing to do.
        assert deliver(incidents.at(LATER), receivers, 20).n_sent == 0
        assert delivering.result() == Delivered(n_sent=2, n_failed=0, n_waiting=0)
    assert deliver(incidents.at(LATER), receivers, 20).n_sent == 0
    slow.stop()

    assert (len(slow.seen), len(hook.seen)) == (1, 1)


def test_pauses_grow_up_to_a_quarter_of_an_hour_and_never_become_for_ever(
    site: Site, incidents: DatedIncidents, receivers: Receivers, hook: WebHook
):
    incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, receivers)
    hook.answers = [(0, 500)] * 2

    pauses = []
    for n_attempts in (0, 5000):
        query = "UPDATE alert_deliveries SET n_attempts = :n, next_attempt_at = :now"
        site.rows(site.churn, query, n=n_attempts, now=NOW)
        deliver(incidents.at(NOW), receivers, 10)
        [(_, _, next_attempt_at)] = due(site)
        pauses.append((next_attempt_at - NOW).total_seconds())

    assert 0 <= pauses[0] < 20
    assert 0 <= pauses[1] < LONGEST_RETRY_S + 5
    assert deliver(incidents.at(LATER), receivers, 10).n_sent == 1


def test_nothing_begins_after_the_budget_is_used_up(incidents: DatedIncidents, receivers: Receivers, hook: WebHook):
    incidents.at(NOW).reconcile([drifted("geography-us"), stale("geography-us")], KINDS, receivers)
    hook.answers = [(0.5, 200)]

    assert deliver(incidents.at(NOW), receivers, 0).n_sent == 0
    assert deliver(incidents.at(NOW), receivers, 0.3) == Delivered(n_sent=1, n_failed=0, n_waiting=1)
    # Without receivers nothing is sent, and what waits for a receiver that is configured no more is not counted.
    assert deliver(incidents.at(NOW), {}, 10) == Delivered(n_sent=0, n_failed=0, n_waiting=0)


DELIVER = """
import os, sys
import sqlalchemy as sa
from churn.workflows.alert import deliver, parse_receivers
from churn.database.incidents import Incidents
receivers = parse_receivers(os.environ["CHURN_ALERT_URLS"])
incidents = Incidents(sa.make_url(os.environ["CHURN_DATABASE_URL"]))
print("ready", flush=True)
sys.stdin.readline()
print(deliver(incidents, receivers, 60).n_sent)
"""


@contextmanager
def deliverer(deployment: Deployment, port: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to deliver, and does when it is sent a line."""
    database = deployment.database.render_as_string(hide_password=False)
    environment = os.environ | {"CHURN_ALERT_URLS": url_of(port), "CHURN_DATABASE_URL": database}
    command = [sys.executable, "-c", DELIVER]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(bound(command), cwd=ROOT, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def is_being_sent(site: Site) -> bool:
    """Whether somebody holds the lock of the one alert that waits."""
    query = "SELECT alert_id FROM alert_deliveries WHERE delivered_at IS NULL"
    waiting = site.rows(site.churn, query)
    return bool(waiting) and not site.rows(site.churn, f"{query} FOR UPDATE SKIP LOCKED")


def test_two_processes_that_deliver_at_once_send_nothing_twice_and_keep_the_order(
    deployment: Deployment, incidents: DatedIncidents, receivers: Receivers, hook: WebHook
):
    for wrong in ([], ["a"], ["a", "b"], []) * 2:
        members = dict.fromkeys(wrong, "bad")
        conditions = [Condition(kind, members) for kind in KINDS]
        incidents.at(NOW).reconcile(conditions, KINDS, receivers)
    hook.answers = [(0.03, 200)] * 100

    with deliverer(deployment, hook.port) as one, deliverer(deployment, hook.port) as other:
        assert line_of(one) == line_of(other) == "ready"
        go(one)
        go(other)
        n_sent = [int(line_of(one)), int(line_of(other))]

    numbers = [message["message"].splitlines()[0] for message in hook.taken]
    assert sum(n_sent) == len(numbers) == len(set(numbers)) == len(hook.seen) == 3 * 3 * 2
    assert min(n_sent) > 0
    by_incident: dict[str, list[int]] = {}
    for incident, _, alert in (number.partition(", alert ") for number in numbers):
        by_incident.setdefault(incident, []).append(int(alert))
    assert len(by_incident) == 6
    assert [alerts for alerts in by_incident.values() if alerts != sorted(alerts)] == []


def test_a_deliverer_killed_before_it_sends_loses_nothing(
    site: Site, deployment: Deployment, incidents: DatedIncidents
):
    # A listener whose queue is full: whoever connects waits, and has sent nothing.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        port = deaf.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), deliverer(deployment, port) as process:
            receivers = parse_receivers(url_of(port))
            incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, receivers)
            go(process)
            wait_until(lambda: is_being_sent(site))
            process.send_signal(signal.SIGKILL)
            process.wait()
    wait_until(lambda: not is_being_sent(site))

    hook = WebHook(port)
    sent = deliver(incidents.at(NOW), receivers, 10)
    hook.stop()

    assert (sent.n_sent, sent.n_waiting) == (1, 0)
    assert hook.titles == ["Input drifted: 1 variant"]


def test_what_is_sent_again_because_its_sender_died_bears_the_same_numbers(
    site: Site, deployment: Deployment, incidents: DatedIncidents, receivers: Receivers, hook: WebHook
):
    incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, receivers)
    hook.answers = [(1.5, 200)]
    with deliverer(deployment, hook.port) as process:
        go(process)
        wait_until(lambda: bool(hook.seen))
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not is_being_sent(site) and bool(hook.taken))

    assert deliver(incidents.at(NOW), receivers, 10).n_sent == 1
    first, second = hook.taken
    assert first == second
    assert first["message"].startswith("Incident 1, alert 1\n")


def test_no_url_is_in_the_database_nor_in_any_log(
    site: Site, incidents: DatedIncidents, receivers: Receivers, hook: WebHook, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    hook.answers = [(0, 500)]
    gone = parse_receivers(url_of(1))
    incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, receivers | gone)
    for now in (NOW, LATER):
        deliver(incidents.at(now), receivers, 10)
        deliver(incidents.at(now), gone, 10)

    assert "did not accept alert 1 of incident 1 (opened): HTTP 500; it will be retried" in caplog.text
    assert "did not accept alert 1 of incident 1 (opened): connection refused; it will be retried" in caplog.text
    stored = site.rows(site.churn, "SELECT d::text FROM alert_deliveries d UNION SELECT a::text FROM alerts a")
    assert SECRET not in f"{caplog.text}{stored}{receivers!r}"
    assert hook.titles == ["Input drifted: 1 variant"]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (f"slack://{SECRET}", "of schema 'slack'"),
        (f"nonsense://{SECRET}", "of schema 'nonsense'"),
        (SECRET, "without a schema"),
    ],
)
def test_a_bad_url_is_told_by_its_position_never_repeated_and_stops_no_other(
    bad: str, kind: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)

    receivers = parse_receivers(f"ops=json://127.0.0.1 {bad}")

    assert list(receivers) == ["ops"]
    [wrong] = receivers.wrong
    assert f"number 2, {kind}," in wrong
    assert f"{wrong}; it gets no alerts, the other receivers do" in caplog.text
    assert SECRET not in f"{wrong}{caplog.text}"


def test_a_receiver_is_known_by_its_url_alone_and_counts_once():
    one, other = url_of(8001), url_of(8002)

    names = list(parse_receivers(f" {one}\n{other}  {one} "))

    assert names == list(parse_receivers(f"{one} {other}"))
    assert len(set(names)) == 2
    assert all(name.startswith("json-") and len(name) == len("json-") + 12 for name in names)


def test_receivers_are_separated_by_spaces_lines_or_commas():
    one, other = url_of(8001), url_of(8002)
    both = list(parse_receivers(f"{one} {other}"))
    for between in (",", ", ", " ,", ";", "; ", "\n", ",\n", "\t", ",,", " \r\n "):
        assert list(parse_receivers(f"{one}{between}{other}{between}")) == both, between
    assert list(parse_receivers(f"ops={one},night={other}")) == ["ops", "night"]
    assert len(parse_receivers("mailto://u:p@example.com?to=a@example.com,b@example.com")) == 1


def test_what_waits_for_a_named_receiver_follows_its_name_to_another_url(
    site: Site, incidents: DatedIncidents, hook: WebHook
):
    wrong = parse_receivers(f"ops={url_of(1)}")
    incidents.at(NOW).reconcile([drifted("geography-us")], KINDS, wrong)
    assert deliver(incidents.at(NOW), wrong, 10).n_waiting == 1

    right = parse_receivers(f"ops={url_of(hook.port)}")

    assert list(wrong) == list(right) == ["ops"]
    assert deliver(incidents.at(LATER), right, 10) == Delivered(n_sent=1, n_failed=0, n_waiting=0)
    assert hook.titles == ["Input drifted: 1 variant"]


def test_what_waits_for_a_receiver_that_is_gone_can_be_dropped(
    site: Site, incidents: Incidents, run_main: Run, monkeypatch: pytest.MonkeyPatch
):
    incidents.reconcile([drifted("geography-us")], KINDS, ["gone", "ops"])
    monkeypatch.setenv("CHURN_ALERT_URLS", f"ops={url_of(1)} new={url_of(2)}")

    listed = run_main(churn, "alerts").out.splitlines()

    assert [line.split()[:3] for line in listed] == [
        ["1", "waiting", "gone"],
        ["0", "waiting", "new"],
        ["1", "waiting", "ops"],
    ]
    assert ["--drop" in line for line in listed] == [True, False, False]
    run_main(churn, "alerts", "--drop", "ops").require_one_line("'ops' is in CHURN_ALERT_URLS", "remove it", status=2)
    dropped, *_ = run_main(churn, "alerts", "--drop", "gone").out.splitlines()
    assert dropped == "dropped 1 alert that waited for gone"
    assert incidents.undelivered() == {"ops": 1}


def test_of_two_receivers_with_one_name_the_first_is_served_and_the_other_told_without_its_url():
    receivers = parse_receivers(f"ops={url_of(8001)} ops={url_of(8002)}")

    assert list(receivers) == ["ops"]
    assert receivers.wrong == ["CHURN_ALERT_URLS has several receivers named ops; rename one"]
    same = parse_receivers(f"ops={url_of(8001)} ops={url_of(8001)} night={url_of(8001)}")
    assert (list(same), same.wrong) == (["ops", "night"], [])


def test_a_message_names_environment_since_links_and_fields_and_its_end_what_was_wrong(
    site: Site, incidents: DatedIncidents, hook: WebHook
):
    links = Links("production", "https://dagster.example.com/", "https://docs.example.com/runbook")
    receivers = parse_receivers(f"{url_of(hook.port)}&:team=retention", links)
    failed = Condition("variants_failed", {"us": "no file; upload one"}, marks={"us": Mark(("A",), 0, "6f1c")})
    incidents.at(NOW).reconcile([failed], KINDS, receivers)
    assert deliver(incidents.at(NOW), receivers, 10).n_sent == 1
    worse = replace(failed, members={"us": "no rights; grant them"}, marks={"us": Mark(("B",), 0, "a0b7")})
    assert [one.event for one in incidents.at(NOW).reconcile([worse], KINDS, receivers)] == ["updated"]
    assert incidents.at(NOW).reconcile([worse], KINDS, receivers) == []
    incidents.at(LATER).reconcile([], KINDS, receivers)
    assert deliver(incidents.at(LATER), receivers, 10).n_sent == 2

    opened, updated, resolved = hook.taken
    run = "https://dagster.example.com/runs/"
    guide = "https://docs.example.com/runbook#variants_failed"
    assert opened["title"] == "[churn production] Scoring failed: 1 variant"
    assert opened["message"].splitlines() == [
        "Incident 1, alert 1", "Since 2026-03-02 06:00 UTC", f"What to do: {guide}",
        "Full list: run churn report", f"Run: {run}6f1c", "", "- us: no file; upload one",
    ]  # fmt: skip
    assert updated["message"].splitlines()[-2:] == ["- us: no rights; grant them", "  before: no file; upload one"]
    assert resolved["title"] == "[churn production] Resolved: Scoring failed: 1 variant"
    assert resolved["message"].splitlines() == [
        "Incident 1, alert 3", "Well since 2026-03-02 07:00 UTC; was wrong since 2026-03-02 06:00 UTC",
        "Full list: run churn report", f"Run: {run}a0b7", "", "It was:", "- us: no rights; grant them",
    ]  # fmt: skip
    expected = {"environment": "production", "incident_id": 1, "kind": "variants_failed", "severity": "error",
                "members": ["us"], "since": "2026-03-02T06:00:00+00:00", "team": "retention"}  # fmt: skip
    assert {name: opened[name] for name in expected} == expected
    assert (opened["event"], opened["resolved_at"]) == ("opened", None)
    assert (resolved["event"], resolved["resolved_at"]) == ("resolved", "2026-03-02T07:00:00+00:00")
    assert opened["urls"] == {"runbook": guide, "run": f"{run}6f1c"}


def test_a_test_message_is_sent_to_each_receiver_and_a_failure_ends_with_a_status(
    site: Site, hook: WebHook, run_main: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CHURN_ALERT_URLS", f"ops={url_of(hook.port)}")
    fine = run_main(churn, "alerts", "--test")
    assert (fine.status, fine.out) == (0, "ops: the test message was accepted\n")
    assert hook.titles == ["Test message"]
    monkeypatch.setenv("CHURN_ALERT_URLS", f"ops={url_of(hook.port)} down={url_of(1)} slack://{SECRET}")
    said = run_main(churn, "alerts", "--test")

    assert said.status == 1
    assert said.out.splitlines()[:2] == [
        "ops: the test message was accepted",
        "down: the test message did not arrive: connection refused",
    ]
    assert "number 3, of schema 'slack'" in said.out
    assert SECRET not in f"{said.out}{said.err}"
    assert "FAILED  receivers of alerts: CHURN_ALERT_URLS: number 3" in run_main(churn, "doctor").out
    monkeypatch.delenv("CHURN_ALERT_URLS")
    run_main(churn, "alerts", "--test").require_one_line("CHURN_ALERT_URLS is not set", status=2)


def test_pagerduty_is_told_which_of_its_incidents_an_alert_opens_and_ends(
    incidents: DatedIncidents, hook: WebHook, monkeypatch: pytest.MonkeyPatch
):
    from apprise.plugins import pagerduty

    monkeypatch.setattr(pagerduty.NotifyPagerDuty, "request_rate_per_sec", 0)
    monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, "us", f"http://127.0.0.1:{hook.port}/")
    receivers = parse_receivers(f"pagerduty://{SECRET}@{SECRET}")
    for wrong in ([drifted("geography-us"), stale("base")], [stale("base")]):
        incidents.at(NOW).reconcile(wrong, KINDS, receivers)

    assert deliver(incidents.at(NOW), receivers, 30).n_sent == 3
    actions = [(message["event_action"], message["dedup_key"]) for message in hook.taken]
    assert sorted(action for action, _ in actions) == ["resolve", "trigger", "trigger"]
    assert len({key for _, key in actions}) == 2
