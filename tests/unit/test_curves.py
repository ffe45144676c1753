"""At stake: a model is approved by people who look at these pictures. They must show the rows they are given, state the
figures that the gate goes by, and be the same for the same rows, so that a picture can be checked.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest

from churn.errors import ChurnError
from churn.evaluation.curves import draw_contributions, draw_gain, draw_precision_recall, draw_roc, draw_scores
from churn.evaluation.metrics import evaluate

ABOUT = "geography-us, version 3"
CURVES = {"roc": draw_roc, "precision": draw_precision_recall, "gain": draw_gain, "scores": draw_scores}
each_curve = pytest.mark.parametrize("name", CURVES)

Rows = tuple[np.ndarray, np.ndarray]
Reasons = tuple[np.ndarray, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(0)
    log_odds = rng.normal(-1, 1.2, 2_000)
    return rng.random(2_000) < 1 / (1 + np.exp(-log_odds)), (1 / (1 + np.exp(-1.1 * log_odds))).astype(np.float32)


@pytest.fixture(scope="module")
def reasons() -> Reasons:
    rng = np.random.default_rng(0)
    n = 1_500
    handle = np.where(rng.random(n) < 0.3, 0.0, np.exp(rng.normal(4.8, 2.2, n)))
    handle[:20] = np.nan
    product = rng.choice(["BETTING", "CASINO"], n)
    contributions = np.column_stack(
        [np.where(product == "CASINO", 0.4, -0.1), 1 - 0.3 * np.log1p(np.nan_to_num(handle)), np.zeros(n)]
    )
    return contributions, {"product": product, "handle": handle, "months": rng.integers(-3, 40, n)}


def words(svg: bytes) -> list[str]:
    """Every text in a picture, in order."""
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


@pytest.fixture(scope="module")
def drawn_at_once(rows: Rows, reasons: Reasons) -> dict[str, bytes]:
    """Every picture, several at once."""
    with ThreadPoolExecutor(3) as pool:
        drawing = {name: pool.submit(draw, *rows, ABOUT) for name, draw in CURVES.items()}
        drawing["reasons"] = pool.submit(draw_contributions, *reasons, ABOUT)
        return {name: future.result() for name, future in drawing.items()}


@pytest.fixture(scope="module")
def pictures(rows: Rows, reasons: Reasons) -> dict[str, bytes]:
    """Every picture as SVG, drawn one by one."""
    drawn = {name: draw(*rows, ABOUT) for name, draw in CURVES.items()}
    return {**drawn, "reasons": draw_contributions(*reasons, ABOUT)}


def test_each_picture_names_its_model_and_its_rows(rows, pictures):
    for name in CURVES:
        assert f"{ABOUT}: 2,000 held-out rows, {rows[0].sum():,} churned" in words(pictures[name])
    assert f"{ABOUT}: 1,500 rows; grey: a category, or missing" in words(pictures["reasons"])


def test_titles_carry_the_figures_that_evaluation_gives(rows, pictures):
    found = evaluate(*rows)
    auc, precision = (
        f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        for interval in (found.roc_auc, found.average_precision)
    )
    churned, scores = rows
    means = [
        f"{scores[of].mean(dtype=float):.3f} where {name}" for name, of in (("churned", churned), ("stayed", ~churned))
    ]
    titles = {
        "roc": f"ROC: AUC {auc}",
        "precision": f"Precision: average {precision}",
        "gain": f"Gain: lift {found.lift_at_10:.2f} at 10 %",
        "scores": f"Scores: mean {', '.join(means)}",
    }
    for name, title in titles.items():
        assert title in words(pictures[name])


def test_the_gain_at_ten_percent_is_named_as_a_share_of_those_who_churned(rows, pictures):
    churned, scores = rows
    held = churned[np.argsort(-scores)[:200]].sum() / churned.sum()
    assert f"{100 * held:.0f} % of those who churned" in words(pictures["gain"])


def test_the_same_rows_give_the_same_bytes_though_several_pictures_are_drawn_at_once(pictures, drawn_at_once):
    assert drawn_at_once == pictures


@pytest.mark.parametrize("name", ["roc", "scores"])
def test_another_models_scores_give_another_picture(name, rows, pictures):
    churned, scores = rows
    noise = np.random.default_rng(1).random(len(scores))
    assert CURVES[name](churned, 0.9 * scores + 0.1 * noise, ABOUT) != pictures[name]


@pytest.mark.parametrize("name", ["roc", "precision", "gain"])
def test_the_order_of_rows_does_not_show(name, rows, pictures):
    churned, scores = rows
    order = np.random.default_rng(1).permutation(len(scores))
    assert CURVES[name](churned[order], scores[order], ABOUT) == pictures[name]


def test_a_users_settings_neither_show_nor_are_changed(rows, pictures):
    with mpl.rc_context({"lines.linewidth": 9, "axes.grid": False, "svg.fonttype": "path", "font.size": 30}):
        assert draw_roc(*rows, ABOUT) == pictures["roc"]
        assert mpl.rcParams["lines.linewidth"] == 9
        assert mpl.rcParams["svg.fonttype"] == "path"


def test_matplotlib_waits_for_a_picture_and_pyplot_keeps_none_of_them():
    program = """
import sys
import numpy as np
from churn.evaluation.curves import draw_roc
assert "matplotlib" not in sys.modules, "importing the module is to cost nothing"
draw_roc(np.arange(200) % 2 == 0, np.linspace(0, 1, 200), "base")
from matplotlib import pyplot
assert not pyplot.get_fignums(), "a figure that pyplot keeps is never freed"
"""
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "MPLBACKEND"}}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each_curve
def test_too_few_rows_are_drawn_without_a_figure(name, rows):
    churned, scores = rows[0][:60], rows[1][:60]
    texts = words(CURVES[name](churned, scores, ABOUT))
    if name == "scores":  # means are what they are, of however few
        assert any(text.startswith("Scores: mean 0.") for text in texts)
    else:
        assert any(text.endswith("no figure below 50 rows of an outcome") for text in texts)
        assert not any(re.match(r"(ROC|Precision|Gain): .*\d\.\d", text) for text in texts)


@pytest.mark.parametrize(("name", "scores"), [*((name, [0.5, 0.5]) for name in CURVES), ("scores", [0, 0])], ids=str)
def test_a_row_of_each_outcome_is_enough_to_draw(name, scores):
    assert words(CURVES[name](np.array([True, False]), np.array(scores), ABOUT))


@each_curve
@pytest.mark.parametrize("churned", [[], [True], [False], [True] * 80], ids=["none", "one", "another", "all churned"])
def test_rows_of_one_outcome_are_refused(name, churned):
    outcomes = np.array(churned, dtype=bool)
    with pytest.raises(ChurnError, match=f"{outcomes.sum()} of {len(outcomes)} rows churned; a chart needs"):
        CURVES[name](outcomes, np.full(len(outcomes), 0.5), ABOUT)


def test_names_are_text_and_never_markup(reasons):
    contributions, values = reasons
    about = "<b>&$x$ geography"
    named = dict(zip(["a<b$1$", "b", "c"], values.values(), strict=True))

    texts = words(draw_contributions(contributions, named, about))

    assert any(text.startswith(about) for text in texts)
    assert any(text.startswith("a<b$1$  0.") for text in texts)


def test_contributions_are_ordered_by_their_mean_size_which_is_named(reasons, pictures):
    sizes = np.abs(reasons[0]).mean(axis=0)
    texts = words(pictures["reasons"])

    assert f"Reasons: handle first, {sizes[1]:.2f} on average" in texts
    labels = [text for text in texts if re.match(r"(product|handle|months)  \d", text)]
    assert labels == [f"handle  {sizes[1]:.2f}", f"product  {sizes[0]:.2f}", "months  0.00"]


def test_the_categories_that_speak_most_for_and_against_churn_are_named(pictures):
    assert {"BETTING", "CASINO"} <= set(words(pictures["reasons"]))


def test_at_most_fifteen_features_are_drawn_and_long_names_are_cut():
    rng = np.random.default_rng(0)
    values = {f"feature_with_a_very_long_name_{i}": rng.normal(size=50) for i in range(40)}
    texts = words(draw_contributions(rng.normal(size=(50, 40)), values, ABOUT))
    labels = [text for text in texts if text.startswith("feature_with")]
    assert len(labels) == 15
    assert all("…" in label and len(label) < 40 for label in labels)


def test_a_category_of_which_no_level_is_frequent_is_drawn_without_names():
    rng = np.random.default_rng(0)
    trackers = np.array([f"tracker {i}" for i in range(300)], dtype=object)
    texts = words(draw_contributions(rng.normal(size=(300, 1)), {"tracker_id": trackers}, ABOUT))
    assert any(text.startswith("tracker_id  0.") for text in texts)
    assert not set(trackers) & set(texts)


def test_one_row_of_one_feature_has_a_picture():
    one = {"x": np.array([np.nan])}
    assert "Reasons: x first, 0.00 on average" in words(draw_contributions(np.array([[0.0]]), one, ABOUT))


@pytest.mark.parametrize(
    ("shape", "n_values", "match"),
    [((5, 2), 5, "do not match 1 features"), ((0, 1), 0, "do not match 1 features"), ((5, 1), 4, "do not match 5")],
    ids=["another feature", "no rows", "other rows"],
)
def test_contributions_that_do_not_fit_their_values_are_refused(shape, n_values, match):
    with pytest.raises(ChurnError, match=match):
        draw_contributions(np.zeros(shape), {"x": np.zeros(n_values)}, ABOUT)
