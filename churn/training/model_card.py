"""The model card: a trained model's data, performance, parameters, limits and lineage. Pure.

Its wording is in ``model_card.md``, Markdown that is logged with the model in MLflow. Not here: the measurements.
"""

import re
from dataclasses import dataclass
from datetime import date
from importlib.resources import files

from churn.evaluation.metrics import Evaluation
from churn.training.checks import Gate
from churn.training.train import Trained
from churn.variants import Variant
from churn.weeks import month_range
from churn.wording import as_markdown, markdown_table, percent

_WRAPPED = files("churn.training").joinpath("model_card.md").read_text("utf-8").strip()
_TEMPLATE = re.sub(r"(?<!\n)\n(?!\n|- |#)\s*", " ", _WRAPPED) + "\n"  # a paragraph is one line of the card


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from."""

    variant: Variant
    # The variant that the training activity belongs to: the model's variant, or a fallback variant
    activity_of: Variant
    detours: tuple[str, ...]  # why it is a fallback variant's activity, a sentence per fallback; empty otherwise
    today: date  # all facts used were known at the end of this day
    sources: tuple[tuple[str, str], ...]  # URI and sha256 of each input file
    n_facts: int  # rows of activity in the history
    months: tuple[date, date]  # the first and the newest month of them
    data_sha256: str  # digest of the training, validation and held-out rows and labels
    names_from: str  # where the feature names come from
    code_version: str
    pooled: str = ""  # the pool whose trees it has, and what is its own, as of the tag; empty if it was trained alone


@dataclass(frozen=True)
class AgainstChampion:
    """The champion's evaluation on the same held-out accounts, on which it may have been trained."""

    uri: str
    evaluation: Evaluation
    auc_difference: float
    p_value: float


def write_card(
    trained: Trained, evaluation: Evaluation, gate: Gate, lineage: Lineage, against: AgainstChampion | None
) -> str:
    """Return the card as Markdown."""
    chosen, is_shift, detours = trained.chosen, trained.calibration.is_shift, lineage.detours
    by_week = ", ".join(f"{auc:.4f} in week {week}" for week, auc in trained.roc_auc_by_week().items())
    reasons = as_markdown("; and ".join(detours))
    whose = "the pool" if lineage.pooled else lineage.activity_of
    shifted = " (only shifted: a fitted slope would have reversed the order of scores)"
    return _TEMPLATE.format(
        trained=trained, evaluation=evaluation, lineage=lineage, summary=_summary(trained), parts=_parts(trained),
        outcome="It passed the gate." if gate.is_passed else "**It failed the gate and must not score.**",
        pooled=f", and the trees of a pool of {as_markdown(lineage.pooled)}" if lineage.pooled else "",
        because=f", because {reasons}" if detours else "", metrics=_metrics(evaluation, against),
        by_week=f"\n\nROC AUC by week of the month, of all held-out rows: {by_week}." if by_week else "",
        parameters=markdown_table(("parameter", "value"), [*chosen.parameters.items(), ("rounds", chosen.n_rounds)]),
        gate=gate.to_markdown(), n_trials=len(trained.trials), shifted=shifted if is_shift else "",
        borrowed=f"- Its metrics are of {whose}'s accounts, not of {lineage.variant}'s own.\n" if detours else "",
        averaged="\n- Its scores are calibrated on average only." if is_shift else "",
        newest=trained.validation.as_ofs[-1], origin=_lineage(trained, lineage),
    )  # fmt: skip


def _summary(trained: Trained) -> str:
    horizon = trained.plan.horizon.months
    return (
        f"An XGBoost booster of {trained.bundle.parameters['n_trees']} trees that gives the probability that an "
        f"account with recent activity has no activity (deposit, handle or net gaming revenue) in the {horizon} "
        f"whole calendar months after the month of the as-of date. Its scores are calibrated; its reasons are shares "
        f"of the calibrated log-odds."
    )


def short_description(trained: Trained, lineage: Lineage, evaluation: Evaluation) -> str:
    """Return the model card in a few sentences, as the version's description."""
    auc = "too few labels to measure it" if evaluation.roc_auc is None else f"{evaluation.roc_auc.value:.3f}"
    found = f"ROC AUC on {evaluation.n:,} held-out accounts: {auc}. The run has the whole model card."
    return f"{_summary(trained)} Trained as of {lineage.today} on the activity of {lineage.activity_of}; {found}"


def _parts(trained: Trained) -> str:
    rows = []
    for part in trained.parts:
        counts = (f"{part.n:,}", f"{part.n_churned:,}", f"{percent(part.n_churned / part.n, 1)}")
        rows.append((part.name.replace("_", "-"), f"{part.as_ofs[0]} to {part.as_ofs[-1]}", *counts))
    return markdown_table(("part", "days", "rows", "churned", "share"), rows)


def _metrics(evaluation: Evaluation, against: AgainstChampion | None) -> str:
    if evaluation.status != "ok":
        return " Too few of one outcome to measure anything."
    sides = [evaluation, *([against.evaluation] if against else [])]
    names = {
        "ROC AUC": "roc_auc", "average precision": "average_precision", "log loss": "log_loss",
        "Brier score": "brier_score", "calibration error": "calibration_error",
        "lift of the highest tenth": "lift_at_10", "mean score": "mean_score",
    }  # fmt: skip
    values = {title: [getattr(side, name) for side in sides] for title, name in names.items()}
    rows = [(title, *("" if value is None else f"{value:.4f}" for value in row)) for title, row in values.items()]
    header = ("", "this model", *(["champion"] if against else []))
    table = f"\n\n{markdown_table(header, rows)}"
    if against is None:
        return table
    trained_on = "on the same accounts, some of which it may have been trained on"
    less = f"AUC of this model less the champion's: {against.auc_difference:+.4f} (p = {against.p_value:.3g})"
    return f"{table}\n\nThe champion is {as_markdown(against.uri)}, {trained_on}. {less}."


def _lineage(trained: Trained, lineage: Lineage) -> str:
    rows = [
        ("trained as of", str(lineage.today)),
        ("activity of", lineage.activity_of.key),
        *([("pool", lineage.pooled)] if lineage.pooled else []),
        ("facts in its history", f"{lineage.n_facts:,}, of {month_range(*lineage.months)}"),
        *((f"input {uri}", f"sha256 {sha256}") for uri, sha256 in lineage.sources),
        ("rows and labels", f"sha256 {lineage.data_sha256}"),
        ("feature names", f"{len(trained.feature_names)} of {lineage.names_from}"),
        ("booster", f"sha256 {trained.bundle.sha256}"),
        ("seed", str(trained.plan.seed)),
        ("code", lineage.code_version),
    ]
    return markdown_table(("", ""), rows)
