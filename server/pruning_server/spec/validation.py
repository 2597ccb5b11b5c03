"""What must hold in a request by itself, whatever is stored: every value finite and in its range, nothing contradictory.

Fields are named as in the API (`spec.sparsity`, `spec.static.nm_pattern`). What a request has to do with stored files and
this server's devices is checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from pruning_server.errors import NotImplementedFeatureError
from pruning_server.spec import ranges
from pruning_server.spec.condition import CONDITION_FIELD, ConditionError, check_granularity, parse_condition
from pruning_server.spec.problems import Problem, invalid, missing, refuse
from pruning_server.spec.request import (
    JUDGED_SCHEDULE,
    ArtifactRef,
    ConditionalStrategy,
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    NmPattern,
    Preprocessing,
    PruningSpec,
    Scope,
    SplitFractions,
    StaticStrategy,
    Strategy,
    Target,
    TargetKind,
    Task,
)

T = TypeVar("T")

MAX_EPOCHS = 10_000
MAX_BATCH_SIZE = 1_000_000
MAX_TIMEOUT_SECONDS = 365 * 24 * 3600.0
MAX_SEED = 2**63 - 1
MAX_NAME_CHARACTERS = 500
MAX_EXCLUDED_LAYERS = 10_000
MAX_ARGUMENTS = 1000
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
SPLIT_SUM_TOLERANCE = 1e-9
PATTERN_TOLERANCE = 1e-6

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
IMPLEMENTED_TASKS = frozenset({Task.CLASSIFICATION, Task.MULTILABEL, Task.REGRESSION, Task.AGREEMENT})

_TARGET_RANGES: dict[TargetKind, Callable[[float], str | None]] = {
    TargetKind.THRESHOLD: ranges.above_zero,
    TargetKind.SPARSITY: ranges.from_zero_below_one,
    TargetKind.MACS_RATIO: ranges.above_zero_to_one,
    TargetKind.LATENCY_RATIO: ranges.above_zero_to_one,
    TargetKind.PARAMETER_RATIO: ranges.above_zero_to_one,
    TargetKind.MAX_ACCURACY_DROP: ranges.from_zero_below_one,
}


def check_spec(spec: PruningSpec) -> None:
    """Checks everything about a request that can be checked from it alone.

    Raises:
        InvalidRequestError: with a violation for every field that is wrong; its reason is that of the first.
    """
    refuse(find_problems(spec))


def check_implemented(spec: PruningSpec) -> None:
    """Checks that this version does what the request asks for.

    Raises:
        NotImplementedFeatureError: it does not; the error names the feature.
    """
    feature = next(_missing_features(spec), None)
    if feature is not None:
        raise NotImplementedFeatureError(feature, _instead(spec))


def find_problems(spec: PruningSpec) -> Iterator[Problem]:
    """Yields everything that is wrong with the request by itself."""
    yield from _files(spec)
    yield from _target(spec)
    yield from _strategy(spec)
    if (why := ranges.device(spec.device)) is not None:
        yield invalid("spec.device", why)
    yield from _fine_tune(spec.fine_tune, disabled=spec.recovery.disabled)
    yield from _evaluation(spec.evaluation)
    yield from _preprocessing(spec.preprocessing)
    if spec.loss is not None and spec.loss_module is not None:
        yield invalid("spec.loss_module", f"excludes spec.loss ({spec.loss.value}); send one of the two")
    yield from _arguments(spec)
    yield from _names(spec)
    yield from _limits(spec)


# --- Files ------------------------------------------------------------------------------------------------------------


def _files(spec: PruningSpec) -> Iterator[Problem]:
    named: list[tuple[str, ArtifactRef | None]] = [
        ("spec.model", spec.model),
        ("spec.validation", spec.validation),
        ("spec.train", spec.train),
        ("spec.loss_module", spec.loss_module),
    ]
    named += [(f"spec.method_samples[{i}].samples", item.samples) for i, item in enumerate(spec.method_samples)]
    continues = isinstance(spec.strategy, DynamicStrategy) and spec.strategy.continue_from_job_id
    for field, ref in named:
        if ref is spec.model and continues and not ref.artifact_id:
            continue  # that of the earlier job
        if ref is not None and not ref.artifact_id:
            yield missing(field, "is needed: upload the file and give its artifact_id")
        if ref is not None and ref.sha256 is not None and (why := ranges.sha256(ref.sha256)) is not None:
            yield invalid(f"{field}.sha256", why)


# --- Target and strategy ----------------------------------------------------------------------------------------------


def _target(spec: PruningSpec) -> Iterator[Problem]:
    target: Target | None = spec.target
    static = spec.strategy if isinstance(spec.strategy, StaticStrategy) else None
    patterned = static is not None and static.granularity is Granularity.NM
    if target is not None:
        field = f"spec.{target.kind.value}"
        problems = tuple(_one(field, target.value, _TARGET_RANGES[target.kind]))
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


def _strategy(spec: PruningSpec) -> Iterator[Problem]:
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
    yield from _one(f"spec.{name}.channels.min_channels", channels.min_channels, ranges.at_least_one)
    yield from _one(f"spec.{name}.channels.multiple", channels.multiple, ranges.at_least_one)


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
        kinds = " or ".join(sorted(DYNAMIC_TARGETS & _targets_of(strategy)))
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
    if isinstance(strategy, DynamicStrategy):
        yield invalid(field, "sensitivity is measured once, before anything is pruned: it is for static pruning")
    elif strategy.granularity in SINGLE_WEIGHTS:
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
        yield from _one(f"{prefix}.risk.max_loss", strategy.risk.max_loss, ranges.between_zero_and_one)
        yield from _one(
            f"{prefix}.risk.error_probability", strategy.risk.error_probability, ranges.between_zero_and_one
        )
        yield from () if strategy.condition else _certifiable(spec)
    # In units of the task's metric, which need not end at 1.
    yield from _one(f"{prefix}.margin", strategy.margin, ranges.above_zero)


def _condition(text: str, granularity: Granularity) -> Iterator[Problem]:
    try:
        check_granularity(parse_condition(text), granularity)
    except ConditionError as error:
        yield invalid(CONDITION_FIELD, error.description)


# --- Recovery and evaluation ------------------------------------------------------------------------------------------


def _fine_tune(tune: FineTune, *, disabled: bool) -> Iterator[Problem]:
    field = "spec.fine_tune"
    if tune.epochs is not None and not 0 <= tune.epochs <= MAX_EPOCHS:
        yield invalid(f"{field}.epochs", f"must be between 0 and {MAX_EPOCHS}, not {tune.epochs}")
    elif tune.epochs and disabled:
        yield invalid(f"{field}.epochs", f"is {tune.epochs}, but recovery is disabled; leave one of the two out")
    yield from _one(f"{field}.learning_rate", tune.learning_rate, ranges.above_zero)
    yield from _one(f"{field}.batch_size", tune.batch_size, ranges.between(1, MAX_BATCH_SIZE))
    yield from _one(f"{field}.weight_decay", tune.weight_decay, ranges.at_least_zero)


def _evaluation(evaluation: Evaluation) -> Iterator[Problem]:
    field = "spec.evaluation"
    batch_size = ranges.between(1, MAX_BATCH_SIZE)
    yield from _one(f"{field}.margin", evaluation.margin, ranges.between_zero_and_one)
    yield from _one(f"{field}.confidence_level", evaluation.confidence_level, ranges.between_half_and_one)
    yield from _split(evaluation.split)
    yield from _one(f"{field}.latency_batch_size", evaluation.latency_batch_size, batch_size)
    yield from _one(f"{field}.batch_size", evaluation.batch_size, batch_size)


def _split(split: SplitFractions) -> Iterator[Problem]:
    field = "spec.evaluation.split"
    parts = {"fit": split.fit, "select": split.select, "report": split.report, "calibrate": split.calibrate}
    problems = [
        problem
        for name, fraction in parts.items()
        for problem in _one(
            f"{field}.{name}", fraction, ranges.from_zero_to_one if name == "calibrate" else ranges.above_zero_to_one
        )
    ]
    yield from problems
    total = sum(parts.values())
    if not problems and abs(total - 1.0) > SPLIT_SUM_TOLERANCE:
        yield invalid(field, f"the fractions must add up to 1; they add up to {total:g}")


# --- Inputs -----------------------------------------------------------------------------------------------------------


def _preprocessing(given: Preprocessing) -> Iterator[Problem]:
    field = "spec.preprocessing"
    yield from _one(f"{field}.scale", given.scale, ranges.above_zero)
    yield from _each(f"{field}.mean", given.mean, ranges.finite)
    yield from _each(f"{field}.std", given.std, ranges.above_zero)
    if given.mean and given.std and len(given.mean) != len(given.std):
        yield invalid(
            f"{field}.std", f"has {len(given.std)} values, mean has {len(given.mean)}; send one of each per channel"
        )


def _arguments(spec: PruningSpec) -> Iterator[Problem]:
    if len(spec.arguments) > MAX_ARGUMENTS:
        yield invalid("spec.arguments", f"has {len(spec.arguments)} entries; at most {MAX_ARGUMENTS} are taken")
        return
    seen: set[int] = set()
    for index, argument in enumerate(spec.arguments):
        field = f"spec.arguments[{index}]"
        if argument.position in seen:
            yield invalid(f"{field}.position", f"position {argument.position} is given twice")
        yield from _one(f"{field}.position", argument.position, ranges.at_least_zero)
        if (why := ranges.scalar(argument.value)) is not None:
            yield invalid(f"{field}.value", why)
        seen.add(argument.position)


def _names(spec: PruningSpec) -> Iterator[Problem]:
    name = ranges.text(1, MAX_NAME_CHARACTERS)
    if len(spec.exclude_layers) > MAX_EXCLUDED_LAYERS:
        yield invalid(
            "spec.exclude_layers",
            f"has {len(spec.exclude_layers)} entries, at most {MAX_EXCLUDED_LAYERS} are taken; use wildcards",
        )
    yield from _each("spec.exclude_layers", spec.exclude_layers, name)
    yield from _one("spec.output_selector", spec.output_selector, ranges.text(0, MAX_NAME_CHARACTERS))
    seen: set[str] = set()
    for index, item in enumerate(spec.method_samples):
        field = f"spec.method_samples[{index}].method"
        yield from _one(field, item.method, name)
        if item.method in seen:
            yield invalid(field, f"{item.method!r} is given twice")
        seen.add(item.method)


def _limits(spec: PruningSpec) -> Iterator[Problem]:
    yield from _one("spec.seed", spec.seed, ranges.between(0, MAX_SEED))
    yield from _one("spec.limits.memory_bytes", spec.limits.memory_bytes, ranges.at_least_one)
    yield from _one("spec.limits.max_attempts", spec.limits.max_attempts, ranges.at_least_one)
    yield from _one("spec.timeout", spec.timeout_seconds, ranges.above_zero)
    if spec.timeout_seconds is not None and spec.timeout_seconds > MAX_TIMEOUT_SECONDS:
        yield invalid("spec.timeout", "must be at most a year")


def find_label_problems(labels: Mapping[str, str]) -> Iterator[Problem]:
    """Yields what is wrong with a job's labels: at most 64, of at most 256 characters per key and value, no empty key."""
    if len(labels) > MAX_LABELS:
        yield invalid("labels", f"has {len(labels)} entries; at most {MAX_LABELS} are taken")
        return
    for key, value in labels.items():
        yield from _one(f"labels[{key[:40]!r}]", key, ranges.text(1, MAX_LABEL_CHARACTERS, what="the key"))
        yield from _one(f"labels[{key[:40]!r}]", value, ranges.text(0, MAX_LABEL_CHARACTERS, what="the value"))


# --- Helpers ----------------------------------------------------------------------------------------------------------


def _one(field: str, value: T | None, rule: Callable[[T], str | None]) -> Iterator[Problem]:
    if value is not None and (why := rule(value)) is not None:
        yield invalid(field, why)


def _each(field: str, values: Iterable[T], rule: Callable[[T], str | None]) -> Iterator[Problem]:
    for index, value in enumerate(values):
        yield from _one(f"{field}[{index}]", value, rule)


# --- What this version does not do ------------------------------------------------------------------------------------


def _missing_features(spec: PruningSpec) -> Iterator[str]:
    if isinstance(spec.strategy, DynamicStrategy):
        yield from _missing_of_dynamic(spec.target)
    if isinstance(spec.strategy, ConditionalStrategy) and spec.strategy.condition and spec.target is not None:
        yield from _missing_of_conditions(spec.target)
    granularity, target = spec.strategy.granularity, spec.target
    if granularity not in IMPLEMENTED_TARGETS:
        yield f"{granularity.value} granularity"
    elif granularity is Granularity.NM and isinstance(spec.strategy, ConditionalStrategy):
        yield "n:m granularity with the conditional strategy"
    elif target is not None and target.kind not in _targets_of(spec.strategy):
        yield f"{target.kind.value} target with {granularity.value} granularity"
    if spec.task is not None and spec.task not in IMPLEMENTED_TASKS:
        yield f"{spec.task.value} task"


def _missing_of_dynamic(target: Target | None) -> Iterator[str]:
    if target is not None and target.kind not in DYNAMIC_TARGETS:
        yield f"{target.kind.value} target with the dynamic strategy"


def _missing_of_conditions(target: Target) -> Iterator[str]:
    # A threshold is refused on its own.
    if target.kind not in CONDITION_TARGETS and target.kind is not TargetKind.THRESHOLD:
        yield f"{target.kind.value} target with a condition"


def _targets_of(strategy: Strategy) -> frozenset[TargetKind]:
    possible = IMPLEMENTED_TARGETS.get(strategy.granularity, frozenset())
    if isinstance(strategy, StaticStrategy):
        return possible
    return possible - STATIC_TARGETS.get(strategy.granularity, frozenset())


def _instead(spec: PruningSpec) -> str:
    """What fits a target and a granularity that do not go together; empty where they do."""
    granularity, target = spec.strategy.granularity, spec.target
    if target is None or target.kind in (possible := _targets_of(spec.strategy)):
        return ""
    others = " or ".join(one.value for one, kinds in IMPLEMENTED_TARGETS.items() if target.kind in kinds)
    targets = f"with {granularity.value} give {' or '.join(sorted(possible))}" if possible else ""
    return ", or ".join(
        part for part in (targets, others and f"for {target.kind.value} ask for granularity {others}") if part
    )
