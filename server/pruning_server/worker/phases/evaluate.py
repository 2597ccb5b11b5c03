"""EVALUATE: both models on the report split, which nothing was fitted or selected on, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import msgspec
import numpy as np
import torch

from pruning_server.errors import JobFailureError
from pruning_server.evaluation.cost import count_parameters
from pruning_server.evaluation.judgement import PairedValues, independent_units, judge_accuracy, judge_generalization
from pruning_server.jobs.workspace import WorkerJob
from pruning_server.spec.report import CostSection, CostsSection, LatencySection
from pruning_server.spec.report_accuracy import AccuracySection, EpochPoint, GeneralizationSection
from pruning_server.spec.report_robustness import RobustnessSection
from pruning_server.spec.report_strategy import GateSection
from pruning_server.worker.answers import detail_accuracy
from pruning_server.worker.gate import Gate, judge_gate
from pruning_server.worker.judging import Judging, Outputs
from pruning_server.worker.latency import compare_latency
from pruning_server.worker.others import PairedOutputs, judge_others
from pruning_server.worker.phases.baseline import Baseline
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed, macs_of_forward
from pruning_server.worker.phases.recover import Trained
from pruning_server.worker.phases.verify import Final
from pruning_server.worker.robustness import judge_robustness
from pruning_server.worker.running import Subject, rows_of
from pruning_server.worker.story import Story
from pruning_server.worker.thumbnails import show_samples

LATENCY_SECONDS = 6.0
# Where channels went, speed is what was asked for; large models get several runs.
STRUCTURAL_LATENCY_SECONDS = 24.0


@dataclass(frozen=True)
class Evaluated:
    """The numbers of the report that come from running the models."""

    accuracy: AccuracySection
    generalization: GeneralizationSection
    cost: CostsSection
    gate: GateSection | None = None
    robustness: RobustnessSection | None = None


def evaluate(
    job: WorkerJob,
    loaded: Loaded,
    observed: Observed,
    baseline: Baseline,
    trained: Trained,
    final: Final,
    story: Story,
) -> Evaluated:
    """Judges the final model, loaded from the file that will be delivered, and measures both."""
    spec, splits = job.spec.evaluation, observed.splits
    subject = Subject.of(final.module, observed.rule)
    # In the same batches as the pruned model: sums in another order would make equal models differ in the last digit.
    original = observed.judging.outputs(Subject.of(loaded.original, observed.rule), splits.report)
    report, identical, pruned = _compare(subject, observed.judging, splits.report, original.values, story)
    known = baseline.validation.reference.values
    fitted = trained.recovered is not None and trained.recovered.fitted
    fit = _compare(subject, observed.judging, splits.fit, known[splits.fit], story)[0] if fitted else None
    fit = None if fit is None else replace(fit, units=splits.units[splits.fit])
    train = None
    if observed.train_judging is not None and baseline.train is not None:
        rows = rows_of(len(observed.train_judging.feed.samples))
        train = _compare(subject, observed.train_judging, rows, baseline.train.reference.values, story)[0]
    units = splits.units[splits.report]
    accuracy = judge_accuracy(
        report,
        metric=observed.judging.metric.name,
        is_binary=observed.judging.metric.is_binary,
        confidence_level=spec.confidence_level,
        seed=job.spec.seed,
        units=units,
    )
    generalization = judge_generalization(
        report,
        accuracy,
        margin=spec.margin,
        identical_outputs=identical,
        fit=fit,
        train=train,
        units=units,
        curves=_curves(trained),
        seed=job.spec.seed,
    )
    outputs = PairedOutputs(splits.report, original.values, pruned, independent_units(units))
    others = judge_others(observed.judging, outputs, confidence_level=spec.confidence_level, seed=job.spec.seed)
    accuracy = msgspec.structs.replace(accuracy, others=others)
    accuracy = detail_accuracy(accuracy, observed.judging, outputs, report, seed=job.spec.seed)
    cost = _cost(job, loaded, observed, final, story)
    gate = judge_gate(observed, final.gate, final.module, story) if isinstance(final.gate, Gate) else final.gate
    robustness = judge_robustness(job.spec, loaded, observed, final, generalization, story)
    shown = show_samples(accuracy, observed.judging.feed, include_samples=spec.include_samples)
    return Evaluated(shown, generalization, cost, gate, robustness)


def _compare(
    subject: Subject, judging: Judging, rows: np.ndarray, reference: np.ndarray, story: Story
) -> tuple[PairedValues, bool, np.ndarray]:
    """Both models' values on the rows, whether every output is that of the original, `reference`, and the outputs."""
    try:
        outputs = judging.outputs(subject, rows, lambda _, samples: story.count(samples_evaluated=samples))
    except JobFailureError as error:
        text = f"The pruned model cannot be judged, so that less should be pruned: {error.message}"
        raise JobFailureError(error.reason, text, metadata=error.metadata) from error
    story.progress(0.3)
    # A metric such as R2 depends on the whole set, so the original's values are computed on the same rows.
    theirs, ours = judging.values(outputs, reference), judging.values(Outputs(rows, reference), reference)
    values = PairedValues(original=ours.metric, pruned=theirs.metric, original_loss=ours.loss, pruned_loss=theirs.loss)
    return values, np.array_equal(outputs.values, reference), outputs.values


def _curves(trained: Trained) -> tuple[EpochPoint, ...]:
    """Losses by epoch of fine-tuning; what is not finite is left out."""
    history = trained.recovered.history if trained.recovered is not None else ()
    return tuple(
        EpochPoint(
            epoch=epoch.epoch,
            fit_loss=epoch.train_loss,
            select_loss=epoch.select_loss if isfinite(epoch.select_loss) else None,
            select_metric=epoch.select_metric if isfinite(epoch.select_metric) else None,
        )
        for epoch in history
        if isfinite(epoch.train_loss)
    )


def _cost(job: WorkerJob, loaded: Loaded, observed: Observed, final: Final, story: Story) -> CostsSection:
    story.progress(0.7)
    original_latency, pruned_latency = _latency(job, loaded, observed, final, story)
    left = count_parameters(final.weights)
    return CostsSection(
        original=CostSection(
            parameters=observed.parameters.parameters,
            nonzero_parameters=observed.parameters.nonzero,
            macs=observed.macs.total,
            bytes=job.model.size_bytes,
            latency_seconds=original_latency,
        ),
        pruned=CostSection(
            parameters=left.parameters,
            nonzero_parameters=left.nonzero,
            # Zeros are multiplied like any other number; only structural pruning saves operations.
            macs=macs_of_forward(_whole(final), observed.feed, observed.rule).total
            if final.compacted.cut
            else observed.macs.total,
            bytes=len(final.content),
            latency_seconds=pruned_latency,
        ),
    )


def _whole(final: Final) -> torch.jit.ScriptModule:
    """What is computed for a sample that a gate does not skip, without the core's first try."""
    return final.gate.ungated if isinstance(final.gate, Gate) else final.module


def _latency(
    job: WorkerJob, loaded: Loaded, observed: Observed, final: Final, story: Story
) -> tuple[LatencySection, LatencySection]:
    seconds = STRUCTURAL_LATENCY_SECONDS if final.compacted.is_smaller else LATENCY_SECONDS
    return compare_latency(job, observed, loaded.original, final.module, story, seconds)
