"""Compiled scores and reasons: an analyst acts on them, so they must be XGBoost's own, for any booster there may be."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.compiled import compiled
from churn.data.features import Encoding, OneHot, Packed, pack_matrix, plan_encoded, unpack
from churn.errors import ModelFileError
from churn.inference import engine as engine_module
from churn.inference.bundle import Bundle, load_bundle, read_bundle
from churn.inference.engine import build_engine, require_sums
from churn.inference.explanations import ForestExplainer, build_explainer
from churn.inference.forest import Forest, NotCompilableError, read_forest
from churn.inference.scoring import build_scorer
from churn.registry.cache import ArrayCache

DATA = Path(__file__).resolve().parents[1] / "data"
pytestmark = pytest.mark.filterwarnings("ignore:.*is not used")


@dataclass(frozen=True)
class Case:
    """A booster and rows for it."""

    bundle: Bundle
    encoding: Encoding
    packed: Packed

    @property
    def matrix(self) -> np.ndarray:
        return unpack(self.packed, self.encoding)

    def summed_contributions(self) -> tuple[np.ndarray, float]:
        values = self.bundle.contributions(self.matrix).astype(np.float64)
        sums = np.zeros((self.packed.n_rows, len(self.encoding.columns)))
        for feature, parent in enumerate(self.encoding.column_of_feature):
            sums[:, parent] += values[:, feature]
        return sums, float(values[0, -1])

    def margins(self) -> np.ndarray:
        data = xgb.DMatrix(self.matrix, feature_names=list(self.bundle.feature_names))
        return self.bundle.booster.predict(data, output_margin=True)


def make_case(  # noqa: PLR0917
    seed: int = 0, depth: int = 4, n_numbers: int = 3, levels: tuple[int, ...] = (4, 2), n_trees: int = 6,
    file_format: str = "ubj", n_rows: int = 80, missing: float = 0.2, **parameters: object,
) -> Case:  # fmt: skip
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(n_numbers)]
    one_hots = []
    for i, n in enumerate(levels):
        one_hots.append(OneHot(f"c{i}", tuple(map(str, range(n))), tuple(range(len(names), len(names) + n))))
        names += [f"c{i}_{level}" for level in range(n)]
    encoding = Encoding(len(names), tuple((f"n{i}", i) for i in range(n_numbers)), tuple(one_hots))
    numbers = (rng.normal(size=(n_numbers, 400)) * 10).round(1).astype(np.float32)
    numbers[rng.random(numbers.shape) < missing] = np.nan
    codes = np.array([rng.integers(0, n + 1, 400) for n in levels]).reshape(len(levels), 400).astype(np.uint16)
    packed = Packed(numbers, codes)
    churned = rng.random(400) < 0.3 + 0.4 * (np.nan_to_num(packed.values).sum(axis=0) > 0)
    settings = {"objective": "binary:logistic", "max_depth": depth, "eta": 0.5, "nthread": 1, "seed": seed}
    data = xgb.DMatrix(unpack(packed, encoding), churned, feature_names=names)
    booster = xgb.train(settings | parameters, data, n_trees)
    bundle = load_bundle(bytes(booster.save_raw(file_format)), names, "a model")
    return Case(bundle, encoding, packed.take(slice(n_rows)))


cases = st.builds(
    make_case,
    seed=st.integers(0, 2**31),
    depth=st.integers(1, 8),
    n_numbers=st.integers(0, 4),
    levels=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    n_trees=st.integers(1, 12),
    file_format=st.sampled_from(["ubj", "json"]),
    missing=st.sampled_from([0.0, 0.3]),
    scale_pos_weight=st.sampled_from([1, 0.2, 7]),
    min_child_weight=st.sampled_from([0.01, 1, 5]),
    num_parallel_tree=st.integers(1, 2),
    subsample=st.sampled_from([1, 0.6]),
    base_score=st.sampled_from([0.5, 0.01, 0.9]),
    tree_method=st.sampled_from(["hist", "exact"]),
)


def explainer(case: Case, *, large: bool) -> ForestExplainer:
    return build_explainer(case.bundle.read_forest(), case.encoding, is_large_batch=large)


@given(cases)
@settings(max_examples=40, deadline=None)
def test_compiled_scores_are_xgboosts_to_the_bit(case: Case):
    expected = case.bundle.predict(case.matrix)

    forest = case.bundle.read_forest()

    np.testing.assert_array_equal(build_scorer(forest, case.encoding).score(case.packed), expected)
    np.testing.assert_array_equal(explainer(case, large=False).explain(case.packed)[0], expected)


@given(cases, st.booleans())
@settings(max_examples=40, deadline=None)
def test_reasons_are_xgboosts_and_add_up_to_the_margin(case: Case, large: bool):
    expected, bias = case.summed_contributions()

    ours = explainer(case, large=large)
    _, contributions = ours.explain(case.packed)

    np.testing.assert_allclose(contributions, expected, atol=1e-4)
    assert ours.bias == pytest.approx(bias, abs=1e-4)
    np.testing.assert_allclose(contributions.sum(axis=1) + ours.bias, case.margins(), atol=1e-4)


@given(cases)
@settings(max_examples=20, deadline=None)
def test_a_rows_reasons_do_not_depend_on_the_rows_beside_it(case: Case):
    ours = explainer(case, large=False)
    _, together = ours.explain(case.packed)

    _, alone = ours.explain(case.packed.take(slice(3, 4)))

    np.testing.assert_array_equal(alone[0], together[3])


def test_trees_of_more_than_64_leaves_and_rows_of_more_than_a_block():
    case = make_case(depth=8, n_trees=3, n_numbers=4, min_child_weight=0, gamma=0)
    many = Packed(np.tile(case.packed.numbers, 300), np.tile(case.packed.levels, 300))
    forest = case.bundle.read_forest()
    assert max(np.add.reduceat(forest.is_leaf.astype(int), forest.starts[:-1])) > 64

    scores = build_scorer(forest, case.encoding).score(many)

    np.testing.assert_array_equal(scores, np.tile(case.bundle.predict(case.matrix), 300))


def test_more_parents_than_eight_have_a_lane_each():
    case = make_case(n_numbers=17, levels=(3,))
    expected, _ = case.summed_contributions()

    np.testing.assert_allclose(explainer(case, large=False).explain(case.packed)[1], expected, atol=1e-4)


def test_rows_on_a_threshold_go_where_xgboost_sends_them():
    case = make_case(missing=0, levels=(2,))
    forest = case.bundle.read_forest()
    cuts = forest.values[~forest.is_leaf & (forest.features == 0)]
    numbers = np.zeros((3, len(cuts) * 3), dtype=np.float32)
    numbers[0] = np.concatenate([cuts, np.nextafter(cuts, -np.inf), np.nextafter(cuts, np.inf)])
    rows = Packed(numbers, np.zeros((1, numbers.shape[1]), dtype=np.uint16))

    scores = build_scorer(forest, case.encoding).score(rows)

    np.testing.assert_array_equal(scores, case.bundle.predict(unpack(rows, case.encoding)))


def test_rows_that_came_encoded_score_as_those_that_did_not():
    case = make_case()

    again = pack_matrix(case.matrix, case.encoding)

    np.testing.assert_array_equal(again.levels, case.packed.levels)
    np.testing.assert_array_equal(again.numbers, case.packed.numbers)


def categorical_case() -> Case:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 6, (300, 2)).astype(np.float32)
    data = xgb.DMatrix(
        matrix, rng.random(300) < matrix[:, 0] / 6, feature_names=["n0", "n1"], feature_types=["c", "q"],
        enable_categorical=True,
    )  # fmt: skip
    booster = xgb.train({"objective": "binary:logistic", "max_cat_to_onehot": 1}, data, 4)
    encoding = Encoding(2, (("n0", 0), ("n1", 1)), ())
    bundle = load_bundle(bytes(booster.save_raw("ubj")), ["n0", "n1"], "a model")
    return Case(bundle, encoding, pack_matrix(matrix[:50], encoding))


UNCOMPILABLE = {
    "booster gblinear": lambda: make_case(booster="gblinear", missing=0),
    "booster dart": lambda: make_case(booster="dart", rate_drop=0.5),
    "trees of depth": lambda: make_case(
        depth=0, max_leaves=200, grow_policy="lossguide", levels=(1,), n_numbers=1, missing=0, min_child_weight=0,
        reg_lambda=0, eta=1, max_bin=400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", UNCOMPILABLE)
def test_what_cannot_be_compiled_is_scored_and_explained_by_xgboost_which_is_said(why: str):
    case = UNCOMPILABLE[why]()
    expected, _ = case.summed_contributions()

    ours = build_engine(case.bundle, case.encoding, case.packed, n_rows=80, with_reasons=True)
    scores, contributions = ours.score(case.packed)

    assert why in str(ours.fallback_reason)
    np.testing.assert_array_equal(scores, case.bundle.predict(case.matrix))
    np.testing.assert_allclose(contributions, expected, atol=1e-5)


def test_categorical_splits_of_a_column_that_is_packed_as_a_number_are_left_to_xgboost():
    case = categorical_case()
    with pytest.raises(NotCompilableError, match="categorical splits by levels that are not known"):
        build_scorer(case.bundle.read_forest(), case.encoding)


def test_tables_that_disagree_with_xgboost_are_not_believed(monkeypatch: pytest.MonkeyPatch):
    case = make_case()
    wrong = case.bundle.read_forest()
    wrong = wrong._replace(base_margin=np.float32(wrong.base_margin + 0.01))
    monkeypatch.setattr(engine_module.Bundle, "read_forest", lambda _: wrong)

    for with_reasons in (True, False):
        ours = build_engine(case.bundle, case.encoding, case.packed, n_rows=80, with_reasons=with_reasons)
        np.testing.assert_array_equal(ours.score(case.packed)[0], case.bundle.predict(case.matrix))
        assert str(ours.fallback_reason).startswith("scores by")


class NeededError(Exception):
    """XGBoost's booster was needed."""


def not_needed() -> xgb.Booster:
    raise NeededError


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


SPOILED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "a line that is no JSON": lambda path: path.write_bytes(b"{\n"),
    "JSON of another kind": lambda path: path.write_bytes(b"[1]\n0"),
    "the line only": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-64]),
    "a byte changed": change_a_byte,
    "a folder": lambda path: (path.unlink(), path.mkdir(), path.rmdir()),
    "arrays of other names": lambda path: ArrayCache(path.parent).store(path.name, {"other": np.zeros(3)}),
    "no arrays": lambda path: ArrayCache(path.parent).store(path.name, {}),
}


@pytest.mark.parametrize("with_reasons", [True, False])
def test_kept_tables_score_to_the_bit_without_xgboost_and_spoiled_ones_are_made_anew(
    tmp_path: Path, with_reasons: bool
):
    case, cache = make_case(), ArrayCache(tmp_path)
    bundle = replace(case.bundle, golden=case.bundle.make_golden(case.matrix))
    closed = replace(bundle, load=not_needed)
    build = partial(
        build_engine, encoding=case.encoding, few=case.packed, n_rows=80, with_reasons=with_reasons, cache=cache
    )
    expected = build(bundle).score(case.packed)
    (entry,) = tmp_path.iterdir()

    for spoil in SPOILED.values():
        kept = build(closed)
        for ours, theirs in zip(kept.score(case.packed), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert kept.fallback_reason is None
        spoil(entry)
        with pytest.raises(NeededError):
            build(closed)
        build(bundle)
    assert list(tmp_path.iterdir()) == [entry]


def test_kept_tables_of_other_golden_scores_model_or_encoding_are_not_used(tmp_path: Path):
    case, cache = make_case(), ArrayCache(tmp_path)
    golden = case.bundle.make_golden(case.matrix)
    bundle = replace(case.bundle, golden=golden)
    build = partial(build_engine, few=case.packed, n_rows=80, with_reasons=True, cache=cache)
    build(bundle, case.encoding)
    closed = replace(bundle, load=not_needed)

    for other in (
        replace(closed, golden=replace(golden, scores=golden.scores + np.float32(0.01))),
        replace(closed, golden=None),
        replace(closed, data=bytes(case.bundle.booster.save_raw("json"))),
    ):
        with pytest.raises(NeededError):
            build(other, case.encoding)
    with pytest.raises(NeededError):
        build(closed, replace(case.encoding, windows=(("n0", "n1"),)))


def test_reasons_that_do_not_add_up_are_refused():
    case = make_case()
    ours = explainer(case, large=False)
    scores, contributions = ours.explain(case.packed)

    require_sums(scores, contributions, ours.bias, "a model")
    with pytest.raises(ModelFileError, match="reasons that miss their scores"):
        require_sums(scores, contributions + 0.01, ours.bias, "a model")


def test_the_forest_of_a_model_saved_as_text_is_that_of_the_binary_one():
    case = make_case()
    as_text = read_forest(json.loads(bytes(case.bundle.booster.save_raw("json"))))

    for name in Forest._fields:
        np.testing.assert_array_equal(getattr(as_text, name), getattr(case.bundle.read_forest(), name))


@pytest.mark.parametrize("suffix", ["ubj", "json"])
def test_a_model_saved_by_xgboost_2_1_is_scored_and_explained_as_that_version_did(suffix: str):
    data = (DATA / f"xgboost_2_1.{suffix}").read_bytes()
    said = json.loads((DATA / "xgboost_2_1.expected.json").read_bytes())
    bundle = read_bundle(data, None, "an old model")
    encoding = plan_encoded(bundle.feature_names, ["brand_id"])
    packed = pack_matrix(np.array(said["rows"], dtype=np.float32), encoding)
    expected = np.array(said["contributions"])

    ours = build_engine(bundle, encoding, packed, n_rows=50, with_reasons=True)
    scores, contributions = ours.score(packed)

    assert said["version"].startswith("2.1.")
    assert ours.fallback_reason is None
    np.testing.assert_allclose(scores, said["scores"], atol=1e-6)
    np.testing.assert_allclose(contributions[:, :2], expected[:, :2], atol=1e-4)
    np.testing.assert_allclose(contributions[:, 2], expected[:, 2:5].sum(axis=1), atol=1e-4)
    assert ours.bias == pytest.approx(expected[0, -1], abs=1e-4)


def test_an_early_stopped_booster_is_taken_with_all_its_trees_as_xgboost_takes_it():
    case = make_case()
    rng = np.random.default_rng(5)
    data = xgb.DMatrix(case.matrix, rng.random(80) < 0.5, feature_names=list(case.bundle.feature_names))
    booster = xgb.train(
        {"objective": "binary:logistic"}, data, 30, evals=[(data, "shuffled"), (xgb.DMatrix(
            case.matrix, rng.random(80) < 0.5, feature_names=list(case.bundle.feature_names)), "held_out")],
        early_stopping_rounds=3, verbose_eval=False,
    )  # fmt: skip
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    bundle = load_bundle(bytes(booster.save_raw("ubj")), None, "a model")

    scores, _ = build_explainer(bundle.read_forest(), case.encoding, is_large_batch=False).explain(case.packed)

    np.testing.assert_array_equal(scores, booster.predict(data))


def test_code_is_compiled_where_nothing_can_be_kept():
    # What comes from no file has no place beside it either.
    scope: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", scope)  # noqa: S102

    assert compiled(scope["double"])(21) == 42
