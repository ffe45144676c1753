"""Training: read a variant's activity, train, check the model against the gate, log it to MLflow, name a challenger.

The same data train to the same booster, so a repeat adds a version with the same bytes and changes nothing else.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from churn.data import features
from churn.data.columns import Columns
from churn.data.labels import Horizon, Reports, at_risk
from churn.data.snapshots import Held, Snapshot, snapshots
from churn.database.evaluations import Evaluations
from churn.errors import InputError, SourceError, TransientError, UnlabelledError
from churn.evaluation import curves
from churn.evaluation.metrics import Evaluation, compare_roc_auc, evaluate
from churn.inference.bundle import GOLDEN_ROWS, parse_feature_names
from churn.inference.explanations import sum_by_column
from churn.monitoring.profiles import Profile, reference_profile, season_of, spliced, with_contributions
from churn.registry import tags as tag
from churn.registry.records import LoggedRun, OpenModel, dataset_of
from churn.registry.registry import Registry
from churn.storage.history import ActivityHistory, Appended
from churn.storage.inputs import INPUT_FOLDER
from churn.storage.places import with_retries
from churn.storage.sources import NoFileError, Provenance, Sources
from churn.training import pool as pooling
from churn.training.checks import Gate
from churn.training.data_checks import ScoredBefore
from churn.training.default_features import DEFAULT_SET, default_feature_names
from churn.training.gate import GateLimits, check_gate
from churn.training.model_card import AgainstChampion, Lineage, short_description, write_card
from churn.training.train import Search, Trained, TrainingPlan, Trial, Trials, learn_alone, shortage, train
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, ModelVersion
from churn.weeks import monday_of, month_range, month_start, newest_month_due, training_days
from churn.wording import listed
from churn.workflows import ingest
from churn.workflows.engines import for_each_on
from churn.workflows.fleet import Attempts, for_each_variant
from churn.workflows.ray_engine import Workers
from churn.workflows.register import FEATURE_NAMES

_Out = TypeVar("_Out")
logger = logging.getLogger(__name__)

_MAX_TAG = 4000
_MAX_MONTHS = 24  # of activity; older activity predicts little about today
_WEEKS = 52  # that a model's reference covers
_REFERENCE_ACCOUNTS = 200_000  # of which the reference describes those at risk each week
_EXPLAINED_ROWS = 1_000
_POOLS = "history/pools/"  # where training may write


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of training a variant; ``version`` is ``None`` after a dry run.

    ``provenance`` is of the variant's own input file, ``against`` the champion on the same held-out accounts, if any.
    """

    variant: Variant
    lineage: Lineage
    provenance: Provenance | None
    n_facts_added: int
    trained: Trained
    evaluation: Evaluation
    against: AgainstChampion | None
    gate: Gate
    card: str
    pictures: dict[str, bytes]
    reference: Profile | None
    columns: Columns
    version: ModelVersion | None = None


Report = Callable[[TrainingOutcome], _Out]


@dataclass(frozen=True)
class Trainer:
    """The services that training needs, the training plan, and the limits of the gate."""

    sources: Sources
    history: ActivityHistory
    registry: Registry
    # Artifact location of a variant's experiment, if the experiment has to be created
    artifact_location: Callable[[Variant], str]
    challenge: Callable[[Variant, int, str], object]  # makes a version of a variant the challenger, with a reason
    code_version: str
    max_quarantine_share: float
    results: Evaluations  # published batches, one of which the gate scores again
    plan: TrainingPlan = field(default_factory=TrainingPlan)
    limits: GateLimits = field(default_factory=GateLimits)
    # Feature names and their origin, or `DEFAULT_SET`, in place of a variant's own; `None` for these
    features: "FeatureNames | None" = None
    # By variant, in place of its run's other tags: its parts as a person typed them
    run_tags: Mapping[Variant, Mapping[str, str]] = field(default_factory=dict)
    least_pooled: int = 10  # a fleet of that many variants or more is trained together; of less, each alone
    pools: Sequence[pooling.Pool] = ()  # of the fleet; the one of a variant's features is adapted to it

    def train_fleet(
        self,
        keys: Sequence[str],
        today: date,
        report: Report[_Out],
        *,
        fleet: Sequence[str] = (),
        dry_run: bool = False,
        workers: "Workers[Trainer] | None" = None,
    ) -> Attempts[_Out]:
        """Train many variants; yields each key with what ``report`` makes of the outcome, or the error.

        ``fleet`` are all variants of a launch of which ``keys`` are left, and are pooled; by default, ``keys``. An
        outcome contains the variant's rows, so ``report`` is called where it was trained; for workers it is pickled,
        and so is its result. Without them, results come in the order of ``keys``.
        """
        trainer = self.with_pools(fleet or keys, today, dry_run=dry_run)
        launch = {name: getattr(trainer, name) for name in ("plan", "limits", "features", "run_tags", "pools")}
        work = partial(Trainer._train, launch=launch, report=report, today=today, dry_run=dry_run)
        yield from for_each_on(workers, self, work, keys)

    def _train(self, variant: Variant, launch: Mapping[str, Any], report: Report[_Out], **options: Any) -> _Out:
        return report(replace(self, **launch).train_variant(variant, **options))

    def with_pools(self, keys: Sequence[str], today: date, *, dry_run: bool = False) -> "Trainer":
        """Train the pools of a fleet on what was known on the week's Monday; none for a small fleet.

        So a launch that is repeated in the week has the same. Variants that cannot be read are left out.
        """
        if len(keys) < self.least_pooled:
            return self
        learn = partial(learn_alone, remember=partial(self._remember, dry_run))
        return replace(self, pools=pooling.build_pools(self.draw_samples(keys, today), self.plan, self.limits, learn))

    def draw_samples(self, keys: Sequence[str], today: date) -> list[pooling.Sample]:
        """Read the rows of the variants for their pools."""
        work = partial(self._sample, today=monday_of(today), most=pooling.MAX_ROWS // len(keys))
        return [sample for _, sample in for_each_variant(work, keys) if isinstance(sample, pooling.Sample)]

    def _sample(self, variant: Variant, today: date, most: int) -> pooling.Sample | None:
        champion, activity = self._champion(variant), self._activity(variant, is_own=True, dry_run=True)
        if activity.appended is None:
            return None
        requested = self.features or self._own_names(variant, champion)
        data = self._labelled(variant, variant, activity, requested, champion, today=today, n_full=0)
        shots = [shot for shot in data.snapshots if len(shot.churned)]
        return pooling.draw_sample(data.kind, data.names, shots, variant.key, most) if shots else None

    def _remember(self, dry_run: bool, digest: str, search: Search) -> Trials:  # noqa: FBT001 for partial()
        """Return the trials of a pool that are stored for the same data, plan and code; else search, and store them."""
        place, content = self.history.place, f"{digest} {self.plan} {self.code_version}"
        key = f"{_POOLS}{hashlib.sha256(content.encode()).hexdigest()}.json"
        with suppress(SourceError, ValueError, TypeError):
            stored = json.loads(with_retries(lambda: b"".join(place.open(key).chunks)))
            return tuple(Trial(**trial) for trial in stored)
        trials = search()
        if not dry_run:
            with_retries(partial(place.write, key, json.dumps([asdict(trial) for trial in trials]).encode()))
        return trials

    def train_variant(self, variant: Variant, today: date, *, dry_run: bool = False) -> TrainingOutcome:
        """Train a variant on what was known at the end of ``today``, and register the model.

        A model that passes the gate becomes the challenger, or the champion if the variant has none. One that fails is
        registered without an alias and tagged with the reasons. A variant with too few labels takes its pool as it is,
        or is trained on the activity of a fallback variant, and its version is tagged so. A dry run changes neither the
        history nor MLflow.

        Raises ``InputError`` if the input is not raw activity, or no variant up to the base variant has enough labels,
        and ``ChurnError`` for any other reason; no version is registered then.
        """
        champion = self._champion(variant)
        requested = self.features or self._own_names(variant, champion)
        data = self._training_data(variant, requested, champion, today, dry_run=dry_run)
        trained, evaluation, gate, against = self._fit(variant, data, champion, today)
        has_labels = data.shortage is None
        columns = data.columns if data.owner == variant else self._columns(variant, champion)
        one_hot = tuple(group.source_column for group in trained.encoding.one_hots)
        money, held = data.columns.activity, data.activity.held
        lineage = Lineage(
            variant=variant, activity_of=data.owner, detours=tuple(data.detours), today=today,
            sources=tuple((source.uri, source.sha256) for source in data.sources.values()),
            n_facts=data.facts.height, data_sha256=trained.data_sha256,
            months=_months_of(data.facts, today) if data.facts.height else (trained.training.as_ofs[0], today),
            names_from=requested.origin, code_version=self.code_version,
            pooled=pooling.describe(data.pool, trained, has_labels=has_labels) if data.pool else "",
        )  # fmt: skip
        outcome = TrainingOutcome(
            variant, lineage, data.sources.get(variant), data.n_added, trained, evaluation, against, gate,
            card=write_card(trained, evaluation, gate, lineage, against),
            pictures={} if data.pool else _pictures(trained, f"{variant}, trained as of {today}"),
            reference=_reference(trained, data.facts, money, held) if has_labels else None,
            columns=replace(columns, one_hot=one_hot),
        )  # fmt: skip
        return outcome if dry_run else self._register(outcome)

    def _fit(
        self, variant: Variant, data: "_TrainingData", champion: OpenModel | None, today: date
    ) -> tuple[Trained, Evaluation, Gate, AgainstChampion | None]:
        """Train and check a model, or, with too few labels, take that of the pool, which was checked."""
        pool, shots = data.pool, data.snapshots
        if pool is not None and data.shortage is not None:
            return pooling.shift(pool, shots), pool.evaluation, pool.gate, None
        trained = pooling.adapt(pool, shots, self.plan) if pool else train(shots, data.names, self.plan)
        accounts = trained.held_out_accounts
        evaluation = evaluate(accounts.churned, trained.bundle.predict(accounts.matrix), accounts.weights)
        gate = check_gate(
            trained, evaluation, facts=data.facts, shots=shots, champion=champion.bundle if champion else None,
            build=lambda facts, as_of: data.shots_of(facts, [as_of], names=data.names)[0], limits=self.limits,
            before=self._scored_before(champion, today) if champion and data.owner == variant else None,
            has_known_at=data.activity.has_known_at, money=data.columns.activity,
        )  # fmt: skip
        against = _compare(champion, trained, shots) if champion and evaluation.status == "ok" else None
        return trained, evaluation, gate, against

    def _champion(self, variant: Variant) -> OpenModel | None:
        aliases = self.registry.aliases_of(variant)
        return self.registry.open(variant, CHAMPION, {variant: aliases}) if CHAMPION in aliases else None

    def _scored_before(self, champion: OpenModel, today: date) -> ScoredBefore | None:
        """Return a champion's newest batch from before this month whose extract is in the history."""
        version = champion.version
        found = self.results.newest_in_history(version.variant, version.version, month_start(today))
        if found is None:
            return None
        batch, received_at, first_month = found
        ((account_ids, scores),) = self.results.scores([batch])
        return ScoredBefore(batch.as_of, received_at, account_ids, scores, first_month)

    def _own_names(self, variant: Variant, champion: OpenModel | None) -> "FeatureNames":
        """Return the names of a variant's champion, else those of its file, else the default set."""
        if champion is not None:
            if champion.bundle.categories:
                named = listed(list(champion.bundle.categories))
                raise InputError(f"categorical features ({named}) cannot be trained here; use --features default")
            return FeatureNames(f"the champion of {variant}", champion.bundle.feature_names)
        with tempfile.TemporaryDirectory(prefix="churn-train-") as scratch:
            file = ingest.fetch_own(self.sources, variant, FEATURE_NAMES, Path(scratch))
            if file is None:
                return FeatureNames(DEFAULT_SET)
            return FeatureNames(file.provenance.uri, parse_feature_names(file.path.read_bytes(), file.provenance.uri))

    def _columns(self, variant: Variant, champion: OpenModel | None, present: Sequence[str] | None = None) -> Columns:
        """Return what a variant's columns mean: by its file, which ``present`` must fit, a champion, or a fallback."""
        for owner in fallback_variants(variant):
            if (declared := ingest.read_columns(self.sources, owner)) is not None:
                if owner == variant and present is not None:
                    declared.require(present, f"the activity of {variant}")
                return declared
            if (model := champion if owner == variant else self._champion(owner)) is not None:
                return model.columns
        return Columns()

    def _training_data(
        self, variant: Variant, requested: "FeatureNames", champion: OpenModel | None, today: date, *, dry_run: bool
    ) -> "_TrainingData":
        """Load activity with enough labels, the variant's own or a fallback's, for its features and the champion's.

        With a pool of these features, the variant's own is enough, whatever labels it has.
        """
        detours: list[str] = []
        sources: dict[Variant, Provenance] = {}
        n_added = 0
        for owner in fallback_variants(variant):
            activity = self._activity(owner, is_own=owner == variant, dry_run=dry_run)
            if activity.provenance is not None:
                sources[owner] = activity.provenance
            if activity.appended is not None:
                n_added += activity.appended.n_added
                data = self._labelled(variant, owner, activity, requested, champion, today=today)
                if data.shortage is not None:
                    months = describe_months(_months_of(data.facts, today), today, self.plan.horizon)
                    detours.append(f"{owner} has {data.shortage}; its months run from {months}")
            else:
                detours.append(activity.why_none)
                fits = (pool for pool in self.pools if requested.names is None or pool.names == tuple(requested.names))
                pool = next(fits, None) if owner == variant else None
                data = _TrainingData(owner, (), self._columns(variant, champion), activity, pool, activity.why_none)
            if data.shortage is None or data.pool is not None:
                return replace(data, detours=detours, sources=sources, n_added=n_added)
        folder = f"{variant.prefix}{INPUT_FOLDER}, or to that folder of a fallback variant"
        remedy = f"upload activity of more months or more players to {folder}"
        raise InputError(f"{variant} cannot be trained as of {today}: {'; '.join(detours)}; {remedy}")

    def _labelled(
        self,
        variant: Variant,
        owner: Variant,
        activity: "_Activity",
        requested: "FeatureNames",
        champion: OpenModel | None,
        *,
        today: date,
        n_full: int | None = None,
    ) -> "_TrainingData":
        """Build the snapshots of an activity, which has rows, for some features; ``n_full`` as of ``training_days``."""
        bundle, appended = champion.bundle if champion else None, activity.appended
        assert appended is not None  # noqa: S101
        known = appended.facts
        columns = self._columns(owner, champion if owner == variant else None, known.columns)
        names = requested.of(known, columns)
        kind = pooling.kind_of(names, known.columns, columns.activity, is_default=requested.names is None)
        pool = next((pool for pool in self.pools if pool.kind == kind and owner == variant), None)
        names = pool.names if pool else names
        if own := features.own_columns(names, known.columns):
            message = "%s: the activity's own %s is used, not computed from its other columns"
            logger.warning(message, owner, " and ".join(own))
        also = [name for name in bundle.feature_names if name not in bundle.categories] if bundle else []
        computed = list(dict.fromkeys([*names, *also]))
        facts, broken = ingest.with_numbers(known, computed, columns, self.max_quarantine_share)
        quarantined = pl.concat([appended.quarantined, broken.select(appended.quarantined.columns)])
        held, horizon = activity.held, self.plan.horizon
        shots_of = partial(snapshots, today=today, horizon=horizon, columns=columns, quarantined=quarantined, held=held)
        shots: list[Snapshot] = []
        try:
            days = self._days(facts, today, self.plan.n_held_out if n_full is None else n_full)
            shots = [self._untreated(owner, shot) for shot in shots_of(facts, days, names=computed)]
            reason = pooling.shortage_in_pool(pool, shots, self.plan) if pool else shortage(shots, self.plan)
        except UnlabelledError as error:
            reason = f"no labels: {error}"
        return _TrainingData(owner, names, columns, activity, pool, reason, kind, facts, shots_of, shots)

    def _untreated(self, owner: Variant, shot: Snapshot) -> Snapshot:
        """Leave out the accounts that a list contacted; the weights of the others stand for them."""
        weights = self.results.weights(owner, shot.as_of, shot.rows["account_id"].to_numpy(), self.plan.horizon)
        if weights is None:
            return shot
        counts = weights > 0
        return Snapshot(shot.as_of, shot.rows.filter(counts), shot.churned[counts], weights[counts])

    def _activity(self, owner: Variant, *, is_own: bool, dry_run: bool) -> "_Activity":
        """Ingest a variant's input and return its history; a dry run returns the same history and writes nothing."""
        try:
            extract = ingest.read_extract(self.sources, owner, self.max_quarantine_share)
        except TransientError:
            raise
        except (SourceError, ingest.NoActivityError) as error:
            if is_own and not isinstance(error, (SourceError, ingest.ForeignActivityError)):
                raise
            hint = self.sources.hint(owner) if isinstance(error, NoFileError) else ""
            reason = f"{owner} has no activity ({error}{hint})" if isinstance(error, SourceError) else str(error)
            return _Activity(self.history.open(owner) if self.history.version(owner) is not None else None, reason)
        appended = self.history.append(owner, extract.rows, extract.provenance.modified_at, dry_run=dry_run)
        has_known_at = "known_at" in extract.rows.columns
        has_older = appended.facts["activity_month"].min() < extract.first_month  # type: ignore[operator]  # dates
        held = Held(extract.first_month, extract.provenance.modified_at.date()) if has_older else None
        return _Activity(appended, "", extract.provenance, has_known_at, held)

    def _days(self, facts: pl.DataFrame, today: date, n_full: int) -> list[date]:
        """Return the training days; all weeks of the held-out months count equally, as they do when it scores."""
        first: date = facts["activity_month"].min()  # type: ignore[assignment]  # a column of dates
        last = self.plan.horizon.newest_mature(today)
        return training_days(max(first, month_start(last, 1 - _MAX_MONTHS)), last, n_full)

    def _register(self, outcome: TrainingOutcome) -> TrainingOutcome:
        variant, is_passed = outcome.variant, outcome.gate.is_passed
        run = describe(outcome)
        run = replace(run, tags={**run.tags, **self.run_tags.get(variant, {})})
        version = self.registry.log(variant, self.artifact_location(variant), run, or_champion=is_passed)
        if is_passed and version.alias is None:
            self.challenge(variant, version.version, f"trained as of {outcome.lineage.today}; it passed the gate")
            version = replace(version, alias=CHALLENGER)
        return replace(outcome, version=version)


@dataclass(frozen=True)
class FeatureNames:
    """The features of a new model: ``names``, else the default set; ``origin`` is where they come from, for people."""

    origin: str
    names: Sequence[str] | None = None

    def of(self, facts: pl.DataFrame, columns: Columns) -> Sequence[str]:
        """Return the names for a variant's activity."""
        return self.names or default_feature_names(facts, columns.activity, columns.segments)


@dataclass(frozen=True)
class _Activity:
    """A variant's activity; ``appended`` is ``None`` if it has none, and ``why_none`` is the reason."""

    appended: Appended | None
    why_none: str
    provenance: Provenance | None = None
    has_known_at: bool = False
    held: Held | None = None


@dataclass(frozen=True)
class _TrainingData:
    """The activity that a variant is trained on, and the variant that it belongs to.

    ``shots_of`` builds snapshots with these columns and quarantined rows; takes facts, as-of days and ``names``.
    ``shortage`` is why its labels are too few, if they are, so that it takes ``pool`` as it is.
    """

    owner: Variant
    names: Sequence[str]
    columns: Columns
    activity: _Activity
    pool: pooling.Pool | None
    shortage: str | None
    kind: pooling.Kind = ()
    facts: pl.DataFrame = field(default_factory=pl.DataFrame)
    shots_of: Callable[..., list[Snapshot]] = snapshots
    snapshots: Sequence[Snapshot] = ()
    detours: Sequence[str] = ()
    sources: Mapping[Variant, Provenance] = field(default_factory=dict)
    n_added: int = 0


def describe_months(months: tuple[date, date], today: date, horizon: Horizon) -> str:
    """Describe the months of an activity; if newer ones should have arrived, with the day to train as of instead.

    >>> describe_months((date(2024, 1, 1), date(2025, 3, 1)), date(2026, 11, 30), Horizon())
    '2024-01 to 2025-03, though 2026-10 should have arrived: train with --as-of 2025-04-08'
    """
    first, newest = months
    due, as_of = newest_month_due(today, horizon.lag_days), month_start(newest, 1) + timedelta(days=horizon.lag_days)
    late = "" if newest >= due else f", though {due:%Y-%m} should have arrived: train with --as-of {as_of}"
    return f"{month_range(first, newest)}{late}"


def _months_of(facts: pl.DataFrame, today: date) -> tuple[date, date]:
    known = features.known_rows(today, *features.keys_of(facts), by_account=False)
    return known.first_month, known.newest_month


def fallback_variants(variant: Variant) -> list[Variant]:
    """Return a variant and its fallback variants, the nearest first, the base variant last.

    >>> [str(v) for v in fallback_variants(Variant("EU", "ClientB"))]
    ['geography-eu.company-clientb', 'geography-eu', 'base']
    """
    return list(dict.fromkeys([variant, Variant(geography=variant.geography), Variant()]))


def _reference(trained: Trained, facts: pl.DataFrame, money: Sequence[str], held: Held | None) -> Profile:
    """Profile the accounts that would have been scored on the Mondays of a year, in the way that batches are profiled.

    Each week of the year is a part of its own, so that seasons, and the weeks of a month, are no drift. The whole
    profile's scores are of the held-out weeks.
    """
    held_out, encoding = trained.held_out.as_ofs, trained.encoding
    first = min(as_of for part in trained.parts for as_of in part.as_ofs)
    mondays = [held_out[-1] - timedelta(weeks=n) for n in range(_WEEKS) if held_out[-1] - timedelta(weeks=n) >= first]
    accounts = facts["account_id"].unique(maintain_order=True)
    if len(accounts) > _REFERENCE_ACCOUNTS:
        facts = facts.filter(pl.col("account_id").is_in(accounts.sample(_REFERENCE_ACCOUNTS, seed=0).implode()))
    reports = Reports.of(facts, money)

    def matrix_at(as_of: date) -> features.Matrix:
        scored, of_scored = held.seen(facts, as_of, money) if held else (facts, reports)
        rows = features.features(scored, as_of, trained.feature_names, money)
        is_at_risk = rows["account_id"].is_in(pl.Series(at_risk(of_scored, as_of, trained.plan.horizon)).implode())
        return features.encode(rows.filter(is_at_risk), encoding)

    matrices = {as_of: matrix_at(as_of) for as_of in {*mondays, *held_out}}
    scores = {as_of: trained.bundle.predict(matrix) for as_of, matrix in matrices.items()}

    def profile_of(days: Sequence[date]) -> Profile:
        matrix, scored = (np.concatenate([of[as_of] for as_of in days]) for of in (matrices, scores))
        return reference_profile(features.pack_matrix(matrix, encoding), encoding, scored)

    whole = spliced(profile_of(mondays), profile_of(held_out))
    parts: dict[str, Profile] = {}
    for as_of in mondays:
        season = season_of(as_of)
        counted = whole.count(features.pack_matrix(matrices[as_of], encoding), scores[as_of])
        parts[season] = parts[season] + counted if season in parts else counted
    year = np.concatenate([matrices[as_of] for as_of in mondays])
    explained = year[np.random.Generator(np.random.PCG64(0)).permutation(len(year))[:_EXPLAINED_ROWS]]
    contributions = sum_by_column(trained.bundle.contributions(explained), encoding)
    with_parts = replace(whole, parts={season: part.counts for season, part in parts.items()})
    return with_contributions(with_parts, features.pack_matrix(explained, encoding), contributions)


def describe(outcome: TrainingOutcome) -> LoggedRun:
    """Build the MLflow run of a trained model."""
    trained, lineage = outcome.trained, outcome.lineage
    rows, uris = trained.held_out.matrix[:GOLDEN_ROWS], ", ".join(uri for uri, _ in lineage.sources)
    counts = {part.name: {"rows": part.n, "churned": part.n_churned} for part in trained.parts}
    files = {
        "model_card.md": outcome.card,
        "gate.json": json.dumps([asdict(check) for check in outcome.gate.checks], indent=2),
        "trials.json": json.dumps([asdict(trial) for trial in trained.trials], indent=2),
    }
    about = f"activity of {lineage.activity_of}"
    return LoggedRun(
        bundle=trained.bundle, golden=trained.bundle.make_golden(rows), reference=outcome.reference,
        sample=pd.DataFrame(rows, columns=list(trained.feature_names)), parameters=_parameters(outcome),
        metrics=_metrics(outcome), tags=_tags(outcome), name=f"train-{outcome.variant.key}-{lineage.today}",
        about=short_description(trained, lineage, outcome.evaluation),
        artifacts=files | {f"pictures/{name}": picture for name, picture in outcome.pictures.items()},
        dataset=dataset_of("training", about, sha256=lineage.data_sha256, uri=uris, profile=counts),
    )  # fmt: skip


def _parameters(outcome: TrainingOutcome) -> dict[str, object]:
    trained, lineage, plan = outcome.trained, outcome.lineage, outcome.trained.plan
    parameters = {
        **trained.bundle.parameters,
        **trained.chosen.parameters,
        "n_rounds": trained.chosen.n_rounds,
        "n_trials": len(trained.trials),
        "seed": plan.seed,
        "horizon_months": plan.horizon.months,
        "label_lag_days": plan.horizon.lag_days,
        "calibration_slope": trained.calibration.slope,
        "calibration_intercept": trained.calibration.intercept,
        "activity_of": lineage.activity_of.key,
        "feature_names_from": lineage.names_from,
    }
    for part in trained.parts:
        parameters |= {f"{part.name}_days": " ".join(map(str, part.as_ofs)), f"{part.name}_rows": part.n}
    return parameters


def _metrics(outcome: TrainingOutcome) -> dict[str, float]:
    metrics = outcome.evaluation.metrics() | {"validation_log_loss": outcome.trained.chosen.log_loss}
    metrics |= {f"roc_auc_week_{week}": value for week, value in outcome.trained.roc_auc_by_week().items()}
    if outcome.against is not None:
        metrics |= {f"champion_{name}": value for name, value in outcome.against.evaluation.metrics().items()}
        metrics["auc_less_champions"] = outcome.against.auc_difference
    return metrics


def _tags(outcome: TrainingOutcome) -> dict[str, str]:
    lineage, gate = outcome.lineage, outcome.gate
    tags = {
        tag.TRAINING_DATE: lineage.today.isoformat(),
        tag.TRAINED_AS_OF: lineage.today.isoformat(),
        tag.EVIDENCE_AFTER: outcome.trained.evidence_after.isoformat(),
        tag.TRAINED_ON: lineage.activity_of.key,
        tag.DATA_SHA256: lineage.data_sha256,
        tag.HORIZON_MONTHS: str(outcome.trained.plan.horizon.months),
        tag.CODE_VERSION: lineage.code_version,
        tag.LOGGED_ON: datetime.now(UTC).date().isoformat(),
        tag.COLUMNS: outcome.columns.to_json(),
        tag.GATE: "passed" if gate.is_passed else "failed",
        tag.IS_CALIBRATED: "true",
    }
    if not gate.is_passed:
        tags[tag.GATE_FAILURES] = "; ".join(f"{check.name}: {check.sentence}" for check in gate.failures)
    if lineage.pooled:
        tags[tag.POOLED] = lineage.pooled
    if lineage.detours:
        tags[tag.TRAINED_ON_BECAUSE] = "; ".join(lineage.detours)
    if outcome.provenance is not None and outcome.provenance.fallback_reason is not None:
        tags[tag.FALLBACK_REASON] = outcome.provenance.fallback_reason
    if outcome.evaluation.roc_auc is not None:
        tags[tag.AUC_LIMIT] = f"{outcome.evaluation.roc_auc.low:.4f}"
    return {name: value[:_MAX_TAG] for name, value in tags.items()}


def _compare(champion: OpenModel, trained: Trained, shots: Sequence[Snapshot]) -> AgainstChampion | None:
    """Compare with the champion on the held-out accounts; ``None`` if they lack its features."""
    accounts, matrix = trained.held_out_accounts, trained.held_out_accounts.matrix
    try:
        scores = champion.bundle.predict(_matrix_for(champion, trained, shots))
    except InputError:
        return None
    compared = compare_roc_auc(accounts.churned, scores, trained.bundle.predict(matrix), accounts.weights)
    evaluated = evaluate(accounts.churned, scores, accounts.weights)
    return AgainstChampion(champion.version.uri, evaluated, compared.difference, compared.p_value)


def _matrix_for(champion: OpenModel, trained: Trained, shots: Sequence[Snapshot]) -> features.Matrix:
    accounts, names = trained.held_out_accounts, champion.bundle.feature_names
    if names == trained.feature_names and not champion.bundle.categories:
        return accounts.matrix
    by_day = {shot.as_of: shot.rows for shot in shots}
    matrices = []
    for place, as_of in enumerate(accounts.as_ofs):
        rows = by_day[as_of]
        chosen = rows.filter(pl.col("account_id").is_in(accounts.account_ids[accounts.places == place]))
        encoding = features.plan_encoding(names, rows.columns, champion.bundle.categories)
        matrices.append(features.encode(chosen, encoding))
    return np.concatenate(matrices)


def _pictures(trained: Trained, about: str) -> dict[str, bytes]:
    accounts, encoding = trained.held_out_accounts, trained.encoding
    churned, scores = accounts.churned, trained.bundle.predict(accounts.matrix)
    explained = accounts.matrix[:_EXPLAINED_ROWS]
    contributions = sum_by_column(trained.bundle.contributions(explained), encoding)
    return {
        "roc.svg": curves.draw_roc(churned, scores, about),
        "precision_recall.svg": curves.draw_precision_recall(churned, scores, about),
        "gain.svg": curves.draw_gain(churned, scores, about),
        "scores.svg": curves.draw_scores(churned, scores, about),
        "reliability.svg": curves.draw_reliability(churned, scores, about),
        "reasons.svg": curves.draw_contributions(contributions, _by_column(explained, encoding), about),
    }


def _by_column(matrix: features.Matrix, encoding: features.Encoding) -> dict[str, npt.NDArray[Any]]:
    """Return the values of each column of the features: its numbers, or the names of its levels."""
    values: dict[str, npt.NDArray[Any]] = {name: matrix[:, place] for name, place in encoding.numbers}
    levels = features.pack_matrix(matrix, encoding).levels
    names = (np.array([*group.levels, "none of these"]) for group in encoding.one_hots)
    source_columns = (group.source_column for group in encoding.one_hots)
    return values | {column: of[codes] for column, of, codes in zip(source_columns, names, levels, strict=True)}
