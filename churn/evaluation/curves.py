"""Pictures of how well a model does on held-out rows, as SVG or PNG, through matplotlib's objects. Pure.

Belongs here: one function a picture. The figures in the titles are those of ``churn.evaluation.metrics``; a picture of
fewer rows than it asks for is drawn, and says that there is no figure. Not here: the bars of a batch's importances,
which must cost microseconds (``churn.evaluation.charts``).

Nothing goes through ``pyplot``, and the user's matplotlibrc has no say: the same rows give the same bytes.
"""

import io
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from churn.evaluation.metrics import (
    LIFT_SHARE,
    MIN_OF_CLASS,
    Evaluation,
    Interval,
    NotMeasurableError,
    Outcomes,
    Scores,
    calibration_bins,
    evaluate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

_INK, _FAINT, _RULE = "#222222", "#6b7280", "#e5e7eb"
_MODEL, _CHURNED, _STAYED = "#4f6bed", "#d9534f", "#4f6bed"
_STYLE: Any = {
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "svg.fonttype": "none",  # text stays text: searchable, and a tenth of the bytes
    "svg.hashsalt": "churn",  # else ids are random, and no two pictures of the same rows are equal
}
_DOTS_PER_INCH = 120
_MOST_POINTS = 500
_MOST_DOTS = 1_000
_MOST_FEATURES = 15
_MOST_CHARACTERS = 28
_TOO_FEW = f"no figure below {MIN_OF_CLASS} rows of an outcome"

# matplotlib's settings belong to the process; two pictures at once would restore each other's.
_settings = threading.Lock()


def draw_roc(churned: Outcomes, scores: Scores, about: str, picture: Format = "svg") -> bytes:
    """Draw how many of those who stayed are flagged for how many of those who churned.

    Args:
        churned: Shape (n,), both outcomes present.
        scores: Churn probabilities, shape (n,).
        about: Names the model and the rows; stands below the title.

    Raises:
        NotMeasurableError: If an outcome is missing, or the two do not fit together. So do the others here.
    """
    found = _measured(churned, scores)
    n_churned, n_stayed = _down_the_scores(churned, scores)
    shown = _thinned(len(n_churned))

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        _title(figure, f"ROC: {_figure_of('AUC', found.roc_auc)}", about, found)
        axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle="--", label="chance")
        x, y = n_stayed[shown] / n_stayed[-1], n_churned[shown] / n_churned[-1]
        axes.fill_between(x, y, color=_MODEL, alpha=0.08, linewidth=0)
        axes.plot(x, y, color=_MODEL, label="model")
        _shares(axes, "share of those who stayed that is flagged", "share of those who churned that is flagged")
        axes.set_aspect("equal")
        axes.legend(loc="lower right")

    return _render(draw, (5.2, 5.4), picture)


def draw_precision_recall(churned: Outcomes, scores: Scores, about: str, picture: Format = "svg") -> bytes:
    """Draw which share of those flagged churned, for each share of the churned that is flagged."""
    found = _measured(churned, scores)
    n_churned, n_stayed = _down_the_scores(churned, scores)
    shown = _thinned(len(n_churned))[1:]
    base = found.n_churned / found.n

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        _title(figure, f"Precision: {_figure_of('average', found.average_precision)}", about, found)
        axes.axhline(base, color=_FAINT, linewidth=1, linestyle="--", label=f"chance: {base:.3f} churned")
        recall, precision = n_churned[shown] / n_churned[-1], n_churned[shown] / (n_churned[shown] + n_stayed[shown])
        x, y = np.append(0, recall), np.append(precision[0], precision)
        axes.plot(x, y, color=_MODEL, drawstyle="steps-pre", label="model")
        _shares(
            axes, "recall: share of those who churned that is flagged", "precision: share of those flagged that churned"
        )
        axes.legend(loc="best")

    return _render(draw, (6.4, 4.8), picture)


def draw_gain(churned: Outcomes, scores: Scores, about: str, picture: Format = "svg") -> bytes:
    """Draw which share of those who churned is among the highest scored, for each share of the accounts."""
    found = _measured(churned, scores)
    n_churned, n_stayed = _down_the_scores(churned, scores)
    shown = _thinned(len(n_churned))

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        lift = found.lift_at_10
        _title(figure, f"Gain: {_TOO_FEW if lift is None else f'lift {lift:.2f} at 10 %'}", about, found)
        axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle="--", label="chance")
        perfect = found.n_churned / found.n
        axes.plot([0, perfect, 1], [0, 1, 1], color=_FAINT, linewidth=1, linestyle=":", label="perfect")
        gain = n_churned[shown] / n_churned[-1]
        axes.plot((n_churned[shown] + n_stayed[shown]) / found.n, gain, color=_MODEL, label="model")
        if lift is not None:
            held = lift * LIFT_SHARE
            axes.plot([LIFT_SHARE] * 2, [0, held], color=_CHURNED, linewidth=1)
            axes.plot([LIFT_SHARE], [held], "o", color=_CHURNED, markersize=6)
            axes.annotate(
                f"the highest 10 % hold\n{100 * held:.0f} % of those who churned",
                (LIFT_SHARE, held),
                xytext=(0.34, 0.07),
                color=_CHURNED,
                arrowprops={"arrowstyle": "-", "color": _CHURNED, "linewidth": 0.8},
            )
        _shares(axes, "share of accounts, the highest scored first", "share of those who churned among them")
        axes.legend(loc="lower right")

    return _render(draw, (6.4, 4.8), picture)


def draw_reliability(churned: Outcomes, scores: Scores, about: str, picture: Format = "svg") -> bytes:
    """Draw the share that churned against the score, in bins of equally many rows, above the rows of each score."""
    found = _measured(churned, scores)
    n, mean_score, share = calibration_bins(churned, scores)
    low, high = _wilson(n, share)
    top = min(1.0, 1.08 * float(max(np.max(scores), high.max())))

    def draw(figure: "Figure") -> None:
        axes, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
        error = found.calibration_error
        _title(figure, f"Calibration: {_TOO_FEW if error is None else f'error {error:.4f}'}", about, found)
        axes.plot([0, top], [0, top], color=_FAINT, linewidth=1, linestyle="--", label="perfect")
        axes.errorbar(
            mean_score,
            share,
            yerr=[np.maximum(share - low, 0), np.maximum(high - share, 0)],
            color=_MODEL,
            marker="o",
            markersize=5,
            linewidth=1.5,
            elinewidth=1.2,
            capsize=3,
            label=f"model, in bins of about {round(n.mean()):,} rows, with 95 % intervals",
        )
        axes.set(xlim=(0, top), ylim=(0, top), ylabel="share that churned")
        axes.legend(loc="best")
        below.hist(np.asarray(scores, dtype=np.float64), bins=np.linspace(0, top, 41), color=_MODEL, alpha=0.6)
        below.set(xlabel="score", ylabel="rows")
        below.yaxis.set_major_formatter("{x:,.0f}")
        below.locator_params(axis="y", nbins=3)
        figure.align_ylabels([axes, below])

    return _render(draw, (5.8, 6.2), picture)


def draw_scores(churned: Outcomes, scores: Scores, about: str, picture: Format = "svg") -> bytes:
    """Draw how the scores of those who churned are spread, and those of the others; each adds up to 1."""
    found = _measured(churned, scores)
    scores = np.asarray(scores, dtype=np.float64)
    groups = {"churned": (scores[churned], _CHURNED), "stayed": (scores[~churned], _STAYED)}
    means = ", ".join(f"{of_group.mean():.3f} where {name}" for name, (of_group, _) in groups.items())

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        _title(figure, f"Scores: mean {means}", about, found)
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

    return _render(draw, (6.4, 4.4), picture)


def draw_contributions(
    contributions: npt.NDArray[np.floating],
    values: Mapping[str, npt.NDArray[Any]],
    about: str,
    picture: Format = "svg",
) -> bytes:
    """Draw each row's contribution of each feature as a dot, coloured by the feature's value; the widest first.

    At most 15 features, and of more than 1,000 rows as many, spread evenly.

    Args:
        contributions: SHAP values in log-odds, shape (n, n_features).
        values: The rows' values by feature, in the order of the contributions, shape (n,) each. Numbers are coloured by
            rank; whatever is no number, and missing values, are grey.
    """
    contributions = np.asarray(contributions, dtype=np.float64)
    n, features = len(contributions), list(values)
    if contributions.ndim != 2 or contributions.shape[1] != len(features) or not contributions.size:
        raise NotMeasurableError(
            f"contributions of shape {contributions.shape} do not go with {len(features)} features"
        )
    if wrong := [name for name in features if np.shape(values[name]) != (n,)]:
        raise NotMeasurableError(f"values of {wrong} do not go with {n} rows of contributions")
    sizes = np.abs(contributions).mean(axis=0)
    widest = np.argsort(-sizes, kind="stable")[:_MOST_FEATURES]
    some = np.linspace(0, n - 1, min(n, _MOST_DOTS)).round().astype(np.int64)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        first, size = widest[0], sizes[widest[0]]
        _heading(
            figure,
            f"Reasons: {_shortened(features[first])} first, {size:.2f} on average",
            f"{about}: {n:,} rows; grey: a category, or missing",
        )
        axes.axvline(0, color=_FAINT, linewidth=1)
        for place, feature in enumerate(widest):
            x, of_feature = contributions[some, feature], np.asarray(values[features[feature]])
            colours = _value_colours()(_shades(of_feature)[some])
            axes.scatter(x, place + _swarm(x), s=7, c=colours, linewidths=0, rasterized=True)
            _name_extremes(axes, place, x, of_feature[some], 0.06 * float(np.ptp(contributions[some])))
        axes.set_yticks(range(len(widest)), [f"{_shortened(features[i])}  {sizes[i]:.2f}" for i in widest], color=_INK)
        axes.set(ylim=(len(widest) - 0.4, -0.6), xlabel="contribution in log-odds; above 0 speaks for churn")
        axes.margins(x=0.14)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _draw_value_scale(figure, axes)

    return _render(draw, (7.2, 1.9 + 0.42 * len(widest)), picture)


def _measured(churned: Outcomes, scores: Scores) -> Evaluation:
    found = evaluate(churned, scores)
    if not 0 < found.n_churned < found.n:
        raise NotMeasurableError(f"{found.n_churned} of {found.n} rows churned; a picture needs rows of both outcomes")
    return found


def _down_the_scores(churned: Outcomes, scores: Scores) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count churned and stayed rows at or above each distinct score, from none at all to all."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64))
    ordered = np.asarray(scores)[order]
    n_churned = np.cumsum(churned[order])
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    return np.append(0, n_churned[last]), np.append(0, last + 1 - n_churned[last])


def _thinned(n: int) -> npt.NDArray[np.int64]:
    """Choose points of a curve of at least two, the ends among them: closer at its start, where it is steep."""
    even, near_start = np.linspace(0, n - 1, _MOST_POINTS), np.geomspace(1, n - 1, _MOST_POINTS // 2)
    return np.unique(np.concatenate([even, near_start]).round().astype(np.int64))


def _wilson(
    n: npt.NDArray[np.int64], share: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - reach, centre + reach


def _swarm(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how far from its line each dot lies, within 0.38, so that dots of like contribution lie side by side."""
    span = float(np.ptp(x))
    of_dot = np.zeros(len(x), dtype=np.int64) if span == 0 else np.rint((x - x.min()) / span * 80).astype(np.int64)
    order = np.argsort(of_dot, kind="stable")
    n = np.bincount(of_dot)
    place = np.empty(len(x), dtype=np.int64)
    place[order] = np.arange(len(x)) - np.repeat(np.cumsum(n) - n, n)
    steps = (place + 1) // 2
    return 0.38 * np.where(place % 2, steps, -steps) / max(int(steps.max()), 12)


def _shades(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return each value's rank from 0 to 1, ties alike; NaN of what has none."""
    if values.dtype.kind not in "iuf":
        return np.full(len(values), np.nan)
    known = np.isfinite(values)
    shades = np.full(len(values), np.nan)
    distinct, of_value, n = np.unique(values[known], return_inverse=True, return_counts=True)
    if len(distinct):
        middle = np.cumsum(n) - (n + 1) / 2
        shades[known] = (middle / max(known.sum() - 1, 1))[of_value]
    return shades


def _name_extremes(
    axes: "Axes", place: int, x: npt.NDArray[np.float64], values: npt.NDArray[Any], least: float
) -> None:
    """Name the categories that speak most against churn and most for it, where they lie at least so far apart."""
    if values.dtype.kind in "iuf":
        return
    levels, of_row, n = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    means = np.bincount(of_row, x) / n
    often = np.flatnonzero(n >= len(x) / 100)
    if not len(often):
        return
    low, high = (often[pick(means[often])] for pick in (np.argmin, np.argmax))
    if means[high] - means[low] < least:
        return
    for level, end, aside, side in ((low, x.min(), -7, "right"), (high, x.max(), 7, "left")):
        axes.annotate(
            _shortened(str(levels[level])),
            (end, place),
            xytext=(aside, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8,
            color=_FAINT,
        )


def _value_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("value", [_STAYED, "#c9b6d9", _CHURNED])
    return colours.with_extremes(bad="#9ca3af")


def _draw_value_scale(figure: "Figure", axes: "Axes") -> None:
    from matplotlib.cm import ScalarMappable

    scale = figure.colorbar(ScalarMappable(cmap=_value_colours()), ax=axes, aspect=30, shrink=0.6, pad=0.02)
    scale.set_ticks([0, 1], labels=["low value", "high value"])
    scale.ax.tick_params(length=0)
    scale.outline.set_visible(False)


def _shortened(name: str) -> str:
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


def _figure_of(name: str, interval: Interval | None) -> str:
    return _TOO_FEW if interval is None else f"{name} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _title(figure: "Figure", title: str, about: str, found: Evaluation) -> None:
    _heading(figure, title, f"{about}: {found.n:,} held-out rows, {found.n_churned:,} churned")


def _heading(figure: "Figure", title: str, below: str) -> None:
    height = figure.get_figheight()
    figure.text(0.015, 1 - 0.10 / height, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.015, 1 - 0.36 / height, below, va="top", color=_FAINT)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.58 / height))


def _shares(axes: "Axes", x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)


def _render(draw: Callable[["Figure"], None], size: tuple[float, float], picture: Format) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if picture == "svg" else {"Software": None}
    with _settings, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=size)
        draw(figure)
        figure.savefig(buffer, format=picture, dpi=_DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()
