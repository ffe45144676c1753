"""Writes the alert rules of Prometheus and Grafana and the alarms of CloudWatch.

``just alert-rules`` after a change; a test compares the files with the tables below. The rules link the runbook where
``CHURN_RUNBOOK_URL`` says. The product's own alerts come from :data:`churn.monitoring.incidents.KINDS`, whose
severities and runbook sections these rules share.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from churn.database.metrics import EXPECTED_DAYS, QUERIES
from churn.monitoring.incidents import KINDS, RUNBOOK

INFRA = Path(__file__).parent
_RUNBOOK = os.environ.get("CHURN_RUNBOOK_URL") or RUNBOOK
_MADE = "# Written by infra/make_alert_rules.py; change it there.\n"

_WEEK = "date_trunc('week', now() AT TIME ZONE 'UTC')::date"
_STATES = QUERIES["states"].replace(":week", _WEEK).replace(":days", str(EXPECTED_DAYS))


@dataclass(frozen=True)
class Rule:
    """An alert rule of Prometheus and, if it has ``sql``, of Grafana.

    Attributes:
        sentence: The problem. ``{n}`` becomes the value of ``expr`` in Prometheus and is left out in Grafana.
        section: The section of the runbook. The name of a kind of incident sets the severity as well.
        expr: PromQL over the metrics of ``churn metrics``.
        sql: A query for the number of problems ``n``; the rule fires above 0.
        panel: The panel of the fleet's dashboard that Grafana shows with the alert.
        hold: How long the condition must last before the rule fires.
    """

    name: str
    title: str
    sentence: str
    section: str
    expr: str
    sql: str = ""
    panel: int = 0
    hold: str = "5m"

    @property
    def labels(self) -> dict[str, str]:
        return {"severity": KINDS[self.section].severity if self.section in KINDS else "error"}

    def annotations(self, number: str) -> dict[str, str]:
        summary = self.sentence.format(n=number)
        return {"summary": summary[:1].upper() + summary[1:], "runbook_url": f"{_RUNBOOK}#{self.section}"}


# Kinds without a rule here depend on tests over the whole fleet's history; only the product itself alerts about them.
RULES = (
    Rule(  # Prometheus only: Grafana queries the database itself, and alerts when that fails.
        name="metrics-down",
        title="Metrics are down",
        sentence="The state of the churn fleet is unknown: `churn metrics` or its database does not answer.",
        section="metrics-are-down",
        expr='up{job="churn"} == 0 or churn_up == 0',
    ),
    Rule(
        name="variants-failed",
        title="Variants failed",
        sentence="{n}variants failed in the current week and have published nothing.",
        section="variants_failed",
        expr='churn_variants{state="failed"} > 0',
        sql=f"SELECT n FROM (\n{_STATES}\n) AS counted WHERE state = 'failed'",  # noqa: S608 our own text, here and below
        panel=2,
        hold="30m",  # a retry takes less
    ),
    Rule(  # Six hours are the default of CHURN_SCHEDULE_GRACE_HOURS. Variants that were never attempted do not count.
        name="week-missed",
        title="Week missed",
        sentence="{n}variants of the last weeks were not scored in the current week.",
        section="week_missed",
        expr='churn_variants{state="missing"} > 0 and on() time() - churn_week_timestamp_seconds > 6 * 3600',
        sql=f"SELECT CASE WHEN now() AT TIME ZONE 'UTC' > {_WEEK} + interval '6 hours' THEN n ELSE 0 END AS n\n"
        f"FROM (\n{_STATES}\n) AS counted WHERE state = 'missing'",
        panel=3,
    ),
    Rule(
        name="drift-confirmed",
        title="Drift confirmed",
        sentence="{n}variants drifted from their models' references in two consecutive weeks.",
        section="input_drifted",
        expr='churn_drifted_variants{state="confirmed"} > 0',
        sql=f"""\
SELECT count(DISTINCT b.variant) AS n FROM drift_flags AS f JOIN scoring_batches AS b USING (batch_id)
WHERE b.scored_week > {_WEEK} - 14 AND b.is_current AND b.role = 'champion' AND f.is_confirmed
  AND NOT EXISTS (SELECT FROM scoring_batches AS newer WHERE newer.variant = b.variant AND newer.is_current
                  AND newer.role = 'champion' AND newer.scored_week > b.scored_week)""",  # noqa: S608
        panel=4,
    ),
    Rule(
        name="performance-low",
        title="Performance below the limit",
        sentence="The ROC AUC of {n}variants is below its limit with its whole confidence interval.",
        section="performance_low",
        expr="count(churn_roc_auc_high_ratio < churn_roc_auc_limit_ratio) > 0",
        sql=f"""\
SELECT count(*) AS n FROM (
    SELECT DISTINCT ON (b.variant) e.roc_auc_high, e.auc_limit
    FROM evaluated_batches AS e JOIN scoring_batches AS b USING (batch_id)
    WHERE b.is_current AND b.role = 'champion' AND e.status = 'ok' AND b.scored_week > {_WEEK} - 371
      AND b.as_of > e.evidence_after
    ORDER BY b.variant, b.scored_week DESC
) AS newest WHERE roc_auc_high < auc_limit""",  # noqa: S608
        panel=9,
    ),
    Rule(
        name="alerts-stuck",
        title="Alerts are stuck",
        sentence="Alerts have been undelivered for more than an hour.",
        section="alerts-are-stuck",
        expr="churn_alerts_waiting_oldest_seconds > 3600",
        sql="""\
SELECT count(*) AS n FROM alert_deliveries AS d JOIN alerts AS a USING (alert_id)
WHERE d.delivered_at IS NULL AND a.created_at < now() - interval '1 hour'""",
        panel=6,
    ),
)


def _alarm(
    metric: str, statistic: str, comparison: str, threshold: float | None, description: str, *, minutes: int, n: int = 1
) -> dict[str, Any]:
    """Describe an alarm of CloudWatch: ``n`` periods of ``minutes`` in a row on one side of the threshold."""
    namespace, _, name = metric.rpartition("/")
    return {
        "description": description,
        "namespace": namespace,
        "metric": name,
        "statistic": statistic,
        "comparison": f"{comparison}ThanThreshold",
        "threshold": threshold,
        "period": 60 * minutes,
        "periods": n,
        "missing": "notBreaching" if statistic == "Sum" else "breaching",  # no error, no count; no value, no server
    }


_BUSY = "The processors were busy for half an hour. See Performance Insights; use a larger instance class."
_FULL = "Storage is nearly full and grows too slowly. Raise database_max_storage_gib, or shorten the retention period."
_MEMORY = "Memory is nearly full. Use a larger instance class."
_NO_TASK = "No task of {name} has run for ten minutes. See its events in ECS and its log group."
_BALANCER = "The load balancer answered 5xx more than ten times in five minutes: a UI is down or too slow."
_TARGET = "{name} answered 5xx more than ten times in five minutes. See its log group."

# CloudWatch only: servers and services, which the product does not observe. main.tf adds names and dimensions, and the
# threshold of the storage, which depends on the size of the database.
ALARMS: dict[str, Any] = {
    "database": {
        "storage": _alarm("AWS/RDS/FreeStorageSpace", "Minimum", "Less", None, _FULL, minutes=5, n=6),
        "cpu": _alarm("AWS/RDS/CPUUtilization", "Average", "Greater", 85, _BUSY, minutes=5, n=6),
        "memory": _alarm("AWS/RDS/FreeableMemory", "Minimum", "Less", 256 * 2**20, _MEMORY, minutes=5, n=6),
    },
    "service": _alarm("ECS/ContainerInsights/RunningTaskCount", "Minimum", "Less", 1, _NO_TASK, minutes=1, n=10),
    "load_balancer": _alarm("AWS/ApplicationELB/HTTPCode_ELB_5XX_Count", "Sum", "Greater", 10, _BALANCER, minutes=5),
    "target": _alarm("AWS/ApplicationELB/HTTPCode_Target_5XX_Count", "Sum", "Greater", 10, _TARGET, minutes=5),
}


def files() -> dict[Path, str]:
    """Return the text of each file by its path."""
    return {
        INFRA / "prometheus/rules.yaml": _yaml({"groups": [{"name": "churn", "rules": _prometheus()}]}),
        INFRA / "grafana/provisioning/alerting/churn.yaml": _yaml({"apiVersion": 1, "groups": [_grafana()]}),
        INFRA / "terraform/modules/alarms/alarms.json": _json(ALARMS),
    }


def _prometheus() -> list[dict[str, Any]]:
    return [
        {
            "alert": "Churn" + rule.name.title().replace("-", ""),
            "expr": rule.expr,
            "for": rule.hold,
            "labels": rule.labels,
            "annotations": rule.annotations("{{ $value }} "),
        }
        for rule in RULES
    ]


def _grafana() -> dict[str, Any]:
    # Grafana sends the alerts to its contact points; a notification policy can match the labels.
    rules = [
        {
            "uid": f"churn-{rule.name}",
            "title": rule.title,
            "condition": "B",
            "data": [
                _query("A", "churn-postgres", format="table", editorMode="code", rawQuery=True, rawSql=rule.sql),
                _query("B", "__expr__", type="threshold", expression="A",
                       conditions=[{"evaluator": {"type": "gt", "params": [0]}}]),
            ],
            "noDataState": "NoData",
            "execErrState": "Error",
            "for": rule.hold,
            "dashboardUid": "churn-fleet",
            "panelId": rule.panel,
            "annotations": rule.annotations(""),
            "labels": {"team": "retention"} | rule.labels,
        }
        for rule in RULES
        if rule.sql
    ]  # fmt: skip
    return {"orgId": 1, "name": "churn", "folder": "Churn", "interval": "5m", "rules": rules}


def _query(ref: str, source: str, **model: Any) -> dict[str, Any]:
    period = {"from": 600, "to": 0}
    return {"refId": ref, "relativeTimeRange": period, "datasourceUid": source, "model": {"refId": ref} | model}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as literal blocks, and repeats equal values instead of using anchors."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _json(content: dict[str, Any]) -> str:
    return "{\n" + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in content.items()) + "\n}\n"


def _yaml(content: dict[str, Any]) -> str:
    return _MADE + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, default_flow_style=None)


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
