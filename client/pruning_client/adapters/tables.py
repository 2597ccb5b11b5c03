"""Tables as datasets: numeric columns become float32 inputs [N, columns], one column the targets [N].

A column named `target` or `label` holds the targets; `split` and `groups` mean what they mean in a container.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning_client.adapters.classes import describe_classes, number_classes
from pruning_client.adapters.container import ContainerWriter
from pruning_client.errors import BadInputError

TARGET_NAMES = ("target", "label")
SPLIT_NAME, GROUPS_NAME = "split", "groups"


@dataclass(frozen=True)
class Table:
    """What a file held. Columns other than inputs are arrays of int64, float64 or str.

    Attributes:
        input_names: names of the input columns, in the file's order.
        inputs: float32 [N, len(input_names)], finite.
        target_name: None where no column is named `target` or `label`.
        others: the targets, `split` and `groups` by name, each [N].
    """

    input_names: tuple[str, ...]
    inputs: NDArray[np.float32]
    target_name: str | None
    others: dict[str, NDArray[Any]]


def choose_columns(names: list[str], path: Path) -> tuple[tuple[str, ...], str | None]:
    """Returns the input columns and the target column of a table with these columns.

    Raises:
        BadInputError: a name is empty or double, two columns could be the target, or no input is left.
    """
    for name in names:
        if not name.strip():
            raise BadInputError(f"{path}: a column has no name", reason="DATASET_KEYS")
        if names.count(name) > 1:
            raise BadInputError(f"{path}: two columns are named {name!r}", reason="DATASET_KEYS")
    targets = [name for name in TARGET_NAMES if name in names]
    if len(targets) > 1:
        raise BadInputError(
            f"{path}: both `target` and `label` are columns; rename the one that is an input", reason="DATASET_KEYS"
        )
    target = targets[0] if targets else None
    inputs = tuple(name for name in names if name not in (target, SPLIT_NAME, GROUPS_NAME))
    if not inputs:
        raise BadInputError(f"{path}: no column is left for the inputs", reason="DATASET_KEYS")
    return inputs, target


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Returns `values` as float32; what is too large becomes infinite, for the caller to check."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def check_finite(inputs: NDArray[np.float32], names: tuple[str, ...], path: Path, first_row: int) -> None:
    """Checks that every input is a finite float32; rows count from `first_row`.

    Raises:
        BadInputError: one is not; the message names its row and column.
    """
    bad = np.argwhere(~np.isfinite(inputs))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise BadInputError(
            f"{path}: row {row + first_row}, column {names[column]!r} is not a finite float32 number",
            reason="DATASET_NOT_FINITE",
        )


def write_table(
    table: Table, path: Path, destination: Path, classes: tuple[str, ...] | None, note: Callable[[str], None]
) -> tuple[str, ...] | None:
    """Writes the table as a container; returns the class names in the order of their numbers, if it has any.

    Raises:
        BadInputError: the table is empty, or its classes contradict `classes`.
    """
    samples, columns = table.inputs.shape
    if samples == 0:
        raise BadInputError(f"{path} has no rows", reason="DATASET_EMPTY")
    note(f"{path}: {samples} rows, {columns} input columns ({', '.join(table.input_names)})")
    arrays: dict[str, NDArray[Any]] = {"inputs": table.inputs}
    order = None
    if table.target_name is None:
        note("no column is named `target` or `label`: the set has no targets, agreement with the original is judged")
    else:
        arrays["targets"], order = _targets(table.others[table.target_name], path, classes)
        note(f"targets: column {table.target_name!r}, {arrays['targets'].dtype}")
        if order is not None:
            note(describe_classes(order))
    if SPLIT_NAME in table.others:
        arrays["split"] = _split(table.others[SPLIT_NAME], path)
        note("column 'split' says which part of the set a row is in")
    if GROUPS_NAME in table.others:
        arrays["groups"] = np.unique(table.others[GROUPS_NAME], return_inverse=True)[1].astype(np.int64)
        note("rows with the same value in column 'groups' stay together")
    with ContainerWriter(destination) as container:
        for name, array in arrays.items():
            container.add(name, array.dtype.str, array.shape, [array])
    return order


def _targets(
    values: NDArray[Any], path: Path, classes: tuple[str, ...] | None
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    if values.dtype.kind == "i":
        return values.astype(np.int64), None
    if values.dtype.kind == "f":
        targets = to_float32(values)
        if not np.isfinite(targets).all():
            raise BadInputError(f"{path}: a target is not a finite float32 number", reason="DATASET_NOT_FINITE")
        return targets, None
    order = number_classes((str(v) for v in np.unique(values)), classes, path)
    numbers = {name: number for number, name in enumerate(order)}
    return np.array([numbers[str(v)] for v in values], dtype=np.int64), order


def _split(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if values.dtype.kind != "i" or not np.isin(values, (0, 1, 2, 3)).all():
        raise BadInputError(
            f"{path}: column 'split' must hold 0 (fit), 1 (select), 2 (report) or 3 (calibrate)", reason="DATASET_SPLIT"
        )
    return values.astype(np.uint8)
