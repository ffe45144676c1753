"""Promotion: name challengers, promote, roll back, share accounts between models, and record every change of an alias.

The version that MLflow's alias ``champion`` names is the one that scores; moving the alias is one atomic call. Each
move happens inside an open transaction on the table of model events, under the variant's lock, and the event is
committed once the alias has moved. If the process dies in between, :meth:`Promoter.observe` records the move later as
``observed``, as it does for aliases that were moved outside this project.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from churn.database.events import Action, ModelEvent, ModelEvents
from churn.errors import PromotionError, UsageError
from churn.evaluation.comparison import Comparison
from churn.evaluation.sequential import e_benjamini_hochberg
from churn.storage.history import Appended
from churn.variants import Variant
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS
from churn.workflows.evaluate import PerformanceEvaluator
from churn.workflows.fleet import for_each_variant

if TYPE_CHECKING:
    from churn.registry.registry import Registry

WHOLE = 10_000
"""Shares of accounts are counted in ten-thousandths."""


@dataclass(frozen=True)
class VariantStatus:
    """A variant's aliases, as its newest model event, and the comparison if it has a champion and a challenger."""

    event: ModelEvent
    comparison: Comparison | None


@dataclass(frozen=True)
class Promoter:
    """The services that promotion needs.

    Attributes:
        actor: Who moves aliases, as recorded in the events.
        clock: The current time, UTC, as recorded in the events; its day decides which labels have matured.
        listed: Aliases and newest event of a fleet's variants, from one query; those of others are queried when needed.
    """

    registry: "Registry"
    events: ModelEvents
    evaluator: PerformanceEvaluator
    actor: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    listed: Mapping[Variant, tuple[Mapping[str, int], ModelEvent | None]] = field(default_factory=dict)

    @property
    def today(self) -> date:
        return self.clock().date()

    def for_fleet(self, variants: Sequence[Variant], aliases: Mapping[Variant, Mapping[str, int]]) -> "Promoter":
        """Return a promoter for evaluating a fleet, which has queried once for what :meth:`status` needs.

        Its aliases and events are those of now, so it must not be used to move aliases.
        """
        latest = self.events.latest_of_all()
        listed = {one: (aliases.get(one, {}), latest.get(one)) for one in variants}
        return replace(self, evaluator=self.evaluator.for_fleet(variants, self.today), listed=listed)

    def status(self, variant: Variant, appended: Appended | None = None) -> VariantStatus:
        """Return champion, previous and challenger, and compare the challenger; writes nothing.

        ``appended`` is the variant's history if it was ingested just now; ``None`` reads it if it is needed.
        """
        event = self._reconciled(variant, *self.listed[variant]) if variant in self.listed else self._current(variant)
        if event.champion is None or event.challenger is None:
            return VariantStatus(event, None)
        comparison = self.evaluator.compare(variant, event.champion, event.challenger, self.today, appended)
        return VariantStatus(event, comparison)

    def observe(self, aliases: Mapping[Variant, Mapping[str, int]]) -> list[ModelEvent]:
        """Record the aliases, of all registered variants, that were moved without an event."""
        latest = self.events.latest_of_all()
        moved = [variant for variant, versions in aliases.items() if _differs(latest.get(variant), versions)]
        return [event for variant in moved if (event := self._observe(variant)) is not None]

    def challenge(self, variant: Variant, version: int, reason: str) -> ModelEvent:
        """Make a version the challenger: it scores the same rows as the champion and serves no account."""
        return self._move(variant, "challenged", lambda now: replace(now, challenger=version, ab_share=0), reason)

    def share(self, variant: Variant, share: int, reason: str, *, dry_run: bool = False) -> ModelEvent:
        """Serve the challenger's scores to a share of the accounts, in ten-thousandths; 0 stops it."""
        if not 0 <= share <= WHOLE:
            raise UsageError(f"share {share / WHOLE:.2%} is not between 0 % and 100 %")

        def after(now: ModelEvent) -> ModelEvent:
            _require(now.challenger, f"{variant} has no challenger to serve accounts; train one")
            return replace(now, ab_share=share)

        return self._move(variant, "shared", after, reason, dry_run=dry_run)

    def promote(
        self, variant: Variant, *, reason: str = "", is_forced: bool = False, dry_run: bool = False
    ) -> tuple[ModelEvent, Comparison]:
        """Make the challenger the champion, if it is proven better.

        Args:
            is_forced: Promote regardless of the test and the guardrails; needs a reason.
            dry_run: Decide without moving an alias.

        Raises:
            PromotionError: If there is no challenger, or it is not proven better; with the figures.
            UsageError: If it is forced without a reason.
        """
        if is_forced and not reason.strip():
            raise UsageError("--force needs --reason, which is recorded with the promotion")
        status = self.status(variant)
        challenger = _require(status.event.challenger, f"{variant} has no challenger to promote; train one")
        comparison = status.comparison
        if comparison is None:
            raise PromotionError(f"{variant} has no champion to be compared with; set one with log_model.py --alias")
        if not is_forced and (comparison.broken or not comparison.is_better):
            raise PromotionError(
                f"version {challenger} of {variant} is not promoted: {comparison.sentence}; "
                f"wait for more labels, or use --force with --reason"
            )
        event = self._promote(variant, challenger, comparison, reason, is_forced=is_forced, dry_run=dry_run)
        return event, comparison

    def promote_all(
        self, variants: Iterable[Variant], *, reason: str = "", dry_run: bool = False
    ) -> dict[Variant, ModelEvent | Comparison | BaseException]:
        """Promote the challengers of a fleet that are proven better, with false discoveries controlled over all of it.

        Returns:
            For each variant that has a challenger: the promotion, the comparison if there was none, or the error.
        """
        results: dict[Variant, ModelEvent | Comparison | BaseException] = {}
        compared: dict[str, tuple[int, Comparison]] = {}
        for key, status in for_each_variant(self.status, [variant.key for variant in variants]):
            if isinstance(status, BaseException):
                results[Variant.from_key(key)] = status
            elif status.comparison is not None and status.event.challenger is not None:
                results[Variant.from_key(key)] = status.comparison
                compared[key] = status.event.challenger, status.comparison
        e_values = [comparison.e_value for _, comparison in compared.values()]
        is_chosen = e_benjamini_hochberg(e_values, self.evaluator.limits.alpha)
        chosen = [key for key, one in zip(compared, is_chosen, strict=True) if one and not compared[key][1].broken]

        def promote(variant: Variant) -> ModelEvent:
            return self._promote(variant, *compared[variant.key], reason, is_forced=False, dry_run=dry_run)

        return results | {Variant.from_key(key): result for key, result in for_each_variant(promote, chosen)}

    def roll_back(self, variant: Variant, reason: str, *, dry_run: bool = False) -> ModelEvent:
        """Make the previous champion the champion again; the current champion becomes the previous one."""

        def after(now: ModelEvent) -> ModelEvent:
            previous = _require(now.previous, f"{variant} has no previous champion to return to")
            return replace(now, champion=previous, previous=now.champion)

        return self._move(variant, "rolled_back", after, reason, dry_run=dry_run)

    def _promote(
        self, variant: Variant, challenger: int, comparison: Comparison, reason: str, *, is_forced: bool, dry_run: bool
    ) -> ModelEvent:
        def after(now: ModelEvent) -> ModelEvent:
            if now.challenger != challenger:
                raise PromotionError(
                    f"the challenger of {variant} is {now.challenger} now, not {challenger}; "
                    "compare it again before promoting"
                )
            return replace(
                now, champion=challenger, previous=now.champion, challenger=None, ab_share=0, is_forced=is_forced
            )

        reason = reason or comparison.sentence
        return self._move(variant, "promoted", after, reason, evidence=comparison.evidence(), dry_run=dry_run)

    def _move(
        self,
        variant: Variant,
        action: Action,
        after: Callable[[ModelEvent], ModelEvent],
        reason: str,
        *,
        evidence: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> ModelEvent:
        fields: dict[str, Any] = {"action": action, "reason": reason, "evidence": evidence or {}, "actor": self.actor}
        if dry_run:
            return replace(after(self._current(variant)), **fields, occurred_at=self.clock())
        self._observe(variant)
        with self.events.recording(variant) as record:
            now = self._current(variant)
            event = replace(after(now), **fields, occurred_at=self.clock())
            record(event)
            self.registry.set_aliases(variant, _moves(now, event))
        return event

    def _observe(self, variant: Variant) -> ModelEvent | None:
        with self.events.recording(variant) as record:
            latest, aliases = self.events.latest(variant), self.registry.aliases_of(variant)
            if not aliases or not _differs(latest, aliases):
                return None
            event = self._reconciled(variant, aliases, latest)
            record(event)
        return event

    def _current(self, variant: Variant) -> ModelEvent:
        return self._reconciled(variant, self.registry.aliases_of(variant), self.events.latest(variant))

    def _reconciled(self, variant: Variant, aliases: Mapping[str, int], latest: ModelEvent | None) -> ModelEvent:
        """Return the newest event if it matches the aliases, else an event that records the aliases as observed."""
        if not aliases:
            raise PromotionError(f"variant {variant} is not registered or has no alias; log or train a model first")
        if latest is not None and not _differs(latest, aliases):
            return replace(latest, is_forced=False)
        is_same = latest is not None and latest.challenger == aliases.get(CHALLENGER)
        return ModelEvent(
            variant=variant,
            action="observed",
            champion=aliases.get(CHAMPION),
            previous=aliases.get(PREVIOUS),
            challenger=aliases.get(CHALLENGER),
            reason="the aliases in MLflow",
            actor=self.actor,
            occurred_at=self.clock(),
            ab_share=latest.ab_share if latest is not None and is_same else 0,
        )


def _differs(latest: ModelEvent | None, aliases: Mapping[str, int]) -> bool:
    recorded = None if latest is None else (latest.champion, latest.previous, latest.challenger)
    return recorded != (aliases.get(CHAMPION), aliases.get(PREVIOUS), aliases.get(CHALLENGER))


def _moves(before: ModelEvent, after: ModelEvent) -> dict[str, int | None]:
    """Order the moves so that an interruption leaves a sound state: ``previous`` is set before the champion moves."""
    versions = {PREVIOUS: (before.previous, after.previous), CHAMPION: (before.champion, after.champion),
                CHALLENGER: (before.challenger, after.challenger)}  # fmt: skip
    return {alias: new for alias, (old, new) in versions.items() if old != new}


def _require(version: int | None, message: str) -> int:
    if version is None:
        raise PromotionError(message)
    return version
