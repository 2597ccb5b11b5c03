"""What a job switches off while its model is trained: single weights or channels of the trained copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from msgspec import structs

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.graph.surgery.cut import Cut, Removal
from pruning_server.graph.values import FrozenUse
from pruning_server.pruning import criteria
from pruning_server.pruning.criteria import Criterion, Needs
from pruning_server.pruning.dynamic.channels import Adjust, ChannelUnits
from pruning_server.pruning.dynamic.units import Units
from pruning_server.pruning.dynamic.weights import Choose, WeightUnits, by_count, by_pattern
from pruning_server.pruning.ladder import Ladder
from pruning_server.pruning.scoring import check_finite
from pruning_server.pruning.strategies.static_nm import check_target, find_fitting
from pruning_server.pruning.strategies.static_structure import order_structure, plan_structure
from pruning_server.pruning.values import ScoredInput, StructuralPlan
from pruning_server.pruning.weighing import report_unscored, score_weights
from pruning_server.recovery.scheduled import Tensors
from pruning_server.spec.report_strategy import CriterionChoice
from pruning_server.spec.request import DynamicStrategy, Granularity, Scope, StaticStrategy, Target, TargetKind
from pruning_server.worker.planning import static
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.planning.dynamic_school import School
from pruning_server.worker.structures import Channels, rename

# Where the request leaves it to the budget: what a net may lose at most.
DEEPEST_WEIGHT_SPARSITY = 0.99
REHEARSED_SPARSITY = 0.5
ALMOST_EVERYTHING = 1.0 - 1e-9


@dataclass(frozen=True)
class Bench:
    """The units of a job.

    Attributes:
        units: all on at first.
        target: how far it goes at most.
        cheap: whether scores come from the weights alone, so that they can be taken often.
        tensors: everything that is written while units are switched or the copy is trained.
        choice: of the criterion `auto`, which is made once, for the unpruned model.
        order: of channels that go where they harm least; None where scores alone decide.
    """

    units: Units
    target: Target
    cheap: bool
    tensors: Tensors
    choice: CriterionChoice | None = None
    order: MeasuredOrder | None = None

    def measure_again(self) -> None:
        """Finds what harms least for the model as it is now; nothing to do where that is not measured."""
        if self.order is not None and isinstance(self.units, ChannelUnits):
            self.order.measure_again(self.units.removal)

    def forget_measured(self) -> None:
        """Back to what harmed least in the model as it was at first."""
        if self.order is not None:
            self.order.forget()


class MeasuredOrder:
    """In which order channels go, measured on the model as it was the last time.

    Args:
        measure: finds the order for the model as it is now, of which these channels are off.
    """

    def __init__(self, measure: Callable[[Removal], Ladder]) -> None:
        self._measure = measure
        self._first = self.ladder = measure({})

    def measure_again(self, off: Removal) -> None:
        """For the model as it is now."""
        self.ladder = self._measure(off)

    def forget(self) -> None:
        """Back to the order of the model as it was at first."""
        self.ladder = self._first


def lay_out(context: Planning, strategy: DynamicStrategy, school: School) -> Bench:
    """Finds what can be switched off, and how far the target goes.

    Raises:
        InvalidRequestError: an unknown criterion.
        JobFailureError: NOTHING_PRUNABLE, EVERYTHING_PRUNED, TARGET_UNREACHABLE, as in static pruning.
    """
    criterion = criteria.get_for(strategy.criterion or StaticStrategy().criterion, strategy.granularity)
    choice: CriterionChoice | None = None
    if criterion.needs is Needs.TRIALS:
        choice = _choose_criterion(context, strategy)
        criterion = criteria.get_for(choice.chosen, strategy.granularity)
    cheap = criterion.needs is Needs.NONE
    if strategy.granularity in {Granularity.CHANNEL, Granularity.HEAD}:
        bench = _channels(context, strategy, school, criterion.name, cheap=cheap)
    else:
        bench = _weights(context, strategy, school, criterion, cheap=cheap)
    return replace(bench, choice=choice)


def _choose_criterion(context: Planning, strategy: DynamicStrategy) -> CriterionChoice:
    """What `auto` takes for the unpruned model."""
    once = StaticStrategy(
        granularity=strategy.granularity,
        nm_pattern=strategy.nm_pattern,
        criterion=strategy.criterion or StaticStrategy().criterion,
        scope=strategy.scope,
        channels=strategy.channels,
    )
    spec = context.spec
    if spec.target is None and strategy.nm_pattern is None:
        spec = structs.replace(spec, target=Target(kind=TargetKind.SPARSITY, value=REHEARSED_SPARSITY))
    choice = static.plan(replace(context, spec=spec), once).choice
    if choice is None:
        raise JobFailureError(Reason.INTERNAL, "No criterion was chosen; please report this.")
    return choice


def _tensors(school: School, names: Sequence[str]) -> Tensors:
    """What training changes, and of these names what the copy holds."""
    more = [name for name in dict.fromkeys(names) if name not in school.carried and school.holds(name)]
    return lambda: [*school.lesson.tensors(), *(school.tensor(name) for name in more)]


# --- Weights ----------------------------------------------------------------------------------------------------------


def _weights(
    context: Planning, strategy: DynamicStrategy, school: School, criterion: Criterion, *, cheap: bool
) -> Bench:
    weights = context.observed.selection.inputs(school.copy.module)
    if not sum(weight.tensor.numel() for weight in weights):
        raise JobFailureError(Reason.NOTHING_PRUNABLE, "the model has no weights that can be pruned")
    for weight in weights:
        check_finite(weight.name, weight.tensor)
    rule = _pattern(context, strategy, school, weights) if strategy.nm_pattern else _count(context, strategy, weights)
    seed = context.spec.seed
    scored = score_weights(rule.weights, criterion, seed, school.evidence)
    chosen = [weight for weight in rule.weights if weight.name in scored]

    def scores() -> list[torch.Tensor]:
        found = score_weights(chosen, criterion, seed, school.evidence)
        return [found[weight.name] for weight in chosen]

    frozen = (*rule.frozen, *report_unscored(rule.weights, criterion, scored))
    units = WeightUnits(chosen, scores, rule.choose([weight.name for weight in chosen]), frozen)
    return Bench(units, rule.target, cheap, _tensors(school, [weight.name for weight in chosen]))


@dataclass(frozen=True)
class _Rule:
    """Which weights take part, how those that go are chosen (by the names of those with scores), and what stays."""

    weights: Sequence[ScoredInput]
    choose: Callable[[Sequence[str]], Choose]
    target: Target
    frozen: tuple[FrozenUse, ...] = ()


def _count(context: Planning, strategy: DynamicStrategy, weights: Sequence[ScoredInput]) -> _Rule:
    target = context.spec.target or Target(kind=TargetKind.SPARSITY, value=DEEPEST_WEIGHT_SPARSITY)
    if target.kind is not TargetKind.SPARSITY:
        raise NotImplementedFeatureError(f"dynamic pruning of weights to a {target.kind.value}")
    total = sum(weight.tensor.numel() for weight in weights)
    if round(target.value * total) >= total:
        text = f"the sparsity {target.value:g} removes all {total:,} prunable weights; choose a smaller one"
        raise JobFailureError(Reason.EVERYTHING_PRUNED, text)
    return _Rule(weights, lambda _: by_count(target.value, strategy.scope), target)


def _pattern(context: Planning, strategy: DynamicStrategy, school: School, weights: Sequence[ScoredInput]) -> _Rule:
    pattern = strategy.nm_pattern
    if pattern is None or not 0 < pattern.n < pattern.m:
        raise InvalidRequestError.for_field("spec.dynamic.nm_pattern", "needs 0 < n < m, e.g. 2:4")
    check_target(pattern, context.spec.target)
    fitting = find_fitting(weights, pattern, school.evidence)
    chosen = [weight for weight in weights if weight.name in fitting.axes]
    target = Target(kind=TargetKind.SPARSITY, value=1 - pattern.n / pattern.m)
    return _Rule(
        chosen, lambda names: by_pattern([fitting.axes[name] for name in names], pattern), target, fitting.frozen
    )


# --- Channels ---------------------------------------------------------------------------------------------------------


def _channels(context: Planning, strategy: DynamicStrategy, school: School, criterion: str, *, cheap: bool) -> Bench:
    observed, spec = context.observed, context.spec
    if observed.channels is None:
        raise JobFailureError(Reason.INTERNAL, "Channels were planned that were never observed; please report this.")
    channels = observed.channels
    structure = channels.inputs(school.copy.module, observed.selection.weights)
    config = StaticStrategy(
        granularity=strategy.granularity, criterion=criterion, scope=strategy.scope, channels=strategy.channels
    )

    by_score = structs.replace(config, scope=Scope.GLOBAL if strategy.scope is Scope.SENSITIVITY else strategy.scope)
    order: MeasuredOrder | None = None

    def plan(target: Target, adjust: Adjust | None = None) -> StructuralPlan:
        return plan_structure(
            structure,
            by_score,
            target,
            spec.seed,
            exclude_layers=spec.exclude_layers,
            adjust=adjust,
            evidence=school.evidence,
            ladder=order.ladder if order is not None else None,
        )

    target = spec.target or _deepest(plan)
    if strategy.scope is Scope.SENSITIVITY:
        order = MeasuredOrder(
            lambda off: order_structure(
                structure, config, target, spec.seed, school.evidence, exclude_layers=spec.exclude_layers, off=off
            )
        )
    # Says at once what the request cannot have.
    removable = plan(target).removable
    units = ChannelUnits(
        structure=structure,
        planner=lambda way, adjust: plan(_part(target, way), adjust),
        cut_of=lambda removal: _cut(channels, removal),
        achieved=_meter(channels, target.kind, sum(removable.values())),
    )
    names = [member.tensor for group in structure.groups for member in group.members]
    return Bench(units, target, cheap, _tensors(school, names), order=order)


def _deepest(plan: Callable[[Target], StructuralPlan]) -> Target:
    """As many channels as the floors let go."""
    try:
        plan(Target(kind=TargetKind.SPARSITY, value=ALMOST_EVERYTHING))
    except JobFailureError as error:
        if error.reason is not Reason.TARGET_UNREACHABLE:
            raise
        return Target(kind=TargetKind.SPARSITY, value=float(error.metadata["nearest"]))
    return Target(kind=TargetKind.SPARSITY, value=ALMOST_EVERYTHING)


def _part(target: Target, way: float) -> Target:
    """The target of which this is the last part; ratios fall from 1."""
    if way >= 1.0:
        return target
    value = target.value * way if target.kind is TargetKind.SPARSITY else 1.0 - (1.0 - target.value) * way
    return Target(kind=target.kind, value=value)


def _cut(channels: Channels, removal: Removal) -> Cut:
    return rename(channels.structure.cut(removal), channels)


def _meter(channels: Channels, kind: TargetKind, removable: int) -> Callable[[Removal], float]:
    before = channels.structure.cost({})

    def achieved(removal: Removal) -> float:
        if kind is TargetKind.SPARSITY:
            return sum(len(gone) for gone in removal.values()) / removable if removable else 0.0
        after = channels.structure.cost(removal)
        if kind is TargetKind.MACS_RATIO:
            return (after.macs or 0) / before.macs if before.macs else 1.0
        return after.parameters / before.parameters

    return achieved
