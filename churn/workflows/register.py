"""Registration: find a variant's model files, check them, and log them as a registered model version.

The three files are read from one place, never from two. They are checked before anything is written to MLflow.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from churn.data.activity import check_activity, check_encoded, is_activity, parse_value
from churn.data.columns import Columns, one_hot_columns
from churn.data.features import Matrix, pack_matrix, plan_encoded, with_codes
from churn.data.formats import open_rows, read_frame
from churn.data.sample_rows import compare_with_activity
from churn.data.scoring_rows import plan_file
from churn.errors import InputError, ModelFileError, UsageError
from churn.evaluation.metrics import Scores, evaluate
from churn.inference.bundle import GOLDEN_ROWS, GOLDEN_TOLERANCE, Bundle, parse_feature_names, read_bundle
from churn.monitoring.profiles import reference_profile
from churn.registry import tags as tag
from churn.registry.records import LoggedRun, dataset_of
from churn.registry.registry import Registry
from churn.storage.inputs import INPUT_FOLDER, INPUT_NAMES
from churn.storage.sources import MODEL_NAMES, NoFileError, Provenance, SourceFile, Sources
from churn.variants import Variant
from churn.versions import CHAMPION, ModelVersion
from churn.wording import listed
from churn.workflows.ingest import COLUMNS_NAMES, fetch_own, read_columns, with_numbers

FEATURE_NAMES = ("data/churn/feature_names_3.json",)
SAMPLE_NAMES = ("data/churn/X_test_sample_2.json",)
LABEL_COLUMN = "churned"
"""Optional column of a sample, 0 or 1; without it there are no metrics."""

SCORE_COLUMN = "expected_probability"
"""Optional column of a sample: the score that the model's author got for the row."""

NO_TRAIL = "no database for predictions is set; set CHURN_DATABASE_URL or MLFLOW_SECRET_NAME"

Labels = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Candidate:
    """A model and its sample rows, checked against each other and ready to be logged."""

    bundle: Bundle
    matrix: Matrix
    scores: Scores
    labels: Labels | None
    files: tuple[SourceFile, ...]
    columns: Columns
    account_ids: pl.Series | None = None  # of the sample rows, if they have any
    remarks: tuple[str, ...] = ()  # for people: what the variant's activity shows about labels and the sample
    has_data: bool = True  # whether the rows are data, and not made from the model alone
    tags: Mapping[str, str] = field(default_factory=dict)  # of the version, beside those that describe the files


def read_candidate(sources: Sources, variant: Variant, folder: Path, *, files_of: Variant | None = None) -> Candidate:
    """Download the files of a variant, or of ``files_of``, into a folder, and check that they belong together.

    Raises:
        SourceError: If a file cannot be read.
        ModelFileError: If the booster or the names cannot be used, or the scores are not those expected.
        InputError: If the sample does not consist of rows of the model's features.
        UsageError: If ``files_of`` has no model.
    """
    model, names, _ = files = sources.fetch(files_of or variant, [MODEL_NAMES, FEATURE_NAMES, SAMPLE_NAMES], folder)
    if files_of not in (None, model.provenance.variant):
        raise UsageError(f"{files_of}, whose model {variant} should get, has no model of its own; name another one")
    feature_names = parse_feature_names(names.path.read_bytes(), names.provenance.uri)
    columns, uri = read_columns(sources, variant), model.provenance.uri
    bundle = read_bundle(model.path.read_bytes(), feature_names, uri, (columns or Columns()).categories)
    return check_sample(bundle, files, columns)


def check_sample(bundle: Bundle, files: Sequence[SourceFile], columns: Columns | None) -> Candidate:
    """Check a model and the last of its three files, the sample, against each other; see :func:`read_candidate`."""
    model, _, sample = files
    feature_names, declared = bundle.feature_names, columns or Columns()
    frame = with_codes(read_frame(sample.path, feature_names), bundle.categories)
    checked = check_encoded(frame, feature_names, one_hot=declared.encoded, max_money=declared.max_money)
    if not checked.quarantined.is_empty():
        checked.require_share(0.0)
    matrix = np.ascontiguousarray(checked.rows.select(feature_names).cast(pl.Float32).to_numpy())
    require_levels(bundle, matrix, sample.provenance.uri)
    scores = bundle.predict(matrix)
    _require_expected(frame, scores, model.provenance.uri)
    if columns is None:
        columns = Columns(one_hot=one_hot_columns(feature_names, matrix) or None)
    account_ids = checked.rows["account_id"] if "account_id" in frame.columns else None
    return Candidate(bundle, matrix, scores, _read_labels(frame), tuple(files), columns, account_ids)


def require_levels(bundle: Bundle, matrix: Matrix, origin: str, most: float = 0.0) -> None:
    """Raise ``InputError`` if a share of rows above ``most`` has levels that the model does not know."""
    for name, levels in bundle.categories.items():
        if (matrix[:, bundle.feature_names.index(name)] >= len(levels)).mean() > most:
            known = f"{origin} has rows with a {name} that the model does not know; it knows {listed(list(levels), 5)}"
            file = f'{COLUMNS_NAMES[0]}, such as {{"categories": {{"{name}": ["CO", "NJ"]}}}}'
            remedy = f"correct the sample, or declare all levels of {name} in the order of their codes in {file}"
            raise InputError(f"{known}: {remedy}")


def _require_expected(frame: pl.DataFrame, scores: npt.NDArray[np.float32], origin: str) -> None:
    """Raise ``ModelFileError`` if the scores are not those that the author got for the sample, where it has them."""
    if SCORE_COLUMN not in frame.columns:
        return
    expected = frame.select(parse_value(SCORE_COLUMN, "number", frame.schema[SCORE_COLUMN])).to_series().to_numpy()
    gaps = np.abs(expected - scores)
    if not (gaps <= GOLDEN_TOLERANCE).all():
        worst = int(np.nanargmax(np.where(np.isnan(gaps), np.inf, gaps)))
        raise ModelFileError(
            f"{origin} gives sample row {worst + 1} the score {scores[worst]:.6f}, and the sample's {SCORE_COLUMN} is "
            f"{expected[worst]:.6f}; {int((~(gaps <= GOLDEN_TOLERANCE)).sum())} of {len(gaps)} rows differ: was the "
            f"model saved with other rounds, categories or features than its author scored with?"
        )


def compare_with_input(candidate: Candidate, sources: Sources, variant: Variant, folder: Path) -> Candidate:
    """Check the declared columns and the sample against the variant's activity, if it has any.

    Raises ``InputError`` if the activity lacks a declared column.
    """
    names, levels = candidate.bundle.feature_names, candidate.bundle.categories
    columns = replace(candidate.columns, categories=levels)
    file = fetch_own(sources, variant, [INPUT_FOLDER + name for name in INPUT_NAMES], folder)
    if file is None:
        return candidate
    try:
        rows = open_rows(file.path, names)
    except InputError as error:  # no reason against the model; scoring refuses the file
        return replace(candidate, remarks=(f"the activity cannot be scored: {error}",))
    remarks = list(candidate.remarks)
    declared, usual = ((of.activity, of.segments, of.revenue) for of in (columns, Columns()))
    if is_activity(rows.columns) and declared != usual:
        columns.require(rows.columns, file.provenance.uri)
    if is_activity(rows.columns) and not set(columns.activity) & set(rows.columns):
        problem = f"the activity has none of {', '.join(columns.activity)}, so it is scored but gives no labels"
        remarks.append(f"{problem}; declare the columns that measure activity in {variant.prefix}{COLUMNS_NAMES[0]}")
    try:
        if plan_file(names, rows.columns, columns) is not None and candidate.account_ids is not None:
            checked = check_activity(read_frame(file.path), max_money=columns.max_money)
            ids, money = candidate.account_ids, columns.activity
            activity, _ = with_numbers(checked.rows, [name for name in names if name not in levels], columns, 1.0)
            compared = compare_with_activity(ids, candidate.matrix, names, activity, money, levels=levels)
            remarks += [] if compared is None else [compared]
    except InputError as error:
        remarks.append(f"the activity cannot be scored: {error}")
    return replace(candidate, remarks=tuple(remarks))


def log_variant(
    registry: Registry,
    sources: Sources,
    variant: Variant,
    artifact_location: Callable[[Variant], str],
    code_version: str,
    *,
    alias: str | None = None,
    once: bool = False,
    read: Callable[[Path], Candidate] | None = None,
    run_tags: Mapping[str, str] | None = None,
) -> tuple[ModelVersion, Candidate]:
    """Check a variant's files, log them as a run in its experiment, and register the version.

    Args:
        artifact_location: Artifact location of a variant's experiment, if the experiment has to be created.
        alias: Of the new version; ``None`` means ``champion`` if the variant has none.
        once: Whether a variant that has the alias, or a champion, is left as it is.
        read: Reads the model, given a folder for its files; ``None`` for the variant's own.
        run_tags: In place of the run's other tags, such as the variant's parts as a person spells them.
    """
    with tempfile.TemporaryDirectory(prefix="churn-log-") as scratch:
        folder = Path(scratch)
        candidate = read(folder) if read is not None else read_candidate(sources, variant, folder)
        candidate = compare_with_input(candidate, sources, variant, folder)
        run = describe(candidate, code_version)
        run = replace(run, tags={**run.tags, **(run_tags or {})})
        return registry.log(variant, artifact_location(variant), run, alias, once=once), candidate


@dataclass(frozen=True)
class Registrar:
    """The services that registering many variants needs; without ``has_trail``, no alias is moved."""

    registry: Registry
    sources: Sources
    artifact_location: Callable[[Variant], str]
    code_version: str
    has_trail: bool
    appoint: Callable[[Variant, int], object] | None = None  # makes a version champion, with a trail

    def require_trail(self, variant: Variant, alias: str | None) -> None:
        """Raise ``UsageError`` if the alias would be moved without a trail."""
        if alias and not self.has_trail and alias in self.registry.aliases().get(variant, {}):
            raise UsageError(f"the alias {alias} of {variant} names a version, and moving it needs a trail; {NO_TRAIL}")

    def log_files(
        self,
        variant: Variant,
        *,
        alias: str | None = None,
        once: bool = False,
        files_of: Variant | None = None,
        run_tags: Mapping[Variant, Mapping[str, str]] | None = None,
    ) -> "Registered":
        """Log and register a variant's files, or those of ``files_of``; see :func:`log_variant`."""
        self.require_trail(variant, alias)
        read, tags = partial(read_candidate, self.sources, variant, files_of=files_of), (run_tags or {}).get(variant)
        services = self.registry, self.sources, variant, self.artifact_location, self.code_version
        before = self.registry.aliases_of(variant).get(CHAMPION) if alias == CHAMPION and not once else None
        given = alias if self.appoint is None or before is None else None
        try:
            version, candidate = log_variant(*services, alias=given, once=once, read=read, run_tags=tags)
            if self.appoint is not None and before is not None:
                self.appoint(variant, version.version)
                version = replace(version, alias=alias, is_repeat=version.version == before)
            return Registered.of(version, candidate)
        except NoFileError as error:
            raise NoFileError(f"{error}{self.sources.hint(variant)}") from error


@dataclass(frozen=True)
class Registered:
    """A version that was registered, where its model came from, and remarks for people; picklable."""

    version: ModelVersion
    model: Provenance
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, version: ModelVersion, candidate: Candidate) -> "Registered":
        """Return the fields of the candidate that are shown."""
        return cls(version, candidate.files[0].provenance, candidate.remarks)


def describe(candidate: Candidate, code_version: str) -> LoggedRun:
    """Build the MLflow run of a candidate; raises ``ModelFileError`` if the score of a sample row is not finite."""
    bundle = candidate.bundle
    model, names, sample = (file.provenance for file in candidate.files)
    trained_on, modified_on = bundle.booster.attr("training_date"), model.modified_at.date().isoformat()
    tags = {
        tag.TRAINING_DATE: trained_on or modified_on,
        tag.TRAINING_DATE_FROM: "the booster" if trained_on else "the model file's date: the booster names none",
        tag.MODEL_URI: model.uri,
        tag.MODEL_FILE_SHA256: model.sha256,
        tag.FEATURE_NAMES_SHA256: names.sha256,
        tag.SAMPLE_SHA256: sample.sha256,
        tag.CODE_VERSION: code_version,
        tag.LOGGED_ON: datetime.now(UTC).date().isoformat(),
        tag.SOURCE: model.source,
        tag.COLUMNS: candidate.columns.to_json(),
        tag.FILES_OF_VARIANT: model.variant.key,
    }
    # A booster from elsewhere may name the last day of the outcomes that it was trained on, or when it was trained.
    if seen := bundle.booster.attr("evidence_after") or trained_on:
        tags[tag.EVIDENCE_AFTER] = seen
    if model.fallback_reason is not None:
        tags[tag.FALLBACK_REASON] = model.fallback_reason
    encoding = plan_encoded(bundle.feature_names, candidate.columns.encoded, bundle.categories)
    scores = candidate.scores
    if n := int((~np.isfinite(scores)).sum()):
        raise ModelFileError(f"{model.uri} gives {n} of {len(scores)} sample rows no finite score; train it again")
    golden_rows, has_data = candidate.matrix[:GOLDEN_ROWS], candidate.has_data
    metrics = _metrics(candidate.labels, scores) if has_data else {}
    counts = {"rows": len(scores)} | ({} if candidate.labels is None else {"churned": int(candidate.labels.sum())})
    rows = dataset_of("evaluation", f"sample of {sample.variant}", sha256=sample.sha256, uri=sample.uri, profile=counts)
    return LoggedRun(
        bundle=bundle, golden=bundle.make_golden(golden_rows), parameters=bundle.parameters, metrics=metrics,
        sample=pd.DataFrame(golden_rows, columns=list(bundle.feature_names)), tags=tags | dict(candidate.tags),
        about=_about(candidate, metrics.get("roc_auc")), dataset=rows if has_data else None,
        reference=reference_profile(pack_matrix(candidate.matrix, encoding), encoding, scores) if has_data else None,
    )  # fmt: skip


def _metrics(labels: Labels | None, scores: Scores) -> dict[str, float]:
    metrics = {"sample_rows": float(len(scores)), "sample_mean_churn_probability": float(scores.mean())}
    if labels is None:
        return metrics
    return metrics | evaluate(labels == 1, scores).metrics()


def _about(candidate: Candidate, roc_auc: float | None) -> str:
    bundle, n_rows = candidate.bundle, len(candidate.matrix)
    lacking = f"its {n_rows:,} sample rows have no labels" if candidate.has_data else "the variant had no data yet"
    measured = f"its ROC AUC is unknown, since {lacking}"
    if roc_auc is not None:
        measured = f"its ROC AUC on {n_rows:,} sample rows is {roc_auc:.3f}"
    return (
        f"An XGBoost booster of {bundle.parameters['n_trees']} trees and {len(bundle.feature_names)} features, "
        f"registered from {candidate.files[0].provenance.uri}; {measured}. It gives the probability that an account "
        f"churns, which is that it has no activity in the whole calendar months of the horizon."
    )


def _read_labels(frame: pl.DataFrame) -> Labels | None:
    if LABEL_COLUMN not in frame.columns:
        return None
    labels = frame[LABEL_COLUMN].cast(pl.Float64, strict=False)
    is_valid = labels.is_in([0.0, 1.0]).fill_null(value=False)
    if not is_valid.all():
        wrong = frame[LABEL_COLUMN].filter(~is_valid).head(3).to_list()
        raise InputError(f"the sample's {LABEL_COLUMN} contains {json.dumps(wrong, default=str)}; each must be 0 or 1")
    return labels.cast(pl.Int8).to_numpy()
