"""Checks a dataset, writes it anew so that it can be mapped into memory, and opens it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pruning_server.archive import npy, safetensors
from pruning_server.archive.arrays import BFLOAT16, FLOAT_DTYPES, Declared
from pruning_server.archive.dataset_container import Member, OpenContainer, open_container
from pruning_server.archive.dataset_rules import SPLIT, SPLIT_MARKS, TARGETS, Layout, arrange
from pruning_server.archive.limits import BLOCK_BYTES, DEFAULT_LIMITS, MIB, ZipLimits
from pruning_server.archive.refusals import DATASET_REFUSALS, shown
from pruning_server.archive.zip_writer import ZipWriter
from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.spec.artifacts import DatasetSummary

# Turning the order of axes of an array that cannot be mapped takes it into memory.
MAX_UNMAPPED_TURN_BYTES = 256 * MIB
_BFLOAT16_EXPONENT = 0x7F80


@dataclass(frozen=True)
class Dataset:
    """A dataset's arrays, the first axis of each = samples; read-only, mapped from the file where they lie plainly in it.

    Attributes:
        inputs: in the order of forward's tensor arguments; bfloat16 as uint16.
        input_dtypes: numpy's name of each, or `bfloat16`.
        targets: None where there are none; `target_dtype` as above.
        split: uint8 [N]: 0 fit, 1 select, 2 report, 3 calibrate.
        groups: [N] integers or fixed strings.
    """

    inputs: tuple[np.ndarray, ...]
    input_dtypes: tuple[str, ...]
    targets: np.ndarray | None
    target_dtype: str | None
    split: np.ndarray | None
    groups: np.ndarray | None

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return int(self.inputs[0].shape[0])


def check_dataset(source: BinaryIO, *, limits: ZipLimits = DEFAULT_LIMITS) -> DatasetSummary:
    """Reads a whole dataset once, in flat memory, and returns what it holds.

    Raises:
        InvalidArtifactError: it is no dataset that the service takes; the message says what to change.
    """
    container, layout = _open(source, limits)
    for array in layout.arrays():
        for _ in _checked(source, container.members[array.name]):
            pass
    return layout.summary(container.kind, source.seek(0, os.SEEK_END))


def repack_dataset(source: BinaryIO, destination: BinaryIO, *, limits: ZipLimits = DEFAULT_LIMITS) -> DatasetSummary:
    """Checks a dataset and writes it anew: same container, nothing compressed, C order, little-endian, aligned.

    Args:
        source: the dataset, seekable.
        destination: empty, writable and seekable; what it holds after a refusal is of no use.
        limits: caps of the zip.

    Returns:
        the summary of what was written.

    Raises:
        InvalidArtifactError: as for `check_dataset`.
    """
    container, layout = _open(source, limits)
    write = _write_npz if container.kind == "npz" else _write_safetensors
    size = write(destination, layout, lambda array: _canonical(source, container.members[array.name]))
    canonical = Layout(*_in_c_order(layout))
    return canonical.summary(container.kind, size)


def open_dataset(path: Path, *, limits: ZipLimits = DEFAULT_LIMITS) -> Dataset:
    """Opens a dataset that the gate wrote; its values are not checked again.

    Raises:
        InvalidArtifactError: its structure is not that of a dataset.
        OSError: the file cannot be read.
    """
    with path.open("rb") as source:
        container, layout = _open(source, limits)
        arrays = {array.name: _array(source, container.members[array.name]) for array in layout.arrays()}
    return Dataset(
        inputs=tuple(arrays[array.name] for array in layout.inputs),
        input_dtypes=tuple(array.dtype for array in layout.inputs),
        targets=arrays.get(TARGETS),
        target_dtype=None if layout.targets is None else layout.targets.dtype,
        split=arrays.get(SPLIT),
        groups=None if layout.groups is None else arrays[layout.groups.name],
    )


def _open(source: BinaryIO, limits: ZipLimits) -> tuple[OpenContainer, Layout]:
    container = open_container(source, limits)
    return container, arrange(member.declared for member in container.members.values())


def _array(source: BinaryIO, member: Member) -> np.ndarray:
    declared = member.declared
    array = member.flat(source).reshape(declared.shape, order="F" if declared.fortran_order else "C")
    array.flags.writeable = False
    return array


def _write_npz(destination: BinaryIO, layout: Layout, content: Callable[[Declared], Iterable[bytes]]) -> int:
    writer = ZipWriter(destination)
    for array in layout.arrays():
        header = npy.build_header(array)
        writer.store(f"{array.name}.npy", len(header) + array.size_bytes, _after(header, content(array)))
    return writer.close()


def _after(header: bytes, blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield header
    yield from blocks


def _write_safetensors(destination: BinaryIO, layout: Layout, content: Callable[[Declared], Iterable[bytes]]) -> int:
    # Widest first, as the format's own writer does: so every tensor is aligned to its elements, without gaps.
    arrays = tuple(sorted(layout.arrays(), key=lambda array: -array.storage.itemsize))
    size = destination.write(safetensors.build_header(arrays))
    for array in arrays:
        for block in content(array):
            size += destination.write(block)
    return size


def _in_c_order(
    layout: Layout,
) -> tuple[tuple[Declared, ...], Declared | None, Declared | None, Declared | None]:
    def turned(array: Declared | None) -> Declared | None:
        return array and Declared(array.name, array.dtype, array.canonical_storage, array.shape)

    inputs = tuple(Declared(a.name, a.dtype, a.canonical_storage, a.shape) for a in layout.inputs)
    return inputs, turned(layout.targets), turned(layout.split), turned(layout.groups)


def _canonical(source: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yields the elements in C order and little-endian."""
    declared = member.declared
    if declared.fortran_order:
        yield from _turned(source, member)
        return
    swap = declared.storage != declared.canonical_storage
    for block in _checked(source, member):
        yield np.frombuffer(block, declared.storage).astype(declared.canonical_storage).tobytes() if swap else block


def _turned(source: BinaryIO, member: Member) -> Iterator[bytes]:
    declared = member.declared
    if declared.size_bytes > MAX_UNMAPPED_TURN_BYTES and not member.is_mappable(source):
        raise DATASET_REFUSALS.is_refused(
            f"the array {shown(declared.name)} is compressed, in Fortran order and {declared.size_bytes} bytes large;"
            " store numpy.ascontiguousarray(array) instead"
        )
    for _ in _checked(source, member):
        pass
    array = member.flat(source).reshape(declared.shape, order="F")
    rows = max(1, BLOCK_BYTES * declared.shape[0] // declared.size_bytes)
    for start in range(0, declared.shape[0], rows):
        yield array[start : start + rows].astype(declared.canonical_storage, order="C").tobytes()


def _checked(source: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yields the elements in storage order, and refuses values that no training can use."""
    find_bad = _BAD_VALUES.get(_rule(member.declared))
    first = 0
    for block in member.blocks(source):
        elements = np.frombuffer(block, member.declared.storage)
        if find_bad is not None:
            bad = find_bad(elements)
            if bad is not None:
                raise _bad_value(member.declared, first + bad, elements[bad])
        first += len(elements)
        yield block


def _rule(declared: Declared) -> str:
    if declared.name == SPLIT:
        return SPLIT
    if declared.dtype in {"bool", BFLOAT16}:
        return declared.dtype
    return "float" if declared.dtype in FLOAT_DTYPES else ""


def _first(is_bad: np.ndarray) -> int | None:
    return int(is_bad.argmax()) if is_bad.any() else None


_BAD_VALUES: dict[str, Callable[[np.ndarray], int | None]] = {
    "float": lambda values: _first(~np.isfinite(values)),
    BFLOAT16: lambda values: _first((values & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT),
    "bool": lambda values: _first(values.view(np.uint8) > 1),
    SPLIT: lambda values: _first(values > max(SPLIT_MARKS)),
}


def _bad_value(declared: Declared, element: int, value: np.generic) -> InvalidArtifactError:
    row = declared.row_of(element)
    where = {"array": declared.name, "row": str(row)}
    if declared.name == SPLIT:
        known = ", ".join(f"{mark} {part}" for mark, part in SPLIT_MARKS.items())
        return InvalidArtifactError(
            Reason.DATASET_SPLIT, f"split[{row}] is {value}; it must be one of {known}", metadata=where
        )
    if declared.dtype == "bool":
        return DATASET_REFUSALS.is_corrupt(
            f"the array {shown(declared.name)} has a byte in row {row} that is no boolean"
        )
    what = "Inf or NaN" if declared.dtype == BFLOAT16 else ("NaN" if np.isnan(value) else "Inf")
    return InvalidArtifactError(
        Reason.DATASET_NOT_FINITE,
        f"the array {shown(declared.name)} holds {what}, first in row {row}; remove or fill those samples",
        metadata=where,
    )
