"""Retraining requests: load the data of the rules in :mod:`churn.monitoring.retraining` and apply them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from churn.database.fleet import FleetTables
from churn.monitoring.conditions import independent_cohorts, performance_low
from churn.monitoring.retraining import RetrainingPolicy, drifted_features
from churn.registry.tags import TRAINING_DATE, day_of
from churn.versions import CHALLENGER, CHAMPION
from churn.weeks import monday_of

if TYPE_CHECKING:
    from churn.registry.registry import Registry


@dataclass(frozen=True)
class RetrainingPlanner:
    """The services and the policy of retraining requests."""

    registry: "Registry"
    fleet: FleetTables
    policy: RetrainingPolicy

    def reasons(self, today: date, requested: Mapping[str, date]) -> Iterator[tuple[str, str]]:
        """Yield the key of each variant to retrain, with the reason.

        A variant with a recent challenger is excluded. A stale challenger is replaced if the champion underperforms or
        its input drifted, not because of the champion's age. ``requested`` is when training was last requested, by key.
        """
        of_variants = self.registry.aliases()
        champions = {variant.key: aliases.get(CHAMPION) for variant, aliases in of_variants.items()}
        low = performance_low(independent_cohorts(self.fleet.evaluated(), champions)).members
        week = monday_of(today)
        drifted = drifted_features(self.fleet.newest_inputs(week), week)
        trained_on = {key: day_of(tags, TRAINING_DATE) for key, tags in self.registry.version_tags().items()}
        for variant, aliases in sorted(of_variants.items(), key=lambda item: item[0].key):
            champion, challenger = aliases.get(CHAMPION), aliases.get(CHALLENGER)
            if champion is None or self.policy.is_paused(requested.get(variant.key), today):
                continue
            if challenger is not None and not self.policy.is_stale(trained_on.get((variant, challenger)), today):
                continue
            of_champion = drifted.get((variant.key, champion), [])
            aged_since = trained_on.get((variant, champion)) if challenger is None else None
            if reason := self.policy.reason(low.get(variant.key), of_champion, aged_since, today):
                yield variant.key, reason
