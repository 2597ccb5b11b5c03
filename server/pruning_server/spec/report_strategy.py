"""The report's part on the strategy: what each kind of job says of how it came to its plan."""

from __future__ import annotations

from typing import Any

from pruning_server.spec.base import Value


class DriftedFeature(Value, frozen=True, kw_only=True):
    """How one number per sample has moved since the earlier job; formulas in `evaluation/drift.py`.

    `psi`: population stability index; `chance_psi`: what it stays below in 999 of 1,000 cases where nothing has changed;
    `ks`: largest difference of the two distribution functions, in [0, 1]; `samples`: then and now.
    """

    name: str
    psi: float
    chance_psi: float
    ks: float
    drifted: bool
    samples: tuple[int, int]


class DynamicStep(Value, frozen=True, kw_only=True):
    """One step of a schedule: what it did, and where the model stood then.

    Attributes:
        step: gradient steps taken until then.
        action: `prune`, `exchange`, `reselect`, or `epoch` where one ended, of a schedule that time moves; `accept`,
            `rollback` or `at_once` of the controller.
        sparsity: fraction of the prunable units that is off after it; of a rollback, what was tried.
        achieved: what the target's kind comes to, in its unit.
        came_back: units that were off before.
        train_loss: mean since the step before; select_metric, select_loss: None where it was not judged.
    """

    step: int
    action: str
    sparsity: float
    achieved: float
    came_back: int = 0
    train_loss: float | None = None
    select_metric: float | None = None
    select_loss: float | None = None


class DynamicDetails(Value, frozen=True, kw_only=True, tag_field="strategy", tag="dynamic"):
    """How a model was pruned while it was trained.

    Attributes:
        schedule: its name; `source`: where it comes from.
        epochs: those that the schedule used; recovery has the rest.
        learning_rate: of the first step; None without one.
        original_metric: of the unpruned model on select; `budget`: how much of it the controller may lose.
    """

    schedule: str
    source: str
    epochs: int
    gradient_steps: int
    learning_rate: float | None
    original_metric: float | None
    budget: float | None
    steps: tuple[DynamicStep, ...]


class FeatureRange(Value, frozen=True, kw_only=True):
    """A feature's known values over everything that could be removed; `unknown`: how many have none.

    Of a feature that is a text: `texts`, the different ones, at most 20.
    """

    name: str
    min: float | None
    median: float | None
    max: float | None
    unknown: int
    texts: tuple[str, ...] = ()


class ComparisonCount(Value, frozen=True, kw_only=True):
    """One comparison of a condition, and for how many candidates it holds before anything is removed."""

    text: str
    holds: int
    fails: int
    unknown: int


class MergedPair(Value, frozen=True, kw_only=True):
    """A removed channel that a kept one stands in for in one consumer: removed = slope * kept + intercept.

    `layer`: the consumer's kernel; channels are numbered within their `group`. `correlation`: by which they were paired.
    """

    layer: str
    group: int
    removed: int
    kept: int
    slope: float
    intercept: float
    correlation: float


class JointTest(Value, frozen=True, kw_only=True):
    """`p_value` of the hypothesis that removing the first `channels` together costs at least the margin."""

    channels: int
    p_value: float


class HarmSection(Value, frozen=True, kw_only=True):
    """The tests behind `p_harm`.

    Attributes:
        tests: channels that were tested, each alone; `samples`: of the select split.
        correction: for that many tests.
        smallest_p: what no test of this many samples can fall below after correction.
        needed_samples: of the select split, from which on anything could be rejected; then no test was run. None where
            those that there are suffice.
        joint: tests of the channels together, in the order in which they were made; the first that fails ends them.
        p_values: of the channels that went: group, channel, corrected p-value; at most 1,000.
    """

    tests: int
    samples: int
    margin: float
    correction: str
    smallest_p: float
    needed_samples: int | None
    joint: tuple[JointTest, ...]
    p_values: tuple[tuple[int, int, float], ...]


class ConditionalDetails(Value, frozen=True, kw_only=True, tag_field="strategy", tag="conditional"):
    """What a condition decided.

    Attributes:
        condition: as the request has it.
        candidates: weights, channels or heads that it was asked about; `qualified`: for which it held, one after the
            other where features compare with what stays.
        kept_by_floors: those that qualified and stay because a layer would be too small, or for a multiple.
        order: the feature that decided who went first.
        merged: what kept channels took over, at most 1,000 entries; `merged_channels`: of how many channels.
    """

    condition: str
    candidates: int
    qualified: int
    removed: int
    kept_by_floors: int
    order: str
    features: tuple[FeatureRange, ...]
    comparisons: tuple[ComparisonCount, ...]
    merged_channels: int = 0
    merged: tuple[MergedPair, ...] = ()
    harm: HarmSection | None = None


class DropStep(Value, frozen=True, kw_only=True):
    """One candidate of a search: how far it was pruned, what it lost, and whether that was accepted.

    `drop`, `upper`: None where its outputs are no numbers, or where the model cannot be pruned so far (`reachable`).
    """

    target: dict[str, Any]
    reachable: bool
    drop: float | None
    upper: float | None
    accepted: bool


class DropDetails(Value, frozen=True, kw_only=True, tag_field="strategy", tag="max_accuracy_drop"):
    """How the smallest model within a budget was found, on `samples` of fit and select, cross-fitted in `folds`.

    Attributes:
        max_drop: the budget, in the metric's units.
        confidence_level: of the whole search; `error_probability`: of each of its bounds, as there are up to `most_steps`.
        method: of the bounds.
        target: how far the chosen candidate is pruned; `drop`: its mean loss; `upper`: the bound of it.
        recovery: what the candidates were recovered with; the delivered model is recovered as the request says.
    """

    max_drop: float
    confidence_level: float
    error_probability: float
    most_steps: int
    method: str
    samples: int
    folds: int
    target: dict[str, Any]
    drop: float
    upper: float
    recovery: str
    steps: tuple[DropStep, ...]


class RiskCandidate(Value, frozen=True, kw_only=True):
    """One candidate; `loss`, `bound` and `p_value` None where the sequence ended before it.

    Attributes:
        target: how far it is pruned; `sparsity`: what that comes to, a fraction of weights or channels.
        loss: mean over units of original - pruned on calibrate.
        bound: at least the true loss, for this candidate alone, with probability 1 - error_probability.
        p_value: of the supposition that the true loss is at least max_loss.
    """

    target: dict[str, Any]
    sparsity: float
    loss: float | None
    bound: float | None
    p_value: float | None
    certified: bool


class RiskDetails(Value, frozen=True, kw_only=True, tag_field="strategy", tag="risk"):
    """The certificate: P(loss of the delivered model <= max_loss) >= 1 - error_probability, and what it rests on.

    Attributes:
        metric: what is lost; `spread`: the largest possible loss of one sample.
        method: of the bound; `seed`: of the order in which it takes the units.
        samples: of calibrate, without those that belong together with some of fit or select; `units`: independent
            observations among them.
        candidates: all of them, in their fixed order; `chosen`: place of the delivered one.
        loss: of the delivered one on calibrate; `bound`: the certified one.
        epochs: of gradient steps that every candidate had at most; None where recovery was switched off.
    """

    max_loss: float
    error_probability: float
    metric: str
    spread: float
    method: str
    seed: int
    samples: int
    units: int
    chosen: int
    loss: float
    bound: float
    epochs: int | None
    candidates: tuple[RiskCandidate, ...]


StrategyDetails = DynamicDetails | ConditionalDetails | DropDetails | RiskDetails
"""What one strategy has to tell beside what all have: a union, told apart by its tag."""


class ContinuedSection(Value, frozen=True, kw_only=True):
    """What a job went on from, and how far its data is from that job's.

    `earlier_metric`, `earlier_loss`: of the earlier job's pruned model as it was, on this job's report split.
    `regrown`: channels (or weights) that were gone and have come back; `removed`: those that went in addition.
    `drift`: every feature that both jobs know, those that moved most first; None where the earlier report has none.
    """

    job_id: str
    earlier_metric: float
    earlier_loss: float
    kept_before: int
    regrown: int
    removed: int
    drift: tuple[DriftedFeature, ...] | None
    notes: tuple[str, ...] = ()


class GateSection(Value, frozen=True, kw_only=True):
    """The gate in the returned model, or why there is none (`reason`, and then nothing else).

    The core is the first part of every layer. It does alone for samples whose two largest scores differ by `threshold`
    or more; for the others everything is computed. Found on `chosen_on` samples of fit and select, so that at most
    `budget` of them are skipped and answered differently than without the gate; `changed_bound` is the 90 % upper bound
    of that share. On the report split: `skipped_share`, `changed_share`, and the mean `latency_ratio` at batch 1, gated /
    ungated, both of the pruned model. `core_macs`, `whole_macs`: of one sample; one that is not skipped costs both.
    `proof_core`: largest relative error of the core alone against the whole with the other channels switched off; what
    `verify` says is of the gated model with its gate open.
    """

    applied: bool
    reason: str | None = None
    threshold: float | None = None
    core_share: float | None = None
    core_macs: int | None = None
    whole_macs: int | None = None
    budget: float | None = None
    chosen_on: int | None = None
    changed_bound: float | None = None
    samples: int | None = None
    skipped_share: float | None = None
    changed_share: float | None = None
    latency_seconds: dict[str, float] | None = None
    latency_ratio: float | None = None
    proof_core: float | None = None


class CriterionTrial(Value, frozen=True, kw_only=True):
    """What a criterion's plan got on select before any recovery; None where its outputs are no numbers."""

    criterion: str
    metric: float | None
    loss: float | None


class CriterionChoice(Value, frozen=True, kw_only=True):
    """Which criterion was kept, of those that were tried on `samples` select samples, and which gave no plan."""

    chosen: str
    samples: int
    trials: tuple[CriterionTrial, ...]
    without_plan: tuple[str, ...]


class StrategySection(Value, frozen=True, kw_only=True):
    """What was asked and what was done.

    `achieved_sparsity`: fraction removed of the prunable weights, or of the removable channels where whole channels or
    heads go; then `prunable_weights` are all parameters, and `pruned_weights` those that are gone. `nm_pattern`: "2:4" where
    of every 4 neighbours 2 stay. `criterion_choice`: of the criterion `auto`.
    """

    name: str
    granularity: str
    criterion: str | None
    scope: str
    target: dict[str, Any]
    achieved_sparsity: float
    prunable_weights: int
    pruned_weights: int
    removable_channels: int | None
    removed_channels: int | None
    recovery: dict[str, Any]
    notes: tuple[str, ...]
    details: StrategyDetails | None = None
    gate: GateSection | None = None
    continued: ContinuedSection | None = None
    nm_pattern: str | None = None
    criterion_choice: CriterionChoice | None = None
