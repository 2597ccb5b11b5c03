"""Checks of a request against what the gate found in its files: pure, without running anything.

Whatever only a run can show (what the model takes, how many classes it has) is left to the worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.spec.artifacts import DatasetSummary, Summary, TensorSummary
from pruning_server.spec.problems import Problem, invalid, refuse
from pruning_server.spec.request import Layout, Loss, PruningSpec, SplitFractions, Task

# The verdict needs a spread, so the report split needs two samples; every other split that is used needs one.
MIN_REPORT_SAMPLES = 2
MIN_PART_SAMPLES = 1

_TASKS_WITHOUT_TARGETS = frozenset({Task.AGREEMENT, Task.EMBEDDING, Task.LANGUAGE_MODELLING})
_IMAGE_RANK = 4


def check_summaries(spec: PruningSpec, summaries: Mapping[str, Summary]) -> None:
    """Checks the request against the summaries of its files, keyed by field (`spec.validation`, `spec.train`, ...).

    Raises:
        InvalidRequestError: with a violation for everything that is wrong; its reason is that of the first.
    """
    validation = summaries["spec.validation"]
    if not isinstance(validation, DatasetSummary):
        raise InvalidRequestError.for_field("spec.validation", "is not a dataset", Reason.ARTIFACT_WRONG_KIND)
    problems = [
        *_samples(spec.split, validation),
        *_preprocessing(spec, validation),
        *_targets(spec, validation),
        *_arguments(spec, validation),
    ]
    train = summaries.get("spec.train")
    if isinstance(train, DatasetSummary):
        problems += _train(validation, train)
    refuse(problems)


def samples_needed(split: SplitFractions) -> int:
    """The fewest samples that give every split that is used what it needs at least."""
    others = sum(MIN_PART_SAMPLES for fraction in (split.fit, split.select, split.calibrate) if fraction > 0)
    return others + MIN_REPORT_SAMPLES


def _samples(split: SplitFractions, validation: DatasetSummary) -> Iterator[Problem]:
    if validation.has_split:
        return  # The caller named the splits: only their marks tell how large each is, and the worker counts them.
    needed = samples_needed(split)
    if validation.samples < needed:
        yield Problem(
            "spec.validation",
            f"has {validation.samples} samples; at least {needed} are needed to split it into fit, select and report"
            " (and hundreds for a verdict that can tell anything)",
            Reason.DATASET_TOO_SMALL,
        )


def _preprocessing(spec: PruningSpec, validation: DatasetSummary) -> Iterator[Problem]:
    given = spec.preprocessing
    images = [array for array in validation.inputs if len(array.shape) == _IMAGE_RANK]
    if given.layout is Layout.NHWC and not images:
        yield invalid(
            "spec.preprocessing.layout",
            f"NHWC needs inputs of 4 axes [N, H, W, C]; the dataset holds {_describe_all(validation.inputs)}",
        )
    if len(images) != len(validation.inputs):
        return  # What mean and std mean for inputs of other ranks depends on the model.
    axis = 3 if given.layout is Layout.NHWC else 1
    channels = {array.shape[axis] for array in images}
    for name, values in (("mean", given.mean), ("std", given.std)):
        if len(values) > 1 and len(values) not in channels:
            counts = " or ".join(str(count) for count in sorted(channels))
            hint = (
                "; are the images stored as [N, H, W, C]? Then set the layout to NHWC"
                if _looks_nhwc(spec, images)
                else ""
            )
            yield invalid(
                f"spec.preprocessing.{name}",
                f"has {len(values)} values, but the inputs have {counts} channels (axis {axis}){hint}",
            )


def _looks_nhwc(spec: PruningSpec, images: list[TensorSummary]) -> bool:
    lengths = {len(spec.preprocessing.mean), len(spec.preprocessing.std)} - {0}
    return spec.preprocessing.layout is not Layout.NHWC and all(array.shape[3] in lengths for array in images)


def _targets(spec: PruningSpec, validation: DatasetSummary) -> Iterator[Problem]:
    if spec.task in _TASKS_WITHOUT_TARGETS:
        return  # Whatever loss is named is taken of the original's outputs.
    targets = validation.targets
    if targets is None:
        for field, user in _users_of_targets(spec):
            yield Problem(
                field,
                f"{user} needs `targets`, and the validation set has none; add them, or set the task to agreement to"
                " judge the agreement with the original model",
                Reason.DATASET_TARGETS,
            )
        return
    may_be_one_hot = spec.task is Task.CLASSIFICATION and any(size > 1 for size in targets.shape[1:])
    if spec.loss is Loss.CROSS_ENTROPY and not _is_integer(targets.dtype) and not may_be_one_hot:
        yield Problem(
            "spec.loss",
            f"the loss cross_entropy needs integer class numbers as `targets`; the validation set has {targets.dtype}."
            " Store them as int64, or name another loss (mse or l1 for regression)",
            Reason.DATASET_TARGETS,
        )


def _users_of_targets(spec: PruningSpec) -> Iterator[tuple[str, str]]:
    """Yields (field, how to call it) of everything that reads the targets."""
    if spec.loss is not None:
        yield "spec.loss", f"the loss {spec.loss.value}"
    if spec.loss_module is not None:
        yield "spec.loss_module", "a loss module"
    if spec.task is not None:
        yield "spec.task", f"the task {spec.task.value}"


def _arguments(spec: PruningSpec, validation: DatasetSummary) -> Iterator[Problem]:
    """Scalars stand at their positions and the dataset's inputs fill the others, in order: there may be no hole."""
    total = len(validation.inputs) + len(spec.arguments)
    seen: set[int] = set()
    for index, argument in enumerate(spec.arguments):
        field = f"spec.arguments[{index}].position"
        if argument.position in seen:
            yield invalid(field, f"position {argument.position} is given twice")
        elif not 0 <= argument.position < total:
            yield invalid(
                field,
                f"position {argument.position} leaves a hole: with {len(validation.inputs)} inputs in the dataset and"
                f" {len(spec.arguments)} scalar arguments, positions go from 0 to {total - 1}",
            )
        seen.add(argument.position)


def _train(validation: DatasetSummary, train: DatasetSummary) -> Iterator[Problem]:
    if len(train.inputs) != len(validation.inputs):
        yield Problem(
            "spec.train",
            f"has {len(train.inputs)} inputs, the validation set has {len(validation.inputs)}; both feed the same model",
            Reason.DATASET_KEYS,
        )
        return
    pairs = list(zip(train.inputs, validation.inputs, strict=True))
    if validation.targets is not None:
        if train.targets is None:
            yield Problem(
                "spec.train", "has no `targets`, the validation set has; the gap needs both", Reason.DATASET_TARGETS
            )
        else:
            pairs.append((train.targets, validation.targets))
    for ours, theirs in pairs:
        if ours.dtype != theirs.dtype or ours.shape[1:] != theirs.shape[1:]:
            yield Problem(
                "spec.train",
                f"{_describe(ours)} does not fit the validation set's {_describe(theirs)}; store both alike",
                Reason.DATASET_DTYPE if ours.dtype != theirs.dtype else Reason.MODEL_INPUT_MISMATCH,
            )


def _is_integer(dtype: str) -> bool:
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def _describe(array: TensorSummary) -> str:
    return f"{array.name} {array.dtype}[{', '.join(['N', *map(str, array.shape[1:])])}]"


def _describe_all(arrays: tuple[TensorSummary, ...]) -> str:
    return ", ".join(_describe(array) for array in arrays)
