"""What this version does of what the API names: targets by strategy and granularity."""

from __future__ import annotations

from collections.abc import Iterator

from pruning_server.spec.request import (
    ConditionalStrategy,
    DynamicStrategy,
    Granularity,
    PruningSpec,
    StaticStrategy,
    Strategy,
    TargetKind,
)

_STRUCTURAL_TARGETS = frozenset({TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO})
# What needs many candidates, judged or measured one by one.
_SEARCHED_TARGETS = frozenset({TargetKind.LATENCY_RATIO, TargetKind.MAX_ACCURACY_DROP})
IMPLEMENTED_TARGETS = {
    Granularity.WEIGHT: frozenset(
        {TargetKind.THRESHOLD, TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MAX_ACCURACY_DROP}
    ),
    Granularity.CHANNEL: _STRUCTURAL_TARGETS | _SEARCHED_TARGETS,
    Granularity.HEAD: _STRUCTURAL_TARGETS | _SEARCHED_TARGETS,
    Granularity.NM: frozenset({TargetKind.SPARSITY}),
}
# Of those, what only static pruning does.
STATIC_TARGETS = {
    Granularity.WEIGHT: frozenset({TargetKind.PARAMETER_RATIO, TargetKind.MAX_ACCURACY_DROP}),
    Granularity.CHANNEL: _SEARCHED_TARGETS,
    Granularity.HEAD: _SEARCHED_TARGETS,
}
SPEED_TARGETS = frozenset({TargetKind.MACS_RATIO, TargetKind.LATENCY_RATIO})
SINGLE_WEIGHTS = frozenset({Granularity.WEIGHT, Granularity.NM})
DYNAMIC_TARGETS = frozenset({TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO})
CONDITION_TARGETS = _STRUCTURAL_TARGETS


def missing_features(spec: PruningSpec) -> Iterator[str]:
    """Yields what a request asks for and this version does not do."""
    strategy, target = spec.strategy, spec.target
    granularity = strategy.granularity
    if isinstance(strategy, ConditionalStrategy) and granularity is Granularity.NM:
        yield "n:m granularity with the conditional strategy"
    if target is None or target.kind in targets_of(strategy, granularity):
        return
    if _granularities_for(target.kind, strategy):
        yield f"{target.kind.value} target with {granularity.value} granularity"
    elif isinstance(strategy, DynamicStrategy):
        yield f"{target.kind.value} target with the dynamic strategy"
    # Beside a risk, and as a threshold beside a condition, it is refused on its own.
    elif isinstance(strategy, ConditionalStrategy) and strategy.condition and target.kind is not TargetKind.THRESHOLD:
        yield f"{target.kind.value} target with a condition"


def targets_of(strategy: Strategy, granularity: Granularity) -> frozenset[TargetKind]:
    """The targets that a strategy can prune to, at a granularity."""
    possible = IMPLEMENTED_TARGETS[granularity]
    match strategy:
        case StaticStrategy():
            return possible
        case DynamicStrategy():
            return (possible & DYNAMIC_TARGETS) - STATIC_TARGETS.get(granularity, frozenset())
        case ConditionalStrategy():
            return (possible & CONDITION_TARGETS) - STATIC_TARGETS.get(granularity, frozenset())


def what_instead(spec: PruningSpec) -> str:
    """What fits a target and a granularity that do not go together; empty where they do."""
    strategy, target = spec.strategy, spec.target
    granularity = strategy.granularity
    if target is None or target.kind in (possible := targets_of(strategy, granularity)):
        return ""
    parts = [f"with {granularity.value} give {' or '.join(sorted(possible))}"] if possible else []
    others = _granularities_for(target.kind, strategy)
    if others:
        parts.append(f"for {target.kind.value} ask for granularity {' or '.join(others)}")
    else:
        fitting = " or ".join(_granularities_for(target.kind, StaticStrategy()))
        parts.append(f"for {target.kind.value} use the static strategy with granularity {fitting}")
    return ", or ".join(parts)


def _granularities_for(kind: TargetKind, strategy: Strategy) -> list[str]:
    return [one.value for one in IMPLEMENTED_TARGETS if kind in targets_of(strategy, one)]
