"""A gate that was written into a model: what it does on samples that it was not chosen on, and what that saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch

from pruning_server.evaluation.gate import GatePoint, mean_seconds
from pruning_server.graph.gating.insertion import set_threshold
from pruning_server.graph.structure import Cut
from pruning_server.spec.report_strategy import GateSection
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.running import Subject
from pruning_server.worker.story import Story

TIMED_SAMPLES = 64
FINAL_SECONDS = 4.0


@dataclass(frozen=True)
class Gate:
    """A gate that was written into the model.

    Attributes:
        ungated: the same model without it, in evaluation mode, on the job's device.
        core: what the core switches off, in the gated archive's order of channels.
        point: where it closes, and what that came to on the samples that it was chosen on.
        section: for the report, as far as it is known before the report split is looked at.
    """

    ungated: torch.jit.ScriptModule
    core: Cut
    point: GatePoint
    section: GateSection

    def proven(self, core_error: float) -> Gate:
        """The same with the largest relative error that its core was proven to have."""
        return replace(self, section=msgspec.structs.replace(self.section, proof_core=core_error))


def judge_gate(observed: Observed, gate: Gate, gated: torch.jit.ScriptModule, story: Story) -> GateSection:
    """What the gate does on the report split."""
    rows = observed.splits.report
    rule, judging = observed.rule, observed.judging
    whole = judging.outputs(Subject.of(gate.ungated, rule), rows).values
    answers = judging.outputs(Subject.of(gated, rule), rows).values
    set_threshold(gated, -np.inf)
    try:
        scores = judging.outputs(Subject.of(gated, rule), rows).values
    finally:
        set_threshold(gated, gate.point.threshold)
    top = np.sort(scores, axis=1)[:, -2:]
    timed = np.random.default_rng(rule.seed).permutation(rows)[:TIMED_SAMPLES]
    ungated_seconds, gated_seconds = time_alone(observed, (gate.ungated, gated), timed, story, FINAL_SECONDS)
    return msgspec.structs.replace(
        gate.section,
        samples=len(rows),
        skipped_share=float((top[:, 1] - top[:, 0] >= gate.point.threshold).mean()),
        changed_share=float((answers.argmax(axis=1) != whole.argmax(axis=1)).mean()),
        latency_seconds={"ungated": ungated_seconds, "gated": gated_seconds},
        latency_ratio=gated_seconds / ungated_seconds,
    )


def time_alone(
    observed: Observed, models: tuple[torch.jit.ScriptModule, ...], rows: np.ndarray, story: Story, seconds: float
) -> tuple[float, ...]:
    """Mean seconds per sample at batch 1, in turns."""
    inputs = [observed.feed.inputs([int(row)]) for row in rows]

    def call(module: torch.jit.ScriptModule) -> Callable[[int], object]:
        def once(sample: int) -> object:
            with torch.no_grad():
                return module(*inputs[sample])

        return once

    device = observed.feed.device
    synchronize = (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)
    return mean_seconds(
        [call(module) for module in models],
        len(rows),
        clock=story.clock.monotonic,
        synchronize=synchronize,
        max_seconds=seconds,
    )
