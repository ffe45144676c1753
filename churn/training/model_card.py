"""The model card: a trained model's data, performance, parameters, limits and lineage. Pure.

Belongs here: the wording, as Markdown that is logged with the model in MLflow. Not here: the measurements.
"""

from dataclasses import dataclass
from datetime import date

from churn.evaluation.metrics import Evaluation
from churn.training.checks import Gate
from churn.training.train import Trained
from churn.variants import Variant
from churn.weeks import month_range
from churn.wording import markdown_table, percent


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        activity_of: The variant that the training activity belongs to: the model's variant, or a fallback variant.
        detours: Why it is a fallback variant's activity, a sentence per fallback; empty otherwise.
        today: All facts used were known at the end of this day.
        sources: URI and sha256 of each input file.
        n_facts: Rows of activity in the history.
        months: The first and the newest month of them.
        data_sha256: Digest of the training, validation and held-out rows and labels.
        names_from: Where the feature names come from.
        pooled: The pool whose trees it has, and what is its own, as of the tag; empty if it was trained alone.
    """

    variant: Variant
    activity_of: Variant
    detours: tuple[str, ...]
    today: date
    sources: tuple[tuple[str, str], ...]
    n_facts: int
    months: tuple[date, date]
    data_sha256: str
    names_from: str
    code_version: str
    pooled: str = ""


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
    outcome = "It passed the gate." if gate.is_passed else "**It failed the gate and must not score.**"
    sections = [
        f"# Churn model of variant {lineage.variant}\n\n{_summary(trained)} {outcome}",
        f"## Data\n\n{_data(trained, lineage)}",
        f"## Metrics\n\n{_metrics(evaluation, against)}{_by_week(trained)}",
        f"## Gate\n\n{gate.to_markdown()}",
        f"## Parameters\n\n{_parameters(trained)}",
        f"## Limits\n\n{_limits(trained, lineage)}",
        f"## Lineage\n\n{_lineage(trained, lineage)}",
    ]
    return "\n\n".join(sections) + "\n"


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
    return (
        f"{_summary(trained)} Trained as of {lineage.today} on the activity of {lineage.activity_of}; ROC AUC on "
        f"{evaluation.n:,} held-out accounts: {auc}. The run has the whole model card."
    )


def _data(trained: Trained, lineage: Lineage) -> str:
    source = f"Activity of **{lineage.activity_of}**"
    if lineage.pooled:
        source += f", and the trees of a pool of {lineage.pooled}"
    if lineage.detours:
        source += f", because {'; and '.join(lineage.detours)}"
    rows = []
    for part in trained.parts:
        counts = (f"{part.n:,}", f"{part.n_churned:,}", f"{percent(part.n_churned / part.n, 1)}")
        rows.append((part.name.replace("_", "-"), f"{part.as_ofs[0]} to {part.as_ofs[-1]}", *counts))
    return (
        f"{source}; known by the end of {lineage.today}. One row per account and as-of day at which it had been active "
        f"within the last {trained.plan.horizon.months} months, from the facts known on that day. The split is by "
        f"time: every label of a part was known by the first day of the next.\n\n"
        f"{markdown_table(('part', 'days', 'rows', 'churned', 'share'), rows)}\n\n"
        f"Parameters, rounds and calibration were chosen on the validation rows. The model was then trained on the "
        f"training and validation rows; nothing was chosen on the held-out ones."
    )


def _metrics(evaluation: Evaluation, against: AgainstChampion | None) -> str:
    rows_used = (
        f"On {evaluation.n:,} held-out accounts, one row each ({evaluation.n_churned:,} churned), with 95 % intervals. "
        f"An account's row is of a held-out day drawn for it, so that the rows are independent."
    )
    if evaluation.status != "ok":
        return f"{rows_used} Too few of one outcome to measure anything."
    sides = [evaluation, *([against.evaluation] if against else [])]
    names = {
        "ROC AUC": "roc_auc", "average precision": "average_precision", "log loss": "log_loss",
        "Brier score": "brier_score", "calibration error": "calibration_error",
        "lift of the highest tenth": "lift_at_10", "mean score": "mean_score",
    }  # fmt: skip
    values = {title: [getattr(side, name) for side in sides] for title, name in names.items()}
    rows = [(title, *("" if value is None else f"{value:.4f}" for value in row)) for title, row in values.items()]
    header = ("", "this model", *(["champion"] if against else []))
    table = f"{rows_used}\n\n{markdown_table(header, rows)}"
    if against is None:
        return table
    return (
        f"{table}\n\nThe champion is {against.uri}, on the same accounts, some of which it may have been trained on. "
        f"AUC of this model less the champion's: {against.auc_difference:+.4f} (p = {against.p_value:.3g})."
    )


def _by_week(trained: Trained) -> str:
    by_week = ", ".join(f"{auc:.4f} in week {week}" for week, auc in trained.roc_auc_by_week().items())
    return f"\n\nROC AUC by week of the month, of all held-out rows: {by_week}." if by_week else ""


def _parameters(trained: Trained) -> str:
    rows = [*trained.chosen.parameters.items(), ("rounds", trained.chosen.n_rounds)]
    table = markdown_table(("parameter", "value"), rows)
    calibration = trained.calibration
    how = " (only shifted: a fitted slope would have reversed the order of scores)" if calibration.is_shift else ""
    return (
        f"{table}\n\nThe best of {len(trained.trials)} trials, by a validation log "
        f"loss of {trained.chosen.log_loss:.4f}. Calibration: {calibration.slope:.4f} times the log-odds, "
        f"{calibration.intercept:+.4f}{how}, applied to the trees."
    )


def _limits(trained: Trained, lineage: Lineage) -> str:
    whose = "the pool" if lineage.pooled else str(lineage.activity_of)
    own = f"Its metrics are of {whose}'s accounts, not of {lineage.variant}'s own."
    limits = [
        *([own] if lineage.detours else []),
        f"The newest rows it was trained on are of {trained.validation.as_ofs[-1]}; later rows only evaluate it, "
        f"or have no labels yet.",
        "Accounts without recent activity are scored as well, but were not training examples.",
        "A score is the risk of leaving, not the chance of staying if contacted.",
        "A comparison with a challenger favours it where accounts were contacted because of the champion's "
        "scores: contact lowers churn where the champion expected it.",
        "A categorical level that the model does not know sets no feature.",
        *(["Its scores are calibrated on average only."] if trained.calibration.is_shift else []),
    ]
    return "\n".join(f"- {limit}" for limit in limits)


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
