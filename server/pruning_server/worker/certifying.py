"""The risk condition: PLAN, PRUNE and RECOVER of several candidates, of which the most pruned that is certified goes on.

All candidates are made before the calibrate split is looked at, and nothing about them depends on it. Source: see
`evaluation.risk`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.bounds import MeanBound, fewest_values
from pruning_server.evaluation.cost import count_parameters
from pruning_server.evaluation.risk import RiskTest, judge_losses, run_sequence, spread_of, unit_means
from pruning_server.pruning.rungs import rungs_of, window_around
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.recovery.schedule import plan_training
from pruning_server.spec.phases import Phase
from pruning_server.spec.report_strategy import RiskCandidate, RiskDetails
from pruning_server.spec.request import ConditionalStrategy, PruningSpec, RiskCondition, StaticStrategy, Target
from pruning_server.worker.phases.prune import Pruned
from pruning_server.worker.phases.recover import Trained
from pruning_server.worker.planning.candidates import (
    judge_candidate,
    judge_original,
    plan_candidate,
    prune_candidate,
    recover_candidate,
)
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.planning.reach import find_reach


@dataclass(frozen=True)
class _Planned:
    """One rung of the ladder, and what it removes."""

    target: Target
    plan: PruningPlan | StructuralPlan


@dataclass(frozen=True)
class _Made:
    """A finished candidate."""

    target: Target
    pruned: Pruned
    trained: Trained


def certify(context: Planning, risk: RiskCondition) -> tuple[Pruned, Trained]:
    """The most pruned candidate whose loss is certified, with the certificate in its plan's details.

    Raises:
        JobFailureError: TARGET_UNREACHABLE: none is certified; the message says how many samples it would take. Nothing that
            is not certified is delivered.
    """
    story = context.story
    with story.telling(Phase.PLAN):
        bound = _bound(context, risk)
        _require_enough(context, risk, bound)
        planned = _plan(context, risk.max_loss)
    with story.telling(Phase.PRUNE):
        pruned = [prune_candidate(context, one.plan, f"candidate-{number}") for number, one in enumerate(planned)]
    with story.telling(Phase.RECOVER):
        spec = _recovery(context, len(planned))
        made = []
        for number, (one, candidate) in enumerate(zip(planned, pruned, strict=True)):
            start, end = number / len(planned), (number + 1) / len(planned)
            made.append(_Made(one.target, candidate, recover_candidate(context, candidate, spec, start, end)))
        # From here on nothing about the candidates changes.
        return _choose(context, risk, bound, made, spec)


# --- Candidates -------------------------------------------------------------------------------------------------------


def _plan(context: Planning, max_loss: float) -> list[_Planned]:
    """Rungs around what select says can be reached, without those that remove no more than the one before."""
    strategy, planned = _static(context.spec.strategy), list[_Planned]()
    rungs = rungs_of(strategy.granularity, macs_known=context.observed.macs.total is not None)
    reached = find_reach(context, strategy, rungs, max_loss)
    for rung in window_around(reached, len(rungs)):
        plan = plan_candidate(context, strategy, rungs[rung])
        if plan is None:
            break
        if not planned or plan.sparsity > planned[-1].plan.sparsity:
            planned.append(_Planned(rungs[rung], plan))
    if not planned:
        text = f"The model cannot be pruned to {_named(rungs[0])}, the first candidate; prune other units of it."
        raise JobFailureError(Reason.TARGET_UNREACHABLE, text)
    return planned


def _static(strategy: object) -> StaticStrategy:
    """The strategy that makes the candidates."""
    if not isinstance(strategy, ConditionalStrategy):
        raise JobFailureError(Reason.INTERNAL, "A risk was asked for without its strategy; please report this.")
    return StaticStrategy(granularity=strategy.granularity, channels=strategy.channels)


def _recovery(context: Planning, candidates: int) -> PruningSpec:
    """Automatic epochs are shared out, so that all candidates together take about as long as one job."""
    spec, observed = context.spec, context.observed
    if spec.recovery.disabled or spec.fine_tune.epochs is not None:
        return spec
    whole = plan_training(
        spec.fine_tune,
        samples=len(observed.splits.fit),
        macs=observed.macs.total,
        device_type=torch.device(observed.feed.device).type,
        seed=spec.seed,
    )
    tune = msgspec.structs.replace(spec.fine_tune, epochs=max(1, whole.epochs // candidates))
    return msgspec.structs.replace(spec, fine_tune=tune)


# --- Certifying -------------------------------------------------------------------------------------------------------


def _bound(context: Planning, risk: RiskCondition) -> MeanBound:
    metric = context.observed.judging.metric
    spread = spread_of(metric)
    if spread is None:
        text = (
            f"The metric {metric.name} has no bounds, so that no set of samples certifies how much of it is lost: a sample "
            "that was not seen could lose any amount. A risk needs a right-or-wrong metric; ask for max_accuracy_drop."
        )
        raise JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata={"metric": metric.name})
    return MeanBound(risk.error_probability, spread=spread, seed=context.spec.seed)


def _rows(context: Planning) -> np.ndarray:
    """Calibrate without samples that belong together with some of fit or select, as a set's own split may have them."""
    splits = context.observed.splits
    used = splits.units[np.concatenate([splits.fit, splits.select])]
    return splits.calibrate[~np.isin(splits.units[splits.calibrate], used)]


def _require_enough(context: Planning, risk: RiskCondition, bound: MeanBound) -> None:
    splits, rows = context.observed.splits, _rows(context)
    if left_out := len(splits.calibrate) - len(rows):
        text = (
            f"{left_out} samples of calibrate are equal to, or in one group with, samples of fit or select: left out."
        )
        context.story.note(text)
    units = len(np.unique(splits.units[rows]))
    needed = fewest_values(risk.max_loss, risk.error_probability, spread=bound.spread)
    if units < needed:
        text = (
            f"A loss of at most {risk.max_loss:g} cannot be certified with {units} independent samples to calibrate on, "
            f"even of a model that loses nothing: {_counts(context, needed)} are needed for that, and more for one that "
            "loses something. Send more samples, give calibrate a larger share, or accept more."
        )
        raise JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata={"needed_samples": str(needed)})


def _choose(
    context: Planning, risk: RiskCondition, bound: MeanBound, made: Sequence[_Made], spec: PruningSpec
) -> tuple[Pruned, Trained]:
    tests = run_sequence(made, lambda one: _test(context, risk, bound, one), lambda test: test.certified)
    certified = [place for place, test in enumerate(tests) if test.certified]
    if not certified:
        raise _nothing(context, risk, made[0], tests[0])
    chosen = made[certified[-1]]
    details = _details(context, risk, bound, made, tests, certified[-1], spec)
    plan = chosen.pruned.plan
    noted = replace(plan, details=details, notes=(*plan.notes, _note(details)))
    for note in noted.notes:
        context.story.note(note)
    _count(context, chosen.pruned)
    return replace(chosen.pruned, plan=noted), chosen.trained


def _test(context: Planning, risk: RiskCondition, bound: MeanBound, candidate: _Made) -> RiskTest:
    rows = _rows(context)
    original = judge_original(context.observed, rows, context.reference)
    pruned = judge_candidate(context, candidate.pruned, candidate.trained, rows)
    test = judge_losses(unit_means(original.metric - pruned.metric, pruned.units), risk.max_loss, bound)
    context.story.count(samples_evaluated=len(rows))
    context.story.note(f"{_named(candidate.target)}: loss {test.loss:+.4f}, certified at most {test.bound:+.4f}.")
    return test


def _nothing(context: Planning, risk: RiskCondition, first: _Made, test: RiskTest) -> JobFailureError:
    more = (
        f"About {_counts(context, test.needed_units)} like these would be needed to certify it."
        if test.needed_units is not None
        else "More samples would not help, as it loses too much itself: accept more, or prune other units."
    )
    text = (
        f"No candidate is certified to lose at most {risk.max_loss:g} with probability {1 - risk.error_probability:g}. The "
        f"least pruned one ({_named(first.target)}) lost {test.loss:.4f} on {test.units} independent samples, and could be "
        f"certified to lose at most {test.bound:.4g}. {more}"
    )
    metadata = {"nearest": f"{test.bound:.6g}", "loss": f"{test.loss:.6g}"}
    if test.needed_units is not None:
        metadata["needed_samples"] = str(test.needed_units)
    return JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata=metadata)


def _counts(context: Planning, needed: int) -> str:
    share = len(context.observed.splits.calibrate) / len(context.observed.feed.samples)
    return f"{needed} samples to calibrate on ({math.ceil(needed / share)} in the set)"


# --- Telling ----------------------------------------------------------------------------------------------------------


def _details(
    context: Planning,
    risk: RiskCondition,
    bound: MeanBound,
    made: Sequence[_Made],
    tests: Sequence[RiskTest],
    chosen: int,
    spec: PruningSpec,
) -> RiskDetails:
    known = [*tests, *[None] * (len(made) - len(tests))]
    return RiskDetails(
        max_loss=risk.max_loss,
        error_probability=risk.error_probability,
        metric=context.observed.judging.metric.name,
        spread=bound.spread,
        method=bound.method.value,
        seed=bound.seed,
        samples=len(_rows(context)),
        units=tests[chosen].units,
        chosen=chosen,
        loss=tests[chosen].loss,
        bound=tests[chosen].bound,
        epochs=None if spec.recovery.disabled else spec.fine_tune.epochs,
        candidates=tuple(
            RiskCandidate(
                target={"kind": one.target.kind.value, "value": one.target.value},
                sparsity=one.pruned.plan.sparsity,
                loss=test.loss if test else None,
                bound=test.bound if test else None,
                p_value=test.p_value if test else None,
                certified=test is not None and test.certified,
            )
            for one, test in zip(made, known, strict=True)
        ),
    )


def _note(details: RiskDetails) -> str:
    return (
        f"Certified on {details.units} independent samples that nothing else looked at: with a probability of "
        f"{1 - details.error_probability:g} the loss of {details.metric} is at most {details.max_loss:g}. "
        f"{details.loss:.4f} was seen; the bound of this candidate, had it been the only one, is {details.bound:.4g}."
    )


def _count(context: Planning, pruned: Pruned) -> None:
    """The removal counts once, of the model that goes on."""
    plan, observed = pruned.plan, context.observed
    if isinstance(plan, PruningPlan):
        context.story.count(parameters_processed=plan.prunable_weights, parameters_removed=plan.removed_weights)
        return
    before, after = observed.parameters.parameters, count_parameters(pruned.subject).parameters
    context.story.count(parameters_processed=before, parameters_removed=before - after)


def _named(target: Target) -> str:
    return f"{target.kind.value} {target.value:g}"
