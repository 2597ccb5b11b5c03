"""What must hold in a request by itself, whatever is stored: every value finite and in its range, nothing contradictory.

Fields are named as in the API (`spec.sparsity`, `spec.static.nm_pattern`). What a request has to do with stored files and
this server's devices is checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from pruning_server.errors import NotImplementedFeatureError
from pruning_server.spec import ranges
from pruning_server.spec.problems import Problem, invalid, missing, refuse
from pruning_server.spec.request import (
    ArtifactRef,
    ConditionalStrategy,
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Preprocessing,
    PruningSpec,
    SplitFractions,
    StaticStrategy,
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
MAX_CONDITION_CHARACTERS = 10_000
MAX_EXCLUDED_LAYERS = 10_000
MAX_ARGUMENTS = 1000
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
SPLIT_SUM_TOLERANCE = 1e-9

_STRUCTURAL_TARGETS = frozenset({TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO})
IMPLEMENTED_TARGETS = {
    Granularity.WEIGHT: frozenset({TargetKind.THRESHOLD, TargetKind.SPARSITY}),
    Granularity.CHANNEL: _STRUCTURAL_TARGETS,
    Granularity.HEAD: _STRUCTURAL_TARGETS,
}
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
    for field, ref in named:
        if ref is not None and not ref.artifact_id:
            yield missing(field, "is needed: upload the file and give its artifact_id")
        if ref is not None and ref.sha256 is not None and (why := ranges.sha256(ref.sha256)) is not None:
            yield invalid(f"{field}.sha256", why)


# --- Target and strategy ----------------------------------------------------------------------------------------------


def _target(spec: PruningSpec) -> Iterator[Problem]:
    target: Target | None = spec.target
    if target is not None:
        yield from _one(f"spec.{target.kind.value}", target.value, _TARGET_RANGES[target.kind])
    elif isinstance(spec.strategy, StaticStrategy):
        yield missing("spec.target", f"is needed for static pruning: exactly one of {', '.join(TargetKind)}")


def _strategy(spec: PruningSpec) -> Iterator[Problem]:
    match spec.strategy:
        case StaticStrategy() as static:
            yield from _pattern("spec.static", static)
            name = "static"
        case DynamicStrategy() as dynamic:
            yield from _pattern("spec.dynamic", dynamic)
            name = "dynamic"
        case ConditionalStrategy() as conditional:
            yield from _rule(conditional)
            name = "conditional"
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


def _rule(strategy: ConditionalStrategy) -> Iterator[Problem]:
    prefix = "spec.conditional"
    if not strategy.condition and strategy.risk is None:
        yield missing(f"{prefix}.rule", "is needed: a condition or a risk")
    if strategy.condition and strategy.risk is not None:
        yield invalid(f"{prefix}.rule", "takes a condition or a risk, not both")
    if len(strategy.condition or "") > MAX_CONDITION_CHARACTERS:
        yield invalid(f"{prefix}.condition", f"is longer than {MAX_CONDITION_CHARACTERS} characters")
    if strategy.risk is not None:
        yield from _one(f"{prefix}.risk.max_loss", strategy.risk.max_loss, ranges.between_zero_and_one)
        yield from _one(
            f"{prefix}.risk.error_probability", strategy.risk.error_probability, ranges.between_zero_and_one
        )
    # In units of the task's metric, which need not end at 1.
    yield from _one(f"{prefix}.margin", strategy.margin, ranges.above_zero)


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
        yield "dynamic strategy"
    if isinstance(spec.strategy, ConditionalStrategy):
        yield "conditional strategy"
    granularity, target = spec.strategy.granularity, spec.target
    if granularity not in IMPLEMENTED_TARGETS:
        yield f"{granularity.value} granularity"
    elif target is not None and target.kind not in IMPLEMENTED_TARGETS[granularity]:
        yield f"{target.kind.value} target with {granularity.value} granularity"
    if spec.task is not None and spec.task not in IMPLEMENTED_TASKS:
        yield f"{spec.task.value} task"
    if spec.evaluation.split.calibrate > 0:
        yield "calibrate split"


def _instead(spec: PruningSpec) -> str:
    """What fits a target and a granularity that do not go together; empty where they do."""
    granularity, target = spec.strategy.granularity, spec.target
    if target is None or target.kind in (possible := IMPLEMENTED_TARGETS.get(granularity, frozenset())):
        return ""
    others = " or ".join(one.value for one, kinds in IMPLEMENTED_TARGETS.items() if target.kind in kinds)
    targets = f"with {granularity.value} give {' or '.join(sorted(possible))}" if possible else ""
    return ", or ".join(
        part for part in (targets, others and f"for {target.kind.value} ask for granularity {others}") if part
    )
