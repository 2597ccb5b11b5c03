"""Both models on harder inputs of the report split: occlusion first, then whatever else suits the inputs.

Sources: Liu and Liu, 2019, Computer Engineering 45(10):234-238 (occlusion, original against pruned); Hendrycks and
Dietterich, 2019, arXiv 1903.12261 (noise, blur, brightness, contrast); Liebenwein et al., 2021, arXiv 2103.03014 (prune
potential).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.cost import count_parameters
from pruning_server.evaluation.robustness import OCCLUSION
from pruning_server.evaluation.robustness.budget import MAX_SAMPLES, Budget, plan_budget
from pruning_server.evaluation.robustness.curves import Area, LevelValues, Rules, area, points
from pruning_server.spec.report_accuracy import GeneralizationSection
from pruning_server.spec.report_robustness import (
    OcclusionSection,
    PrunePotential,
    RobustnessCurve,
    RobustnessSection,
    SampleValues,
)
from pruning_server.spec.request import PruningSpec, Robustness, Verdict
from pruning_server.worker.harder import Curve, HarderInputs
from pruning_server.worker.judging import Judging, Outputs
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.verify import Final
from pruning_server.worker.running import Subject
from pruning_server.worker.story import Story

# What the budget cannot foresee, such as a model that is slow for what it computes, ends here; occlusion comes first.
MAX_SECONDS = 600.0
# Values that may lie anywhere; of all other metrics they are in [0, 1].
UNBOUNDED = "r2"
# How much of EVALUATE was told as done before.
FIRST_FRACTION = 0.75
_UNSUITABLE = frozenset({Reason.MODEL_RUN_FAILED, Reason.MODEL_NOT_FINITE, Reason.MODEL_OUTPUT_UNSUPPORTED})

Done = Callable[[int], None]


@dataclass(frozen=True)
class Comparison:
    """Both models, and the samples that they are run on.

    Attributes:
        judging: of the unchanged set.
        subjects: the original and the pruned model.
        harder: makes the inputs harder.
        rows: [n] of the report split.
        rules: how curves are judged.
    """

    judging: Judging
    subjects: tuple[Subject, Subject]
    harder: HarderInputs
    rows: np.ndarray
    rules: Rules

    @cached_property
    def clean(self) -> LevelValues:
        """Both models on the unchanged inputs."""
        return self._values(None, 0.0, 0.0, 1, lambda _: None)

    def levels(self, curve: Curve, draws: int, done: Done) -> tuple[LevelValues, ...]:
        """Both models along the curve, the unchanged inputs first; values are means over the draws."""
        harder = zip(curve.levels, curve.realized, strict=True)
        return (self.clean, *(self._values(curve, level, realized, draws, done) for level, realized in harder))

    def _values(self, curve: Curve | None, level: float, realized: float, draws: int, done: Done) -> LevelValues:
        original, pruned, identical = np.zeros(len(self.rows)), np.zeros(len(self.rows)), True
        for draw in range(draws):
            theirs, ours = self._outputs(curve, level, draw)
            # Where there are no targets, the original is the truth on these very inputs.
            original = original + self.judging.metric_of(Outputs(self.rows, theirs), theirs) / draws
            pruned = pruned + self.judging.metric_of(Outputs(self.rows, ours), theirs) / draws
            identical = identical and np.array_equal(theirs, ours)
            done(2 * len(self.rows))
        return LevelValues(realized, original, pruned, identical)

    def _outputs(self, curve: Curve | None, level: float, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """Both models' outputs [n, ...] for the same inputs."""
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for rows, feed in self.harder.blocks(curve, level, draw, self.rows, self.judging.batch_size):
            judging = replace(self.judging, feed=feed, scratch=_in_memory)
            for subject, found in zip(self.subjects, parts, strict=True):
                found.append(judging.outputs(subject, np.arange(len(rows))).values)
        return np.concatenate(parts[0]), np.concatenate(parts[1])


def judge_robustness(
    spec: PruningSpec,
    loaded: Loaded,
    observed: Observed,
    final: Final,
    clean: GeneralizationSection,
    story: Story,
) -> RobustnessSection | None:
    """Runs both models on harder inputs of the report split; None where the request switched that off.

    What a model does not take (it raises, or returns NaN) is left out with a note, and never ends the job.

    `clean` is the verdict on the unchanged inputs.
    """
    asked = spec.evaluation.robustness
    if asked is Robustness.NONE:
        return None
    sampled = _order(observed, spec.seed)
    harder = HarderInputs.of(observed.feed, np.sort(sampled[:MAX_SAMPLES]), spec.seed)
    curves = harder.curves(occlusion_only=asked is Robustness.OCCLUSION)
    if not curves:
        note = "No input was recognised as an image, a table or a sequence, so that none was made harder."
        return RobustnessSection(seed=spec.seed, inputs=harder.described(), notes=(note,))
    budget = _budget(curves, loaded, observed)
    rows = np.sort(sampled[: budget.samples])
    harder = HarderInputs.of(observed.feed, rows, spec.seed)
    curves = harder.curves(occlusion_only=asked is Robustness.OCCLUSION)
    comparison = Comparison(
        judging=observed.judging,
        subjects=(Subject.of(loaded.original, observed.rule), Subject.of(final.module, observed.rule)),
        harder=harder,
        rows=rows,
        rules=_rules(spec, observed, rows),
    )
    measured = _measure(comparison, curves, budget, story)
    return _section(spec, observed, final, clean, comparison, measured)


@dataclass(frozen=True)
class Measured:
    """What came of the curves.

    Attributes:
        values: by curve.
        areas: by the curve's name.
        positions: of what is occluded.
        passes: over the samples, of each model.
        notes: on what was left out.
    """

    values: Sequence[tuple[Curve, tuple[LevelValues, ...]]]
    areas: dict[str, Area]
    positions: int
    passes: int
    notes: tuple[str, ...]


def _measure(comparison: Comparison, curves: Sequence[Curve], budget: Budget, story: Story) -> Measured:
    draws = {curve.name: budget.positions if curve.name == OCCLUSION else 1 for curve in curves}
    total = 1 + sum(len(curve.levels) * draws[curve.name] for curve in curves)
    begun, passes = story.elapsed_seconds(), 1
    values, areas, notes = [], dict[str, Area](), list[str]()

    def done(samples: int) -> None:
        nonlocal passes
        passes += 1
        story.progress(FIRST_FRACTION + (1 - FIRST_FRACTION) * min(1.0, passes / total))
        story.count(samples_evaluated=samples)

    for curve in curves:
        if story.elapsed_seconds() - begun > MAX_SECONDS:
            notes.append(f"{curve.name} was left out: harder inputs had taken {MAX_SECONDS:.0f} seconds.")
            continue
        try:
            levels = comparison.levels(curve, draws[curve.name], done)
        except JobFailureError as error:
            if error.reason not in _UNSUITABLE:
                raise
            notes.append(f"{curve.name} was left out, since the models do not take such inputs: {error.message}")
            continue
        values.append((curve, levels))
        areas[curve.name] = area(levels, comparison.rules)
    return Measured(values, areas, budget.positions, passes, tuple(notes))


def _section(
    spec: PruningSpec,
    observed: Observed,
    final: Final,
    clean: GeneralizationSection,
    comparison: Comparison,
    measured: Measured,
) -> RobustnessSection:
    curves = [
        RobustnessCurve(
            kind=curve.name,
            unit=curve.unit,
            levels=points(levels, comparison.rules),
            **_told(measured.areas[curve.name]),
        )
        for curve, levels in measured.values
        if curve.name != OCCLUSION
    ]
    occluded = next((found for found in measured.values if found[0].name == OCCLUSION), None)
    return RobustnessSection(
        occlusion=None
        if occluded is None
        else _occlusion(*occluded, comparison, measured, shows_samples=spec.evaluation.include_samples),
        curves=tuple(curves),
        prune_potential=_potential(spec, observed, final, clean, measured.areas),
        samples=len(comparison.rows),
        passes=measured.passes,
        seed=spec.seed,
        inputs=comparison.harder.described(),
        notes=measured.notes,
    )


def _occlusion(
    curve: Curve, levels: tuple[LevelValues, ...], comparison: Comparison, measured: Measured, *, shows_samples: bool
) -> OcclusionSection:
    return OcclusionSection(
        kind=curve.target,
        unit=curve.unit,
        positions=measured.positions,
        levels=points(levels, comparison.rules),
        sample_values=_sample_values(comparison, levels[0], measured.areas[OCCLUSION]) if shows_samples else None,
        **_told(measured.areas[OCCLUSION]),
    )


def _sample_values(comparison: Comparison, clean: LevelValues, found: Area) -> SampleValues:
    units = comparison.rules.units
    return SampleValues(
        rows=_whole(comparison.rows),
        units=_whole(np.arange(len(comparison.rows)) if units is None else units),
        clean_original=_short(clean.original),
        clean_pruned=_short(clean.pruned),
        auc_original=_short(found.original),
        auc_pruned=_short(found.pruned),
    )


def _told(found: Area) -> dict[str, Any]:
    return {
        "auc_original": float(found.original.mean()),
        "auc_pruned": float(found.pruned.mean()),
        "delta": found.delta,
        "interval": (found.interval.low, found.interval.high),
        "interval_method": found.interval.method,
        "verdict": found.verdict,
    }


def _potential(
    spec: PruningSpec, observed: Observed, final: Final, clean: GeneralizationSection, areas: dict[str, Area]
) -> PrunePotential:
    """What one job knows: whether its own ratio is within the margin."""
    before = max(1, observed.parameters.nonzero)
    ratio = min(1.0, max(0.0, 1.0 - count_parameters(final.weights).nonzero / before))

    def reached(verdict: Verdict) -> float | None:
        return ratio if verdict is Verdict.PASS else None

    return PrunePotential(
        ratios=(ratio,),
        margin=spec.evaluation.margin,
        clean=reached(clean.verdict),
        shifted={name: reached(found.verdict) for name, found in areas.items()},
    )


def _order(observed: Observed, seed: int) -> np.ndarray:
    """Rows of the report split in the order in which they are taken; more budget adds samples and drops none."""
    return np.random.default_rng([seed, 5]).permutation(observed.splits.report)


def _budget(curves: Sequence[Curve], loaded: Loaded, observed: Observed) -> Budget:
    feed, rule = observed.feed, observed.rule
    _, output = next(Subject.of(loaded.original, rule).outputs(feed, observed.splits.report[:1], 1))
    return plan_budget(
        {curve.name: len(curve.levels) for curve in curves},
        report_samples=len(observed.splits.report),
        validation_samples=len(feed.samples),
        macs=observed.macs.total,
        device_type=torch.device(feed.device).type,
        exact_batch=rule.exact_batch,
        output_bytes=4 * output.numel(),
    )


def _rules(spec: PruningSpec, observed: Observed, rows: np.ndarray) -> Rules:
    metric, judged = observed.judging.metric, spec.evaluation
    return Rules(
        is_binary=metric.is_binary,
        is_bounded=UNBOUNDED not in metric.name,
        units=observed.splits.units[rows],
        confidence_level=judged.confidence_level,
        margin=judged.margin,
        seed=spec.seed,
    )


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _whole(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _short(values: Iterable[float]) -> tuple[float, ...]:
    """Six digits are more than the samples can tell."""
    return tuple(round(float(value), 6) for value in values)
