"""Parquet files, read with pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning_client.adapters.tables import Table, check_finite, choose_columns, to_float32
from pruning_client.errors import BadInputError


def read_parquet(path: Path) -> Table:
    """Returns the table in a Parquet file.

    Raises:
        BadInputError: pyarrow is missing, the file cannot be read, a value is missing or an input is not a number.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - an extra
    except ImportError:
        raise BadInputError(
            "reading Parquet needs pyarrow: pip install 'pruning-service[parquet]'", reason="EXTRA_MISSING"
        ) from None
    try:
        content = ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise BadInputError(f"{path} is not a readable Parquet file: {error}", reason="DATASET_UNREADABLE") from error
    input_names, target = choose_columns(list(content.column_names), path)
    columns = [_column(content, name, path) for name in input_names]
    for name, column in zip(input_names, columns, strict=True):
        if column.dtype.kind == "U":
            raise BadInputError(f"{path}: column {name!r} holds text; inputs must be numbers", reason="DATASET_DTYPE")
    inputs = to_float32(np.stack(columns, axis=1))
    check_finite(inputs, input_names, path, first_row=1)
    others = {name: _column(content, name, path) for name in content.column_names if name not in input_names}
    return Table(input_names, inputs, target, others)


def _column(content: Any, name: str, path: Path) -> NDArray[Any]:
    """The column as int64, float64 or text."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    column = content.column(name)
    if column.null_count:
        raise BadInputError(f"{path}: column {name!r} has {column.null_count} empty values", reason="DATASET_DTYPE")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    if pa.types.is_boolean(kind) or pa.types.is_signed_integer(kind) or pa.types.is_unsigned_integer(kind):
        integers: NDArray[Any] = column.to_numpy()
        if integers.dtype == np.uint64 and (integers > np.iinfo(np.int64).max).any():
            raise BadInputError(f"{path}: column {name!r} has an integer beyond 63 bits", reason="DATASET_DTYPE")
        return integers.astype(np.int64)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.array(column.to_pylist() if pa.types.is_decimal(kind) else column.to_numpy(), dtype=np.float64)
    raise BadInputError(f"{path}: column {name!r} is of type {kind}; numbers are needed", reason="DATASET_DTYPE")
