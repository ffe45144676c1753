"""Reads published predictions through ``churn_predictions_current``, as the reader role: to show and deliver them."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from pyarrow import parquet

from churn.database.connection import READER, Tables, read_queries
from churn.variants import Variant

Row = sa.Row[Any]

_SQL = read_queries("published")
_TYPES = {
    16: pa.bool_(), 20: pa.int64(), 23: pa.int32(), 700: pa.float32(), 701: pa.float64(), 1082: pa.date32(),
    1184: pa.timestamp("us", "UTC"),
    3802: pa.list_(pa.struct([("feature", "str"), ("value", "str"), ("contribution", "f8"), ("window", "str")])),
}  # fmt: skip
"""Arrow's types by PostgreSQL's, others being text; the only JSON are the reasons."""
_BLOCK_ROWS = 10_000


class PublishedPredictions(Tables):
    """The current predictions, as the reader role. The statements define the fields of the rows."""

    role, pool_size = READER, 0

    def variants(self) -> list[Variant]:
        """Return the variants with a current batch."""
        return [Variant.from_key(row.variant) for row in self._rows(_SQL["variants"])]

    def variants_of(self, account: str, week: date | None) -> list[str]:
        """Return the keys of the variants with a current prediction of an account; of ``week``, or of any."""
        return [row.variant for row in self._rows(_SQL["variants_of"], account=account, week=week)]

    def prediction(self, variant: str, account: str, week: date | None) -> Row | None:
        """Return an account's prediction of ``week``, or of its newest week; reasons are null if none were computed."""
        return next(iter(self._rows(_SQL["prediction"], variant=variant, account=account, week=week)), None)

    def summarize(self, week: date, variants: Sequence[str]) -> Sequence[Row]:
        """Return a summary of the week's predictions of each of these variants, with the provenance of their input.

        The mean is over the accounts at risk, or over all where it is unknown who is.
        """
        return self._rows(_SQL["batches"], week=week, variants=list(variants))

    def highest(self, week: date, variants: Sequence[str], n: int) -> Sequence[Row]:
        """Return each variant's ``n`` accounts at risk with the highest scores, and two reasons, also in words.

        Where it is unknown who is at risk, all accounts of the variant are ranked.
        """
        return self._rows(_SQL["highest"], week=week, variants=list(variants), n=n)


def current_batches(snapshot: sa.Connection, variant: Variant) -> dict[date, int]:
    """Return the champion's current batch of each week."""
    return dict(map(tuple, snapshot.execute(sa.text(_SQL["current"]), {"v": variant.key})))


def export_week(snapshot: sa.Connection, variant: Variant, week: date, path: Path) -> int:
    """Write a variant's current rows of a week as Parquet, with this release's columns; returns their number."""
    of, n_rows = {"variant": variant.key, "week": week}, 0
    found = snapshot.execution_options(yield_per=_BLOCK_ROWS).execute(sa.text(_SQL["rows"]), of)
    described: Any = found.cursor.description
    schema = pa.schema([(one.name, _TYPES.get(one.type_code, pa.string())) for one in described])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in found.partitions(_BLOCK_ROWS):
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            writer.write_batch(pa.record_batch([pa.array(*column) for column in columns], schema))
            n_rows += len(rows)
    return n_rows
