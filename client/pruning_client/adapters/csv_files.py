"""CSV files with a header row, comma separated, UTF-8."""

from __future__ import annotations

import array
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pruning_client.adapters.tables import Table, check_finite, choose_columns
from pruning_client.errors import BadInputError

T = TypeVar("T")


def read_csv(path: Path) -> Table:
    """Returns the table in a CSV file.

    Raises:
        BadInputError: it cannot be read, rows differ in length, a cell is empty or an input is not a number; the
            message names the line and the column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, csv.reader(file, strict=True))
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}", reason="FILE_UNREADABLE") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text", reason="DATASET_UNREADABLE") from error
    except csv.Error as error:
        raise BadInputError(f"{path} is not CSV: {error}", reason="DATASET_UNREADABLE") from error


def _read(path: Path, rows: Iterator[list[str]]) -> Table:
    header = [name.strip() for name in next(rows, [])]
    if not header:
        raise BadInputError(f"{path} is empty; its first line must name the columns", reason="DATASET_EMPTY")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise BadInputError(f"{path}: the columns must be separated by commas", reason="DATASET_UNREADABLE")
    input_names, target = choose_columns(header, path)
    positions = [header.index(name) for name in input_names]
    other_names = [name for name in header if name not in input_names]
    inputs = array.array("f")
    others: dict[str, list[str]] = {name: [] for name in other_names}
    for line, row in enumerate(rows, start=2):
        if not row:  # a blank line, as at the end of many files
            continue
        if len(row) != len(header):
            raise BadInputError(
                f"{path}, row {line}: {len(row)} cells, but the header names {len(header)}", reason="DATASET_UNREADABLE"
            )
        inputs.extend(_number(row[p], path, line, header[p]) for p in positions)
        for name in other_names:
            cell = row[header.index(name)].strip()
            if not cell:
                raise BadInputError(f"{path}, row {line}: column {name!r} is empty", reason="DATASET_TARGETS")
            others[name].append(cell)
    matrix = np.frombuffer(inputs, dtype=np.float32).reshape(-1, len(input_names))
    check_finite(matrix, input_names, path, first_row=2)
    return Table(input_names, matrix, target, {name: _typed(cells, path, name) for name, cells in others.items()})


def _number(cell: str, path: Path, line: int, name: str) -> float:
    try:
        return _plain(float, cell)
    except ValueError:
        what = "is empty" if not cell.strip() else f"holds {cell[:40]!r}, which is not a number"
        raise BadInputError(f"{path}, row {line}: column {name!r} {what}", reason="DATASET_DTYPE") from None


def _plain(kind: Callable[[str], T], cell: str) -> T:
    """Reads a number as other programs do: Python alone takes `1_000`."""
    if "_" in cell:
        raise ValueError(cell)
    return kind(cell)


def _typed(cells: list[str], path: Path, name: str) -> NDArray[Any]:
    """Integers if all cells are, else floats if all are, else text."""
    for kind, dtype in ((int, np.int64), (float, np.float64)):
        try:
            return np.array([_plain(kind, cell) for cell in cells], dtype=dtype)
        except ValueError:
            continue
        except OverflowError:
            raise BadInputError(
                f"{path}: column {name!r} has an integer beyond 64 bits", reason="DATASET_DTYPE"
            ) from None
    return np.array(cells, dtype=np.str_)
