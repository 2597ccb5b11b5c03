"""The report's part on robustness: both models side by side on inputs that are made harder, step by step.

Every delta is pruned - original; every interval is of the delta, at the confidence level of `accuracy`.
"""

from __future__ import annotations

from pruning_server.spec.base import Value
from pruning_server.spec.request import Verdict


class CurvePoint(Value, frozen=True, kw_only=True):
    """Both models' metric at one level; `level` in the curve's unit, 0 where nothing is changed."""

    level: float
    original: float
    pruned: float
    delta: float
    interval: tuple[float, float] | None = None


class RobustnessCurve(Value, frozen=True, kw_only=True):
    """One way to make inputs harder.

    Attributes:
        kind: `noise`, `blur`, `brightness`, `contrast`, `feature_noise` or `token_drop`.
        unit: of its levels.
        levels: gentlest first; the first is 0, the unchanged inputs.
        auc_original: mean of the metric along the curve (trapezoidal rule over the levels); `auc_pruned` likewise.
        delta: auc_pruned - auc_original, with its paired interval.
        verdict: of `delta` against the margin, as that of the report itself.
    """

    kind: str
    unit: str
    levels: tuple[CurvePoint, ...]
    auc_original: float | None = None
    auc_pruned: float | None = None
    delta: float | None = None
    interval: tuple[float, float] | None = None
    interval_method: str | None = None
    verdict: Verdict | None = None


class SampleValues(Value, frozen=True, kw_only=True):
    """What each sample says, so that jobs that differ in one thing can be compared in pairs.

    Attributes:
        rows: [n] positions in the validation set.
        units: [n] numbers of the groups that samples belong to.
        clean_original: [n] the metric on the unchanged input; `clean_pruned` likewise.
        auc_original: [n] its mean along the occlusion curve; `auc_pruned` likewise.
    """

    rows: tuple[int, ...]
    units: tuple[int, ...]
    clean_original: tuple[float, ...]
    clean_pruned: tuple[float, ...]
    auc_original: tuple[float, ...]
    auc_pruned: tuple[float, ...]


class OcclusionSection(Value, frozen=True, kw_only=True):
    """The metric over the fraction of the input that is hidden (Liu & Liu, 2019, Computer Engineering 45(10):234-238).

    Attributes:
        kind: what is hidden: `area`, `tokens`, `steps` or `features`; several joined by `+`.
        levels: hidden fraction in [0, 1].
        positions: places that are hidden one after the other, per sample and level.
        auc_original: mean of the metric along the curve (trapezoidal rule over the fraction); `auc_pruned` likewise.
        delta: auc_pruned - auc_original, with its paired interval.
        verdict: of `delta` against the margin.
        sample_values: None where the request keeps single samples out of the report.
    """

    kind: str
    unit: str
    positions: int
    levels: tuple[CurvePoint, ...]
    auc_original: float
    auc_pruned: float
    delta: float
    interval: tuple[float, float] | None = None
    interval_method: str | None = None
    verdict: Verdict | None = None
    sample_values: SampleValues | None = None


class PrunePotential(Value, frozen=True, kw_only=True):
    """The largest ratio still within the margin, on clean and on shifted data (Liebenwein et al., 2021, arXiv 2103.03014).

    A ratio is the fraction of the parameters that is gone. One job knows of its own ratio only; `prune
    verify-generalization` tries several.

    Attributes:
        ratios: that were tried.
        clean: the largest of them within the margin on unchanged inputs, by the verdict; None: none is.
        shifted: likewise by kind of curve.
    """

    ratios: tuple[float, ...]
    margin: float
    clean: float | None
    shifted: dict[str, float | None]


class PerturbedInput(Value, frozen=True, kw_only=True):
    """An input of the model and what it was taken for; `kind` None: it was left as it is, for `reason`."""

    name: str
    kind: str | None
    reason: str | None = None


class RobustnessSection(Value, frozen=True, kw_only=True):
    """What was measured on harder inputs.

    Attributes:
        samples: of the report split, that were run.
        passes: over these samples, of each model.
        seed: of everything random in the inputs.
        inputs: what each input was taken for.
        notes: what was not measured, and why.
    """

    occlusion: OcclusionSection | None = None
    curves: tuple[RobustnessCurve, ...] = ()
    prune_potential: PrunePotential | None = None
    samples: int = 0
    passes: int = 0
    seed: int = 0
    inputs: tuple[PerturbedInput, ...] = ()
    notes: tuple[str, ...] = ()
