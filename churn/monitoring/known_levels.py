"""The accounts of a batch whose level a model does not know. Pure.

Where nearly all are, the extract is spelled otherwise, or the model is another's.
A level that a model does not know sets no column, as if the account had none. Some models know few levels by design,
such as one of two; their reference has as many unknown ones, and counts as usual.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from churn.data.features import Encoding
from churn.data.scoring_rows import Chunk
from churn.errors import QuarantineError
from churn.monitoring.profiles import Profile
from churn.wording import listed, percent

MANY = 0.5  # share of accounts above the reference's from which an unknown level is shown with the batch


@dataclass
class UnknownLevels:
    """Counts of the accounts scored, and of those whose level is unknown, by source column."""

    encoding: Encoding
    reference: Profile | None
    n: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def counted(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Count chunks as they are consumed."""
        for chunk in chunks:
            self.n += chunk[1].n_rows
            for group, levels in zip(self.encoding.one_hots, chunk[1].levels, strict=True):
                n_unknown = int(np.count_nonzero(levels >= group.n_known))
                self.counts[group.source_column] = self.counts.get(group.source_column, 0) + n_unknown
            yield chunk

    def require(self, limit: float, examples: Mapping[str, Mapping[str, int]]) -> None:
        """Raise ``QuarantineError``, with ``examples``, if a share exceeds the reference's by over ``limit``."""
        counts = {} if self.reference is None else self.reference.by_feature()
        for group in self.encoding.one_hots:
            # A model of one level knows nothing of the others; without a reference their share is not known either.
            before = 1.0 if len(group.levels) == 1 else 0.0
            if (of_bin := counts.get(group.source_column)) is not None:
                before = float(of_bin[group.n_known :].sum() / max(of_bin.sum(), 1))
            share = self.counts.get(group.source_column, 0) / max(self.n, 1)
            if share - before > limit:
                name, n_unknown = group.source_column, self.counts[group.source_column]
                shown = listed([repr(level[:40]) for level in examples.get(name, {})], 3)
                raise QuarantineError(
                    f"{n_unknown} of {self.n} accounts ({percent(share, 1)}) have a {name} that the model does not "
                    f"know ({shown or 'none is set'}), {percent(before, 1)} in its reference, and "
                    f"CHURN_MAX_UNKNOWN_LEVEL_SHARE allows {percent(limit, 1)} more; the model knows "
                    f"{listed([repr(level) for level in group.levels], 3)}: correct the extract or the declared "
                    f"categories, train the model again, or raise the limit"
                )
