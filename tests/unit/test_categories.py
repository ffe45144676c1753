"""At stake: an account's level must take the branches that it took when the model was trained, for every level.

A categorical feature is one column of codes, and nothing in a row says which level a code stands for. Every model here
is scored and explained by XGBoost itself, as its author would, from the levels or the codes that it was trained on.
"""

import json
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xgboost as xgb

from churn.data.columns import Columns
from churn.data.features import Packed, pack, pack_matrix, plan_encoded, plan_encoding, unpack, with_codes
from churn.errors import InputError, ModelFileError, QuarantineError
from churn.inference.bundle import Bundle, load_bundle, read_bundle
from churn.inference.engine import build_engine
from churn.monitoring.known_levels import UnknownLevels
from churn.monitoring.profiles import reference_profile

N = 300
STATES = ["OH", "PA", "MI", "NJ", "CO", "IL", "ny"]


@dataclass(frozen=True)
class Model:
    """A booster, its bytes, and rows as their author has them and as activity has them."""

    booster: xgb.Booster
    data: bytes
    frame: pd.DataFrame | np.ndarray
    activity: pl.DataFrame
    kinds: list[str] | None = None
    declared: dict[str, tuple[str, ...]] | None = None
    names: tuple[str, ...] = ("deposit", "state", "tier")

    def matrix(self) -> xgb.DMatrix:
        return xgb.DMatrix(
            self.frame, feature_names=list(self.names), feature_types=self.kinds, enable_categorical=True
        )

    def read(self) -> Bundle:
        return read_bundle(self.data, self.names, "the model", self.declared)


def make(
    form: str = "ubj", tiers: type = int, missing: float = 0.1, change=lambda data: data, **parameters: object
) -> Model:
    """Train on a pandas frame of categories: 7 states as texts, and 40 tiers that one-hot splits do not cover."""
    rng = np.random.default_rng(7)
    state, tier = rng.integers(0, 7, N), rng.integers(0, 40, N)
    state[rng.random(N) < missing] = -1
    deposit = rng.normal(size=N).round(2).astype(np.float32)
    dtype = pd.CategoricalDtype(STATES)
    frame = pd.DataFrame(
        {
            "deposit": deposit,
            "state": pd.Categorical.from_codes(state, dtype=dtype),
            "tier": pd.Categorical([tiers(1000 - 3 * one) for one in tier]),
        }
    )
    churned = rng.random(N) < 0.15 + 0.5 * np.isin(state, [1, 3, 6]) + 0.3 * (tier % 3 == 0) * (deposit > 0)
    settings = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.4, "nthread": 1, "seed": 1}
    booster = xgb.train(settings | parameters, xgb.DMatrix(frame, churned, enable_categorical=True), 6)
    texts = [None if one < 0 else STATES[one] for one in state]
    activity = pl.DataFrame({"deposit": deposit, "state": texts, "tier": [tiers(1000 - 3 * one) for one in tier]})
    return Model(booster, change(bytes(booster.save_raw(form))), frame, activity)


def make_from_codes(**parameters: object) -> Model:
    """Train on a matrix of codes, of which the file stores no levels."""
    model = make()
    codes = np.column_stack([model.frame["deposit"], model.frame["state"].cat.codes, model.frame["tier"].cat.codes])
    matrix = np.where(codes < 0, np.where(np.arange(3) == 0, codes, np.nan), codes).astype(np.float32)
    kinds = ["q", "c", "c"]
    data = xgb.DMatrix(
        matrix, np.isin(matrix[:, 1], [1, 3, 6]) ^ (matrix[:, 2] % 3 == 0), feature_types=kinds,
        feature_names=list(model.names), enable_categorical=True,
    )  # fmt: skip
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1} | parameters, data, 6)
    activity = pl.DataFrame(matrix, schema=["deposit", "state", "tier"]).with_columns(
        pl.col("state").fill_nan(None).cast(pl.Int64)
    )
    return Model(booster, bytes(booster.save_raw("ubj")), matrix, activity, kinds)


def as_before_3_1(data: bytes) -> bytes:
    """Write a file as XGBoost 2.1 and 3.0 do: without categories, NaN as the threshold of a categorical split."""
    document = json.loads(data)
    model = document["learner"]["gradient_booster"]["model"]
    del model["cats"]
    for tree in model["trees"]:
        for node in tree["categories_nodes"]:
            tree["split_conditions"][node] = float("nan")
    return json.dumps(document | {"version": [2, 1, 4]}).encode()


def declared(model: Model) -> Model:
    tiers = tuple(map(str, model.frame["tier"].cat.categories))
    return replace(model, declared={"state": tuple(STATES), "tier": tiers})


MODELS = {
    "sets": lambda: make(max_cat_to_onehot=1),
    "one-hot": lambda: make(max_cat_to_onehot=100),
    "both": lambda: make(max_cat_to_onehot=10),
    "JSON": lambda: make("json"),
    "texts that are numbers": lambda: make(tiers=str),
    "no value missing": lambda: make(missing=0),
    "approx": lambda: make(tree_method="approx"),
    "lossguide": lambda: make(grow_policy="lossguide", max_leaves=9, max_depth=0),
    "forests": lambda: make(num_parallel_tree=2, subsample=0.6),
    "weighted": lambda: make(scale_pos_weight=3, base_score=0.2),
    "pruned": lambda: make(gamma=2, max_cat_to_onehot=1),
    "few categories a set": lambda: make(max_cat_threshold=2, max_cat_to_onehot=1),
    "codes": make_from_codes,
    "codes in sets": lambda: make_from_codes(max_cat_to_onehot=1),
    "listed by the author": lambda: declared(make("json", change=as_before_3_1)),
    "listed and stored": lambda: declared(make()),
}


def pack_activity(model: Model, bundle: Bundle, activity: pl.DataFrame | None = None) -> tuple[Packed, object]:
    activity = model.activity if activity is None else activity
    encoding = plan_encoding(bundle.feature_names, activity.columns, bundle.categories)
    return pack(activity, encoding), encoding


@pytest.mark.parametrize("kind", MODELS)
def test_scores_and_reasons_are_xgboosts(kind):
    model = MODELS[kind]()
    bundle = model.read()
    packed, encoding = pack_activity(model, bundle)
    expected, contributions = (
        model.booster.predict(model.matrix()),
        model.booster.predict(model.matrix(), pred_contribs=True),
    )

    engine = build_engine(bundle, encoding, packed, n_rows=N, with_reasons=True)
    scores, reasons = engine.score(packed)
    without, _ = build_engine(bundle, encoding, packed, n_rows=N, with_reasons=False).score(packed)

    assert engine.fallback_reason is None
    assert encoding.columns == ("deposit", "state", "tier")
    assert packed.unknown_levels == {} or kind.startswith("codes")
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(without, expected, atol=1e-6)
    np.testing.assert_allclose(bundle.predict(unpack(packed, encoding)), expected, atol=1e-6)
    np.testing.assert_allclose(reasons, contributions[:, :3], atol=1e-6)
    assert engine.bias == pytest.approx(contributions[0, 3], abs=1e-6)


UNSEEN = {"beyond the trained codes": 7, "far beyond": 5_000_000, "of no category": -1}


@pytest.mark.parametrize("kind", ["sets", "one-hot", "codes in sets"])
@pytest.mark.parametrize("code", UNSEEN.values(), ids=UNSEEN)
def test_a_level_that_the_model_does_not_know_scores_as_xgboost_scores_such_a_code(kind, code):
    model = MODELS[kind]()
    bundle = model.read()
    texts = "ZZ" if kind != "codes in sets" else 7
    packed, encoding = pack_activity(model, bundle, model.activity.with_columns(state=pl.lit(texts)))
    known, _ = pack_activity(model, bundle)
    matrix = unpack(known, encoding)
    matrix[:, 1] = code

    engine = build_engine(bundle, encoding, packed, n_rows=N, with_reasons=True)
    scores, reasons = engine.score(packed)

    assert engine.fallback_reason is None
    assert packed.unknown_levels["state"] == {str(texts): N}
    np.testing.assert_allclose(scores, model.booster.inplace_predict(matrix), atol=1e-6)
    np.testing.assert_allclose(reasons, bundle.contributions(matrix)[:, :3], atol=1e-6)
    unknown = UnknownLevels(encoding, reference_profile(known, encoding, scores))
    list(unknown.counted([(np.arange(N), packed)]))
    with pytest.raises(QuarantineError, match=r"300 of 300 accounts .* have a state that the model does not know"):
        unknown.require(0.8, packed.unknown_levels)


SPELLINGS = {
    "OH": "OH", " oh\t": "OH", "Oh": "OH", "NY": "ny", "": None, "NULL": None, "nan": None, r"\N": None, None: None,
}  # fmt: skip


@pytest.mark.parametrize("written", SPELLINGS, ids=repr)
def test_spelled_variants_are_the_same_level_and_spellings_of_missing_are_missing(written):
    model = make()
    bundle = model.read()
    text = SPELLINGS[written]
    row = model.frame.iloc[:1].assign(state=pd.Categorical([text], categories=STATES))
    data = xgb.DMatrix(row, enable_categorical=True)

    packed, encoding = pack_activity(model, bundle, model.activity[:1].with_columns(state=pl.lit(written, pl.String)))
    scores, reasons = build_engine(bundle, encoding, packed, n_rows=1, with_reasons=True).score(packed)

    assert packed.unknown_levels == {}
    np.testing.assert_allclose(scores, model.booster.predict(data), atol=1e-6)
    np.testing.assert_allclose(reasons, model.booster.predict(data, pred_contribs=True)[:, :3], atol=1e-6)
    assert encoding.one_hots[0].levels[packed.levels[0, 0]] == (text or "(missing)")


def test_a_level_spelled_as_a_missing_value_is_the_level_where_the_model_has_it():
    encoding = plan_encoding(["plan"], ["plan"], {"plan": ("NULL", "a", "A")})
    packed = pack(pl.DataFrame({"plan": ["NULL", "a", "A", " A", "null", "nan", None, "b"]}), encoding)
    assert packed.levels[0].tolist() == [0, 1, 2, 4, 0, 3, 3, 4]
    assert packed.unknown_levels == {"plan": {" A": 1, "b": 1}}
    matrix = unpack(packed, encoding)
    np.testing.assert_array_equal(matrix[:, 0], [0, 1, 2, 4, 0, np.nan, np.nan, 4])
    np.testing.assert_array_equal(pack_matrix(matrix, encoding).levels, packed.levels)


def test_a_column_of_as_many_levels_as_a_byte_has_values():
    levels = tuple(f"L{i}" for i in range(255))
    encoding = plan_encoding(["plan"], ["plan"], {"plan": levels})
    packed = pack(pl.DataFrame({"plan": ["L254", None, "x"]}), encoding)
    assert packed.levels[0].tolist() == [254, 255, 256]


def test_encoded_rows_have_the_levels_and_get_their_codes():
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "state": ["PA", None, "oh", "ZZ"], "tier": [11, 3, None, 4]})
    levels = {"state": ("OH", "PA"), "tier": ("3", "11")}
    coded = with_codes(frame, levels)
    assert coded["state"].to_list() == [1, None, 0, 3]
    assert coded["tier"].to_list() == [1, 0, None, 3]
    encoding = plan_encoded(["x", "state", "tier"], ["tier"], levels)
    assert [group.levels for group in encoding.one_hots] == [("OH", "PA", "(missing)"), ("3", "11", "(missing)")]


def test_an_absent_categorical_column_is_named_and_is_no_level_of_another():
    with pytest.raises(InputError, match="1 of the model's features cannot be built: reg_state"):
        plan_encoding(["reg_state", "deposit"], ["reg", "deposit"], {"reg_state": ("OH",)})


@pytest.mark.parametrize("kind", ["sets", "codes", "listed by the author", "stopped early"])
def test_the_levels_stay_with_the_booster_that_the_registry_stores(kind):
    if kind == "stopped early":  # XGBoost drops the levels when it cuts the rounds
        model = make()
        model.booster.set_attr(best_iteration="2", scikit_learn="{}")
        model = replace(model, data=bytes(model.booster.save_raw("ubj")))
        model = replace(model, booster=model.booster[:3])
        model.booster.set_attr(best_iteration=None)
    else:
        model = MODELS[kind]()
    bundle = model.read()

    stored = bytes(bundle.booster.save_raw("ubj"))
    again, read_again = load_bundle(stored, None, "a version"), read_bundle(stored, None, "a version")

    assert again.categories == read_again.categories == bundle.categories != {}
    packed, encoding = pack_activity(model, again)
    engine = build_engine(again, encoding, packed, n_rows=N, with_reasons=True)
    assert engine.fallback_reason is None
    np.testing.assert_allclose(engine.score(packed)[0], bundle.predict(unpack(packed, encoding)), atol=1e-6)


def without(data: bytes, change) -> bytes:
    document = json.loads(data)
    change(document["learner"]["gradient_booster"]["model"]["cats"])
    return json.dumps(document).encode()


REFUSED = {
    "too few levels": (
        as_before_3_1,
        {"state": ("OH", "PA")},
        "state and splits it by codes up to 6; a level for each code",
    ),
    "another order": (bytes, {"state": tuple(reversed(STATES))}, "declared must be those that a file stores"),
    "no such feature": (bytes, {"stat": tuple(STATES)}, "features state, tier; the declaration has stat, too"),
    "a number": (bytes, {"deposit": ("a", "b")}, "the declaration has deposit, too"),
    "a level twice": (as_before_3_1, {"state": (*STATES, "OH")}, "a level for each code is needed"),
    "NUL": (as_before_3_1, {"state": (*STATES, "a\0")}, "none with NUL"),
    "the text of missing": (as_before_3_1, {"state": (*STATES, "(missing)")}, "none with NUL or '.missing.'"),
    "too many": (as_before_3_1, {"tier": tuple(map(str, range(65_001)))}, "at most 65,000"),
    "texts cut off": (lambda d: without(d, lambda c: c["enc"][1]["values"].pop()), {}, "is damaged.*cut off"),
    "ends that fall": (lambda d: without(d, lambda c: c["enc"][1]["offsets"].reverse()), {}, "is damaged.*cut off"),
    "no ends": (lambda d: without(d, lambda c: c["enc"][1]["offsets"].clear()), {}, "is damaged.*cut off"),
    "a feature less": (lambda d: without(d, lambda c: c["enc"].pop()), {}, "is damaged.*do not fit its features"),
    "no values": (lambda d: without(d, lambda c: c["enc"][1].pop("values")), {}, "no XGBoost model|not an XGBoost"),
    "half a letter": (lambda d: without(d, lambda c: c["enc"][1]["values"].__setitem__(0, -61)), {}, "is damaged"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_levels_that_contradict_the_file_are_refused(json_model, why):
    change, declared, message = REFUSED[why]
    with pytest.raises(ModelFileError, match=message):
        read_bundle(change(json_model.data), json_model.names, "the model", declared)


@pytest.fixture(scope="module")
def json_model() -> Model:
    return make("json", tiers=int)


@pytest.mark.parametrize("text", ["[]", "{", '{"state": "OH"}', '{"state": [1]}', '{"state": ["a", "a"]}'])
def test_an_attribute_of_other_content_is_refused(json_model, text):
    booster = json_model.booster.copy()
    booster.set_attr(churn_categories=text)
    with pytest.raises(ModelFileError, match="attribute churn_categories"):
        read_bundle(bytes(booster.save_raw("ubj")), json_model.names, "the model")


def test_a_declaration_of_categories_is_read_and_is_no_part_of_a_versions_tag():
    declared = Columns.from_json('{"categories": {"state": ["OH", ""]}, "max_money": 5}', "columns.json")
    assert (declared.categories, declared.max_money) == ({"state": ("OH", "")}, 5.0)
    assert declared.activity == Columns().activity
    assert "categories" not in declared.to_json()
    for wrong in ('["OH"]', '{"state": "OH"}', '{"state": ["OH", "OH"]}', '{"state": [1, 2]}', "null"):
        with pytest.raises(InputError, match="is no declaration of columns"):
            Columns.from_json(f'{{"categories": {wrong}}}', "columns.json")
