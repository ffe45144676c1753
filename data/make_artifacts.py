"""The bundled sample files and base model, written from the simulator: ``just artifacts``.

Writes what is committed under ``data/churn`` and ``models/churn``. The same library versions give the same bytes, so a
reader can check that nothing was edited by hand.
"""

import argparse
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import xgboost as xgb

from churn.data.activity import MONEY
from churn.data.features import encode, plan_encoding
from churn.data.labels import Horizon
from churn.data.snapshots import snapshots
from churn.defaults import HORIZON_MONTHS
from churn.evaluation.metrics import roc_auc_interval
from churn.weeks import monday_of, month_start, training_days
from churn.wording import markdown_table
from tests.support.simulator import BEN_LOGINS, BRANDS, PRODUCTS
from tests.support.world import SAMPLE_WORLD, Simulation, simulate_world

FIRST_MONTH = date(2025, 2, 1)
N_MONTHS = 21
ACTIVITY_SEED, N_ACTIVITY_ACCOUNTS = 45, 1_000
TRAINING_SEED, N_TRAINING_ACCOUNTS = 2025, 40_000
N_SAMPLE_ROWS = 500

# The last training label is known before the first held-out Monday, so that no label leaks into training.
TRAINING_MONTHS = range(12)
HELD_OUT_MONTHS = range(15, N_MONTHS - HORIZON_MONTHS)
N_PHASES = 4  # the first to the fourth Monday of a month

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
    """A booster and how it did on Mondays after those it was trained on."""

    booster: xgb.Booster
    n_training_rows: int
    n_held_out_rows: int
    auc: float
    mean_probability: float
    churned_share: float
    phases: pl.DataFrame
    """``auc``, ``mean_probability`` and ``churned_share`` by ``phase``, the number of the Monday in its month."""
    sample: pl.DataFrame
    """Held-out rows, encoded: shape (``N_SAMPLE_ROWS``, 45)."""


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

    activity = simulate(N_ACTIVITY_ACCOUNTS, ACTIVITY_SEED).extract()
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
        The booster as trained on ``training_mondays()``; its figures are of ``held_out_mondays()``.
    """
    simulation = simulate(n_accounts, TRAINING_SEED)
    training, held_out = (_examples(simulation, days) for days in (training_mondays(), held_out_mondays()))
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
        phases=_by_phase(held_out.select("as_of", "churned").with_columns(probability=probability)),
        sample=held_out[np.sort(chosen[:N_SAMPLE_ROWS])].select(FEATURE_NAMES),
    )


def simulate(n_accounts: int, seed: int) -> Simulation:
    """Simulate players of the base variant in the world of the bundled files."""
    return simulate_world(SAMPLE_WORLD, n_accounts=n_accounts, first_month=FIRST_MONTH, n_months=N_MONTHS, seed=seed)


def training_mondays() -> list[date]:
    """Return the as-of days of the training rows: a Monday of each month."""
    first, last = (month_start(FIRST_MONTH, TRAINING_MONTHS[i]) for i in (0, -1))
    return training_days(first, month_start(last, 1) - timedelta(days=1))


def held_out_mondays() -> list[date]:
    """Return the as-of days of the held-out rows: the first four Mondays of each month."""
    firsts = [monday_of(month_start(FIRST_MONTH, i) + timedelta(days=6)) for i in HELD_OUT_MONTHS]
    return [first + timedelta(weeks=week) for first in firsts for week in range(N_PHASES)]


def _examples(simulation: Simulation, days: Sequence[date]) -> pl.DataFrame:
    """Return the 45 columns of the accounts at risk on each day, made as scoring makes them, and ``churned``."""
    month_end = pl.col("activity_month").dt.month_end().cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    outcomes = simulation.extract().with_columns(known_at=month_end + pl.duration(days=1, microseconds=-1))
    return pl.concat(_examples_of(simulation, outcomes, day) for day in days)


def _examples_of(simulation: Simulation, outcomes: pl.DataFrame, as_of: date) -> pl.DataFrame:
    """Return ``account_id``, ``as_of`` and the columns of :func:`_examples`: from a day's extract, and later outcomes.

    Args:
        outcomes: The whole extract, its months known at their end.
    """
    known = simulation.extract_on(as_of + timedelta(days=1)).with_columns(
        known_at=pl.lit(as_of).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )
    facts = pl.concat([known, outcomes.filter(pl.col("activity_month") > as_of)])
    (shot,) = snapshots(facts, [as_of], today=_HORIZON.matures_on(as_of), horizon=_HORIZON)
    matrix = encode(shot.rows, plan_encoding(FEATURE_NAMES, shot.rows.columns))
    flags = pl.DataFrame(matrix, schema=list(FEATURE_NAMES)).drop(NUMBERS).cast(pl.Boolean)
    numbers = shot.rows.select("account_id", *MONEY, pl.col("months_active").cast(pl.Float64))
    told = pl.DataFrame({"churned": shot.churned}).with_columns(as_of=as_of)
    return pl.concat([numbers, flags, told], how="horizontal")


def _by_phase(scored: pl.DataFrame) -> pl.DataFrame:
    """Evaluate the first, second, third and fourth Mondays of months apart."""
    parts = scored.with_columns(phase=(pl.col("as_of").dt.day() - 1) // 7 + 1).partition_by("phase", as_dict=True)
    aucs = {
        key[0]: roc_auc_interval(part["churned"].to_numpy(), part["probability"].to_numpy()).value
        for key, part in parts.items()
    }
    means = pl.concat([part.group_by("phase").agg(pl.col("probability", "churned").mean()) for part in parts.values()])
    found = means.sort("phase").rename({"probability": "mean_probability", "churned": "churned_share"})
    return found.with_columns(auc=pl.col("phase").replace_strict(aucs))


def _matrix(examples: pl.DataFrame) -> xgb.DMatrix:
    values = examples.select(pl.col(FEATURE_NAMES).cast(pl.Float32).fill_null(float("nan"))).to_numpy()
    return xgb.DMatrix(values, label=examples["churned"].to_numpy(), feature_names=list(FEATURE_NAMES), nthread=1)


def _template(name: str) -> str:
    return (Path(__file__).parent / "readmes" / f"{name}.md").read_text()


def _data_readme(folder: Path, activity: pl.DataFrame) -> str:
    keys = activity.select("account_id", "activity_month")
    return _template("data").format(
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
    return _template("models").format(
        made=_made(xgboost=xgb.__version__, polars=pl.__version__, numpy=np.__version__),
        files=_file_table(folder, ("xgb_churn_model_2.bin", "xgb_churn_model_2.json")),
        n_trees=N_TREES,
        depth=BOOSTER_PARAMETERS["max_depth"],
        n_features=len(FEATURE_NAMES),
        horizon=HORIZON_MONTHS,
        n_accounts=N_TRAINING_ACCOUNTS,
        seed=TRAINING_SEED,
        training_days=_day_range(training_mondays()),
        held_out_days=_day_range(held_out_mondays()),
        n_training_rows=model.n_training_rows,
        n_held_out_rows=model.n_held_out_rows,
        auc=model.auc,
        mean_probability=model.mean_probability,
        churned_share=model.churned_share,
        phases=markdown_table(
            ("Monday of the month", "AUC", "mean probability", "churned"),
            [
                (str(row["phase"]), *(f"{row[name]:.4f}" for name in ("auc", "mean_probability", "churned_share")))
                for row in model.phases.iter_rows(named=True)
            ],
        ),
    )


def _made(**versions: str) -> str:
    versions = {"Python": ".".join(platform.python_version_tuple()[:2]), **versions}
    return _template("made").format(versions=", ".join(f"{name} {number}" for name, number in versions.items()))


def _month_range(months: range) -> tuple[str, str]:
    first, last = (f"{month_start(FIRST_MONTH, months[i]):%Y-%m}" for i in (0, -1))
    return first, last


def _day_range(days: Sequence[date]) -> str:
    return f"{days[0]} to {days[-1]}"


def _file_table(folder: Path, names: Sequence[str]) -> str:
    contents: Mapping[str, bytes] = {name: (folder / name).read_bytes() for name in names}
    rows = [(f"`{name}`", f"{len(raw):,}", f"`{sha256(raw).hexdigest()}`") for name, raw in contents.items()]
    return markdown_table(("file", "bytes", "sha256"), rows, is_markup=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the artifacts and log where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="where to write (default: the working directory)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    model = write_artifacts(args.root)
    _logger.info("wrote data/churn and models/churn under %s; held-out AUC %.4f", args.root, model.auc)


if __name__ == "__main__":
    main()
