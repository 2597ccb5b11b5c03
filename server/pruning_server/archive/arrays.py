"""Declared arrays: what a dataset says that it holds, before a byte of it is read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.spec.artifacts import TensorSummary

BFLOAT16 = "bfloat16"
# As numpy names them; torch has no full support for the wider unsigned integers.
NUMERIC_DTYPES = frozenset(
    {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", BFLOAT16}
)
FLOAT_DTYPES = frozenset({"float16", "float32", "float64", BFLOAT16})
GROUP_INTEGERS = frozenset({"uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"})
_FIXED_STRING = re.compile(r"(str|bytes)\d+")
_MAX_STRING_BYTES = 4096


@dataclass(frozen=True)
class Declared:
    """An array as its container declares it.

    Attributes:
        name: its key in the container.
        dtype: as numpy names it, or `bfloat16`; `str32` for numpy's U8 (its bits), `bytes64` for S8.
        storage: the numpy dtype of its bytes, byte order included (bfloat16 as uint16).
        shape: all of its axes.
        fortran_order: whether the first axis varies fastest.
    """

    name: str
    dtype: str
    storage: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool = False

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes its elements take."""
        return self.elements * self.storage.itemsize

    @property
    def canonical_storage(self) -> np.dtype[np.generic]:
        """The little-endian dtype in which the canonical copy holds it."""
        return self.storage.newbyteorder("<")

    def summary(self) -> TensorSummary:
        """Name, dtype and shape."""
        return TensorSummary(name=self.name, dtype=self.dtype, shape=self.shape)

    def row_of(self, element: int) -> int:
        """The sample that the element with this position in storage order belongs to."""
        if self.fortran_order:
            return element % self.shape[0]
        return element // math.prod(self.shape[1:])


def is_group_dtype(dtype: str) -> bool:
    """Whether groups may be of this dtype: integers and strings of a fixed length."""
    return dtype in GROUP_INTEGERS or _FIXED_STRING.fullmatch(dtype) is not None


def numpy_storage(name: str, descr: object) -> np.dtype[np.generic]:
    """Returns the dtype that the header of an .npy names.

    Raises:
        InvalidArtifactError: objects, records, dates, complex numbers and whatever else is no plain number or string.
    """
    if not isinstance(descr, str) or re.fullmatch(r"[<>|=]?[biufUScOmMV]\d{0,9}(\[.*\])?", descr) is None:
        raise _bad_dtype(name, "records of several fields")
    kind = descr.lstrip("<>|=")[0]
    if kind == "O":
        raise _bad_dtype(name, "Python objects, which only unpickling could read")
    if kind in "cmMV":
        raise _bad_dtype(name, {"c": "complex numbers", "V": "raw bytes"}.get(kind, "dates or durations"))
    try:
        storage = np.dtype(descr)
    except (TypeError, ValueError):
        raise _bad_dtype(name, f"the unknown type {descr!a}") from None
    if storage.itemsize > _MAX_STRING_BYTES or storage.itemsize == 0:
        raise _bad_dtype(name, f"items of {storage.itemsize} bytes")
    return storage


def _bad_dtype(name: str, what: str) -> InvalidArtifactError:
    return InvalidArtifactError(
        Reason.DATASET_DTYPE,
        f"the array {name!a} holds {what}; store booleans, integers or floating-point numbers",
        metadata={"array": name[:100]},
    )


Container = Literal["npz", "safetensors"]
