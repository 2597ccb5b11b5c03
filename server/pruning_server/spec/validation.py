"""What must hold in a request by itself, whatever is stored: every value finite and in its range, nothing contradictory.

Fields are named as in the API (`spec.sparsity`, `spec.static.nm_pattern`). What a request has to do with stored files and
this server's devices is checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pruning_server.errors import NotImplementedFeatureError
from pruning_server.spec import ranges
from pruning_server.spec.implemented import missing_features, what_instead
from pruning_server.spec.problems import Problem, check_one, invalid, missing, refuse
from pruning_server.spec.request import ArtifactRef, DynamicStrategy, FineTune, PruningSpec
from pruning_server.spec.validation_data import (
    MAX_BATCH_SIZE,
    find_argument_problems,
    find_axes_problems,
    find_evaluation_problems,
    find_name_problems,
    find_preprocessing_problems,
)
from pruning_server.spec.validation_strategy import find_strategy_problems, find_target_problems

MAX_EPOCHS = 10_000
MAX_TIMEOUT_SECONDS = 365 * 24 * 3600.0
MAX_SEED = 2**63 - 1
MAX_PRIORITY = 10
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256


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
    feature = next(missing_features(spec), None)
    if feature is not None:
        raise NotImplementedFeatureError(feature, what_instead(spec))


def find_problems(spec: PruningSpec) -> Iterator[Problem]:
    """Yields everything that is wrong with the request by itself."""
    yield from _files(spec)
    yield from find_target_problems(spec)
    yield from find_strategy_problems(spec)
    if (why := ranges.device(spec.device)) is not None:
        yield invalid("spec.device", why)
    yield from _fine_tune(spec.fine_tune, disabled=spec.recovery.disabled)
    yield from find_evaluation_problems(spec.evaluation)
    yield from find_preprocessing_problems(spec.preprocessing)
    if spec.loss is not None and spec.loss_module is not None:
        yield invalid("spec.loss_module", f"excludes spec.loss ({spec.loss.value}); send one of the two")
    yield from find_argument_problems(spec)
    yield from find_axes_problems("spec.dynamic_axes", spec.dynamic_axes)
    yield from find_name_problems(spec)
    yield from _limits(spec)


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
        if ref is spec.model and continues and not ref.artifact_id and ref.uri is None:
            continue  # that of the earlier job
        if ref is not None and not ref.artifact_id and ref.uri is None:
            yield missing(field, "is needed: upload the file and give its artifact_id")
        if ref is not None and ref.sha256 is not None and (why := ranges.sha256(ref.sha256)) is not None:
            yield invalid(f"{field}.sha256", why)


def _fine_tune(tune: FineTune, *, disabled: bool) -> Iterator[Problem]:
    field = "spec.fine_tune"
    if tune.epochs is not None and not 0 <= tune.epochs <= MAX_EPOCHS:
        yield invalid(f"{field}.epochs", f"must be between 0 and {MAX_EPOCHS}, not {tune.epochs}")
    elif tune.epochs and disabled:
        yield invalid(f"{field}.epochs", f"is {tune.epochs}, but recovery is disabled; leave one of the two out")
    yield from check_one(f"{field}.learning_rate", tune.learning_rate, ranges.above_zero)
    yield from check_one(f"{field}.batch_size", tune.batch_size, ranges.between(1, MAX_BATCH_SIZE))
    yield from check_one(f"{field}.weight_decay", tune.weight_decay, ranges.at_least_zero)
    yield from check_one(f"{field}.dropout", tune.dropout, ranges.from_zero_below_one)
    if tune.dropout is not None and (disabled or tune.epochs == 0):
        why = "recovery is disabled" if disabled else "epochs is 0"
        yield invalid(f"{field}.dropout", f"is {tune.dropout:g}, but {why}, so that nothing is trained; leave it out")


def _limits(spec: PruningSpec) -> Iterator[Problem]:
    yield from check_one("spec.seed", spec.seed, ranges.between(0, MAX_SEED))
    yield from check_one("spec.limits.memory_bytes", spec.limits.memory_bytes, ranges.at_least_one)
    yield from check_one("spec.limits.max_attempts", spec.limits.max_attempts, ranges.at_least_one)
    yield from check_one("spec.limits.priority", spec.limits.priority, ranges.between(-MAX_PRIORITY, MAX_PRIORITY))
    yield from check_one("spec.timeout", spec.timeout_seconds, ranges.above_zero)
    if spec.timeout_seconds is not None and spec.timeout_seconds > MAX_TIMEOUT_SECONDS:
        yield invalid("spec.timeout", "must be at most a year")


def find_label_problems(labels: Mapping[str, str]) -> Iterator[Problem]:
    """Yields what is wrong with a job's labels: at most 64, of at most 256 characters per key and value, no empty key."""
    if len(labels) > MAX_LABELS:
        yield invalid("labels", f"has {len(labels)} entries; at most {MAX_LABELS} are taken")
        return
    for key, value in labels.items():
        yield from check_one(f"labels[{key[:40]!r}]", key, ranges.text(1, MAX_LABEL_CHARACTERS, what="the key"))
        yield from check_one(f"labels[{key[:40]!r}]", value, ranges.text(0, MAX_LABEL_CHARACTERS, what="the value"))
