"""Opens the two containers of a dataset alike: what each array declares, and where its bytes are.

Every declared size is compared with the bytes that are there before anything is unpacked or allocated.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

import numpy as np

from pruning_server.archive import npy, safetensors
from pruning_server.archive.arrays import Container, Declared
from pruning_server.archive.foreign import HEAD_BYTES, LOCAL_ZIP_MAGIC, Format, is_safetensors, recognise, recognise_zip
from pruning_server.archive.limits import BLOCK_BYTES, ZipLimits
from pruning_server.archive.refusals import DATASET_REFUSALS, shown
from pruning_server.archive.zip_directory import Entry, read_directory
from pruning_server.archive.zip_format import STORED
from pruning_server.archive.zip_records import read_start, stream

_NPY_SUFFIX = ".npy"
_ADVICE = (
    "send an .npz (numpy.savez(path, inputs=..., targets=...)) or a .safetensors file with `inputs` and, optionally,"
    " `targets`, `split`, `groups`"
)


@dataclass(frozen=True)
class Member:
    """An array in a file. `entry` is the zip entry that holds it, None in a safetensors file."""

    declared: Declared
    offset: int
    header_bytes: int = 0
    entry: Entry | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its bytes lie in the file as they are, from `offset` on."""
        return self.entry is None or self.entry.method == STORED

    def blocks(self, source: BinaryIO) -> Iterator[bytes]:
        """Yields its bytes in pieces of whole elements, a few MiB each, verified where the container has checksums."""
        if self.entry is None:
            pieces = _read_range(source, self.offset, self.declared.size_bytes)
        else:
            pieces = _skip(stream(source, self.entry, DATASET_REFUSALS), self.header_bytes)
        return _whole_elements(pieces, self.declared.storage.itemsize)

    def flat(self, source: BinaryIO) -> np.ndarray:
        """Returns its elements in storage order: mapped where they lie plainly in a real file, else read into memory."""
        descriptor = _descriptor(source)
        if self.is_plain and descriptor is not None:
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            return np.frombuffer(mapped, self.declared.storage, self.declared.elements, self.offset)
        gathered = bytearray(self.declared.size_bytes)
        position = 0
        for block in self.blocks(source):
            gathered[position : position + len(block)] = block
            position += len(block)
        return np.frombuffer(gathered, self.declared.storage)

    def is_mappable(self, source: BinaryIO) -> bool:
        """Whether `flat` takes no memory."""
        return self.is_plain and _descriptor(source) is not None


@dataclass(frozen=True)
class OpenContainer:
    """The arrays of a file by name."""

    kind: Container
    members: dict[str, Member]


def open_container(source: BinaryIO, limits: ZipLimits) -> OpenContainer:
    """Recognises the container by its content and reads its declarations.

    Raises:
        InvalidArtifactError: it is neither, or damaged, or declares other sizes than it has.
    """
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    head = source.read(HEAD_BYTES)
    if size == 0:
        raise DATASET_REFUSALS.is_not_a_zip(f"the file is empty; {_ADVICE}")
    if head.startswith(LOCAL_ZIP_MAGIC):
        return OpenContainer("npz", _npz_members(source, limits))
    if is_safetensors(head, size):
        placed = safetensors.read_header(source)
        return OpenContainer("safetensors", {p.declared.name: Member(p.declared, p.offset) for p in placed})
    raise _wrong_format(recognise(head, size))


def _npz_members(source: BinaryIO, limits: ZipLimits) -> dict[str, Member]:
    entries = read_directory(source, DATASET_REFUSALS, limits)
    names = [entry.name for entry in entries]
    if not names or not all(name.endswith(_NPY_SUFFIX) for name in names):
        found = recognise_zip(names)
        if found is None and any("/code/" in name for name in names):
            found = Format("a TorchScript archive")
        if found is None and any(name.endswith(_NPY_SUFFIX) for name in names):
            other = next(name for name in names if not name.endswith(_NPY_SUFFIX))
            raise DATASET_REFUSALS.is_refused(f"the .npz holds {shown(other)}, which is no numpy array; remove it")
        raise _wrong_format(found or Format("a zip without numpy arrays"))
    members: dict[str, Member] = {}
    for entry in entries:
        name = entry.name.removesuffix(_NPY_SUFFIX)
        header = npy.parse_header(name, read_start(source, entry, DATASET_REFUSALS, npy.START_BYTES))
        wanted = header.header_bytes + header.declared.size_bytes
        if entry.size_bytes != wanted:
            raise DATASET_REFUSALS.is_corrupt(
                f"the array {shown(name)} declares {wanted} bytes with its header, and {entry.size_bytes} are there"
            )
        members[name] = Member(header.declared, entry.payload_offset + header.header_bytes, header.header_bytes, entry)
    return members


def _wrong_format(found: Format | None) -> Exception:
    what = "of no format that is known" if found is None else found.name
    return DATASET_REFUSALS.is_not_a_zip(f"the file is {what}, not a dataset; {_ADVICE}")


def _read_range(source: BinaryIO, offset: int, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        source.seek(offset + size_bytes - left)
        data = source.read(min(left, BLOCK_BYTES))
        if not data:
            raise DATASET_REFUSALS.is_truncated(f"the last {left} bytes of an array are missing")
        left -= len(data)
        yield data


def _skip(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if count < len(piece):
            return chain([piece[count:]], pieces)
        count -= len(piece)
    return iter(())


def _whole_elements(pieces: Iterator[bytes], itemsize: int) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        data = rest + piece if rest else piece
        whole = len(data) - len(data) % itemsize
        rest = data[whole:]
        if whole:
            yield data[:whole] if rest else data


def _descriptor(source: BinaryIO) -> int | None:
    try:
        return source.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return None
