"""What must hold in a request's strategy and its target."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pruning_server.spec import ranges
from pruning_server.spec.condition import CONDITION_FIELD, ConditionError, check_granularity, parse_condition
from pruning_server.spec.implemented import DYNAMIC_TARGETS, SINGLE_WEIGHTS, SPEED_TARGETS, targets_of
from pruning_server.spec.problems import Problem, check_one, invalid, missing
from pruning_server.spec.request import (
    JUDGED_SCHEDULE,
    ConditionalStrategy,
    DynamicStrategy,
    Granularity,
    NmPattern,
    PruningSpec,
    Scope,
    StaticStrategy,
    Target,
    TargetKind,
    Task,
)

PATTERN_TOLERANCE = 1e-6

_TARGET_RANGES: dict[TargetKind, Callable[[float], str | None]] = {
    TargetKind.THRESHOLD: ranges.above_zero,
    TargetKind.SPARSITY: ranges.from_zero_below_one,
    TargetKind.MACS_RATIO: ranges.above_zero_to_one,
    TargetKind.LATENCY_RATIO: ranges.above_zero_to_one,
    TargetKind.PARAMETER_RATIO: ranges.above_zero_to_one,
    TargetKind.MAX_ACCURACY_DROP: ranges.from_zero_below_one,
}


def find_target_problems(spec: PruningSpec) -> Iterator[Problem]:
    """Yields what is wrong with how far to prune."""
    target: Target | None = spec.target
    static = spec.strategy if isinstance(spec.strategy, StaticStrategy) else None
    patterned = static is not None and static.granularity is Granularity.NM
    if target is not None:
        field = f"spec.{target.kind.value}"
        problems = tuple(check_one(field, target.value, _TARGET_RANGES[target.kind]))
        yield from problems
        if not problems and target.kind in SPEED_TARGETS and spec.strategy.granularity in SINGLE_WEIGHTS:
            yield invalid(
                field,
                f"has no meaning for granularity {spec.strategy.granularity.value}: zeros are multiplied like any other"
                " number, so they save neither operations nor time; ask for granularity channel or head, or for a sparsity",
            )
        if static is not None and patterned and static.nm_pattern is not None:
            yield from _beside_pattern(target, static.nm_pattern)
        if target.kind is TargetKind.THRESHOLD and isinstance(spec.strategy, ConditionalStrategy):
            yield invalid("spec.threshold", f"has no meaning beside a condition; write abs_weight < {target.value:g}")
    elif static is not None and not patterned:
        yield missing("spec.target", f"is needed for static pruning: exactly one of {', '.join(TargetKind)}")


def _beside_pattern(target: Target, pattern: NmPattern) -> Iterator[Problem]:
    """A pattern is the target itself; only the sparsity that it comes to may stand beside it."""
    if not 0 < pattern.n < pattern.m:
        return  # which is a problem of its own
    implied = 1 - pattern.n / pattern.m
    if target.kind is not TargetKind.SPARSITY or abs(target.value - implied) > PATTERN_TOLERANCE:
        yield invalid(
            f"spec.{target.kind.value}",
            f"the pattern {pattern.n}:{pattern.m} is the target itself, a sparsity of {implied:g}: leave the target out",
        )


def find_strategy_problems(spec: PruningSpec) -> Iterator[Problem]:
    """Yields what is wrong with how to prune."""
    match spec.strategy:
        case StaticStrategy() as static:
            yield from _pattern("spec.static", static)
            name = "static"
        case DynamicStrategy() as dynamic:
            yield from _pattern("spec.dynamic", dynamic)
            yield from _schedule(spec, dynamic)
            name = "dynamic"
        case ConditionalStrategy() as conditional:
            yield from _rule(spec, conditional)
            name = "conditional"
    if not isinstance(spec.strategy, ConditionalStrategy):
        yield from _scope(f"spec.{name}.scope", spec.strategy)
    channels = spec.strategy.channels
    yield from check_one(f"spec.{name}.channels.min_channels", channels.min_channels, ranges.at_least_one)
    yield from check_one(f"spec.{name}.channels.multiple", channels.multiple, ranges.at_least_one)


def _pattern(prefix: str, strategy: StaticStrategy | DynamicStrategy) -> Iterator[Problem]:
    field, pattern = f"{prefix}.nm_pattern", strategy.nm_pattern
    if strategy.granularity is Granularity.NM and pattern is None:
        yield missing(field, "is needed for granularity n:m, e.g. n = 2 and m = 4")
    elif strategy.granularity is not Granularity.NM and pattern is not None:
        yield invalid(field, f"has no meaning for granularity {strategy.granularity.value}; leave it out")
    elif pattern is not None and not 0 < pattern.n < pattern.m:
        yield invalid(field, f"needs 0 < n < m, e.g. 2:4; the request has {pattern.n}:{pattern.m}")


def _schedule(spec: PruningSpec, strategy: DynamicStrategy) -> Iterator[Problem]:
    judged = strategy.schedule == JUDGED_SCHEDULE
    if spec.target is not None and strategy.nm_pattern is not None:
        yield from _beside_pattern(spec.target, strategy.nm_pattern)
    if spec.target is None and not judged and strategy.granularity is not Granularity.NM:
        kinds = " or ".join(sorted(DYNAMIC_TARGETS & targets_of(strategy, strategy.granularity)))
        yield missing("spec.target", f"is needed unless the schedule is {JUDGED_SCHEDULE}: {kinds}")
    if spec.recovery.disabled:
        yield invalid(
            "spec.recovery.disabled", "leaves nothing of dynamic pruning, which trains; use the static strategy"
        )
    elif spec.fine_tune.epochs == 0 and not judged:
        yield invalid(
            "spec.fine_tune.epochs",
            f"is 0, and dynamic pruning trains; ask for epochs, or for the schedule {JUDGED_SCHEDULE}",
        )


def _certifiable(spec: PruningSpec) -> Iterator[Problem]:
    if spec.target is not None:
        yield invalid(f"spec.{spec.target.kind.value}", "has no meaning beside a risk, which decides how far to prune")
    if spec.split.calibrate == 0:
        yield invalid("spec.evaluation.split.calibrate", "a risk is certified on a part of its own; give it a share")
    if spec.task is Task.REGRESSION:
        yield invalid("spec.conditional.risk", "needs a metric with bounds, which regression's has not")


def _scope(field: str, strategy: StaticStrategy | DynamicStrategy) -> Iterator[Problem]:
    if strategy.scope is not Scope.SENSITIVITY:
        return
    if strategy.granularity in SINGLE_WEIGHTS:
        yield invalid(field, "sensitivity is measured without whole channels: it is for granularity channel or head")


def _rule(spec: PruningSpec, strategy: ConditionalStrategy) -> Iterator[Problem]:
    prefix = "spec.conditional"
    if not strategy.condition and strategy.risk is None:
        yield missing(f"{prefix}.rule", "is needed: a condition or a risk")
    if strategy.condition and strategy.risk is not None:
        yield invalid(f"{prefix}.rule", "takes a condition or a risk, not both")
    if strategy.condition:
        yield from _condition(strategy.condition, strategy.granularity)
    if strategy.risk is not None:
        yield from check_one(f"{prefix}.risk.max_loss", strategy.risk.max_loss, ranges.between_zero_and_one)
        yield from check_one(
            f"{prefix}.risk.error_probability", strategy.risk.error_probability, ranges.between_zero_and_one
        )
        yield from () if strategy.condition else _certifiable(spec)
    # In units of the task's metric, which need not end at 1.
    yield from check_one(f"{prefix}.margin", strategy.margin, ranges.above_zero)


def _condition(text: str, granularity: Granularity) -> Iterator[Problem]:
    try:
        check_granularity(parse_condition(text), granularity)
    except ConditionError as error:
        yield invalid(CONDITION_FIELD, error.description)
