"""The bundled sample files and base model, written from the simulator: ``python -m churn.samples.artifacts``.

Belongs here: what is committed under ``data/churn`` and ``models/churn``. The same library versions give the same
bytes, so a reader can check that nothing was edited by hand. Not here: training in production.
"""

import argparse
import importlib.resources
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import xgboost as xgb

from churn.data.activity import MONEY
from churn.data.features import derive, encode, keys_of, latest_known, plan_encoding
from churn.data.labels import Horizon, Reports, label
from churn.defaults import HORIZON_MONTHS
from churn.evaluation.metrics import roc_auc_interval
from churn.markdown import markdown_table
from churn.samples.simulator import BEN_LOGINS, BRANDS, PRODUCTS, simulate_activity
from churn.weeks import month_end, month_start

FIRST_MONTH = date(2025, 2, 1)
N_MONTHS = 21
ACTIVITY_SEED, N_ACTIVITY_ACCOUNTS = 45, 1_000
TRAINING_SEED, N_TRAINING_ACCOUNTS = 2025, 40_000
N_SAMPLE_ROWS = 500

# The last training label is known at the end of the first held-out month, so that no label leaks into training.
TRAINING_MONTHS = range(12)
HELD_OUT_MONTHS = range(14, N_MONTHS - HORIZON_MONTHS)

N_TREES = 120
BOOSTER_PARAMETERS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_depth": 4,
    "learning_rate": 0.1,
    "min_child_weight": 20,
    "seed": TRAINING_SEED,
    "nthread": 1,  # several threads may add gradients in another order, and so change the last bits
}

NUMBERS = (*MONEY, "months_active")
LEVELS = {"brand_id": BRANDS, "ben_login_id": BEN_LOGINS, "player_reg_product": PRODUCTS}
FEATURE_NAMES = (*NUMBERS, *(f"{column}_{level}" for column, levels in LEVELS.items() for level in levels))
_DATA_FILES = ("activity.parquet", "activity.jsonl", "feature_names_3.json", "X_test_sample_2.json")
_HORIZON = Horizon(lag_days=0)  # a simulated month is known at its end

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A booster and how it did on months after those it was trained on."""

    booster: xgb.Booster
    n_training_rows: int
    n_held_out_rows: int
    auc: float
    mean_probability: float
    churned_share: float
    sample: pl.DataFrame
    """Held-out rows, encoded, in account order: shape (``N_SAMPLE_ROWS``, 45)."""


def write_artifacts(root: Path) -> TrainedModel:
    """Write every bundled file under ``root``, replacing what is there.

    Idempotent: the same versions of Python's libraries write the same bytes.

    Args:
        root: Repository root, or an empty folder; ``data/churn`` and ``models/churn`` are made under it.

    Returns:
        The model that was written, with its held-out figures.
    """
    data, models = root / "data" / "churn", root / "models" / "churn"
    for folder in (data, models):
        folder.mkdir(parents=True, exist_ok=True)

    activity = simulate_activity(
        n_accounts=N_ACTIVITY_ACCOUNTS, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=ACTIVITY_SEED
    )
    activity.write_parquet(data / "activity.parquet")
    activity.write_ndjson(data / "activity.jsonl")
    (data / "feature_names_3.json").write_text(json.dumps(FEATURE_NAMES, indent=2) + "\n")

    model = train_model()
    model.sample.write_ndjson(data / "X_test_sample_2.json")
    for suffix, raw_format in (("bin", "ubj"), ("json", "json")):
        (models / f"xgb_churn_model_2.{suffix}").write_bytes(model.booster.save_raw(raw_format))

    (data / "README.md").write_text(_data_readme(data, activity))
    (models / "README.md").write_text(_model_readme(models, model))
    return model


def train_model(*, n_accounts: int = N_TRAINING_ACCOUNTS) -> TrainedModel:
    """Train the base booster on simulated players and evaluate it on later months. Pure and deterministic.

    Args:
        n_accounts: Simulated players; fewer than the default for tests only.

    Returns:
        The booster as trained on ``TRAINING_MONTHS``; its figures are of ``HELD_OUT_MONTHS``.
    """
    activity = simulate_activity(n_accounts=n_accounts, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=TRAINING_SEED)
    training, held_out = (_examples(activity, months) for months in (TRAINING_MONTHS, HELD_OUT_MONTHS))
    booster = xgb.train(BOOSTER_PARAMETERS, _matrix(training), num_boost_round=N_TREES)
    probability = booster.predict(_matrix(held_out))
    churned = held_out["churned"].to_numpy()
    chosen = np.random.Generator(np.random.PCG64(TRAINING_SEED)).permutation(held_out.height)
    return TrainedModel(
        booster=booster,
        n_training_rows=training.height,
        n_held_out_rows=held_out.height,
        auc=roc_auc_interval(churned, probability).value,
        mean_probability=float(probability.mean(dtype=np.float64)),
        churned_share=float(churned.mean()),
        sample=held_out[np.sort(chosen[:N_SAMPLE_ROWS])].select(FEATURE_NAMES),
    )


def _examples(activity: pl.DataFrame, months: Sequence[int]) -> pl.DataFrame:
    """One row per account and as-of month: the features of that month and whether the account then churned."""
    ends = pl.col("activity_month").dt.month_end().cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    facts = activity.with_columns(known_at=ends + pl.duration(days=1, microseconds=-1))
    reports = Reports.of(facts)
    return pl.concat(_examples_of(facts, reports, month_start(FIRST_MONTH, place)) for place in months)


def _examples_of(facts: pl.DataFrame, reports: Reports, month: date) -> pl.DataFrame:
    """``account_id``, the 45 columns of those with a row in ``month``, made as scoring makes them, and ``churned``."""
    as_of, of_month = month_end(month), facts.filter(pl.col("activity_month") == month)
    # Not features(): the committed model was trained with first deposits dated after the as-of day. Use features() when
    # another model is trained.
    rows = derive(of_month.filter(latest_known(as_of, *keys_of(of_month))), date.max).sort("account_id")
    mature = _HORIZON.matures_on(as_of)
    labels = label(reports, rows["account_id"].to_numpy(), as_of, today=mature, horizon=_HORIZON)
    matrix = encode(rows, plan_encoding(FEATURE_NAMES, rows.columns))
    flags = pl.DataFrame(matrix, schema=list(FEATURE_NAMES)).drop(NUMBERS).cast(pl.Boolean)
    numbers = rows.select("account_id", *MONEY, pl.col("months_active").cast(pl.Float64))
    return pl.concat([numbers, flags, pl.DataFrame({"churned": labels.churned})], how="horizontal")


def _matrix(examples: pl.DataFrame) -> xgb.DMatrix:
    values = examples.select(pl.col(FEATURE_NAMES).cast(pl.Float32).fill_null(float("nan"))).to_numpy()
    return xgb.DMatrix(values, label=examples["churned"].to_numpy(), feature_names=list(FEATURE_NAMES), nthread=1)


def _template(name: str) -> str:
    return (importlib.resources.files("churn.samples") / f"{name}.md").read_text()


def _data_readme(folder: Path, activity: pl.DataFrame) -> str:
    keys = activity.select("account_id", "activity_month")
    return _template("data_readme").format(
        made=_made(polars=pl.__version__, numpy=np.__version__),
        files=_file_table(folder, _DATA_FILES),
        n_rows=activity.height,
        n_accounts=N_ACTIVITY_ACCOUNTS,
        seed=ACTIVITY_SEED,
        first=_month_range(range(N_MONTHS))[0],
        last=_month_range(range(N_MONTHS))[1],
        n_repeats=keys.height - keys.n_unique(),
        n_features=len(FEATURE_NAMES),
        n_sample=N_SAMPLE_ROWS,
        training_seed=TRAINING_SEED,
    )


def _model_readme(folder: Path, model: TrainedModel) -> str:
    return _template("model_readme").format(
        made=_made(xgboost=xgb.__version__, polars=pl.__version__, numpy=np.__version__),
        files=_file_table(folder, ("xgb_churn_model_2.bin", "xgb_churn_model_2.json")),
        n_trees=N_TREES,
        depth=BOOSTER_PARAMETERS["max_depth"],
        n_features=len(FEATURE_NAMES),
        horizon=HORIZON_MONTHS,
        n_accounts=N_TRAINING_ACCOUNTS,
        seed=TRAINING_SEED,
        training_months=" to ".join(_month_range(TRAINING_MONTHS)),
        held_out_months=" to ".join(_month_range(HELD_OUT_MONTHS)),
        n_training_rows=model.n_training_rows,
        n_held_out_rows=model.n_held_out_rows,
        auc=model.auc,
        mean_probability=model.mean_probability,
        churned_share=model.churned_share,
    )


def _made(**versions: str) -> str:
    versions = {"Python": ".".join(platform.python_version_tuple()[:2]), **versions}
    return _template("made").format(versions=", ".join(f"{name} {number}" for name, number in versions.items()))


def _month_range(months: range) -> tuple[str, str]:
    first, last = (f"{month_start(FIRST_MONTH, months[i]):%Y-%m}" for i in (0, -1))
    return first, last


def _file_table(folder: Path, names: Sequence[str]) -> str:
    contents: Mapping[str, bytes] = {name: (folder / name).read_bytes() for name in names}
    rows = [(f"`{name}`", f"{len(raw):,}", f"`{sha256(raw).hexdigest()}`") for name, raw in contents.items()]
    return markdown_table(("file", "bytes", "sha256"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the artifacts and log where."""
    parser = argparse.ArgumentParser(prog="artifacts", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="where to write (default: the working directory)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    model = write_artifacts(args.root)
    _logger.info("wrote data/churn and models/churn under %s; held-out AUC %.4f", args.root, model.auc)


if __name__ == "__main__":
    main()
