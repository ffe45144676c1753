"""At stake: no row is scored by a model other than the one that was trained.

A file may be damaged, of another XGBoost, or not belong to its names. Each must end in a refusal that says what to do:
never in other scores, and never in a crash, which would take the other variants of the run with it.
"""

import json
import random
import re

import numpy as np
import pytest
import xgboost as xgb

from churn.errors import ModelFileError
from churn.inference.bundle import GOLDEN_ROWS, Golden, load_bundle, parse_feature_names, read_bundle
from churn.inference.forest import NotCompilableError, read_forest
from churn.inference.ubjson import parse_ubjson

NAMES = tuple("abcdef")
TREES = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
BOOSTERS = {
    "gbtree": TREES,
    "dart": TREES | {"booster": "dart", "rate_drop": 0.5},
    "gblinear": {"objective": "binary:logistic", "booster": "gblinear", "nthread": 1},
    "forest": TREES | {"num_parallel_tree": 3, "subsample": 0.5},
    "weighted": TREES | {"base_score": 0.3, "scale_pos_weight": 2.5},
    "lossguide": TREES | {"grow_policy": "lossguide", "max_depth": 0, "max_leaves": 7},
    "pruned": TREES | {"tree_method": "exact", "gamma": 3.0},
}


def make_matrix(seed: int, n_rows: int = 400) -> np.ndarray:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(n_rows, len(NAMES))).astype(np.float32)
    matrix[generator.random(matrix.shape) < 0.1] = np.nan
    return matrix


def train(
    parameters=TREES, *, names=None, labels=None, rounds: int = 6, start=None, margins=None, weights=None
) -> xgb.Booster:
    matrix = make_matrix(0)
    if labels is None:
        labels = (np.nan_to_num(matrix[:, 0]) + np.nan_to_num(matrix[:, 1]) ** 2 > 0.5).astype(int)
    data = xgb.DMatrix(matrix, label=labels, feature_names=names, base_margin=margins, weight=weights)
    return xgb.train(parameters, data, rounds, xgb_model=start)


def saved(booster: xgb.Booster, form: str = "ubj") -> bytes:
    return bytes(booster.save_raw(form))


@pytest.fixture(scope="module")
def boosters() -> dict[str, xgb.Booster]:
    return {name: train(parameters) for name, parameters in BOOSTERS.items()}


@pytest.fixture(scope="module")
def ubj(boosters) -> bytes:
    return saved(boosters["gbtree"])


@pytest.fixture(scope="module")
def document(boosters) -> dict:
    return json.loads(saved(boosters["gbtree"], "json"))


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize("kind", BOOSTERS)
def test_predictions_are_exactly_those_of_booster_predict(boosters, kind, form):
    bundle = read_bundle(saved(boosters[kind], form), NAMES, "model")
    matrix = make_matrix(1)

    scores = bundle.predict(matrix)

    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, boosters[kind].predict(xgb.DMatrix(matrix)))
    np.testing.assert_array_equal(bundle.predict(matrix[:1]), scores[:1])


def test_early_stopping_does_not_change_which_trees_predict():
    matrix, labels = make_matrix(0), np.random.default_rng(2).integers(0, 2, 400)
    data = xgb.DMatrix(matrix, label=labels)
    inverted = xgb.DMatrix(matrix, label=1 - labels)
    booster = xgb.train(TREES, data, 20, evals=[(inverted, "x")], early_stopping_rounds=3, verbose_eval=False)
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()

    scores = read_bundle(saved(booster), NAMES, "model").predict(matrix)

    np.testing.assert_array_equal(scores, booster.predict(xgb.DMatrix(matrix)))


ESTIMATORS = {
    "XGBClassifier": (xgb.XGBClassifier, {}),
    "XGBRegressor": (xgb.XGBRegressor, {"objective": "binary:logistic"}),
    "DART": (xgb.XGBClassifier, {"booster": "dart", "rate_drop": 0.3}),
    "forests": (xgb.XGBClassifier, {"num_parallel_tree": 3, "subsample": 0.5}),
    "lossguide": (xgb.XGBClassifier, {"grow_policy": "lossguide", "max_leaves": 5}),
    "weighted": (xgb.XGBClassifier, {"scale_pos_weight": 3, "base_score": 0.2}),
    "not stopped": (xgb.XGBClassifier, {"early_stopping_rounds": None}),
    "linear": (xgb.XGBClassifier, {"booster": "gblinear"}),
}


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_estimator_predicts_with_the_rounds_that_it_does(kind, form, tmp_path):
    estimator, parameters = ESTIMATORS[kind]
    matrix, labels = make_matrix(0), np.random.default_rng(2).integers(0, 2, 400)
    parameters = {"early_stopping_rounds": 4, "n_estimators": 25, "max_depth": 3, "n_jobs": 1} | parameters
    fitted = estimator(**parameters).fit(matrix, labels, eval_set=[(matrix[:200], 1 - labels[:200])], verbose=False)
    fitted.save_model(tmp_path / f"model.{form}")
    expected = fitted.predict_proba(matrix)[:, 1] if hasattr(fitted, "predict_proba") else fitted.predict(matrix)

    bundle = read_bundle((tmp_path / f"model.{form}").read_bytes(), NAMES, "model")

    np.testing.assert_allclose(bundle.predict(matrix), expected, atol=1e-7)
    again = read_bundle(bytes(bundle.booster.save_raw("ubj")), NAMES, "model")  # as the registry stores it
    np.testing.assert_array_equal(again.predict(matrix), bundle.predict(matrix))
    if kind not in ("DART", "linear"):
        forest = bundle.read_forest()
        assert len(forest.starts) - 1 == len(bundle.booster.get_dump())
        margins = bundle.booster.predict(xgb.DMatrix(matrix, feature_names=list(NAMES)), output_margin=True)
        sums = bundle.contributions(matrix).sum(axis=1)
        np.testing.assert_allclose(sums, margins, atol=1e-5)


@pytest.mark.parametrize("best", ["99", "-1", "x", ""])
def test_an_estimators_file_that_does_not_say_its_rounds_is_refused_with_both_remedies(boosters, best):
    booster = boosters["gbtree"].copy()
    booster.set_attr(best_iteration=best or " ", scikit_learn="{}")
    with pytest.raises(ModelFileError, match=r"cannot be decided which of them predict; save .*booster\[:n\].* or all"):
        read_bundle(saved(booster), NAMES, "model")


CHANGES = {
    "the file": lambda d: d,
    "its learner": lambda d: d["learner"],
    "its parameters": lambda d: d["learner"]["learner_model_param"],
    "its objective": lambda d: d["learner"]["objective"],
    "its booster": lambda d: d["learner"]["gradient_booster"],
    "its model": lambda d: d["learner"]["gradient_booster"]["model"],
    "its tree 0": lambda d: d["learner"]["gradient_booster"]["model"]["trees"][0],
    "the size of its tree 0": lambda d: d["learner"]["gradient_booster"]["model"]["trees"][0]["tree_param"],
    "its forest": lambda d: d["learner"]["gradient_booster"]["model"]["gbtree_model_param"],
    "its loss": lambda d: d["learner"]["objective"]["reg_loss_param"],
}


@pytest.mark.parametrize("where", CHANGES)
@pytest.mark.parametrize("name", ["intercept", "monotone", "leaf_weights"])
def test_a_field_that_is_not_known_is_refused_by_its_name(document, where, name):
    changed = json.loads(json.dumps(document))
    CHANGES[where](changed)[name] = [1.0]
    with pytest.raises(ModelFileError, match=f"{where} has '{name}', which is not known here and may change"):
        read_bundle(json.dumps(changed).encode(), NAMES, "model")


def sliced(booster: xgb.Booster, rounds: slice) -> xgb.Booster:
    return booster[rounds]


PREDICTING = {
    "some rounds": lambda: sliced(train(), slice(1, 5, 2)),
    "continued": lambda: train(TREES | {"eta": 0.05}, start=train(TREES | {"eta": 0.8})),
    "refreshed": lambda: train(TREES | {"process_type": "update", "updater": "refresh"}, start=train()),
    "dropped forests": lambda: train(TREES | {"booster": "dart", "rate_drop": 0.5, "num_parallel_tree": 2}),
    "monotone": lambda: train(TREES | {"monotone_constraints": "(1,0,0,0,0,0)"}),
    "a rare outcome": lambda: train(TREES | {"base_score": 1e-6}),
    "a margin for each row": lambda: train(margins=np.linspace(-2, 2, 400)),
    "weights": lambda: train(weights=np.linspace(0.1, 5, 400)),
}


@pytest.mark.parametrize("kind", PREDICTING)
def test_whatever_training_did_a_file_predicts_as_its_booster(kind):
    booster, matrix = PREDICTING[kind](), make_matrix(1)
    bundle = read_bundle(saved(booster), NAMES, "model")
    np.testing.assert_allclose(bundle.predict(matrix), booster.predict(xgb.DMatrix(matrix)), atol=1e-6)


def changed(document: dict, change) -> bytes:
    copy = json.loads(json.dumps(document))
    change(copy["learner"])
    return json.dumps(copy).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["learner_model_param"].update(boost_from_average="0"),
        lambda d: d["objective"]["reg_loss_param"].update(scale_pos_weight="9"),
        lambda d: d["attributes"].update(best_iteration="1", best_score="0.5"),
        lambda d: d["gradient_booster"]["model"]["gbtree_model_param"].update(num_parallel_tree="3"),
    ],
    ids=range(4),
)
def test_what_only_training_reads_changes_no_score(document, boosters, change):
    bundle, matrix = read_bundle(changed(document, change), NAMES, "model"), make_matrix(1)
    np.testing.assert_array_equal(bundle.predict(matrix), boosters["gbtree"].predict(xgb.DMatrix(matrix)))


SEVERAL = np.eye(2)[np.random.default_rng(3).integers(0, 2, 400)]
OF_OTHER_SCORES = {
    "targets": lambda: train(labels=SEVERAL),
    "leaves of several values": lambda: train(TREES | {"multi_strategy": "multi_output_tree"}, labels=SEVERAL),
    "classes": lambda: train(TREES | {"objective": "multi:softprob", "num_class": 2}),
}


@pytest.mark.parametrize("kind", OF_OTHER_SCORES)
def test_a_model_of_several_scores_is_refused(kind):
    with pytest.raises(ModelFileError, match="has several scores per row; one churn probability is needed"):
        read_bundle(saved(OF_OTHER_SCORES[kind]()), NAMES, "model")


@pytest.mark.parametrize("score", ["[2E-1,3E-1]", "[]", "[0E0]", "1E0", "[2E0]", "[nan]", "abc", ""])
def test_a_base_score_that_is_no_single_probability_is_refused(document, score):
    data = changed(document, lambda d: d["learner_model_param"].update(base_score=score))
    with pytest.raises(ModelFileError, match="one number between 0 and 1 is needed"):
        read_bundle(data, NAMES, "model")


def test_a_categorical_booster_of_xgboost_2_is_read():
    matrix = np.abs(make_matrix(0)).round()
    kinds = ["float"] * 5 + ["c"]
    data = xgb.DMatrix(matrix, label=matrix[:, 5] % 2 == 1, feature_types=kinds, enable_categorical=True)
    booster = xgb.train(TREES | {"max_cat_to_onehot": 1}, data, 3)
    document = json.loads(saved(booster, "json"))
    n_changed = 0
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        for node in tree["categories_nodes"]:
            tree["split_conditions"][node] = float("nan")  # as XGBoost 2.1 writes it
            n_changed += 1
    del document["learner"]["gradient_booster"]["model"]["cats"]
    assert n_changed

    bundle = read_bundle(json.dumps(document).encode(), NAMES, "model")

    np.testing.assert_array_equal(bundle.predict(matrix), booster.predict(data))


def test_no_rows_give_no_scores(ubj):
    assert read_bundle(ubj, NAMES, "model").predict(np.empty((0, 6), dtype=np.float32)).tolist() == []


def test_a_matrix_of_another_width_is_refused(ubj):
    with pytest.raises(ModelFileError, match="the matrix has 5 columns; the model needs 6"):
        read_bundle(ubj, NAMES, "model").predict(make_matrix(1)[:, :5])


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize(("kind", "n_trees"), [("gbtree", 6), ("dart", 6), ("forest", 18), ("gblinear", 0)])
def test_the_parameters_are_those_of_the_file(boosters, kind, n_trees, form):
    booster = boosters[kind]
    held = read_bundle(saved(booster, form), NAMES, "model").parameters

    assert held["booster"] == BOOSTERS[kind].get("booster", "gbtree")
    assert held["objective"] == "binary:logistic"
    assert (held["n_features"], held["n_trees"]) == (6, n_trees)
    assert held["xgboost_version"] == xgb.__version__
    if n_trees:
        dump = booster.get_dump()
        assert held["n_leaves"] == sum(tree.count("leaf=") for tree in dump)
        lines = [line for tree in dump for line in tree.splitlines()]
        assert held["max_depth"] == max(len(line) - len(line.lstrip("\t")) for line in lines)


def test_what_a_file_says_of_its_training_is_told(boosters):
    held = read_bundle(saved(boosters["weighted"]), NAMES, "model").parameters
    assert float(held["base_score"].strip("[]")) == pytest.approx(0.3)
    assert held["scale_pos_weight"] == "2.5"


def test_the_old_binary_format_is_refused_with_the_remedy():
    with pytest.raises(ModelFileError, match=r"old binary format.*load it with XGBoost 2\.x and save it again"):
        read_bundle(b"binf\0\0\0\0", NAMES, "model")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95pickle", "neither UBJSON nor JSON"),
        (b"PK\x03\x04", "neither UBJSON nor JSON"),
        (b"[1]", "neither UBJSON nor JSON"),
        (b"{}", "is not an XGBoost model"),
        (b'{"version": [3, 2, 0]}', "is not an XGBoost model"),
        (b'{"learner": []}', "is not an XGBoost model"),
        (b'{"learner": {"gradient_booster": null}}', "is not an XGBoost model"),
        (b'{"a": ' + b"[" * 100_000, "is damaged"),
        (b"{L" + b"\0" * 7 + b"\x01a" + b"[" * 100_000, "is damaged"),
        (b"{L\x7f" + b"\xff" * 7, "is damaged"),
    ],
    ids=range(11),
)
def test_what_is_no_model_is_refused(data, why):
    with pytest.raises(ModelFileError, match=f"my model.* {why}"):
        read_bundle(data, NAMES, "my model")


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_a_file_cut_off_anywhere_is_refused_and_does_not_crash_the_process(boosters, form):
    data = saved(boosters["gbtree"], form)
    offsets = range(1, len(data)) if form == "ubj" else range(1, len(data), 7)
    for offset in offsets:
        with pytest.raises(ModelFileError):
            read_bundle(data[:offset], NAMES, "model")


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_bytes_after_the_end_are_refused(boosters, form):
    with pytest.raises(ModelFileError, match="is damaged"):
        read_bundle(saved(boosters["gbtree"], form) + b"x", NAMES, "model")


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_a_file_with_any_byte_changed_is_refused_or_predicts_and_does_not_crash_the_process(boosters, form):
    data, matrix, chance = saved(boosters["gbtree"], form), make_matrix(1, 20), random.Random(4)  # noqa: S311
    n_refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] = chance.randrange(256)
        try:
            scores = read_bundle(bytes(damaged), NAMES, "model").predict(matrix)
        except ModelFileError:
            n_refused += 1
        else:
            assert scores.shape == (20,)
    assert n_refused > 30


def tree_with(document: dict, name: str, values: list) -> bytes:
    changed = json.loads(json.dumps(document))
    changed["learner"]["gradient_booster"]["model"]["trees"][0][name] = values
    return json.dumps(changed).encode()


def test_a_tree_whose_indices_lead_out_of_it_is_refused(document):
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    left, parents, indices = tree["left_children"], tree["parents"], tree["split_indices"]
    for name, values in {
        "left_children": [len(left), *left[1:]],
        "right_children": [-7, *tree["right_children"][1:]],
        "parents": [parents[0], 10_000, *parents[2:]],
        "split_indices": [len(NAMES), *indices[1:]],
        "split_conditions": tree["split_conditions"][:-1],
    }.items():
        with pytest.raises(ModelFileError, match=r"is damaged \(one of its trees"):
            read_bundle(tree_with(document, name, values), NAMES, "model")


def test_a_tree_with_a_cycle_or_shared_children_is_refused_at_once(document):
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    n_nodes = len(tree["left_children"])
    for left in ([0] * n_nodes, [min(i + 1, n_nodes - 1) for i in range(n_nodes)]):
        with pytest.raises(ModelFileError, match=r"is damaged \(one of its trees"):
            read_bundle(tree_with(document, "left_children", left), NAMES, "model")


def test_a_newer_xgboosts_file_is_refused_since_this_one_would_misread_it(document):
    major, minor, patch = document["version"]
    for version in ([major, minor + 1, 0], [major + 1, 0, 0]):
        newer = json.dumps(document | {"version": version}).encode()
        remedy = (
            rf"use XGBoost {version[0]}\.{version[1]} here .*3\.12.*save the model with XGBoost {major}\.{minor} or"
        )
        with pytest.raises(ModelFileError, match=rf"saved by XGBoost {version[0]}\.{version[1]}\.0 .*{remedy}"):
            read_bundle(newer, NAMES, "model")
    for version in ([major, minor, patch + 1], [2, 0, 3]):
        older = json.dumps(document | {"version": version}).encode()
        assert read_bundle(older, NAMES, "model").parameters["xgboost_version"] == ".".join(map(str, version))


def dart_forms(booster: xgb.Booster) -> dict[str, dict]:
    """Return a DART booster's document as XGBoost 3.2 and as 3.4 write it."""
    document = json.loads(saved(booster, "json"))
    held = document["learner"]["gradient_booster"]
    model = dict(held["gbtree"]["model"] if held["name"] == "dart" else held["model"])
    weights = model.pop("weight_drop", held.get("weight_drop"))
    older = {"name": "dart", "gbtree": {"name": "gbtree", "model": model}, "weight_drop": weights}
    newer = {"name": "gbtree", "model": model | {"weight_drop": weights}}
    return {
        form: document | {"version": version, "learner": document["learner"] | {"gradient_booster": inner}}
        for form, version, inner in (("older", [3, 2, 0], older), ("newer", document["version"], newer))
    }


def test_dart_that_an_older_xgboost_wrote_predicts_the_same(boosters):
    older = json.dumps(dart_forms(boosters["dart"])["older"]).encode()

    bundle = read_bundle(older, NAMES, "model")

    assert bundle.parameters["booster"] == "dart"
    matrix = make_matrix(1)
    np.testing.assert_array_equal(
        bundle.booster.predict(xgb.DMatrix(matrix, feature_names=list(NAMES))),
        boosters["dart"].predict(xgb.DMatrix(matrix)),
    )


@pytest.mark.parametrize("form", ["older", "newer"])
def test_dart_is_known_by_its_weights_and_is_left_to_xgboost(boosters, form):
    # XGBoost 3.2 reads the newer form without an error and ignores the weights, as tables without them would.
    with pytest.raises(NotCompilableError, match="booster dart"):
        read_forest(dart_forms(boosters["dart"])[form])


@pytest.mark.parametrize("form", ["older", "newer"])
@pytest.mark.parametrize("weights", [[], [1.5], [1.5] * 7, [float("nan")] * 6, [1e39] * 6], ids=range(5))
def test_weights_that_are_not_of_the_trees_are_refused(boosters, form, weights):
    document = dart_forms(boosters["dart"])[form]
    held = document["learner"]["gradient_booster"]
    (held if form == "older" else held["model"])["weight_drop"] = weights
    with pytest.raises(ModelFileError, match=r"is damaged \(.*weights of trees"):
        read_bundle(json.dumps(document).encode(), NAMES, "model")


@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logitraw", "binary:hinge", "rank:pairwise"])
def test_another_objective_is_refused(objective):
    with pytest.raises(ModelFileError, match=f"has objective '{objective}'; churn probabilities need binary:logistic"):
        read_bundle(saved(train(TREES | {"objective": objective})), NAMES, "model")


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_a_model_of_several_outputs_is_refused(strategy):
    labels = np.random.default_rng(3).integers(0, 2, (400, 2))
    booster = train(TREES | {"multi_strategy": strategy, "tree_method": "hist"}, labels=labels)
    with pytest.raises(ModelFileError, match="several scores per row; one churn probability is needed"):
        read_bundle(saved(booster), NAMES, "model")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (list("abcde"), r"trained on 6 features and its feature names file has 5"),
        (list("abcdefg"), r"trained on 6 features and its feature names file has 7"),
        ([], r"trained on 6 features and its feature names file has 0"),
        (list("abcdea"), r"has repeated feature names: \['a'\]"),
        (list("abdcef"), r"disagree at 2 positions \(2: 'c' against 'd', 3: 'd' against 'c'\)"),
        (list("ABCDEF"), r"disagree at 6 positions"),
        (["a", "b", "c", "d", "e", "\ud800"], r"."),
    ],
    ids=range(7),
)
def test_names_that_are_not_the_models_are_refused(names, why):
    booster = train(names=list(NAMES))
    with pytest.raises(ModelFileError, match=f"model.*{why}"):
        read_bundle(saved(booster), names, "model")


def test_a_booster_that_carries_its_names_needs_no_file_of_them():
    assert read_bundle(saved(train(names=list(NAMES))), None, "model").feature_names == NAMES
    with pytest.raises(ModelFileError, match="has no feature names and none were given"):
        read_bundle(saved(train()), None, "model")


def test_given_names_travel_with_the_booster(ubj):
    bundle = read_bundle(ubj, NAMES, "model")
    assert load_bundle(saved(bundle.booster), None, "model").feature_names == NAMES


@pytest.mark.parametrize("text", ['["a", "b"]', ' \n["a","b"] ', '\ufeff["a", "b"]'])
def test_a_feature_names_file_is_an_array_of_names(text):
    assert parse_feature_names(text.encode(), "names") == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not JSON"),
        (b"a,b", "is not JSON"),
        (b'["a"', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "is not a JSON array of feature names"),
        (b"[]", "is not a JSON array of feature names"),
        (b'["a", 1]', "is not a JSON array of feature names"),
        (b'["a", ""]', "is not a JSON array of feature names"),
        (b'["a", null]', "is not a JSON array of feature names"),
        (b'["a", "*"]', r"has feature names that are patterns: \['\*'\]"),
        (b'["a", "^b.*$"]', "has feature names that are patterns"),
        (b'["b", "a", "b", "a", "c"]', r"has repeated feature names: \['a', 'b'\]"),
    ],
    ids=range(13),
)
def test_any_other_feature_names_file_is_refused(data, why):
    with pytest.raises(ModelFileError, match=f"names {why}"):
        parse_feature_names(data, "names")


@pytest.mark.parametrize("kind", ["gbtree", "gblinear"])
def test_golden_rows_come_back_from_json_bit_by_bit(boosters, kind):
    bundle = read_bundle(saved(boosters[kind]), NAMES, "model")
    golden = bundle.make_golden(make_matrix(9))

    back = Golden.from_json(golden.to_json())

    assert len(back.matrix) == GOLDEN_ROWS
    assert back.matrix.tobytes() == golden.matrix.tobytes()
    assert back.scores.tobytes() == golden.scores.tobytes()
    json.loads(golden.to_json(), parse_constant=pytest.fail)
    bundle.require_golden(back)


def test_a_model_that_scores_its_golden_rows_otherwise_is_refused(boosters, ubj):
    golden = read_bundle(ubj, NAMES, "model").make_golden(make_matrix(9))
    with pytest.raises(ModelFileError, match=rf"differ by .* XGBoost here is {re.escape(xgb.__version__)}"):
        read_bundle(saved(boosters["weighted"]), NAMES, "model").require_golden(golden)


@pytest.mark.parametrize("wrong", [np.float32(np.nan), np.float32(2e-5)])
def test_one_golden_score_off_is_enough(ubj, wrong):
    bundle = read_bundle(ubj, NAMES, "model")
    golden = bundle.make_golden(make_matrix(9))
    golden.scores[-1] += wrong
    with pytest.raises(ModelFileError, match="golden rows"):
        bundle.require_golden(golden)


def test_the_sha256_is_that_of_the_bytes(ubj):
    import hashlib

    assert read_bundle(ubj, NAMES, "model").sha256 == hashlib.sha256(ubj).hexdigest()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"Z", None),
        (b"T", True),
        (b"i\xff", -1),
        (b"D" + b"\x3f\xf0" + b"\0" * 6, 1.0),
        (b"SU\x03\xc3\xa9a", "éa"),
        (b"[i\x01i\x02]", [1, 2]),
        (b"[#i\x02i\x01F", [1, False]),
        (b"{i\x01ai\x05}", {"a": 5}),
    ],
)
def test_ubjson_values_are_read_as_the_format_defines_them(data, value):
    assert parse_ubjson(data) == value


def test_the_two_forms_of_a_model_say_the_same(boosters, document):
    from_ubj = parse_ubjson(saved(boosters["gbtree"]))
    trees = from_ubj["learner"]["gradient_booster"]["model"]["trees"]
    expected = document["learner"]["gradient_booster"]["model"]["trees"]
    for tree, other in zip(trees, expected, strict=True):
        assert tree.keys() == other.keys()
        assert tree["left_children"].tolist() == other["left_children"]
        assert np.asarray(other["split_conditions"], np.float32).tolist() == tree["split_conditions"].tolist()
