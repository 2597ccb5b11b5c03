"""The rules of a dataset that its declarations alone can break: keys, dtypes, axes, lengths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pruning_server.archive.arrays import NUMERIC_DTYPES, Container, Declared, is_group_dtype
from pruning_server.archive.refusals import shown
from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.spec.artifacts import DatasetSummary

TARGETS = "targets"
SPLIT = "split"
GROUPS = "groups"
SPLIT_MARKS = {0: "fit", 1: "select", 2: "report", 3: "calibrate"}
_ALLOWED = "inputs (or inputs_0, inputs_1, ...), targets, split, groups"
_NUMBERED = re.compile(r"inputs_(0|[1-9]\d{0,3})")
# What people call these arrays elsewhere.
_SYNONYMS = {
    "inputs": {
        "input",
        "x",
        "xs",
        "image",
        "images",
        "data",
        "feature",
        "features",
        "samples",
        "arr_0",
        "x_test",
        "x_val",
    },
    TARGETS: {"target", "y", "ys", "label", "labels", "classes", "arr_1", "y_test", "y_val", "y_true"},
    GROUPS: {"group", "subject", "subjects", "patient", "patients"},
    SPLIT: {"splits", "fold", "folds"},
}


@dataclass(frozen=True)
class Layout:
    """The arrays of a dataset by their roles; inputs in the order of forward's arguments."""

    inputs: tuple[Declared, ...]
    targets: Declared | None
    split: Declared | None
    groups: Declared | None

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return self.inputs[0].shape[0]

    def arrays(self) -> tuple[Declared, ...]:
        """All arrays, in canonical order."""
        rest = (self.targets, self.split, self.groups)
        return (*self.inputs, *(array for array in rest if array is not None))

    def summary(self, container: Container, size_bytes: int) -> DatasetSummary:
        """What the gate says about it."""
        return DatasetSummary(
            container=container,
            samples=self.samples,
            inputs=tuple(array.summary() for array in self.inputs),
            targets=None if self.targets is None else self.targets.summary(),
            has_split=self.split is not None,
            has_groups=self.groups is not None,
            size_bytes=size_bytes,
        )


def arrange(arrays: Iterable[Declared]) -> Layout:
    """Finds the role of every array and checks what can be told from the declarations.

    Raises:
        InvalidArtifactError: unknown or missing keys, dtypes that are not taken, lengths that differ, no samples.
    """
    by_name = {array.name: array for array in arrays}
    input_names = _input_names(by_name)
    unknown = by_name.keys() - {*input_names, TARGETS, SPLIT, GROUPS}
    if unknown or not input_names:
        raise _bad_keys(by_name.keys(), unknown)
    layout = Layout(
        tuple(by_name[name] for name in input_names), by_name.get(TARGETS), by_name.get(SPLIT), by_name.get(GROUPS)
    )
    for array in layout.arrays():
        _check_dtype(array)
    _check_lengths(layout)
    return layout


def _input_names(names: Iterable[str]) -> list[str]:
    """`inputs` alone, or `inputs_0` to `inputs_k`; what does not fit is left for the refusal of unknown keys."""
    numbers = sorted(int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name)))
    if "inputs" in names:
        if numbers:
            raise InvalidArtifactError(
                Reason.DATASET_KEYS,
                "the dataset holds `inputs` and `inputs_0`...; keep `inputs` for a single input only",
            )
        return ["inputs"]
    for expected, number in enumerate(numbers):
        if number != expected:
            raise InvalidArtifactError(
                Reason.DATASET_KEYS,
                f"the dataset holds inputs_{number} but no inputs_{expected}; number the inputs from 0 without a hole",
            )
    return [f"inputs_{number}" for number in numbers]


def _bad_keys(names: Iterable[str], unknown: set[str]) -> InvalidArtifactError:
    found = ", ".join(shown(name) for name in sorted(names)[:20]) or "nothing"
    hints = [
        f"rename {shown(name)} to '{ours}'"
        for name in sorted(unknown)
        for ours, theirs in _SYNONYMS.items()
        if name.lower() in theirs and ours not in names
    ]
    advice = "; ".join(hints) if hints else "rename or remove the others"
    return InvalidArtifactError(
        Reason.DATASET_KEYS, f"the dataset holds {found}; the arrays that are known are {_ALLOWED}: {advice}"
    )


def _check_dtype(array: Declared) -> None:
    if array.name == SPLIT:
        good, wanted = array.dtype == "uint8", "uint8 with 0 fit, 1 select, 2 report, 3 calibrate"
    elif array.name == GROUPS:
        good, wanted = is_group_dtype(array.dtype), "integers or strings of a fixed length"
    else:
        good, wanted = array.dtype in NUMERIC_DTYPES, "bool, uint8, int8 to int64, float16, float32 or float64"
    if not good:
        raise InvalidArtifactError(
            Reason.DATASET_DTYPE, f"the array {shown(array.name)} is of type {array.dtype}; store it as {wanted}"
        )


def _check_lengths(layout: Layout) -> None:
    arrays: Sequence[Declared] = layout.arrays()
    for array in arrays:
        axes = 1 if array.name in {SPLIT, GROUPS} else None
        if not array.shape or (axes is not None and len(array.shape) != axes):
            raise InvalidArtifactError(
                Reason.DATASET_LENGTHS_DIFFER,
                f"the array {shown(array.name)} has the shape {array.shape}; "
                + ("it needs one value per sample" if axes else "its first axis must be the samples"),
            )
    if len({array.shape[0] for array in arrays}) > 1:
        lengths = ", ".join(f"{array.name} {array.shape[0]}" for array in arrays)
        raise InvalidArtifactError(
            Reason.DATASET_LENGTHS_DIFFER,
            f"the arrays have different numbers of samples along the first axis: {lengths}; make them equal",
        )
    for array in arrays:
        if array.elements == 0:
            raise InvalidArtifactError(
                Reason.DATASET_EMPTY, f"the array {shown(array.name)} has the shape {array.shape}, which holds nothing"
            )
