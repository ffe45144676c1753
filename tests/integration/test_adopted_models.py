"""At stake: what a data scientist registered from a notebook scores every week. The adopted version must score as the
notebook's model did, theirs must stay as it is, and what cannot be scored must be refused with what would do.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from churn.deployment.services import Deployment
from churn.variants import Variant
from tests.support.batches import week_request
from tests.support.inputs import monday
from tests.support.site import Run, Site, bundled

NAMES = ["total_deposit", "total_handle", "total_ngr", "months_active", "brand_id_OH", "brand_id_PA"]
NOTEBOOK = "notebooks"


def training_rows(n: int = 400) -> tuple[pd.DataFrame, "pd.Series[int]"]:
    random = np.random.default_rng(7)
    rows = pd.DataFrame(random.gamma(1.0, 50.0, (n, len(NAMES))), columns=NAMES)
    rows["brand_id_OH"] = (random.random(n) < 0.5).astype(float)
    rows["brand_id_PA"] = 1 - rows["brand_id_OH"]
    return rows, (rows["total_deposit"] + random.normal(0, 60, n) < 40).astype(int)


ROWS, LABELS = training_rows()
HELD_OUT = ROWS[300:]


def booster(names: list[str] | None = NAMES, **parameters: Any) -> xgb.Booster:
    """Train as a notebook does, with early stopping on the last rows; a booster uses all of its rounds."""
    data = xgb.DMatrix(ROWS[:300].to_numpy(), LABELS[:300], feature_names=names)
    held = xgb.DMatrix(HELD_OUT.to_numpy(), LABELS[300:], feature_names=names)
    settings = {"objective": "binary:logistic", "max_depth": 3, "seed": 1} | parameters
    return xgb.train(settings, data, 30, [(held, "held")], early_stopping_rounds=5, verbose_eval=False)


def classifier(**parameters: Any) -> xgb.XGBClassifier:
    model = xgb.XGBClassifier(n_estimators=40, max_depth=4, random_state=1, **parameters)
    held = [(HELD_OUT, LABELS[300:])] if parameters else None
    return model.fit(ROWS[:300], LABELS[:300], eval_set=held, verbose=False)


def scores_of(model: Any, rows: pd.DataFrame = HELD_OUT) -> "np.ndarray[Any, Any]":
    if isinstance(model, xgb.Booster):
        return np.asarray(model.predict(xgb.DMatrix(rows.to_numpy(), feature_names=model.feature_names)))
    return np.asarray(model.predict_proba(rows)[:, 1])


class Notebook:
    """What a person does in a notebook, with MLflow alone."""

    def __init__(self, deployment: Deployment) -> None:
        import mlflow

        deployment.registry(read_only=False)
        self.client = mlflow.MlflowClient(deployment.tracking_uri)
        if self.client.get_experiment_by_name(NOTEBOOK) is None:
            location = (deployment.settings.churn_home / "notebook").absolute().as_uri()
            self.client.create_experiment(NOTEBOOK, location)

    def register(self, model: Any, name: str, alias: str | None = "champion", **how: Any) -> str:
        """Log a model by ``mlflow.xgboost.log_model`` and register it; returns the version's URI."""
        import mlflow

        with mlflow.start_run(experiment_id=self.client.get_experiment_by_name(NOTEBOOK).experiment_id):
            logged = mlflow.xgboost.log_model(model, name="model", pip_requirements=["xgboost"], **how)
        return self.add(logged.model_uri, name, alias)

    def add(self, source: str, name: str, alias: str | None = "champion") -> str:
        import mlflow

        version = mlflow.register_model(source, name).version
        if alias is not None:
            self.client.set_registered_model_alias(name, alias, version)
        return f"models:/{name}/{version}"

    def register_files(self, folder: Path, name: str, files: Mapping[str, bytes]) -> str:
        """Register artifacts that were written by hand."""
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        if not any(one.name == name for one in self.client.search_registered_models()):
            self.client.create_registered_model(name)
        version = self.client.create_model_version(name, folder.as_uri()).version
        self.client.set_registered_model_alias(name, "champion", version)
        return f"models:/{name}/{version}"


@pytest.fixture
def notebook(site: Site, deployment: Deployment) -> Notebook:
    return Notebook(deployment)


def as_sklearn_file() -> xgb.Booster:
    """A booster read from a file that ``XGBClassifier`` saved: MLflow stores its mark, and it predicts with all."""
    model = classifier(early_stopping_rounds=3, eval_metric="logloss")
    read = model.get_booster()
    read.set_attr(scikit_learn="{}")
    return read


def unmarked() -> xgb.Booster:
    return booster(None)


def categorical() -> xgb.Booster:
    """A booster of a categorical feature, of a file that ``XGBClassifier`` saved."""
    brand = pd.Categorical.from_codes(ROWS["brand_id_OH"].astype(int), ["no", "yes"])
    data = xgb.DMatrix(ROWS.assign(brand_id_OH=brand)[:300], LABELS[:300], enable_categorical=True)
    read = xgb.train({"objective": "binary:logistic", "max_depth": 5, "min_child_weight": 0}, data, 8)
    read.set_attr(scikit_learn="{}", best_iteration="3")
    return read


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a booster that stopped early": (booster, {}),
    "a booster of a classifier's file": (as_sklearn_file, {}),
    "a classifier": (classifier, {"input_example": HELD_OUT.head(3)}),
    "a classifier that stopped early": (
        lambda: classifier(early_stopping_rounds=3, eval_metric="logloss"),
        {"model_format": "json"},
    ),
    "dart": (lambda: booster(booster="dart", rate_drop=0.3), {"model_format": "xgb"}),
    "linear": (lambda: booster(booster="gblinear"), {}),
    "names of the signature": (unmarked, {"input_example": HELD_OUT.head(3)}),
    "categories": (categorical, {}),
}


@pytest.mark.slow
def test_adopted_versions_score_as_the_notebook_did(
    site: Site, log_model: Run, notebook: Notebook, deployment: Deployment
) -> None:
    models = {}
    for i, (build, how) in enumerate(MODELS.values()):
        models[f"v{i}"] = (model := build())
        notebook.register(model, f"risk_V{i}", **how)
    before = notebook.client.search_model_versions("name LIKE 'risk%'")

    said = log_model("--adopt", "risk_*", "--geography", "*")

    assert (said.status, said.err) == (0, ""), said
    registry = deployment.registry(read_only=True)
    for name, model in models.items():
        opened = registry.open(Variant(name))
        expected = scores_of(model)
        assert np.abs(opened.bundle.predict(HELD_OUT.to_numpy(dtype=np.float32)) - expected).max() < 1e-6, name
        assert (opened.version.version, opened.bundle.feature_names) == (1, tuple(NAMES))
    assert registry.open(Variant(f"v{len(models) - 1}")).bundle.categories == {"brand_id_OH": ("no", "yes")}
    assert [dict(one) for one in notebook.client.search_model_versions("name LIKE 'risk%'")] == [
        dict(one) for one in before
    ]
    assert said.out.count("there is no reference that drift could be measured by") == len(models)
    stopped = classifier(early_stopping_rounds=3, eval_metric="logloss")
    assert stopped.best_iteration + 1 < stopped.get_booster().num_boosted_rounds()
    notebook.client.copy_model_version("models:/risk_V0/1", "churn-geography-v0")
    run_id = notebook.client.get_model_version("risk_V1", "1").run_id
    notebook.client.create_registered_model("churn-geography-v1")
    notebook.client.create_model_version("churn-geography-v1", f"runs:/{run_id}/model")
    for name in ("churn-geography-v0", "churn-geography-v1"):
        notebook.client.set_registered_model_alias(name, "champion", "1")
    beside = log_model("--adopt", "churn*")
    assert (beside.status, beside.err, beside.out.count("version   2, without an alias")) == (0, "", 2), beside
    again = log_model("--adopt", "risk_*", "--geography", "*")
    assert again.out.count("is already adopted as version 1 of churn-prediction-model-v") == len(models)
    versions = notebook.client.search_model_versions("name LIKE 'churn-prediction-model%'")
    assert len(versions) == len(models) + 2


US = "churn-prediction-model-us"


@pytest.mark.slow
def test_a_version_in_our_own_registered_model_is_adopted_beside_it_and_once(
    site: Site, log_model: Run, notebook: Notebook, deployment: Deployment
) -> None:
    site.put("geography-us/data/churn/activity.parquet", bundled("activity.parquet"))
    theirs = notebook.register(classifier(), US)
    log_model("--adopt", US).require_one_line(f"the name '{US}' does not tell its variant", "--geography", status=2)

    said = log_model("--adopt", theirs.removeprefix("models:/"), "--geography", "US")

    assert (said.status, said.err) == (0, "")
    assert "version   2, alias champion" in said.out
    version = notebook.client.get_model_version(US, "2")
    original = notebook.client.get_model_version(US, "1")
    assert original.tags == {}
    assert version.tags["churn.adopted"] == f"models:/{US}/1, run {original.run_id}, artifacts {original.source}"
    assert (version.tags["churn.source"], version.tags["churn.has_reference"]) == ("mlflow", "true")
    assert notebook.client.get_run(version.run_id).data.tags["geography"] == "US"
    assert notebook.client.get_registered_model(US).tags == {"geography": "us"}
    opened = deployment.registry(read_only=True).open(Variant("us"))
    assert opened.reference is not None

    notebook.client.delete_registered_model_alias(US, "champion")  # as a kill before the last step leaves it
    completed = log_model("--adopt", f"{US}/1")
    assert "version   2, alias champion" in completed.out
    for name in (f"{US}/1", f"{US}@champion", f"{US}/2", "churn*"):
        assert log_model("--adopt", name).out.endswith(f" is already adopted as version 2 of {US}\n")

    notebook.register(booster(), US, alias="new")
    log_model("--adopt", f"{US}@new", "--alias", "chalenger").require_one_line("close to it", status=2)
    candidate = log_model("--adopt", f"{US}@new")
    assert "version   4, without an alias\nnext      version 2 is still the champion" in candidate.out
    assert "version   4, alias challenger" in log_model("--adopt", f"{US}@new", "--alias", "challenger").out
    assert "already adopted as version 4" in log_model("--adopt", f"{US}@new", "--alias", "challenger").out
    aliases = notebook.client.get_registered_model(US).aliases
    assert {name: int(number) for name, number in aliases.items()} == {"champion": 2, "new": 3, "challenger": 4}


@pytest.mark.slow
def test_the_variants_own_sample_is_checked_and_published_with_the_notebooks_scores(
    site: Site, log_model: Run, notebook: Notebook, deployment: Deployment
) -> None:
    model = classifier(early_stopping_rounds=3, eval_metric="logloss")
    notebook.register(model, "risk.geography-eu.company-b")
    rows = HELD_OUT.assign(expected_probability=scores_of(model))
    key = "geography-eu/company-b/data/churn/X_test_sample_2.json"
    site.put(key, rows.assign(expected_probability=0.5).to_json(orient="records").encode())

    log_model("--adopt", "risk.geography-eu.company-b").require_one_line("expected_probability is 0.500000")

    site.put(key, rows.to_json(orient="records").encode())
    assert "version   1, alias champion" in log_model("--adopt", "risk.geography-eu.company-b").out

    deployment.scorer().score_variant(week_request(monday()).of(Variant("eu", "b")))
    published = site.current()["churn_probability"].to_numpy()
    assert np.abs(published - scores_of(model)).max() < 1e-6


def mlmodel(*flavors: str, **xgboost: str) -> bytes:
    parts = {name: {"data": "model.pkl"} for name in flavors} | ({"xgboost": xgboost} if xgboost else {})
    return json.dumps({"flavors": parts}).encode()


GOOD = {"data": "model.ubj", "model_class": "xgboost.core.Booster"}
MODEL = bytes(booster().save_raw("ubj"))
NUMBERS = xgb.DMatrix(ROWS.to_numpy(), np.arange(len(ROWS)) % 3, feature_names=NAMES)
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "lightgbm": ({"MLmodel": mlmodel("lightgbm", "python_function")}, "has the flavors lightgbm, python_function"),
    "catboost": ({"MLmodel": mlmodel("catboost")}, "has the flavors catboost, and only XGBoost models are scored"),
    "sklearn": ({"MLmodel": mlmodel("sklearn", "python_function")}, "flavors python_function, sklearn"),
    "pyfunc": ({"MLmodel": mlmodel("python_function")}, "log the XGBoost model in it by mlflow.xgboost.log_model"),
    "onnx": ({"MLmodel": mlmodel("onnx")}, "has the flavors onnx"),
    "no_flavors": ({"MLmodel": b"run_id: a"}, "has the flavors none"),
    "yaml": ({"MLmodel": b"flavors: [\x00: {"}, "is damaged"),
    "text": ({"MLmodel": b"hello"}, "is damaged"),
    "empty": ({"MLmodel": b""}, "is damaged"),
    "no_mlmodel": ({"other": b""}, "lacks MLmodel in file:"),
    "no_booster": ({"MLmodel": mlmodel(**GOOD)}, "lacks model.ubj in file:"),
    "elsewhere": ({"MLmodel": mlmodel(**GOOD | {"data": "../x"})}, "was logged as xgboost.core.Booster in '../x'"),
    "own_class": ({"MLmodel": mlmodel(**GOOD | {"model_class": "our.Model"})}, "was logged as our.Model"),
    "pickle": ({"MLmodel": mlmodel(**GOOD), "model.ubj": b"\x80\x04"}, "neither UBJSON nor JSON"),
    "cut": ({"MLmodel": mlmodel(**GOOD), "model.ubj": MODEL[:-900]}, "is damaged"),
    "regression": (
        {"MLmodel": mlmodel(**GOOD), "model.ubj": bytes(booster(objective="reg:squarederror").save_raw("ubj"))},
        "binary:logistic",
    ),
    "classes": (
        {
            "MLmodel": mlmodel(**GOOD),
            "model.ubj": bytes(xgb.train({"objective": "multi:softprob", "num_class": 3}, NUMBERS, 1).save_raw("ubj")),
        },
        "several scores per row",
    ),
    "no_names": (
        {"MLmodel": mlmodel(**GOOD), "model.ubj": bytes(unmarked().save_raw("ubj"))},
        "has no feature names and none were given; train it on a DataFrame",
    ),
}


def test_what_cannot_be_scored_is_refused_with_what_would_do_and_hurts_no_other(
    site: Site, log_model: Run, notebook: Notebook, tmp_path: Path
) -> None:
    for case, (files, _) in REFUSED.items():
        notebook.register_files(tmp_path / case, f"bad-company-{case}", files)
    notebook.register_files(tmp_path / "good", "bad-company-good", {"MLmodel": mlmodel(**GOOD), "model.ubj": MODEL})

    said = log_model("--adopt", "bad-*")

    assert said.status == 1
    lines = said.err.splitlines()
    for case, (_, part) in REFUSED.items():
        (line,) = [one for one in lines if f"models:/bad-company-{case}/1" in one]
        assert part in line, line
    assert len(lines) == len(REFUSED) + 1
    assert "churn-prediction-model-good/1" in said.out
    assert [one.name for one in notebook.client.search_registered_models("name LIKE 'churn%'")] == [
        "churn-prediction-model-good"
    ]


@pytest.mark.slow
def test_names_that_cannot_be_meant_are_told_in_one_line(
    site: Site, log_model: Run, notebook: Notebook, tmp_path: Path
) -> None:
    for name in ("risk-geography-us", "risk2-geography-us", "risk'-plain"):
        folder = tmp_path / name
        notebook.register_files(folder, name, {"MLmodel": mlmodel(**GOOD), "model.ubj": MODEL})
    cases: list[tuple[list[str], int, str]] = [
        (
            ["risk-geography-uss"],
            2,
            "no registered model is named 'risk-geography-uss'; did you mean 'risk-geography-us'?",
        ),
        (["nothing*"], 2, "no registered model begins with 'nothing'"),
        (["risk-geography-us@gold"], 1, "has no such version or alias (aliases: champion); name one as"),
        (["risk-geography-us/9"], 1, "has no such version or alias"),
        (["risk'-plain"], 2, "does not tell its variant"),
        (["a:b"], 2, "is not NAME, NAME@ALIAS, NAME/VERSION"),
        (["risk*/3"], 2, "is not NAME"),
        (["risk-geography-us", "--geography", "*"], 2, "geography '*' is not allowed"),
        (["risk-geography-us", "--geography", "a b"], 2, "geography 'a b' is not allowed"),
        (["risk-geography-us", "--variant", "base", "--variant", "geography-us"], 2, "takes one variant or none"),
        (["risk-geography-us", "--under", "x"], 2, "takes one variant or none"),
    ]
    for arguments, status, part in cases:
        log_model("--adopt", *arguments).require_one_line(part, status=status)
    both = log_model("--adopt", "risk*")
    assert both.status == 2
    assert "risk-geography-us, risk2-geography-us are all for geography-us; adopt the one that is meant" in both.err
    assert log_model("--adopt", "models:/risk2-geography-us@champion", "--variant", "base").status == 0
