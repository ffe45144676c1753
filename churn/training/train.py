"""Training: from snapshots of a variant's activity to a calibrated booster. Pure.

The split is by time, never by rows: every label of an earlier part is known by the first as-of date of the next.
Everything is seeded and runs on one thread, so the same data give the same bytes. Not here: where activity comes from,
and whether the model is good enough (``churn.training.gate``).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost as xgb

from churn.data.arrays import Array, Doubles, Flags, Longs
from churn.data.features import Encoding, Matrix, encode, plan_encoding
from churn.data.labels import Horizon
from churn.data.snapshots import Snapshot
from churn.defaults import MIN_LABELS, TRAINING_TRIALS
from churn.errors import InputError
from churn.evaluation.metrics import MIN_OF_CLASS, roc_auc_interval
from churn.inference.bundle import Bundle, read_bundle
from churn.training.calibration import Calibration, apply_to_booster, fit_platt
from churn.weeks import month_end, month_start, week_of_month

if TYPE_CHECKING:
    import optuna

Parameters = Mapping[str, float | int]
"""Hyperparameters by XGBoost's names, such as ``max_depth``."""

_N_VALIDATION = 3  # newest snapshots before the held-out ones, on which parameters, rounds and calibration are chosen
_MAX_ROUNDS = 200  # of boosting; more trees also take longer to score
_PATIENCE = 20  # rounds without a better validation loss after which a trial ends
_FIRST_TRIAL: Parameters = {
    "max_depth": 4, "learning_rate": 0.1, "min_child_weight": 10.0, "subsample": 0.9, "colsample_bytree": 0.9,
    "reg_lambda": 1.0, "gamma": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    The model is evaluated on the newest ``n_held_out`` months of snapshots, and nothing is chosen on them. Training and
    validation together need ``min_of_class`` labels of each outcome.
    """

    horizon: Horizon = field(default_factory=Horizon)
    n_trials: int = TRAINING_TRIALS
    seed: int = 1
    n_held_out: int = 3
    min_of_class: int = MIN_LABELS


@dataclass(frozen=True)
class Split:
    """Snapshots by purpose, each in order of time."""

    training: tuple[Snapshot, ...]
    validation: tuple[Snapshot, ...]
    held_out: tuple[Snapshot, ...]


@dataclass(frozen=True)
class Part:
    """The rows of one side of the split, snapshot after snapshot; arrays of n rows.

    ``places`` has the index in ``as_ofs`` of each row's as-of date; ``matrix`` the shape (n, n_features), in model
    order.
    """

    name: str
    as_ofs: tuple[date, ...]
    account_ids: Longs
    places: Longs
    matrix: Matrix
    churned: Flags
    weights: Doubles

    @property
    def n(self) -> int:
        return len(self.churned)

    @property
    def n_churned(self) -> int:
        return int(self.churned.sum())


@dataclass(frozen=True)
class Trial:
    """A hyperparameter trial."""

    parameters: Parameters
    n_rounds: int
    log_loss: float


Trials = tuple[Trial, ...]
Search = Callable[[], Trials]
Remember = Callable[[str, Search], Trials]
Learned = tuple[xgb.Booster, Trials, Trial, Calibration]
Learn = Callable[[Part, Part, Sequence[str], TrainingPlan], Learned]
"""Learns features from training and validation rows; returns a calibrated booster, and what ``Trained`` has of it."""


@dataclass(frozen=True)
class Trained:
    """A trained model, and the data and choices behind it."""

    bundle: Bundle
    encoding: Encoding
    plan: TrainingPlan
    trials: tuple[Trial, ...]  # in the order in which they were run
    chosen: Trial  # the trial with the lowest loss on the validation snapshots
    calibration: Calibration  # of the log-odds as trained; `bundle`'s trees include it
    training: Part
    validation: Part
    held_out: Part
    # The rows for evaluation: at most one held-out row per account, so that they are independent
    held_out_accounts: Part
    data_sha256: str  # digest of all parts' rows and labels, in hexadecimal

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.bundle.feature_names

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        return self.training, self.validation, self.held_out

    def roc_auc_by_week(self) -> dict[int, float]:
        """Return the held-out ROC AUC by week of the month; weeks with too few of an outcome are left out.

        It is of all rows of the week's days, so that an account may count several times.
        """
        part, scores = self.held_out, self.bundle.predict(self.held_out.matrix)
        weeks = np.array([week_of_month(as_of) for as_of in part.as_ofs])[part.places]
        found = {}
        for week in np.unique(weeks).tolist():
            churned = part.churned[weeks == week]
            if min(churned.sum(), (~churned).sum()) >= MIN_OF_CLASS:
                found[week] = roc_auc_interval(churned, scores[weeks == week]).value
        return found

    @property
    def evidence_after(self) -> date:
        """The last day of the outcomes that the model was fitted, tuned, calibrated or checked on."""
        return month_end(self.plan.horizon.last_month(max(as_of for part in self.parts for as_of in part.as_ofs)))


def split(snapshots: Sequence[Snapshot], plan: TrainingPlan) -> Split:
    """Split snapshots by time; those in the gaps between the parts are unused.

    A snapshot may be trained on if its labels had matured by the first as-of date of the next part.
    """
    ordered = sorted((shot for shot in snapshots if len(shot.churned)), key=lambda shot: shot.as_of)
    months = sorted({month_start(shot.as_of) for shot in ordered})[-plan.n_held_out :]
    held_out = [shot for shot in ordered if shot.as_of >= months[0]] if months else []
    validation = _matured(ordered, held_out, plan.horizon)[-_N_VALIDATION:]
    return Split(tuple(_matured(ordered, validation, plan.horizon)), tuple(validation), tuple(held_out))


def shortage(snapshots: Sequence[Snapshot], plan: TrainingPlan) -> str | None:
    """Return which labels there are, to follow "it has", if they are too few to train on; else ``None``."""
    parts = split(snapshots, plan)
    if not parts.training:
        n_months = len({month_start(shot.as_of) for shot in snapshots if len(shot.churned)})
        needed = plan.n_held_out + _N_VALIDATION + 1
        why = "which cannot be split into training, validation and held-out ones"
        needs = f"{needed} are needed, and the horizon of {plan.horizon.months} months twice between them"
        return f"matured labels of {n_months} months, {why} ({needs})"
    training, validation, held_out = (np.concatenate([shot.churned for shot in of]) for of in vars(parts).values())
    accounts = held_out[_one_an_account(parts.held_out, plan.seed)]
    return (
        _too_few(np.concatenate([training, validation]), plan.min_of_class, "to train on")
        or _too_few(validation, MIN_OF_CLASS, "to validate with")
        or _too_few(accounts, MIN_OF_CLASS, "to be evaluated on")
    )


def train(shots: Sequence[Snapshot], names: Sequence[str], plan: TrainingPlan, learn: Learn | None = None) -> Trained:
    """Learn from everything before the held-out snapshots, by default as :func:`learn_alone` does.

    Deterministic: same snapshots and plan, same bytes. Raises ``InputError`` if there are too few labels (see
    :func:`shortage`), or the snapshots' rows lack a column that a feature, in the model's order, comes from.
    """
    if reason := shortage(shots, plan):
        raise InputError(f"the activity has {reason}; bring more of it")
    parts = split(shots, plan)
    encoding = plan_encoding(names, parts.training[0].rows.columns)
    training, validation, held_out = (_part(name, of_part, encoding) for name, of_part in vars(parts).items())
    booster, trials, chosen, calibration = (learn or learn_alone)(training, validation, names, plan)
    bundle = read_bundle(bytes(booster.save_raw("ubj")), names, "the trained booster")
    drawn = _take(held_out, _one_an_account(parts.held_out, plan.seed))
    sha256 = digest(names, (training, validation, held_out))
    return Trained(bundle, encoding, plan, trials, chosen, calibration, training, validation, held_out, drawn, sha256)


def learn_alone(
    training: Part, validation: Part, names: Sequence[str], plan: TrainingPlan, remember: Remember | None = None
) -> Learned:
    """Choose parameters and rounds, calibrate, and train on both parts.

    The calibration is fitted on validation scores of a model that was not trained on the validation snapshots. It is
    applied to one trained on them as well, with the same rounds. ``remember`` takes the digest of the data and the
    search, which takes longest, and may return what that returned before.
    """
    data, unseen_data = dmatrix([training], names), dmatrix([validation], names)
    search = partial(_search, data, unseen_data, plan)
    trials = remember(digest(names, (training, validation)), search) if remember else search()
    chosen = min(trials, key=lambda trial: trial.log_loss)
    provisional = xgb.train(settings(chosen.parameters, plan), data, chosen.n_rounds)
    margins = provisional.predict(unseen_data, output_margin=True)
    calibration = fit_platt(margins, validation.churned, validation.weights)
    return apply_to_booster(fit([training, validation], chosen, names, plan), calibration), trials, chosen, calibration


def fit(parts: Sequence[Part], trial: Trial, names: Sequence[str], plan: TrainingPlan) -> xgb.Booster:
    """Train a trial's parameters and rounds on the rows of some parts; not calibrated."""
    return xgb.train(settings(trial.parameters, plan), dmatrix(parts, names), trial.n_rounds)


def _matured(ordered: Sequence[Snapshot], later: Sequence[Snapshot], horizon: Horizon) -> list[Snapshot]:
    """Return the snapshots whose labels were known by the first as-of date of a later part."""
    return [shot for shot in ordered if horizon.matures_on(shot.as_of) <= later[0].as_of] if later else []


def _too_few(churned: Flags, least: int, purpose: str) -> str | None:
    n_churned, n_stayed = int(churned.sum()), int((~churned).sum())
    if min(n_churned, n_stayed) >= least:
        return None
    return f"{n_churned} matured labels of churn and {n_stayed} of staying {purpose}, where {least} of each are needed"


def _one_an_account(held_out: Sequence[Snapshot], seed: int) -> Flags:
    """Mark at most one row per account, by drawing one held-out snapshot for each account.

    The draw does not depend on the rows. Choosing among an account's rows would favour accounts with few rows, which
    are about to leave.
    """
    ids = np.concatenate([shot.rows["account_id"].to_numpy() for shot in held_out])
    places = np.repeat(np.arange(len(held_out)), [len(shot.churned) for shot in held_out])
    accounts, account = np.unique(ids, return_inverse=True)
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, len(held_out), len(accounts))
    return np.asarray(drawn[account] == places)


def _part(name: str, shots: Sequence[Snapshot], encoding: Encoding) -> Part:
    account_ids = np.concatenate([shot.rows["account_id"].to_numpy() for shot in shots])
    places = np.repeat(np.arange(len(shots)), [len(shot.churned) for shot in shots])
    matrix = np.concatenate([encode(shot.rows, encoding) for shot in shots])
    churned, weights = (np.concatenate(of) for of in zip(*((one.churned, one.weights) for one in shots), strict=True))
    return Part(name, tuple(shot.as_of for shot in shots), account_ids, places, matrix, churned, weights)


def _take(part: Part, at: Flags) -> Part:
    ids, places, matrix, churned = part.account_ids[at], part.places[at], part.matrix[at], part.churned[at]
    return Part(part.name, part.as_ofs, ids, places, matrix, churned, part.weights[at])


def dmatrix(parts: Sequence[Part], names: Sequence[str], margin: Array | None = None) -> xgb.DMatrix:
    """Return the rows and labels of some parts, and the log-odds that training starts from."""
    of_parts = zip(*((part.matrix, part.churned, part.weights) for part in parts), strict=True)
    matrix, churned, weights = map(np.concatenate, of_parts)
    return xgb.DMatrix(matrix, churned, weight=weights, base_margin=margin, feature_names=list(names), nthread=1)


def settings(parameters: Parameters, plan: TrainingPlan) -> dict[str, Any]:
    """Return XGBoost's settings for some hyperparameters."""
    # Several threads may add gradients in a different order and so change the last bits.
    return {"objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "seed": plan.seed, **parameters}


def _search(data: xgb.DMatrix, validation: xgb.DMatrix, plan: TrainingPlan) -> Trials:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=plan.seed))
    study.enqueue_trial(dict(_FIRST_TRIAL))
    trials: list[Trial] = []
    stop: Any = {"evals": [(validation, "validation")], "early_stopping_rounds": _PATIENCE, "verbose_eval": False}

    def loss_of(trial: "optuna.Trial") -> float:
        parameters = _suggest(trial)
        booster = xgb.train({**settings(parameters, plan), "eval_metric": "logloss"}, data, _MAX_ROUNDS, **stop)
        # The booster includes the rounds after its best one, so only the number of rounds is used.
        trials.append(Trial(parameters, int(booster.best_iteration) + 1, float(booster.best_score)))
        return trials[-1].log_loss

    study.optimize(loss_of, n_trials=plan.n_trials)
    return tuple(trials)


def _suggest(trial: "optuna.Trial") -> Parameters:
    """Suggest parameters that suit hundreds to hundreds of thousands of rows."""
    suggested = {
        "max_depth": trial.suggest_int("max_depth", 2, 6),
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.3, log=True),
        "min_child_weight": trial.suggest_float("min_child_weight", 1, 100, log=True),
        "subsample": trial.suggest_float("subsample", 0.5, 1),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.4, 1),
        "reg_lambda": trial.suggest_float("reg_lambda", 0.1, 30, log=True),
        "gamma": trial.suggest_float("gamma", 0, 5),
    }
    # Rounded before use, so that the logged value is the one used.
    return {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in suggested.items()}


def digest(names: Sequence[str], parts: Sequence[Part]) -> str:
    """Return the SHA-256 of some rows and labels, in hexadecimal."""
    found = hashlib.sha256("\n".join(names).encode())
    for part in parts:
        found.update(f"{part.name} {' '.join(map(str, part.as_ofs))} {part.matrix.shape}".encode())
        for array in (part.account_ids, part.matrix, part.churned, part.weights):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
