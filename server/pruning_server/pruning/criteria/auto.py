"""No criterion is best everywhere: each is tried at the request's own target, and the best on *select* is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pruning_server.errors import JobFailureError, Reason
from pruning_server.pruning.criteria.base import Criterion, Needs
from pruning_server.pruning.evidence import SampleScores
from pruning_server.spec.report_strategy import CriterionChoice, CriterionTrial

Plan = TypeVar("Plan")

# The criterion may have nothing to say of this model, or leave too much frozen for the target.
_HOPELESS = frozenset(
    {Reason.NOTHING_PRUNABLE, Reason.TARGET_UNREACHABLE, Reason.EVERYTHING_PRUNED, Reason.MODEL_NOT_FINITE}
)

CRITERION = Criterion(
    name="auto",
    summary="tries the others at the request's target, normalizations measured anew, and keeps the best on select",
    source=(
        "Li, Wu, Su, Wang 2020, arXiv:2007.02491 (EagleEye: candidates by their accuracy with normalizations measured anew)"
    ),
    formula="the score of the criterion whose plan has the best metric on select; of equal ones the lower loss",
    needs=Needs.TRIALS,
)


@dataclass(frozen=True)
class Choice(Generic[Plan]):
    """The plan that was kept, and what every criterion got."""

    plan: Plan
    report: CriterionChoice

    @property
    def note(self) -> str:
        """The choice in one line."""
        got = "; ".join(f"{one.criterion} {_text(one.metric)} (loss {_text(one.loss)})" for one in self.report.trials)
        without = ", ".join(self.report.without_plan)
        return (
            f"criterion auto chose {self.report.chosen}, on {self.report.samples} select samples before recovery:"
            f" {got}{f'; without a plan: {without}' if without else ''}"
        )


def choose(names: Sequence[str], make: Callable[[str], Plan], judge: Callable[[Plan], SampleScores]) -> Choice[Plan]:
    """Plans with each criterion and keeps the best by its mean metric, of equal ones by its mean loss, else the first.

    Args:
        names: of the criteria, in the order that breaks ties.
        make: plans with one of them.
        judge: tries a plan.

    Raises:
        JobFailureError: no criterion gives a plan: as the first of them fails; or no plan gives numbers (MODEL_NOT_FINITE).
    """
    plans: dict[str, Plan] = {}
    failures: dict[str, JobFailureError] = {}
    for name in names:
        try:
            plans[name] = make(name)
        except JobFailureError as error:
            if error.reason not in _HOPELESS:
                raise
            failures[name] = error
    if not plans:
        raise next(iter(failures.values()))
    scores = {name: judge(plan) for name, plan in plans.items()}
    usable = {name: one for name, one in scores.items() if math.isfinite(one.mean_metric)}
    if not usable:
        raise JobFailureError(
            Reason.MODEL_NOT_FINITE,
            "The outputs of the model are NaN with every criterion; prune less, or name a criterion.",
        )
    winner = max(usable, key=lambda name: (usable[name].mean_metric, -_or_infinite(usable[name].mean_loss)))
    trials = tuple(
        CriterionTrial(criterion=name, metric=_or_none(one.mean_metric), loss=_or_none(one.mean_loss))
        for name, one in scores.items()
    )
    report = CriterionChoice(chosen=winner, samples=len(scores[winner]), trials=trials, without_plan=tuple(failures))
    return Choice(plans[winner], report)


def _or_infinite(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"
