"""Charts of a model's performance on held-out rows, as SVG, by scikit-learn's displays and matplotlib. Pure.

Belongs here: one function per chart. The numbers in the titles are those of ``churn.evaluation.metrics``; the title of
a chart of fewer rows than they need states that.

``pyplot`` is not used, and the user's matplotlibrc is ignored: the same rows give the same bytes.
"""

import io
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from churn.data.arrays import Array, Doubles, Flags
from churn.evaluation import metrics
from churn.evaluation.metrics import Evaluation, Interval, NotMeasurableError, Scores
from churn.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = Path(__file__).with_name("curves.mplstyle")
_INK, _FAINT = "#222222", "#6b7280"
_CHURNED, _STAYED = "#d9534f", "#4f6bed"
_DOTS_PER_INCH = 120
_CHANCE: Any = {"label": "chance", "color": _FAINT, "linewidth": 1, "linestyle": "--"}
_MOST_DOTS = 1_000
_MOST_FEATURES = 15
_MOST_CHARACTERS = 28
_TOO_FEW = f"no figure below {metrics.MIN_OF_CLASS} rows of an outcome"

Chart = Callable[[Flags, Scores, str], bytes]
"""Draws outcomes, both present, and churn probabilities, shape (n,) each; the text names the model and the rows.
Raises ``NotMeasurableError`` if an outcome is missing, or the arrays do not fit together."""

# matplotlib's settings are global to the process; two charts at once would restore each other's.
_settings = threading.Lock()


def _chart(width: float, height: float) -> Callable[[Callable[[Any, Flags, Scores, Evaluation], str]], Chart]:
    """Return the decorator of a function that draws outcomes and scores on axes and returns the title."""

    def decorate(draw: Callable[[Any, Flags, Scores, Evaluation], str]) -> Chart:
        @wraps(draw)
        def chart(churned: Flags, scores: Scores, about: str) -> bytes:
            one = metrics.evaluate(churned, scores)
            if not 0 < one.n_churned < one.n:
                raise NotMeasurableError(f"{one.n_churned} of {one.n} rows churned; a chart needs both outcomes")
            below = f"{about}: {one.n:,} held-out rows, {one.n_churned:,} churned"
            return _render(lambda axes: draw(axes, churned, scores, one), (width, height), below)

        return chart

    return decorate


@_chart(5.2, 5.4)
def draw_roc(axes: "Axes", churned: Flags, scores: Scores, evaluation: Evaluation) -> str:
    """Draw the ROC curve."""
    from sklearn.metrics import RocCurveDisplay

    chance: Any = {"plot_chance_level": True, "chance_level_kw": _CHANCE}
    RocCurveDisplay.from_predictions(churned, scores, ax=axes, curve_kwargs={"label": "model"}, **chance)
    _label_shares(axes, "share of those who stayed that is flagged", "share of those who churned that is flagged")
    return f"ROC: {_format('AUC', evaluation.roc_auc)}"


@_chart(6.4, 4.8)
def draw_precision_recall(axes: "Axes", churned: Flags, scores: Scores, evaluation: Evaluation) -> str:
    """Draw precision against recall."""
    from sklearn.metrics import PrecisionRecallDisplay, precision_recall_curve

    share = evaluation.n_churned / evaluation.n
    chance = _CHANCE | {"label": f"chance: {share:.3f} churned"}
    precision, recall, _ = precision_recall_curve(churned, scores, drop_intermediate=True)
    display = PrecisionRecallDisplay(precision, recall, prevalence_pos_label=share)
    display.plot(axes, name="model", plot_chance_level=True, chance_level_kw=chance)
    axes.set_aspect("auto")
    recall_label = "recall: share of those who churned that is flagged"
    _label_shares(axes, recall_label, "precision: share of those flagged that churned")
    return f"Precision: {_format('average', evaluation.average_precision)}"


@_chart(6.4, 4.8)
def draw_gain(axes: "Axes", churned: Flags, scores: Scores, evaluation: Evaluation) -> str:
    """Draw the share of those who churned that is among the highest scored, for each share of the accounts."""
    from sklearn.metrics import roc_curve

    lift, perfect = evaluation.lift_at_10, evaluation.n_churned / evaluation.n
    axes.plot([0, 1], [0, 1], **_CHANCE)
    axes.plot([0, perfect, 1], [0, 1, 1], color=_FAINT, linewidth=1, linestyle=":", label="perfect")
    of_stayed, of_churned, _ = roc_curve(churned, scores)
    axes.plot(perfect * of_churned + (1 - perfect) * of_stayed, of_churned, label="model")
    if lift is not None:
        gain, line = lift * metrics.LIFT_SHARE, {"arrowstyle": "-", "color": _CHURNED, "linewidth": 0.8}
        text = f"the highest 10 % include\n{100 * gain:.0f} % of those who churned"
        axes.annotate(text, (metrics.LIFT_SHARE, gain), xytext=(0.34, 0.07), color=_CHURNED, arrowprops=line)
    _label_shares(axes, "share of accounts, the highest scored first", "share of those who churned among them")
    axes.legend(loc="lower right")
    return f"Gain: {_TOO_FEW if lift is None else f'lift {lift:.2f} at 10 %'}"


@_chart(5.2, 5.4)
def draw_reliability(axes: "Axes", churned: Flags, scores: Scores, _: Evaluation) -> str:
    """Draw the share that churned against the mean score, in bins of about equal numbers of rows."""
    from sklearn.calibration import CalibrationDisplay

    CalibrationDisplay.from_predictions(churned, scores, n_bins=10, strategy="quantile", name="model", ax=axes)
    axes.set(xlabel="mean score", ylabel="share that churned")
    return f"Calibration: error {metrics.calibration_error(churned, scores):.4f}"


@_chart(6.4, 4.4)
def draw_scores(axes: "Axes", churned: Flags, scores: Scores, _: Evaluation) -> str:
    """Draw the histograms of the scores of those who churned and of the others; each adds up to 1."""
    scores = np.asarray(scores, dtype=np.float64)
    groups = {"churned": (scores[churned], _CHURNED), "stayed": (scores[~churned], _STAYED)}
    edges = np.linspace(0, min(1.0, 1.05 * float(scores.max()) or 1.0), 41).tolist()
    for name, (of_group, colour) in groups.items():
        weights = np.full(len(of_group), 1 / len(of_group))
        label = f"{name}, {len(of_group):,} rows"
        axes.hist(of_group, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(of_group, edges, weights=weights, histtype="step", color=colour, linewidth=1.5, label=label)
        axes.axvline(of_group.mean(), color=colour, linewidth=1, linestyle="--")
    axes.set(xlabel="score; dashed: the mean", ylabel="share of the group's rows", xlim=(0, edges[-1]))
    axes.margins(y=0.25)
    axes.legend(loc="best")
    return f"Scores: mean {', '.join(f'{of_group.mean():.3f} where {name}' for name, (of_group, _) in groups.items())}"


def draw_contributions(contributions: Scores, values: Mapping[str, Array], about: str) -> bytes:
    """Draw each row's contribution of each feature as a dot, coloured by the feature's value; the widest first.

    At most 15 features and 1,000 rows, spread evenly. ``contributions`` are SHAP values in log-odds, shape (n,
    n_features), and ``values`` the rows' values by feature, in the same order, shape (n,) each. Numbers are coloured by
    rank; other and missing values are grey.
    """
    contributions = np.asarray(contributions, dtype=np.float64)
    n, features = len(contributions), list(values)
    if contributions.ndim != 2 or contributions.shape[1] != len(features) or not contributions.size:
        raise NotMeasurableError(f"contributions of shape {contributions.shape} do not match {len(features)} features")
    if wrong := [name for name in features if np.shape(values[name]) != (n,)]:
        raise NotMeasurableError(f"values of {wrong} do not match {n} rows of contributions")
    sizes = np.abs(contributions).mean(axis=0)
    widest = np.argsort(-sizes, kind="stable")[:_MOST_FEATURES]
    some = np.linspace(0, n - 1, min(n, _MOST_DOTS)).round().astype(np.int64)

    def draw(axes: "Axes") -> str:
        axes.axvline(0, color=_FAINT, linewidth=1)
        for place, feature in enumerate(widest):
            x, of_feature = contributions[some, feature], np.asarray(values[features[feature]])
            colours = _value_colours()(_ranks(of_feature)[some])
            axes.scatter(x, place + _swarm(x), s=7, c=colours, linewidths=0, rasterized=True)
            _name_extremes(axes, place, x, of_feature[some], 0.06 * float(np.ptp(contributions[some])))
        axes.set_yticks(range(len(widest)), [f"{_shorten(features[i])}  {sizes[i]:.2f}" for i in widest], color=_INK)
        axes.set(ylim=(len(widest) - 0.4, -0.6), xlabel="contribution in log-odds; above 0: towards churn")
        axes.margins(x=0.14)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _draw_value_scale(axes)
        return f"Reasons: {_shorten(features[widest[0]])} first, {sizes[widest[0]]:.2f} on average"

    return _render(draw, (7.2, 1.9 + 0.42 * len(widest)), f"{about}: {n:,} rows; grey: a category, or missing")


def _swarm(x: Doubles) -> Doubles:
    """Return each dot's offset from its line, within 0.38, so that dots of similar contribution are side by side."""
    span = float(np.ptp(x))
    of_dot = np.zeros(len(x), dtype=np.int64) if span == 0 else np.rint((x - x.min()) / span * 80).astype(np.int64)
    order = np.argsort(of_dot, kind="stable")
    n = np.bincount(of_dot)
    place = np.empty(len(x), dtype=np.int64)
    place[order] = np.arange(len(x)) - np.repeat(np.cumsum(n) - n, n)
    steps = (place + 1) // 2
    return 0.38 * np.where(place % 2, steps, -steps) / max(int(steps.max()), 12)


def _ranks(values: Array) -> Doubles:
    """Return each value's rank from 0 to 1, equal for ties; NaN for missing values and categories."""
    if values.dtype.kind not in "iuf":
        return np.full(len(values), np.nan)
    from scipy.stats import rankdata  # its import takes half a second

    known = np.isfinite(values)
    return np.asarray((rankdata(np.where(known, values, np.nan), nan_policy="omit") - 1) / max(known.sum() - 1, 1))


def _name_extremes(axes: "Axes", place: int, x: Doubles, values: Array, least: float) -> None:
    """Name the categories that contribute most against churn and most towards it, if they are at least so far apart."""
    if values.dtype.kind in "iuf":
        return
    levels, of_row, n = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    means = np.bincount(of_row, x) / n
    frequent = np.flatnonzero(n >= len(x) / 100)
    if not len(frequent) or np.ptp(means[frequent]) < least:
        return
    low, high = (frequent[pick(means[frequent])] for pick in (np.argmin, np.argmax))
    for level, end, aside, side in ((low, x.min(), -7, "right"), (high, x.max(), 7, "left")):
        style: Any = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8, "color": _FAINT}
        axes.annotate(_shorten(str(levels[level])), (end, place), xytext=(aside, 0), **style)


def _value_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("value", [_STAYED, "#c9b6d9", _CHURNED]).with_extremes(bad="#9ca3af")


def _draw_value_scale(axes: "Axes") -> None:
    from matplotlib.cm import ScalarMappable

    scale = axes.figure.colorbar(ScalarMappable(cmap=_value_colours()), ax=axes, aspect=30, shrink=0.6, pad=0.02)
    scale.set_ticks([0, 1], labels=["low value", "high value"])
    scale.ax.tick_params(length=0)
    scale.outline.set_visible(False)


def _shorten(name: str) -> str:
    name = printable(name)  # XML allows no control characters
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


def _format(name: str, interval: Interval | None) -> str:
    return _TOO_FEW if interval is None else f"{name} {interval:.3f}"


def _label_shares(axes: "Axes", x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)


def _render(draw: Callable[["Axes"], str], size: tuple[float, float], below: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with _settings, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(mpl.rc_params_from_file(_STYLE, use_default_template=False))
        figure = Figure(figsize=size)
        axes = figure.subplots()
        figure.text(0.015, 1 - 0.36 / size[1], printable(below), va="top", color=_FAINT)
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.58 / size[1]))
        figure.text(0.015, 1 - 0.10 / size[1], draw(axes), va="top", fontsize=12, fontweight="bold")
        figure.savefig(buffer, format="svg", dpi=_DOTS_PER_INCH, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
