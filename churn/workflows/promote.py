"""Promotion: name challengers, promote, roll back, share accounts between models, and record every change of an alias.

The version that MLflow's alias ``champion`` names is the one that scores; moving an alias is one atomic call, and a
promotion moves up to three. So each change is decided first: the event is committed as ``pending``, and counts from
then on, for scoring too. Then the aliases are moved under the variant's lock. If the process dies in between, whoever
comes next completes it: the same command again, the run's retry, an evaluation, or a sensor. If somebody else moved an
alias meanwhile, the decision ends as ``overtaken`` and the aliases are recorded as ``observed``, as they are whenever
they were moved outside this project.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any

from churn.database.events import Action, ModelEvent, ModelEvents, State, Trail
from churn.errors import AbsentError, ChurnError, PromotionError, TransientError, UsageError
from churn.evaluation.comparison import Comparison, choose
from churn.storage.history import Appended
from churn.variants import Variant, nearest
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS
from churn.weeks import month_number
from churn.wording import percent
from churn.workflows.evaluate import PerformanceEvaluator
from churn.workflows.fleet import for_each_variant

if TYPE_CHECKING:
    from churn.registry.registry import Registry

Aliases = Mapping[str, int]
WHOLE = 10_000  # shares of accounts are counted in ten-thousandths
_RESUMED = ("promoted", "rolled_back")  # the actions that are completed, not decided again, when they are repeated


@dataclass(frozen=True)
class VariantStatus:
    """A variant's aliases, as its newest model event, and the comparison if it has a champion and a challenger."""

    event: ModelEvent
    comparison: Comparison | None


@dataclass(frozen=True)
class Promoter:
    """The services that promotion needs."""

    registry: "Registry"
    events: ModelEvents
    evaluator: PerformanceEvaluator
    actor: str  # who moves aliases, as recorded in the events
    # The current time, UTC; its day decides which labels have matured
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    # Aliases and newest event of a fleet's variants, from one query; those of others are queried when needed
    listed: Mapping[Variant, tuple[Aliases, ModelEvent | None]] = field(default_factory=dict)
    # What is decided once for each variant, however often it is tried: a Dagster run with its retries
    decision: str | None = None
    decided_at: datetime | None = None  # when that was asked for; later decisions about the same variants stand

    @property
    def today(self) -> date:
        return self.clock().date()

    def for_fleet(self, variants: Sequence[Variant], aliases: Mapping[Variant, Aliases]) -> "Promoter":
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

    def observe(self, aliases: Mapping[Variant, Aliases]) -> list[ModelEvent]:
        """Complete what was decided, and record the aliases of registered variants that somebody else moved."""
        latest = self.events.latest_of_all()
        found = [(variant, latest.get(variant)) for variant in aliases]
        moved = [pair for pair in found if _is_open(pair[1]) or _differs(pair[1], aliases[pair[0]])]
        return [event for variant, before in moved if (event := self.settle(variant)) != before]

    def complete(self, at_least_s: float = 0) -> list[ModelEvent]:
        """Complete the decisions that whoever made them has not completed in that many seconds."""
        return [self.settle(event.variant) for event in self.events.pending(at_least_s)]

    def settle(self, variant: Variant) -> ModelEvent:
        """Complete the variant's pending move, record what somebody else moved, and return the newest event.

        Raises ``PromotionError`` if the variant is not registered or has no alias.
        """
        with self.events.recording(variant) as trail:
            return self._settle(trail, variant)

    def challenge(self, variant: Variant, version: int, reason: str) -> ModelEvent:
        """Make a version the challenger: it scores the same rows as the champion and serves no account."""

        def after(now: ModelEvent) -> ModelEvent:
            return now if now.challenger == version else replace(now, challenger=version, ab_share=0)

        return self._move(variant, "challenged", after, reason)

    def appoint(self, variant: Variant, version: int, reason: str) -> ModelEvent:
        """Make a version the champion without a comparison; the champion, such as a damaged one, becomes previous."""

        def after(now: ModelEvent) -> ModelEvent:
            if now.champion == version:
                return now
            now = replace(now, challenger=None, ab_share=0) if now.challenger == version else now
            return replace(now, champion=version, previous=now.champion, is_forced=True)

        return self._move(variant, "promoted", after, reason, to=version)

    def share(self, variant: Variant, share: int, reason: str, *, dry_run: bool = False) -> ModelEvent:
        """Serve the challenger's scores to a share of the accounts, in ten-thousandths; 0 stops it."""
        if not 0 <= share <= WHOLE:
            raise UsageError(f"share {percent(share / WHOLE, 2)} is not between 0 % and 100 %")

        def after(now: ModelEvent) -> ModelEvent:
            _require(now.challenger, f"{variant} has no challenger to serve accounts; train one")
            return replace(now, ab_share=share)

        return self._move(variant, "shared", after, reason, dry_run=dry_run)

    def withdraw(
        self, variant: Variant, reason: str, *, compared: VariantStatus | None = None, dry_run: bool = False
    ) -> ModelEvent:
        """End a challenger, ``compared`` or whichever there is: it scores no longer, and training may name another."""

        def after(now: ModelEvent) -> ModelEvent:
            version = _require(now.challenger, f"{variant} has no challenger to withdraw")
            _require_same(variant, version, compared.event.challenger if compared else version)
            return replace(now, challenger=None, ab_share=0)

        evidence = compared.comparison.evidence() if compared and compared.comparison else None
        return self._move(variant, "withdrawn", after, reason, evidence=evidence, dry_run=dry_run)

    def withdraw_ended(self, variant: Variant, status: VariantStatus) -> ModelEvent | None:
        """Withdraw a challenger that cannot gain what is worth having, or whose time is over; ``None`` for others."""
        event, comparison = status.event, status.comparison
        if comparison is None or (comparison.is_better and not comparison.broken):
            return None
        reason, most = comparison.sentence, self.evaluator.limits.max_months
        if not comparison.is_hopeless:
            months = month_number(self.today) - month_number(self._challenged_on(event, comparison))
            if months < most:
                return None
            reason = f"not proven better in {months} months, {most} at most: {reason}"
        return self.withdraw(variant, reason, compared=status)

    def _challenged_on(self, event: ModelEvent, comparison: Comparison) -> date:
        """Return when the challenger began; weeks that it scored may be older than the trail, or dropped."""
        events = self.events.history(event.variant)
        days = [one.occurred_at.date() for one in events if one.challenger == event.challenger]
        return min(filter(None, [*days, comparison.since]), default=self.today)

    def promote(
        self, variant: Variant, *, to: int | None = None, reason: str = "", force: bool = False, dry_run: bool = False
    ) -> tuple[ModelEvent, Comparison | None]:
        """Make the challenger, by default whichever there is, the champion, if it is proven better.

        A promotion that was decided and interrupted is completed; it is returned without a comparison, as is the newest
        event if ``to`` is champion already. By force it is promoted regardless of the test and the guardrails. Raises
        ``PromotionError``, with the figures, if there is no challenger, or it is not proven better, and ``UsageError``
        if it is forced without a reason.
        """
        if force and not reason.strip():
            raise UsageError("--force needs --reason, which is recorded with the promotion")
        if not dry_run and (resumed := self._resume(variant, "promoted", to)) is not None:
            return resumed, None
        status = self.status(variant)
        if to is not None and status.event.champion == to:
            return status.event, None
        challenger = _require(status.event.challenger, f"{variant} has no challenger to promote; train one")
        if to not in (None, challenger):
            raise PromotionError(f"the challenger of {variant} is version {challenger}, not {to}; promote that one")
        comparison = status.comparison
        if comparison is None:
            raise PromotionError(f"{variant} has no champion to be compared with; set one with log_model.py --alias")
        if not force and (comparison.broken or not comparison.is_better):
            remedy = "wait for more labels, or use --force with --reason"
            raise PromotionError(f"version {challenger} of {variant} is not promoted: {comparison.sentence}; {remedy}")
        return self._promote(variant, challenger, comparison, reason, force=force, dry_run=dry_run), comparison

    def promote_all(
        self, variants: Iterable[Variant], *, reason: str = "", dry_run: bool = False
    ) -> dict[Variant, ModelEvent | Comparison | BaseException]:
        """Promote the challengers of a fleet that are proven better, with false discoveries controlled over all of it.

        Returns for each variant that has a challenger: the promotion, the comparison if there was none, with the level
        that the fleet asks of it, or the error.
        """
        results: dict[Variant, ModelEvent | Comparison | BaseException] = {}
        compared: dict[str, tuple[int, Comparison]] = {}
        for key, status in for_each_variant(self._status_or_promotion, [variant.key for variant in variants]):
            if isinstance(status, BaseException | ModelEvent):
                results[Variant.from_key(key)] = status
            elif status.comparison is not None and status.event.challenger is not None:
                compared[key] = status.event.challenger, status.comparison
        alpha = self.evaluator.limits.alpha
        chosen = list(compress(compared, choose([comparison for _, comparison in compared.values()], alpha)))
        of_next = alpha * min(len(chosen) + 1, len(compared)) / max(len(compared), 1)
        for key, (_, comparison) in compared.items():
            results[Variant.from_key(key)] = comparison if key in chosen else replace(comparison, alpha=of_next)

        def promote(variant: Variant) -> ModelEvent:
            return self._promote(variant, *compared[variant.key], reason, force=False, dry_run=dry_run)

        return results | {Variant.from_key(key): result for key, result in for_each_variant(promote, chosen)}

    def _status_or_promotion(self, variant: Variant) -> VariantStatus | ModelEvent:
        """Return the status, or the promotion if this decision, or one that is not completed yet, promoted it."""
        if self.decision is not None and (decided := self.events.decided(variant, self.decision)) is not None:
            return self._finish(decided)
        status = self.status(variant)
        return self._finish(status.event) if _is_open(status.event) and status.event.action == "promoted" else status

    def roll_back(self, variant: Variant, reason: str, *, to: int | None = None, dry_run: bool = False) -> ModelEvent:
        """Make an earlier champion the champion again; the current champion becomes the previous one.

        Nothing is done if ``to`` is champion. By default it is the previous one, unless the last change of the champion
        was a rollback, which that would undo.
        """

        def after(now: ModelEvent) -> ModelEvent:
            target = self._target(now) if to is None else to
            if target == now.champion:
                return now
            earlier = {now.previous, *(one.champion for one in self.events.history(variant))} - {None, now.champion}
            if target not in earlier:
                known = ", ".join(map(str, sorted(filter(None, earlier)))) or "none, as no other version was"
                needed = f"--to takes the number of an earlier champion: {known}"
                raise PromotionError(f"version {target} of {variant} was never champion; {needed}")
            challenger = None if target == now.challenger else now.challenger
            share = now.ab_share if challenger is not None else 0
            return replace(now, champion=target, previous=now.champion, challenger=challenger, ab_share=share)

        return self._move(variant, "rolled_back", after, reason, to=to, dry_run=dry_run)

    def _target(self, now: ModelEvent) -> int:
        previous = _require(now.previous, f"{now.variant} has no previous champion to return to")
        changes = [new for old, new in pairwise(self.events.history(now.variant)) if old.champion != new.champion]
        if changes and changes[-1].action == "rolled_back":
            last = changes[-1]
            done = f"{now.variant} was rolled back to version {now.champion} at {last.occurred_at:%Y-%m-%d %H:%M} UTC"
            undone = f"returning to version {previous} would undo that; name the version that you want with --to"
            raise PromotionError(f"{done}, and {undone}")
        return previous

    def _promote(
        self, variant: Variant, version: int, comparison: Comparison, reason: str, *, force: bool, dry_run: bool
    ) -> ModelEvent:
        def after(now: ModelEvent) -> ModelEvent:
            if now.champion == version:  # another promotion came first
                return now
            _require_same(variant, now.challenger, version)
            return replace(now, champion=version, previous=now.champion, challenger=None, ab_share=0, is_forced=force)

        reason, evidence = reason or comparison.sentence, comparison.evidence()
        return self._move(variant, "promoted", after, reason, to=version, evidence=evidence, dry_run=dry_run)

    def _move(
        self,
        variant: Variant,
        action: Action,
        after: Callable[[ModelEvent], ModelEvent],
        reason: str,
        *,
        to: int | None = None,
        evidence: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> ModelEvent:
        fields: dict[str, Any] = {"action": action, "reason": reason, "evidence": evidence or {}, "actor": self.actor}
        if dry_run:
            now = replace(self._current(variant), is_forced=False)
            return replace(after(now), **fields, occurred_at=self.clock())
        if (resumed := self._resume(variant, action, to)) is not None:
            return resumed
        with self.events.recording(variant) as trail:
            now = replace(self._settle(trail, variant), is_forced=False)
            wanted = after(now)
            if wanted == now:
                return now
            if self.decided_at is not None and now.action != "observed" and now.occurred_at > self.decided_at:
                done, at = now.action.replace("_", " "), f"{now.occurred_at:%Y-%m-%d %H:%M} UTC"
                problem = f"{now.variant} was {done} by {now.actor} at {at}, after this run was launched"
                raise PromotionError(f"{problem}; launch another one if it is still wanted")
            fields |= {"from_champion": now.champion, "from_previous": now.previous, "from_challenger": now.challenger}
            state: State = "done" if _versions(wanted) == _versions(now) else "pending"
            event = trail.record(replace(wanted, **fields, decision=self.decision, state=state))
        return self._finish(event)

    def _resume(self, variant: Variant, action: Action, to: int | None) -> ModelEvent | None:
        """Complete what was decided before; return it if it is what is wanted now, so that it is not decided again."""
        newest = self.events.latest(variant)
        self.settle(variant)
        if self.decision is not None and (decided := self.events.decided(variant, self.decision)) is not None:
            return self._finish(decided)
        if newest is None or not _is_open(newest) or newest.action != action or action not in _RESUMED:
            return None
        return self._finish(newest) if to in (None, newest.champion) else None

    def _finish(self, event: ModelEvent) -> ModelEvent:
        """Move the aliases as decided, unless that is done; returns the event."""
        try:
            self.settle(event.variant)
        except ChurnError as error:
            kind = type(error) if isinstance(error, TransientError) else PromotionError
            done = f"{event.variant} is {event.action.replace('_', ' ')} (champion v{event.champion}), as scoring knows"
            remedy = "repeat the command, or a sensor completes it"
            raise kind(f"{done}, but its aliases are not moved: {error}; {remedy}") from error
        ended = self.events.find(event.event_id)
        if ended.state == "overtaken":
            problem = f"the aliases of {event.variant} were moved by somebody else meanwhile"
            outcome = f"version {event.champion} is not made champion"
            raise PromotionError(f"{problem}, so {outcome}; look at the status, and decide again")
        return ended

    def _settle(self, trail: Trail, variant: Variant) -> ModelEvent:
        latest, aliases = trail.latest(), self.registry.aliases_in_mlflow(variant)
        if latest is not None and _is_open(latest):
            latest, aliases = self._complete(trail, latest, aliases)
        if latest is None or _differs(latest, aliases):
            latest = trail.record(self._reconciled(variant, aliases, latest))
        return latest

    def _complete(self, trail: Trail, event: ModelEvent, aliases: Aliases) -> tuple[ModelEvent, Aliases]:
        """Move the aliases that a decision has left to move; returns its event and the aliases as they are then."""
        move, variant = event.move, event.variant
        is_done = move.fits(aliases)
        try:
            for alias, version in move.left(aliases).items() if is_done else ():
                trail.require_lock()
                self.registry.set_aliases(variant, {alias: version})
        except AbsentError:  # the version was deleted
            is_done, aliases = False, self.registry.aliases_in_mlflow(variant)
        state: State = "done" if is_done else "overtaken"
        trail.end(state)
        return replace(event, state=state), move.applied(aliases) if is_done else aliases

    def _current(self, variant: Variant) -> ModelEvent:
        return self._reconciled(variant, self.registry.aliases_of(variant), self.events.latest(variant))

    def _reconciled(self, variant: Variant, aliases: Aliases, latest: ModelEvent | None) -> ModelEvent:
        """Return the newest event if it matches the aliases, else an event that records the aliases as observed."""
        if not aliases:
            hint = nearest(variant, self.registry.variants()) or "; log or train a model first"
            raise PromotionError(f"variant {variant} is not registered or has no alias{hint}")
        if latest is not None and not _differs(latest, aliases):
            return latest
        champion, previous, challenger = map(aliases.get, (CHAMPION, PREVIOUS, CHALLENGER))
        share = latest.ab_share if latest is not None and latest.challenger == challenger else 0
        about = "the aliases in MLflow", self.actor, self.clock()
        return ModelEvent(variant, "observed", champion, previous, challenger, *about, ab_share=share)


def _is_open(event: ModelEvent | None) -> bool:
    return event is not None and event.state == "pending"


def _versions(event: ModelEvent) -> tuple[int | None, ...]:
    return event.champion, event.previous, event.challenger


def _differs(latest: ModelEvent | None, aliases: Aliases) -> bool:
    return latest is None or _versions(latest) != tuple(map(aliases.get, (CHAMPION, PREVIOUS, CHALLENGER)))


def _require_same(variant: Variant, challenger: int | None, compared: int | None) -> None:
    if challenger != compared:
        raise PromotionError(f"the challenger of {variant} is {challenger} now, not {compared}; compare that one first")


def _require(version: int | None, message: str) -> int:
    if version is None:
        raise PromotionError(message)
    return version
