"""Headers of the safetensors format, read strictly and written canonically.

Format: huggingface/safetensors README. Eight bytes of length, a JSON object of dtype, shape and offsets per tensor, and
the tensors, which must cover the rest of the file without gap or overlap.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from pruning_server.archive.arrays import BFLOAT16, Declared
from pruning_server.archive.limits import ALIGNMENT_BYTES, MAX_SAFETENSORS_HEADER_BYTES
from pruning_server.archive.npy import check_shape
from pruning_server.archive.refusals import DATASET_REFUSALS, shown
from pruning_server.errors import InvalidArtifactError, Reason

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}
# (name, numpy dtype of the bytes) by the format's own names
_DTYPES: dict[str, tuple[str, str]] = {
    "BOOL": ("bool", "|b1"),
    "U8": ("uint8", "|u1"),
    "I8": ("int8", "|i1"),
    "I16": ("int16", "<i2"),
    "I32": ("int32", "<i4"),
    "I64": ("int64", "<i8"),
    "U16": ("uint16", "<u2"),
    "U32": ("uint32", "<u4"),
    "U64": ("uint64", "<u8"),
    "F16": ("float16", "<f2"),
    "BF16": (BFLOAT16, "<u2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
}
_FORMAT_NAMES = {name: format_name for format_name, (name, _) in _DTYPES.items()}


@dataclass(frozen=True)
class Placed:
    """A declared tensor and where its bytes begin in the file."""

    declared: Declared
    offset: int


def read_header(source: BinaryIO) -> tuple[Placed, ...]:
    """Returns the tensors of a file in the order of their bytes.

    Raises:
        InvalidArtifactError: the header is damaged, or does not describe exactly the bytes of the file.
    """
    total = source.seek(0, os.SEEK_END)
    source.seek(0)
    start = source.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or length > total - _LENGTH_BYTES:
        raise DATASET_REFUSALS.is_truncated("the header of the safetensors file is not whole")
    if length > MAX_SAFETENSORS_HEADER_BYTES:
        raise DATASET_REFUSALS.is_refused(
            f"the header of the safetensors file has {length} bytes; at most {MAX_SAFETENSORS_HEADER_BYTES} are taken"
        )
    fields = _parse(source.read(length))
    fields.pop(_METADATA, None)
    tensors = [_tensor(name, value) for name, value in fields.items()]
    tensors.sort(key=lambda tensor: (tensor[1], tensor[2]))
    expected = 0
    for declared, begin, end in tensors:
        if begin != expected or end - begin != declared.size_bytes:
            raise DATASET_REFUSALS.is_corrupt(
                f"the tensor {shown(declared.name)} declares {declared.size_bytes} bytes and lies at {begin} to {end};"
                f" {expected} to {expected + declared.size_bytes} was expected"
            )
        expected = end
    present = total - _LENGTH_BYTES - length
    if present < expected:
        raise DATASET_REFUSALS.is_truncated(f"{present} of {expected} bytes of the tensors are there")
    if present > expected:
        raise DATASET_REFUSALS.is_refused(
            f"the file has {present - expected} bytes behind its last tensor; remove them"
        )
    return tuple(Placed(declared, _LENGTH_BYTES + length + begin) for declared, begin, _ in tensors)


def build_header(arrays: tuple[Declared, ...]) -> bytes:
    """Returns the header of a file that holds these arrays in this order; its length is a multiple of 64 bytes."""
    fields: dict[str, object] = {}
    offset = 0
    for array in arrays:
        end = offset + array.size_bytes
        fields[array.name] = {
            "dtype": _FORMAT_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _parse(header: bytes) -> dict[str, object]:
    try:
        fields = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DATASET_REFUSALS.is_corrupt(f"the header of the safetensors file is not valid ({error})") from error
    if not isinstance(fields, dict):
        raise DATASET_REFUSALS.is_corrupt("the header of the safetensors file is not an object")
    return fields


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _tensor(name: str, value: object) -> tuple[Declared, int, int]:
    damaged = DATASET_REFUSALS.is_corrupt(f"the description of the tensor {shown(name)} is broken")
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise damaged
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise damaged
    check_shape(name, tuple(shape))
    check_shape(name, tuple(offsets))
    known = _DTYPES.get(dtype)
    if known is None:
        raise InvalidArtifactError(
            Reason.DATASET_DTYPE,
            f"the tensor {shown(name)} is of type {shown(dtype)}; store booleans, integers or floating-point numbers",
        )
    return Declared(name, known[0], np.dtype(known[1]), tuple(shape)), offsets[0], offsets[1]
