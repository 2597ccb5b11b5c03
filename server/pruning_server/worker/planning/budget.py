"""The target max_accuracy_drop: the most that a static strategy can prune with a drop that is bounded within the budget.

Every rung that is tried is pruned and recovered in closed form (no gradient step) once per fold, and judged on the samples
of fit and select that it had no part in; what is accepted is the upper confidence bound of the paired drop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.drop import (
    DropBound,
    Step,
    bound_drop,
    fewest_samples,
    most_steps,
    needed_samples,
    search,
)
from pruning_server.pruning.rungs import rungs_of
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.report_strategy import DropDetails, DropStep
from pruning_server.spec.request import PruningSpec, StaticStrategy, Target
from pruning_server.worker.planning.candidates import plan_candidate
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.planning.trials import Trials

RECOVERY = "closed form, no gradient step"
NO_RECOVERY = "none"


def plan(context: Planning, strategy: StaticStrategy, max_drop: float) -> PruningPlan | StructuralPlan:
    """The plan of the most pruned rung that is accepted.

    Raises:
        JobFailureError: TARGET_UNREACHABLE: none is accepted; the message says which drop could be promised, and how many
            samples it would take.
    """
    rungs = rungs_of(strategy.granularity, macs_known=context.observed.macs.total is not None)
    tries = most_steps(len(rungs))
    error_probability = (1.0 - context.spec.evaluation.confidence_level) / tries
    trials = Trials.open(context, strategy, error_probability, tries)
    _require_enough(trials, max_drop)
    context.story.expect_long_planning()
    steps = search(len(rungs), lambda rung: _told(trials, rungs[rung], max_drop), max_drop)
    for step in sorted((step for step in steps if step.accepted), key=lambda step: -step.rung):
        # A criterion that looks at the data may not reach on all samples what it reached on most of them.
        found = plan_candidate(context, strategy, rungs[step.rung])
        if found is not None:
            details = _details(context.spec, max_drop, trials, rungs, steps, step)
            return replace(found, details=details, notes=(*found.notes, _note(details)))
    raise _declined(trials, rungs, max_drop, steps)


def _told(trials: Trials, target: Target, max_drop: float) -> DropBound | None:
    found = trials.bound(target, max_drop)
    told = f"drop {found.drop:+.4f}, at most {found.upper:+.4f}" if found else "cannot be reached"
    trials.context.story.note(f"{_named(target)}: {told}.")
    return found


# --- Declining --------------------------------------------------------------------------------------------------------


def _require_enough(trials: Trials, max_drop: float) -> None:
    """Refuses a search that could not succeed whatever the candidates lose.

    Raises:
        JobFailureError: TARGET_UNREACHABLE.
    """
    if max_drop <= 0:
        text = "No finite set of samples shows that nothing at all is lost: allow a max_accuracy_drop above 0."
        raise JobFailureError(Reason.TARGET_UNREACHABLE, text)
    needed = fewest_samples(max_drop, trials.error_probability) if trials.is_bounded else 2
    if len(trials.folds) < 2 or trials.samples < needed:
        nothing = np.zeros(trials.samples)
        smallest = bound_drop(nothing, nothing, error_probability=trials.error_probability, is_binary=True).upper
        text = (
            f"A drop of at most {max_drop:g} cannot be promised with {trials.samples} samples in fit and select, even of a "
            f"model that loses nothing: {_counts(trials, needed)} are needed for that, and more for one that loses "
            f"something. Send more samples, or allow a larger drop{f': at least {smallest:.3g}' if trials.is_bounded else ''}."
        )
        raise JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata={"needed_samples": str(needed)})


def _declined(trials: Trials, rungs: Sequence[Target], max_drop: float, steps: Sequence[Step]) -> JobFailureError:
    """Says which drop could be promised, and what it would take to promise the one that was asked for."""
    tried = {step.rung: step.bound for step in steps if step.bound is not None and math.isfinite(step.bound.upper)}
    if not tried:
        text = "No candidate could be judged: the least pruned one cannot be made, or its outputs are no numbers."
        return JobFailureError(Reason.TARGET_UNREACHABLE, text)
    rung, bound = min(tried.items(), key=lambda item: item[0])
    needed = needed_samples(bound, max_drop, trials.error_probability, is_bounded=trials.is_bounded)
    more = (
        f"About {_counts(trials, needed)} like these would be needed to promise {max_drop:g} of it."
        if needed is not None
        else "More samples would not help, as it loses too much itself."
    )
    text = (
        f"No pruned model's drop is within {max_drop:g} with enough certainty. The least pruned one "
        f"({_named(rungs[rung])}) loses {bound.drop:.4f} on {bound.samples} samples; the nearest drop that can be "
        f"promised is {bound.upper:.4f}. {more}"
    )
    metadata = {"nearest": f"{bound.upper:.6g}", "drop": f"{bound.drop:.6g}"}
    if needed is not None:
        metadata["needed_samples"] = str(needed)
    return JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata=metadata)


# --- Telling ----------------------------------------------------------------------------------------------------------


def _details(
    spec: PruningSpec, max_drop: float, trials: Trials, rungs: Sequence[Target], steps: Sequence[Step], chosen: Step
) -> DropDetails:
    bound = chosen.bound
    if bound is None:
        raise JobFailureError(Reason.INTERNAL, "A candidate was accepted that was never judged; please report this.")
    return DropDetails(
        max_drop=max_drop,
        confidence_level=spec.evaluation.confidence_level,
        error_probability=trials.error_probability,
        most_steps=trials.most_rungs,
        method=bound.method,
        samples=bound.samples,
        folds=len(trials.folds),
        target=_shown(rungs[chosen.rung]),
        drop=bound.drop,
        upper=bound.upper,
        recovery=NO_RECOVERY if spec.recovery.disabled else RECOVERY,
        steps=tuple(_step(step, rungs[step.rung]) for step in steps),
    )


def _counts(trials: Trials, needed: int) -> str:
    """So many samples in fit and select, and what that comes to in the whole set."""
    share = trials.samples / len(trials.context.observed.feed.samples)
    return f"{needed} samples in fit and select ({math.ceil(needed / share)} in the set)"


def _step(step: Step, target: Target) -> DropStep:
    bound = step.bound if step.bound is not None and math.isfinite(step.bound.upper) else None
    return DropStep(
        target=_shown(target),
        reachable=step.bound is not None,
        drop=bound.drop if bound else None,
        upper=bound.upper if bound else None,
        accepted=step.accepted,
    )


def _note(details: DropDetails) -> str:
    target = details.target
    return (
        f"Pruned to {target['kind']} {target['value']:g}: recovered in closed form, such models lose {details.drop:.4f} on "
        f"{details.samples} samples that they had no part in, and at most {details.upper:.4f} with "
        f"{details.confidence_level:.0%} confidence, of the {details.max_drop:g} allowed."
    )


def _named(target: Target) -> str:
    return f"{target.kind.value} {target.value:g}"


def _shown(target: Target) -> dict[str, object]:
    return {"kind": target.kind.value, "value": target.value}
