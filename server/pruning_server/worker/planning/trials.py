"""Cross-fitted trials: what models that are pruned so far lose, on all samples of fit and select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from pruning_server.evaluation.drop import DropBound, bound_drop
from pruning_server.evaluation.folds import Fold, cross_fit
from pruning_server.evaluation.risk import spread_of
from pruning_server.pruning.evidence import SampleScores
from pruning_server.spec.request import FineTune, PruningSpec, StaticStrategy, Target
from pruning_server.worker.evidence import ModelEvidence
from pruning_server.worker.planning.candidates import (
    judge_candidate,
    judge_original,
    plan_candidate,
    prune_candidate,
    recover_candidate,
)
from pruning_server.worker.planning.context import Planning


@dataclass(frozen=True)
class Trials:
    """Makes one candidate per fold, recovered in closed form without that fold, and judges it on the fold.

    Attributes:
        contexts: by fold, the run as if there were only the other folds.
        error_probability: of one bound.
        most_rungs: how many rungs will be tried at most, for the progress.
        tried: those that were.
    """

    context: Planning
    strategy: StaticStrategy
    folds: tuple[Fold, ...]
    contexts: tuple[Planning, ...]
    error_probability: float
    most_rungs: int
    tried: list[Target] = field(default_factory=list)

    @classmethod
    def open(cls, context: Planning, strategy: StaticStrategy, error_probability: float, most_rungs: int) -> Trials:
        """Deals the folds."""
        splits = context.observed.splits
        folds = cross_fit(splits.fit, splits.select, splits.units, context.spec.seed)
        contexts = tuple(_without(context, fold) for fold in folds)
        return cls(context, strategy, folds, contexts, error_probability, most_rungs)

    @property
    def samples(self) -> int:
        """That are judged on, over all folds."""
        return len(self.context.observed.splits.fit) + len(self.context.observed.splits.select)

    @property
    def is_bounded(self) -> bool:
        """Whether a sample's loss lies in [-1, 1]."""
        return spread_of(self.context.observed.judging.metric) == 1.0

    def bound(self, target: Target, max_drop: float) -> DropBound | None:
        """What such models lose; None where the model cannot be pruned so far.

        Folds that are left are not tried once it is clear that more than `max_drop` is lost: rejecting early accepts
        nothing that would not have been accepted.
        """
        pairs: list[tuple[SampleScores, SampleScores]] = []
        found: DropBound | None = None
        for number in range(len(self.folds)):
            self._progress(number)
            pair = self._fold(number, target)
            if pair is None:
                return None
            pairs.append(pair)
            found = self._bound(pairs)
            # About as far below the estimate as the upper bound is above it.
            if not 2 * found.drop - found.upper <= max_drop:
                break
        self.tried.append(target)
        return found

    def _fold(self, number: int, target: Target) -> tuple[SampleScores, SampleScores] | None:
        context, held = self.contexts[number], self.folds[number].held
        plan = plan_candidate(context, self.strategy, target)
        if plan is None:
            return None
        pruned = prune_candidate(context, plan, "trial")
        trained = recover_candidate(context, pruned, quickly(context.spec), 0.0, 0.0)
        original = judge_original(context.observed, held, context.reference)
        return original, judge_candidate(context, pruned, trained, held)

    def _bound(self, pairs: Sequence[tuple[SampleScores, SampleScores]]) -> DropBound:
        return bound_drop(
            np.concatenate([original.metric for original, _ in pairs]),
            np.concatenate([candidate.metric for _, candidate in pairs]),
            error_probability=self.error_probability,
            is_binary=self.context.observed.judging.metric.is_binary,
            is_bounded=self.is_bounded,
            units=np.concatenate([candidate.units for _, candidate in pairs]),
            seed=self.context.spec.seed,
        )

    def _progress(self, fold: int) -> None:
        done = (len(self.tried) + fold / len(self.folds)) / self.most_rungs
        self.context.story.progress(min(done, 1.0))


def quickly(spec: PruningSpec) -> PruningSpec:
    """The request without gradient steps."""
    return spec if spec.recovery.disabled else msgspec.structs.replace(spec, fine_tune=FineTune(epochs=0))


def _without(context: Planning, fold: Fold) -> Planning:
    splits = replace(context.observed.splits, fit=fold.fit, select=fold.select)
    observed = replace(context.observed, splits=splits)
    meter, seed = context.evidence.latency_ratio, context.spec.seed
    return replace(
        context,
        observed=observed,
        evidence=ModelEvidence(context.loaded, observed, context.reference, meter, seed=seed),
    )
