"""Headers of numpy's .npy format, versions 1 to 3, read without numpy's own parser and written canonically.

Format: numpy NEP 1. A header says dtype, order and shape as a Python literal; it is parsed as one and nothing more.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

import numpy as np

from pruning_server.archive.arrays import Declared, numpy_storage
from pruning_server.archive.foreign import NPY_MAGIC
from pruning_server.archive.limits import ALIGNMENT_BYTES, MAX_ARRAY_AXES, MAX_NPY_HEADER_BYTES
from pruning_server.archive.refusals import DATASET_REFUSALS, shown

START_BYTES = MAX_NPY_HEADER_BYTES + 16
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_KEYS = {"descr", "fortran_order", "shape"}
_MAX_AXIS = 1 << 48


@dataclass(frozen=True)
class NpyHeader:
    """What an .npy declares, and how many bytes the header takes."""

    declared: Declared
    header_bytes: int


def parse_header(name: str, start: bytes) -> NpyHeader:
    """Reads a header from the first `START_BYTES` bytes of an .npy.

    Raises:
        InvalidArtifactError: it is no .npy, or declares what no dataset may hold.
    """
    if len(start) < 10 or not start.startswith(NPY_MAGIC):
        raise DATASET_REFUSALS.is_corrupt(f"{shown(name)} is not a numpy array")
    length_bytes = _LENGTH_BYTES.get(start[6])
    if length_bytes is None:
        raise DATASET_REFUSALS.is_refused(
            f"{shown(name)} is written in version {start[6]} of the .npy format; numpy.savez writes 1 to 3"
        )
    header_start = 8 + length_bytes
    length = int.from_bytes(start[8:header_start], "little")
    if length > MAX_NPY_HEADER_BYTES or header_start + length > len(start):
        raise DATASET_REFUSALS.is_corrupt(f"the header of the array {shown(name)} has {length} bytes")
    fields = _literal(name, start[header_start : header_start + length], "utf-8" if start[6] == 3 else "latin-1")
    storage = numpy_storage(name, fields["descr"])
    shape, fortran_order = fields["shape"], fields["fortran_order"]
    if not isinstance(fortran_order, bool) or not isinstance(shape, tuple):
        raise DATASET_REFUSALS.is_corrupt(f"the header of the array {shown(name)} is broken")
    check_shape(name, shape)
    declared = Declared(name, _dtype_name(storage), storage, shape, fortran_order and len(shape) > 1)
    return NpyHeader(declared, header_start + length)


def build_header(declared: Declared) -> bytes:
    """Returns the header of the canonical copy, which is in C order; its length is a multiple of 64."""
    fields = f"{{'descr': {declared.canonical_storage.str!r}, 'fortran_order': False, 'shape': {declared.shape!r}, }}"
    unpadded = len(NPY_MAGIC) + 4 + len(fields) + 1
    text = fields + " " * (-unpadded % ALIGNMENT_BYTES) + "\n"
    return NPY_MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")


def check_shape(name: str, shape: tuple[object, ...]) -> None:
    """Raises InvalidArtifactError unless the shape is one of a few plain, non-negative integers."""
    plain = all(isinstance(axis, int) and not isinstance(axis, bool) and 0 <= axis <= _MAX_AXIS for axis in shape)
    if not plain:
        raise DATASET_REFUSALS.is_corrupt(f"the array {shown(name)} declares the impossible shape {shown(str(shape))}")
    if len(shape) > MAX_ARRAY_AXES:
        raise DATASET_REFUSALS.is_refused(
            f"the array {shown(name)} has {len(shape)} axes; at most {MAX_ARRAY_AXES} are taken"
        )


def _literal(name: str, header: bytes, encoding: str) -> dict[str, object]:
    damaged = DATASET_REFUSALS.is_corrupt(f"the header of the array {shown(name)} is broken")
    try:
        fields = ast.literal_eval(header.decode(encoding).strip())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise damaged from error
    if not isinstance(fields, dict) or set(fields) != _KEYS:
        raise damaged
    return fields


def _dtype_name(storage: np.dtype[np.generic]) -> str:
    """As numpy names the dtype, whatever its byte order."""
    return storage.newbyteorder("=").name
