"""Model versions, the names of aliases and the version of the code; does not import MLflow."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass

from churn.variants import Variant

CHAMPION = "champion"  # the version that scores
CHALLENGER = "challenger"  # the version that also scores every batch, to be compared with the champion
PREVIOUS = "previous"  # the previous champion, which a rollback returns to


def package_version() -> str:
    """Return the version of the installed package, by whichever of its two folders it was installed."""
    names = "churn-scoring", "churn-experiment-tracking"
    return next((one.version for name in names for one in importlib.metadata.distributions(name=name)), "unknown")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a variant's registered model, and the alias that it was resolved from."""

    variant: Variant
    registered_model: str
    version: int
    alias: str | None
    model_id: str
    mlflow_run_id: str
    sha256: str
    has_reference: bool = False
    is_calibrated: bool = False  # whether its scores were calibrated, so that they are probabilities
    # What the columns of the variant's activity mean, as declared with the version, in JSON; `None` for the defaults
    columns: str | None = None
    is_repeat: bool = False  # whether a registration found it, made of the same files, and changed nothing

    @property
    def uri(self) -> str:
        return f"models:/{self.registered_model}/{self.version}"


@dataclass(frozen=True)
class AliasMove:
    """A decided move of a variant's aliases: each alias's version before and after it; ``None`` where it is not set."""

    before: Mapping[str, int | None]
    after: Mapping[str, int | None]

    def fits(self, aliases: Mapping[str, int]) -> bool:
        """Whether each alias has its version from before or after the move, so that nobody else has moved one."""
        return all(aliases.get(alias) in (self.before[alias], self.after[alias]) for alias in self.after)

    def left(self, aliases: Mapping[str, int]) -> dict[str, int | None]:
        """Return the versions of the aliases that are still to be moved.

        ``previous`` is set and ``challenger`` deleted before the champion moves: whoever reads the aliases in between
        sees the old champion, and never one version as both champion and challenger.
        """
        order = (PREVIOUS, CHALLENGER, CHAMPION)
        return {alias: self.after[alias] for alias in order if aliases.get(alias) != self.after[alias]}

    def applied(self, aliases: Mapping[str, int]) -> Mapping[str, int]:
        """Return the aliases once the move is complete; ``aliases`` themselves if somebody else has moved one.

        >>> AliasMove({"champion": 1}, {"champion": 2}).applied({"champion": 1})
        {'champion': 2}
        >>> AliasMove({"champion": 1}, {"champion": 2}).applied({"champion": 3})
        {'champion': 3}
        """
        if not self.fits(aliases):
            return aliases
        return {alias: version for alias, version in ({**aliases, **self.after}).items() if version is not None}
