"""Checks of a published batch: load its figures and apply the rules of :mod:`churn.monitoring.batch_checks`."""

from collections.abc import Mapping
from contextlib import suppress

from churn.database.predictions import BatchRecord
from churn.errors import ChurnError
from churn.monitoring.batch_checks import BatchFigures, CheckResult, check_batch, with_input
from churn.monitoring.conditions import History, ScoredBatch, read_drifts
from churn.versions import CHALLENGER, CHAMPION
from churn.workflows.score import Scorer


def check_published(
    batch_id: int,
    record: BatchRecord,
    scorer: Scorer,
    histories: Mapping[str, History],
    challenger: int | None = None,
    *,
    is_challenger_scored: bool,
    stored: tuple[int, float, float] | None = None,
) -> list[CheckResult]:
    """Check a published batch, with the variants' earlier batches and inputs by key.

    ``challenger`` is the version that was to score, too; ``None`` for the one that is challenger now, if any.
    ``stored`` are the number of rows that PostgreSQL counted when it stored them, and the lowest and the highest score;
    ``None`` counts them in the table, which reads all rows of a week that is being scored. Raises ``ChurnError`` if
    PostgreSQL does not answer; the batch stays published.
    """
    batch = ScoredBatch(
        batch_id, record.variant.key, record.scored_week, record.model_version, record.n_rows_read,
        data_of=record.source_variant.key, fallback_reason=record.fallback_reason, drifts=read_drifts(record.drift),
        as_of=record.as_of, newest_month=record.newest_month, n_newest=record.n_rows_newest_month,
        source_sha256=record.source_sha256,
    )  # fmt: skip
    aliases: Mapping[str, int] = {}
    with suppress(ChurnError):
        is_fleet, registry = scorer.aliases is not None, scorer.registry
        aliases = registry.aliases_lately(record.variant) if is_fleet else registry.aliases_of(record.variant)
    figures = BatchFigures(
        record.n_rows_quarantined, record.n_rows_scored,
        *(stored or scorer.store.measure(batch_id, record.scored_week)),
        source=record.source, is_stand_in=record.source != scorer.ingestion.sources.primary.source,
        champion=aliases.get(CHAMPION), challenger=challenger or aliases.get(CHALLENGER),
        is_challenger_scored=is_challenger_scored, max_quarantine_share=scorer.max_quarantine_share,
        untrained_missing=record.untrained_missing,
    )  # fmt: skip
    history = histories.get(batch.variant, History({}))
    arrived_on = record.source_modified_at.date()
    return check_batch(batch, figures, with_input(history, record.source_sha256, arrived_on), record.as_of)
