"""The gate: the checks that a trained model must pass before it is registered as challenger. Pure.

Each check returns its value, its limit and a sentence. Two checks test the gate itself: a model trained on shuffled
labels must not pass, and a marker of the label on future facts must not reach the features.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from statistics import median

import numpy as np
import numpy.typing as npt
import polars as pl

from churn.data.activity import MONEY
from churn.data.features import Packed, encode, pack, plan_encoding
from churn.data.snapshots import Snapshot
from churn.defaults import MAX_CALIBRATION_ERROR, MIN_AUC
from churn.errors import InputError
from churn.evaluation.metrics import Evaluation, Interval, calibration_error, roc_auc_interval
from churn.inference.bundle import GOLDEN_TOLERANCE, Bundle, Golden, load_bundle
from churn.inference.engine import Engine, build_engine
from churn.training import data_checks
from churn.training.checks import GATE_CHECKS, Gate, GateCheck
from churn.training.train import Trained, fit
from churn.weeks import day_start_us
from churn.wording import percent

Build = Callable[[pl.DataFrame, date], Snapshot]
"""Builds the snapshot of an as-of date from facts, as for training."""

CANARY = "canary"
# Thousands of variants are retrained regularly, so the canary may fail by chance only once in 10,000 times.
_CANARY_CONFIDENCE = 0.9999
_STAYS, _CHURNS = -1.0, 2.0  # outside the noise on either side, so that a leak of one outcome alone is detected as well
_CHANCE = 0.99
_N_DRAWS = 200
_TIMED_ROWS = 16_384
_REPEATS = 7
_SHUFFLES = 7
_LEAST_SHUFFLED = 10  # rounds, of a model with no trees of its own
_OF_EACH = "done for each variant of the pool that has enough labels"
_ONE_OUTCOME = "the held-out accounts all had the same outcome; nothing can be measured"


@dataclass(frozen=True)
class GateLimits:
    """The limits that a model must meet."""

    min_auc: float = MIN_AUC  # the lower end of the AUC's 95 % interval must be above it
    max_calibration_error: float = MAX_CALIBRATION_ERROR  # widened by sampling error if there are few rows
    max_slowdown: float = 2.0  # maximum multiple of the champion's time per row
    # CPU microseconds per row with reasons that always pass: a first champion may have only a few trees or no features
    # over months, and no better model would be as fast.
    fast_enough_us: float = 5.0


def check_gate(
    trained: Trained,
    evaluation: Evaluation,
    *,
    facts: pl.DataFrame,
    shots: Sequence[Snapshot],
    build: Build,
    champion: Bundle | None,
    limits: GateLimits,
    before: data_checks.ScoredBefore | None = None,
    has_known_at: bool = False,
    money: Sequence[str] = MONEY,
) -> Gate:
    """Run every gate check on a model.

    ``evaluation`` is of ``trained.held_out_accounts``, ``facts`` are the activity that the model was trained on, and
    ``shots`` the snapshots of all parts, from ``build``. The current champion is timed as well, and ``before`` is a
    batch that it scored last month. ``has_known_at`` and ``money`` are as of
    :func:`churn.training.data_checks.check_restated`.
    """
    held_out = [shot for shot in shots if shot.as_of in trained.held_out.as_ofs]
    engine, packed = compile_for(trained.bundle, held_out)
    checks = (
        check_auc(evaluation, limits),
        check_calibration(trained, evaluation, limits),
        check_shuffled(trained, limits),
        check_canary(facts, held_out[::4], build, trained.plan.seed),  # about one of each month
        data_checks.check_churn_share(trained),
        data_checks.check_rows_per_account(facts),
        data_checks.check_simple_models(trained, shots),
        data_checks.check_restated(facts, trained.encoding.source_columns, has_known_at=has_known_at, money=money),
        data_checks.check_replay(facts, before, champion, money),
        check_golden(trained),
        check_compilation(engine),
        check_speed(engine, packed, champion, held_out, limits),
    )
    return Gate(checks)


def check_pool(trained: Trained, evaluation: Evaluation, shots: Sequence[Snapshot], limits: GateLimits) -> Gate:
    """Run the checks that a pool of many variants' rows can be given; the others are done for each with labels."""
    engine, _ = compile_for(trained.bundle, [shot for shot in shots if shot.as_of in trained.held_out.as_ofs])
    done = (
        check_auc(evaluation, limits),
        check_calibration(trained, evaluation, limits),
        data_checks.check_churn_share(trained),
        data_checks.check_simple_models(trained, shots),
        check_golden(trained),
        check_compilation(engine),
    )
    found = {check.name: check for check in done}
    others = {name: GateCheck(name, None, None, "skipped", _OF_EACH) for name in GATE_CHECKS}
    return Gate(tuple((others | found).values()))


def check_auc(evaluation: Evaluation, limits: GateLimits) -> GateCheck:
    """Compare the held-out AUC with the minimum."""
    name, minimum, auc = "auc_is_above_minimum", limits.min_auc, evaluation.roc_auc
    if auc is None:
        return GateCheck(name, None, minimum, "fails", _insufficient(evaluation))
    found = f"AUC {auc:.4f} on {evaluation.n} held-out accounts; its lower end must be above {minimum:g}"
    return GateCheck.of(name, auc.low, minimum, found, holds=auc.low > minimum)


def check_calibration(trained: Trained, evaluation: Evaluation, limits: GateLimits) -> GateCheck:
    """Compare the held-out calibration error with the limit, widened by sampling error.

    With few rows, perfectly calibrated scores have an error far from 0 too. So the check fails only if the error is
    above the 99th percentile of outcomes drawn from scores that are off by exactly the limit.
    """
    name, limit, error = "scores_are_calibrated", limits.max_calibration_error, evaluation.calibration_error
    if error is None:
        return GateCheck(name, None, limit, "fails", _insufficient(evaluation))
    found = f"calibration error {error:.4f} on {evaluation.n} held-out accounts; at most {limit:g} is allowed"
    if error > limit:
        scores = trained.bundle.predict(trained.held_out_accounts.matrix)
        by_chance = chance_calibration_error(scores, limit, trained.plan.seed)
        found += f", widened to {by_chance:.4f}, below which a model off by {limit:g} stays in 99 of 100 such samples"
        limit = max(limit, by_chance)
    return GateCheck.of(name, error, limit, found, holds=error <= limit)


def chance_calibration_error(scores: npt.NDArray[np.floating], off_by: float, seed: int) -> float:
    """Return the 99th percentile of the error if the true probabilities are ``off_by`` above or below the scores."""
    rng = np.random.Generator(np.random.PCG64(seed))
    truths = [np.clip(scores + side * off_by, 0, 1) for side in (-1, 1)]
    errors = [calibration_error(rng.random(len(scores)) < truths[i % 2], scores) for i in range(_N_DRAWS)]
    return float(np.quantile(errors, _CHANCE))


def check_shuffled(trained: Trained, limits: GateLimits) -> GateCheck:
    """Train the chosen parameters on shuffled labels; the resulting AUC must not be above the minimum."""
    name, minimum, accounts = "shuffled_labels_do_not_pass", limits.min_auc, trained.held_out_accounts
    if not 0 < accounts.n_churned < accounts.n:
        return GateCheck(name, None, minimum, "fails", _ONE_OUTCOME)
    rng = np.random.Generator(np.random.PCG64(trained.plan.seed))
    parts, n_training = (trained.training, trained.validation), trained.training.n
    labels = np.concatenate([part.churned for part in parts])
    intervals: list[Interval] = []
    trial = replace(trained.chosen, n_rounds=trained.chosen.n_rounds or _LEAST_SHUFFLED)
    # By chance, one such model may rank accounts by a real cause of churn, in the right direction.
    for _ in range(_SHUFFLES):
        drawn = np.split(rng.permutation(labels), [n_training])
        shuffled = [replace(part, churned=of) for part, of in zip(parts, drawn, strict=True)]
        booster = fit(shuffled, trial, trained.feature_names, trained.plan)
        scores = booster.inplace_predict(accounts.matrix, validate_features=False)
        intervals.append(roc_auc_interval(accounts.churned, scores))
    auc = sorted(intervals, key=lambda interval: interval.low)[_SHUFFLES // 2]
    measured = f"trained on shuffled labels, AUC {auc:.4f}, the middle one of {_SHUFFLES}"
    found = f"{measured}; its lower end must not be above {minimum:g}"
    return GateCheck.of(name, auc.low, minimum, found, holds=auc.low <= minimum)


def check_canary(facts: pl.DataFrame, held_out: Sequence[Snapshot], build: Build, seed: int) -> GateCheck:
    """Plant a marker of the label on every fact not known at an as-of date; no feature may contain it."""
    name = "the_future_does_not_leak"
    churned, values = [], []
    for shot in held_out:
        rebuilt = build(plant_canary(facts, shot, seed), shot.as_of)
        churned.append(rebuilt.churned)
        values.append(encode(rebuilt.rows, plan_encoding([CANARY], rebuilt.rows.columns))[:, 0])
    outcomes, markers = np.concatenate(churned), np.concatenate(values)
    if outcomes.all() or not outcomes.any():
        return GateCheck(name, None, 0.5, "fails", _ONE_OUTCOME)
    auc = roc_auc_interval(outcomes, markers, _CANARY_CONFIDENCE)
    needed = f"the interval ({percent(_CANARY_CONFIDENCE, 2)}) must contain 0.5"
    found = f"a marker on future facts has AUC {auc:.4f} on {len(markers)} held-out rows; {needed}"
    return GateCheck.of(name, auc.value, 0.5, found, holds=auc.low <= 0.5 <= auc.high)


def plant_canary(facts: pl.DataFrame, shot: Snapshot, seed: int) -> pl.DataFrame:
    """Add the column ``canary``: on facts not known at the snapshot's as-of date its label, on all others noise.

    The noise is between the two labels' numbers, and different for each as-of date.
    """
    rng = np.random.Generator(np.random.PCG64([seed, shot.as_of.toordinal()]))
    end = day_start_us(shot.as_of + timedelta(days=1))
    is_later = (pl.col("known_at").to_physical() >= end) | (pl.col("activity_month") > shot.as_of)
    markers = pl.DataFrame({"account_id": shot.rows["account_id"], "marker": np.where(shot.churned, _CHURNS, _STAYS)})
    noisy = facts.with_columns(noise=pl.Series(rng.random(facts.height)))
    planted = noisy.join(markers, on="account_id", how="left", maintain_order="left")
    value = pl.when(is_later).then(pl.coalesce("marker", "noise")).otherwise("noise")
    return planted.with_columns(value.alias(CANARY)).drop("marker", "noise")


def check_golden(trained: Trained) -> GateCheck:
    """Save the model and its golden rows, load both, and compare the scores."""
    golden = Golden.from_json(trained.bundle.make_golden(trained.held_out.matrix).to_json())
    loaded = load_bundle(trained.bundle.data, None, "the trained model")
    gap = float(np.abs(loaded.predict(golden.matrix) - golden.scores).max(initial=0.0))
    found = f"after loading, the model's scores of {len(golden.scores)} golden rows differ by {gap:.2g} at most"
    return GateCheck.of("golden_rows_reproduce", gap, GOLDEN_TOLERANCE, found, holds=gap <= GOLDEN_TOLERANCE)


def check_compilation(engine: Engine) -> GateCheck:
    """Check that weekly scoring would use compiled tables."""
    why, found = engine.fallback_reason, "the trees compile; their tables give XGBoost's scores and reasons"
    if why is not None:
        found = f"XGBoost itself would have to score: {why}"
    return GateCheck.of("trees_compile_to_tables", None, None, found, holds=why is None)


def check_speed(
    engine: Engine, packed: Packed, champion: Bundle | None, held_out: Sequence[Snapshot], limits: GateLimits
) -> GateCheck:
    """Time the model and the champion on the same rows, alternately."""
    name, limit = "scoring_is_no_slower", limits.max_slowdown
    if champion is None:
        return GateCheck(name, None, limit, "skipped", "there is no champion to compare with")
    try:
        champion_engine, champion_rows = compile_for(champion, held_out)
    except InputError as error:
        return GateCheck(name, None, limit, "skipped", f"the champion cannot score these rows: {error}")
    if engine.fallback_reason or champion_engine.fallback_reason:
        return GateCheck(name, None, limit, "skipped", "one of the two does not compile, and XGBoost starts threads")
    model_us, champion_us = _time((engine, packed), (champion_engine, champion_rows))
    allowed = f"{limit:g} times that is allowed, and {limits.fast_enough_us:g} in any case"
    found = f"{model_us:.2f} CPU µs a row with reasons, the champion's {champion_us:.2f}; {allowed}"
    holds = model_us <= max(limit * champion_us, limits.fast_enough_us)
    return GateCheck.of(name, model_us / champion_us, limit, found, holds=holds)


def compile_for(bundle: Bundle, held_out: Sequence[Snapshot]) -> tuple[Engine, Packed]:
    """Compile a model for the held-out rows, repeated if they are too few to be timed."""
    rows = pl.concat([shot.rows for shot in held_out]).head(_TIMED_ROWS)
    encoding = plan_encoding(bundle.feature_names, rows.columns, bundle.categories)
    packed = pack(rows, encoding)
    times = -(-_TIMED_ROWS // max(packed.n_rows, 1))
    many = Packed(np.tile(packed.numbers, times), np.tile(packed.levels, times))
    return build_engine(bundle, encoding, many, n_rows=many.n_rows, with_reasons=True), many


def _time(*sides: tuple[Engine, Packed]) -> list[float]:
    """Return each side's median CPU microseconds per row, over alternating runs."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(_REPEATS):
        for seconds, (engine, packed) in zip(times, sides, strict=True):
            started = time.thread_time()  # not the wall clock: load on the machine must not affect the comparison
            engine.score(packed)
            seconds.append((time.thread_time() - started) / packed.n_rows)
    return [1e6 * median(seconds) for seconds in times]


def _insufficient(evaluation: Evaluation) -> str:
    n_stayed = evaluation.n - evaluation.n_churned
    return f"{evaluation.n_churned} held-out accounts churned and {n_stayed} stayed, which is too few to measure"
