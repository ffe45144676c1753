"""``churn explain``: why one account has its score, from what was stored with it."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from churn.database.predictions import read_current
from churn.errors import UsageError
from churn.variants import Variant

_BAR_WIDTH = 24

_VARIANTS = "SELECT DISTINCT variant FROM scoring_batches WHERE is_current ORDER BY variant"
_PREDICTION = """
SELECT variant, scored_week, account_id, churn_probability, bias, reasons::text AS reasons,
       registered_model, model_version, is_fallback, is_foreign_data, batch_id
FROM churn_predictions_current
WHERE variant = :variant AND account_id = :account AND (:week IS NULL OR scored_week = CAST(:week AS date))
ORDER BY scored_week DESC LIMIT 1
"""


def explain_account(url: sa.URL, variant: str, account_id: int, week: date | None, console: Console) -> None:
    """Print the reasons of an account's current prediction, the newest week's unless another is named.

    Args:
        variant: A key, or the name of a geography or company that only one variant has.

    Raises:
        UsageError: If there is no such prediction; says what there is.
    """
    key = _resolve(variant, read_current(url, _VARIANTS)["variant"].to_list())
    found = read_current(url, _PREDICTION, variant=key, account=account_id, week=week)
    if found.is_empty():
        when = f"the week of {week}" if week else "any week"
        raise UsageError(
            f"account {account_id} has no current prediction of {key} for {when}; "
            f"look for it in churn_predictions_current"
        )
    _print(found.row(0, named=True), console)


def _resolve(name: str, published: Sequence[str]) -> str:
    if name in published:
        return name
    parts = [Variant.from_key(key) for key in published]
    meant = [one.key for one in parts if name.casefold() in (one.geography, one.company)]
    if len(meant) == 1:
        return meant[0]
    what = "several variants'" if meant else "no variant with predictions"
    known = ", ".join((meant or list(published))[:8]) or "none yet; score one with churn score"
    raise UsageError(f"variant {name!r} is the name of {what}; name one by its key: {known}")


def _print(row: dict[str, Any], console: Console) -> None:
    console.print(
        f"[bold]account {row['account_id']}[/bold] of {row['variant']}, week of {row['scored_week']}: "
        f"churn probability [bold]{row['churn_probability']:.3f}[/bold]  "
        f"[dim]{row['registered_model']} v{row['model_version']}, batch {row['batch_id']}[/dim]",
        soft_wrap=True,
    )
    if row["reasons"] is None:
        console.print("Its batch was scored without reasons; set CHURN_REASONS=true and score the variant again.")
        return
    table = Table(title="log-odds: above 0 speaks for churn, below 0 against it", title_justify="left", box=None)
    for heading in ("feature", "value"):
        table.add_column(heading)
    table.add_column("contribution", justify="right")
    table.add_column("")
    reasons = json.loads(row["reasons"])
    longest = max(abs(reason["contribution"]) for reason in reasons) or 1
    for reason in reasons:
        size = reason["contribution"]
        bar = "█" * max(round(_BAR_WIDTH * abs(size) / longest), 1)
        colour = "red" if size > 0 else "green"
        table.add_row(reason["feature"], escape(reason["value"]), f"{size:+.3f}", f"[{colour}]{bar}[/{colour}]")
    total = row["bias"] + sum(reason["contribution"] for reason in reasons)
    table.add_row("[dim]every account[/dim]", "", f"{row['bias']:+.3f}", "")
    table.add_row("[bold]sum[/bold]", "", f"[bold]{total:+.3f}[/bold]", f"is {row['churn_probability']:.3f}")
    console.print(table)
    if row["is_fallback"] or row["is_foreign_data"]:
        whose = "the base variant's data" if row["is_foreign_data"] else "a local copy of the data"
        console.print(f"[yellow]It was scored from {whose}.[/yellow]")
