"""What the report tells of the job that this one went on from, and of how the data has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation.drift import find_drift
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.report import FeatureHistogram
from pruning_server.spec.report_strategy import ContinuedSection
from pruning_server.worker.drift import describe_features, measure_features
from pruning_server.worker.earlier import Earlier
from pruning_server.worker.judging import Reference
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.running import Subject
from pruning_server.worker.story import Story


@dataclass(frozen=True)
class Told:
    """What the report tells of the data beside the verdict: its statistics, and the earlier job where there is one."""

    statistics: dict[str, FeatureHistogram]
    continued: ContinuedSection | None


NO_STATISTICS = "The earlier report has no statistics of its data, so that the drift is not known."


def tell_of_data(
    loaded: Loaded, observed: Observed, plan: PruningPlan | StructuralPlan, reference: Reference, story: Story
) -> Told:
    """Measures the data, for later jobs and against an earlier one; `reference` are the original's outputs."""
    features = measure_features(observed, reference)
    earlier = loaded.earlier
    continued = judge_continuation(earlier, observed, plan, reference, features, story) if earlier else None
    return Told(describe_features(observed, features), continued)


def judge_continuation(
    earlier: Earlier,
    observed: Observed,
    plan: PruningPlan | StructuralPlan,
    reference: Reference,
    features: Mapping[str, np.ndarray],
    story: Story,
) -> ContinuedSection:
    """The earlier model on the report split, what came back and what went, and the drift.

    Args:
        earlier: what was gone on from.
        observed: how models are called and judged.
        plan: what this job removed of the original.
        reference: the original's outputs.
        features: numbers per sample of this job's data, from `measure_features`.
        story: what people hear.
    """
    score = observed.judging.score(Subject.of(earlier.module, observed.rule), observed.splits.report, reference)
    drift = find_drift(earlier.statistics, features) if earlier.statistics is not None else None
    if drift is not None:
        moved = [one.name for one in drift if one.drifted]
        told = ", ".join(moved[:3]) + (f" and {len(moved) - 3} more" if len(moved) > 3 else "")
        story.note(
            f"Since job {earlier.job_id} the data has drifted: {told}." if moved else "The data has not drifted."
        )
    kept_before, regrown, removed = _changes(earlier, observed, plan)
    return ContinuedSection(
        job_id=earlier.job_id,
        earlier_metric=score.metric,
        earlier_loss=score.loss,
        kept_before=kept_before,
        regrown=regrown,
        removed=removed,
        drift=drift,
        notes=() if drift is not None else (NO_STATISTICS,),
    )


def _changes(earlier: Earlier, observed: Observed, plan: PruningPlan | StructuralPlan) -> tuple[int, int, int]:
    """Units (channels, or weights) that the earlier job kept, that came back, and that went in addition."""
    if isinstance(plan, StructuralPlan):
        groups = observed.channels.groups if observed.channels is not None else ()
        was, now = _places(earlier.removal(groups)), _places(plan.removal)
        return sum(group.size for group in groups) - len(was), len(was - now), len(now - was)
    kept = regrown = removed = 0
    for name, mask in plan.masks.items():
        gone = mask.removed.cpu()
        zeros = earlier.zeros[name].cpu() if name in earlier.zeros else ~gone & gone
        kept += int((~zeros).sum())
        regrown += int((zeros & ~gone).sum())
        removed += int((gone & ~zeros).sum())
    return kept, regrown, removed


def _places(removal: Removal) -> frozenset[tuple[int, int]]:
    return frozenset((number, channel) for number, channels in removal.items() for channel in channels)
