"""Adoption: register a version that others registered in MLflow as the variant's own; theirs is left as it is."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import xgboost as xgb

from churn.data.columns import Columns, one_hot_columns
from churn.data.features import Matrix, unpack
from churn.data.scoring_rows import prepare
from churn.errors import ChurnError, InputError, RegistryError, UsageError
from churn.inference.bundle import GOLDEN_ROWS, Bundle, load_bundle, read_bundle
from churn.inference.forest import NotCompilableError
from churn.registry import tags as tag
from churn.registry.foreign import ForeignVersion, read_version
from churn.storage.inputs import INPUT_FOLDER, INPUT_NAMES
from churn.storage.sources import Provenance, SourceFile
from churn.variants import Variant
from churn.versions import CHAMPION
from churn.wording import listed
from churn.workflows import register
from churn.workflows.ingest import fetch_own, read_columns
from churn.workflows.register import Candidate, Registered, Registrar

_MOST_ROWS = 20_000
_REST = "*"  # as a geography or company: what follows the prefix in a model's name


def assign(
    found: Mapping[str, ForeignVersion | RegistryError], geography: str | None, company: str | None, *key: str
) -> tuple[dict[Variant, ForeignVersion], dict[str, ChurnError]]:
    """Assign each version to a variant: that of the arguments, else of its model's tags, else of its name.

    Returns the versions, and why others have no variant of their own, by name.
    """
    named, errors = dict[Variant, list[ForeignVersion]](), dict[str, ChurnError]()
    for name, source in found.items():
        try:
            if isinstance(source, RegistryError):
                raise source
            if geography or company:
                variant = Variant(*(source.rest or part if part == _REST else part for part in (geography, company)))
            else:
                own = Variant.from_key(*key) if key else tag.variant_of(source.model)
                variant = own or Variant.from_model_name(name)
            named.setdefault(variant, []).append(source)
        except (RegistryError, UsageError) as error:
            errors[name] = error
    for variant, several in named.items():  # a prefix may be that of the variant's own model, too
        named[variant] = [one for one in several if tag.MODEL_SHA256 not in one.version.tags] or several
        names = listed([one.model.name for one in named[variant]])
        for one in named[variant][1:] and named[variant]:
            errors[one.model.name] = UsageError(f"{names} are all for {variant}; adopt the one that is meant by name")
    return {variant: several[0] for variant, several in named.items() if len(several) == 1}, errors


def adopt_each(
    registrar: Registrar, chosen: Mapping[Variant, ForeignVersion], alias: str | None, run_tags: Mapping[str, str]
) -> Callable[[Variant], Registered | str]:
    """Return the work for one variant: register its version, or tell that it was; what was interrupted is completed.

    The alias is by default ``champion`` if the variant has none that can be scored; ``run_tags`` are of
    :func:`churn.workflows.register.log_variant`.
    """
    registry, sources = registrar.registry, registrar.sources
    oldest_last = sorted(registry.version_tags().items(), key=lambda one: -one[0][1])
    adopted = {(of, tags.get(tag.ADOPTED)): number for (of, number), tags in oldest_last}
    all_aliases = registry.aliases()

    def adopt(variant: Variant) -> Registered | str:
        registrar.require_trail(variant, alias)
        source, aliases, name = chosen[variant], all_aliases.get(variant, {}), variant.registered_model
        number, is_in_place = int(source.version.version), source.model.name == name
        is_ours = is_in_place and tag.MODEL_SHA256 in source.version.tags
        is_vacant = CHAMPION not in aliases or (is_in_place and aliases[CHAMPION] == number and not is_ours)
        given = CHAMPION if alias is None and is_vacant else alias  # as registration will decide
        known = number if is_ours else adopted.get((variant, source.identity))
        if known is not None and (is_ours or given is None or known in (aliases.get(given), aliases.get(CHAMPION))):
            return f"{source.uri} is already adopted as version {known} of {name}"
        read = partial(read_adopted, registrar, variant, source)
        services = registry, sources, variant, registrar.artifact_location, registrar.code_version
        return Registered.of(*register.log_variant(*services, alias=alias, read=read, run_tags=run_tags))

    return adopt


def read_adopted(registrar: Registrar, variant: Variant, source: ForeignVersion, folder: Path) -> Candidate:
    """Read a version with the variant's sample, else its activity, if it has any; check that they belong together.

    Raises ``ChurnError`` as :func:`churn.workflows.register.read_candidate` does.
    """
    sources = registrar.sources
    fetch = partial(fetch_own, sources, variant, into=folder)
    data, names, is_sklearn = read_version(registrar.registry.client, source, folder)
    columns = read_columns(sources, variant)
    bundle = read_bundle(data, names, source.uri, (columns or Columns()).categories)
    created_at = datetime.fromtimestamp(source.version.creation_timestamp / 1000, UTC)

    def describe(content: bytes) -> SourceFile:
        digest, size = hashlib.sha256(content).hexdigest(), len(content)
        return SourceFile(folder, Provenance(source.uri, source.identity, digest, size, created_at, "mlflow", variant))

    model, features = describe(data), describe(json.dumps(bundle.feature_names).encode())
    bundle = _as_logged(bundle, is_sklearn=is_sklearn)
    sample = fetch(register.SAMPLE_NAMES)
    if sample is None or sample.provenance.sha256 in sources.simulated:  # that is of no model from elsewhere
        activity = fetch([INPUT_FOLDER + name for name in INPUT_NAMES])
        candidate = _without_sample(bundle, (model, features, activity or model), columns)
    else:
        candidate = register.check_sample(bundle, (model, features, sample), columns)
    no_sample = {} if candidate.has_data else {tag.SAMPLE_SHA256: "none"}
    return replace(candidate, tags={tag.ADOPTED: source.identity, **no_sample})


def _as_logged(bundle: Bundle, *, is_sklearn: bool) -> Bundle:
    """Return the model as the class that was logged predicts, whichever class saved its file before."""
    booster = xgb.Booster()
    booster.load_model(bytearray(bundle.data))
    if is_sklearn == ("scikit_learn" in booster.attributes()):
        return bundle
    booster.set_attr(scikit_learn="{}" if is_sklearn else None)
    data = bytes(booster.save_raw("ubj"))
    return load_bundle(data, bundle.feature_names, "the booster", bundle.parameters).with_levels(bundle.categories)


def _without_sample(bundle: Bundle, files: tuple[SourceFile, ...], columns: Columns | None) -> Candidate:
    """Return the model with the features of the last file's accounts as of today or, without any, with golden rows."""
    remarks = ["no rows of the variant can be read, so there is no reference that drift could be measured by"]
    if files[2] is not files[0]:
        try:
            matrix = _features_today(files[2], bundle, columns)
            columns = columns or Columns(one_hot=one_hot_columns(bundle.feature_names, matrix) or None)
            return Candidate(bundle, matrix, bundle.predict(matrix), None, files, columns)
        except InputError as error:  # no reason against the model; scoring refuses the file
            remarks.append(f"the activity cannot be scored: {error}")
    matrix, columns = _threshold_rows(bundle), columns or Columns()
    candidate = Candidate(bundle, matrix, bundle.predict(matrix), None, files, columns)
    return replace(candidate, remarks=tuple(remarks), has_data=False)


def _features_today(activity: SourceFile, bundle: Bundle, columns: Columns | None) -> Matrix:
    """Return the features of accounts as of today, every n-th of many; shape (n, n_features)."""
    today, uri = datetime.now(UTC).date(), activity.provenance.uri
    declared = replace(columns or Columns(), categories=bundle.categories)
    rows = prepare(activity.path, bundle.feature_names, today, 1.0, uri, declared=declared)
    each = slice(None, None, max(rows.counts.n_accounts // _MOST_ROWS, 1))
    matrix = np.concatenate([unpack(packed.take(each), rows.encoding) for _, packed in rows.chunks()])
    register.require_levels(bundle, matrix, uri, most=0.5)
    return matrix


def _threshold_rows(bundle: Bundle) -> Matrix:
    """Return golden rows of values at and just below thresholds of the trees, which tell models apart best."""
    rows = np.zeros((GOLDEN_ROWS, len(bundle.feature_names)), dtype=np.float32)
    with suppress(NotCompilableError):
        forest, random = bundle.read_forest(), np.random.default_rng(0)
        for i, row in enumerate(rows):
            at = random.permutation(np.flatnonzero(~forest.is_leaf))
            row[forest.features[at]] = forest.values[at] if i % 2 else np.nextafter(forest.values[at], -np.inf)
        for name, levels in bundle.categories.items():
            rows[:, bundle.feature_names.index(name)] = random.integers(len(levels), size=len(rows))
    return rows
