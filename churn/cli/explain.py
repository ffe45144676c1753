"""``churn explain``: shows the stored reasons of one account's score."""

import os
import sys
from datetime import date

import sqlalchemy as sa
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from churn.database.published import PublishedPredictions, Row
from churn.deployment.command_line import show
from churn.errors import UsageError
from churn.variants import BASE_KEY, find_variant
from churn.wording import listed, printable

_BAR_WIDTH, _WIDTH_OF_PIPE = 24, 120
_SHOWN_FROM = 0.0005  # less is 0 in the digits shown


def build_console() -> Console:
    """Return a console as wide as the terminal; in a pipe, which has no width, wide enough for our tables."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, emoji=False, width=None if has_width else _WIDTH_OF_PIPE)


def as_text(text: str) -> str:
    """Return the console's markup that shows a text from outside as it is."""
    return escape(printable(text))


def explain_account(
    url: sa.URL, variant: str | None, account: str, week: date | None, console: Console, *, as_json: bool = False
) -> None:
    """Print the reasons of an account's current prediction; raises ``UsageError`` if there is none.

    ``variant`` is a folded name, as of :func:`churn.variants.find_variant`; ``None`` for the base variant, or for the
    only one that has the account. ``week`` is by default the account's newest.
    """
    published = PublishedPredictions(url)
    key = BASE_KEY if variant is None else find_variant(variant, published.variants).key
    if (prediction := published.prediction(key, account, week)) is None:
        others = published.variants_of(account, week)
        if variant is None and len(others) == 1:
            return explain_account(url, others[0], account, week, console, as_json=as_json)
        hint = f"of {listed(others)} it has one: name it with --variant" if others else "and none of any variant"
        when = f"the week of {week}" if week else "any week"
        raise UsageError(f"account {account} has no current prediction of {key} for {when}, {hint}")
    return show(prediction._asdict(), (), as_json=True) if as_json else _print(prediction, console)


def _print(prediction: Row, console: Console) -> None:
    console.print(
        f"[bold]account {as_text(prediction.account)}[/bold] of {prediction.variant}, "
        f"week of {prediction.scored_week}: "
        f"churn probability [bold]{prediction.churn_probability:.3f}[/bold]  "
        f"[dim]{prediction.registered_model} v{prediction.model_version}, batch {prediction.batch_id}[/dim]",
        soft_wrap=True,
    )
    console.print(_describe_risk(prediction), soft_wrap=True)
    if prediction.reasons is None:
        console.print("The batch was scored without reasons; set CHURN_REASONS=true and score the variant again.")
        return
    for text in filter(None, (prediction.reason_1_text, prediction.reason_2_text, prediction.reason_3_text)):
        console.print(f"• {as_text(text)}", soft_wrap=True)
    columns = "feature", "value", Column("contribution", justify="right"), ""
    table = Table(*columns, title="log-odds: positive raises the churn score", title_justify="left", box=None)
    longest = max(abs(reason["contribution"]) for reason in prediction.reasons) or 1
    for reason in (one for one in prediction.reasons if abs(one["contribution"]) >= _SHOWN_FROM):
        size = reason["contribution"]
        bar, colour = "█" * max(round(_BAR_WIDTH * abs(size) / longest), 1), "red" if size > 0 else "green"
        name = reason.get("window", reason["feature"])  # the feature of the source column that the value is of
        table.add_row(as_text(name), as_text(reason["value"]), f"{size:+.3f}", f"[{colour}]{bar}[/{colour}]")
    total = prediction.bias + sum(reason["contribution"] for reason in prediction.reasons)
    table.add_row("[dim]every account[/dim]", "", f"{prediction.bias:+.3f}", "")
    table.add_row("[bold]sum[/bold]", "", f"[bold]{total:+.3f}[/bold]", f"is {prediction.churn_probability:.3f}")
    console.print(table)
    if any(flags := (prediction.is_sample, prediction.is_foreign_data, prediction.is_fallback)):
        data = ("the encoded sample", "the base variant's data", "a local copy of the data")[flags.index(True)]
        console.print(f"[yellow]The account was scored from {data}.[/yellow]")


def _describe_risk(prediction: Row) -> str:
    """Describe whether the account is at risk; lists and figures are of accounts that are."""
    month = prediction.last_active_month
    since = "no known activity" if month is None else f"last active in {month:%Y-%m}"
    if prediction.is_at_risk is None:
        return f"{since}; it is unknown whether the account is at risk, since its input has no recent months"
    return f"{since}; {'at risk' if prediction.is_at_risk else '[yellow]not at risk: it has already left[/yellow]'}"
