"""Training together: one booster of many variants' rows, and what a variant makes of it. Pure.

A variant takes the better of two ways, by its validation rows: the pooled booster with its base rate and calibration,
shrunken towards the pool's, or that continued by a few trees of its own. One with too few labels to be evaluated takes
the first way. Either is one native booster. Not here: whose rows are pooled (``churn.workflows.train``).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import polars as pl
import xgboost as xgb
from scipy.special import expit

from churn.data.arrays import Doubles, Flags
from churn.data.features import Matrix, encode, plan_encoding
from churn.data.snapshots import Snapshot
from churn.evaluation.metrics import MIN_OF_CLASS, Evaluation, evaluate, log_losses
from churn.inference.bundle import read_bundle
from churn.training import train as single
from churn.training.calibration import apply_to_booster, fit_shrunken
from churn.training.checks import Gate
from churn.training.gate import GateLimits, check_pool
from churn.training.train import Learn, Learned, Parameters, Part, Trained, TrainingPlan, Trial, shortage, split
from churn.wording import counted

MAX_ROWS = 150_000
"""Of a pool; with more, scores hardly improve."""

Kind = tuple[object, ...]
"""What variants of a pool have in common: their features, and the columns that measure activity."""

_OWN_TREES: Parameters = {
    "max_depth": 2, "learning_rate": 0.05, "min_child_weight": 10.0, "reg_lambda": 30.0, "subsample": 0.9,
    "colsample_bytree": 0.9,
}  # fmt: skip
_MAX_OWN_ROUNDS, _PATIENCE = 100, 15
_LEAST_WITH_LEVEL = 0.1  # of the variants; a level of fewer is no feature of a default set
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash


@dataclass(frozen=True)
class Sample:
    """A variant's rows for a pool: those of snapshots, with ``as_of`` and ``churned``."""

    key: str
    kind: Kind
    names: Sequence[str]
    rows: pl.DataFrame


@dataclass(frozen=True)
class Pool:
    """A booster trained on the rows of ``n_variants`` variants of a kind, evaluated on held-out rows of theirs.

    ``earlier`` was not trained on the validation rows; both are calibrated.
    """

    kind: Kind
    n_variants: int
    trained: Trained
    earlier: xgb.Booster
    evaluation: Evaluation
    gate: Gate

    @property
    def names(self) -> tuple[str, ...]:
        return self.trained.feature_names

    def margins(self, matrix: Matrix) -> npt.NDArray[np.float32]:
        """Return the log-odds of rows by the booster that was not trained on validation rows."""
        data = xgb.DMatrix(matrix, feature_names=list(self.names), nthread=1)
        return np.asarray(self.earlier.predict(data, output_margin=True))


def kind_of(names: Sequence[str], columns: Sequence[str], activity: Sequence[str], *, is_default: bool) -> Kind:
    """Return a variant's kind; the levels of default features, those that it happens to have, may differ."""
    return (*(plan_encoding(names, columns).columns if is_default else ("named", *names)), *activity)


def draw_sample(kind: Kind, names: Sequence[str], shots: Sequence[Snapshot], key: str, most: int) -> Sample:
    """Draw accounts by a hash, with about ``most`` rows; accounts of different variants get different ids."""
    rows = pl.concat(one.rows.with_columns(as_of=one.as_of, churned=one.churned, weights=one.weights) for one in shots)
    ids = rows["account_id"].to_numpy() ^ (int.from_bytes(sha256(key.encode()).digest()[:8], "big") >> 1)
    is_drawn = ids.astype(np.uint64) * _MIXER / 2.0**64 < most / max(rows.height, 1)
    encoding = plan_encoding(names, rows.columns)
    numbers = [pl.col(name).cast(pl.Float32) for name, _ in encoding.numbers]
    levels = [pl.col(group.source_column).cast(pl.String) for group in encoding.one_hots]
    drawn = rows.select("as_of", "churned", "weights", "activity_month", *numbers, *levels, account_id=pl.Series(ids))
    return Sample(key, kind, names, drawn.filter(pl.Series(is_drawn)))


def build_pools(samples: Iterable[Sample], plan: TrainingPlan, limits: GateLimits, learn: Learn) -> list[Pool]:
    """Train a pool for each kind that has several variants and enough labels, that of most variants first."""
    by_kind: dict[Kind, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.key):
        by_kind[sample.kind].append(sample)
    found = (_build(of, plan, limits, learn) for of in by_kind.values() if len(of) > 1)
    return sorted((pool for pool in found if pool is not None), key=lambda pool: -pool.n_variants)


def _build(samples: Sequence[Sample], plan: TrainingPlan, limits: GateLimits, learn: Learn) -> Pool | None:
    days = pl.concat([sample.rows for sample in samples]).sort("as_of", "account_id").partition_by("as_of")
    others = ("as_of", "churned", "weights")
    shots = [Snapshot(of[others[0]][0], of.drop(others), *(of[name].to_numpy() for name in others[1:])) for of in days]
    if shortage(shots, plan):
        return None
    counts = Counter(name for sample in samples for name in sample.names)
    names = [name for name, n in counts.items() if n >= _LEAST_WITH_LEVEL * len(samples)]
    trained = single.train(shots, names, plan, learn)
    earlier = apply_to_booster(single.fit([trained.training], trained.chosen, names, plan), trained.calibration)
    accounts = trained.held_out_accounts
    evaluation = evaluate(accounts.churned, trained.bundle.predict(accounts.matrix), accounts.weights)
    gate = check_pool(trained, evaluation, shots, limits)
    return Pool(samples[0].kind, len(samples), trained, earlier, evaluation, gate)


def shortage_in_pool(pool: Pool, snapshots: Sequence[Snapshot], plan: TrainingPlan) -> str | None:
    """Return why a variant's labels cannot evaluate what it makes of a pool; ``None`` if they can.

    The pool's rows may be of the same accounts, so labels must not be older than those it is evaluated on.
    """
    reason, parts = shortage(snapshots, replace(plan, min_of_class=MIN_OF_CLASS)), split(snapshots, plan)
    if reason is None and (
        parts.validation[0].as_of < pool.trained.validation.as_ofs[0]
        or parts.held_out[0].as_of < pool.trained.held_out.as_ofs[0]
    ):
        reason = f"no labels since {pool.trained.held_out.as_ofs[0]}, from which the pool is evaluated"
    return reason


def adapt(pool: Pool, snapshots: Sequence[Snapshot], plan: TrainingPlan) -> Trained:
    """Take the better of the two ways, as the module says; deterministic, as :func:`churn.training.train.train` is."""
    return single.train(snapshots, pool.names, replace(plan, min_of_class=MIN_OF_CLASS), partial(_learn, pool))


def _learn(pool: Pool, training: Part, validation: Part, names: Sequence[str], plan: TrainingPlan) -> Learned:
    """Keep the variant's own trees if they lower the validation loss by more than its standard error over accounts."""
    parts, margins = (training, validation), [pool.margins(part.matrix) for part in (training, validation)]
    first = fit_shrunken(margins[0], training.churned, training.weights)
    data, unseen = (
        single.dmatrix([part], names, first.slope * of + first.intercept)
        for part, of in zip(parts, margins, strict=True)
    )
    own_trees = single.settings(_OWN_TREES, plan)
    booster = xgb.train(
        own_trees | {"eval_metric": "logloss"}, data, _MAX_OWN_ROUNDS, evals=[(unseen, "validation")],
        early_stopping_rounds=_PATIENCE, verbose_eval=False,
    )  # fmt: skip
    n_rounds = int(booster.best_iteration) + 1
    weights = validation.weights / validation.weights.mean()
    before = weights * log_losses(validation.churned, expit(unseen.get_base_margin()))
    after = weights * log_losses(validation.churned, booster.predict(unseen, iteration_range=(0, n_rounds)))
    gain, n_accounts = before - after, len(np.unique(validation.account_ids))
    trials = Trial(_OWN_TREES, 0, float(before.mean())), Trial(_OWN_TREES, n_rounds, float(after.mean()))
    chosen = trials[int(gain.mean() > gain.std() / np.sqrt(n_accounts))]
    calibration = fit_shrunken(np.concatenate(margins), *_outcomes(parts))
    whole = apply_to_booster(pool.trained.bundle.booster, calibration)
    if chosen.n_rounds:
        whole = xgb.train(own_trees, single.dmatrix(parts, names), chosen.n_rounds, xgb_model=whole)
    return whole, trials, chosen, calibration


def _outcomes(of: Sequence[Part] | Sequence[Snapshot]) -> tuple[Flags, Doubles]:
    return np.concatenate([one.churned for one in of]), np.concatenate([one.weights for one in of])


def shift(pool: Pool, snapshots: Iterable[Snapshot]) -> Trained:
    """Return the pooled model with the base rate of the few labels there are; its parts remain the pool's."""
    newest = pool.trained.held_out.as_ofs[-1]
    shots = [shot for shot in snapshots if len(shot.churned) and shot.as_of <= newest]
    if not shots:
        return pool.trained
    encoding = plan_encoding(pool.names, shots[0].rows.columns)
    margins = pool.margins(np.concatenate([encode(shot.rows, encoding) for shot in shots]))
    calibration = fit_shrunken(margins, *_outcomes(shots))
    booster = apply_to_booster(pool.trained.bundle.booster, calibration)
    bundle = read_bundle(bytes(booster.save_raw("ubj")), pool.names, "the pooled booster")
    return replace(pool.trained, bundle=bundle, calibration=calibration)


def describe(pool: Pool, trained: Trained, *, has_labels: bool) -> str:
    """Describe what a variant made of a pool."""
    trees = f"{counted(trained.chosen.n_rounds, 'tree')} of its own" if trained.chosen.n_rounds else "its base rate"
    return f"{pool.n_variants} variants, with {trees if has_labels else 'too few labels of its own'}"
