"""The caps of the gate. They bound what one file can cost; nothing that trains on one machine comes near them."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

BLOCK_BYTES = 4 * MIB
ALIGNMENT_BYTES = 64

# Of all files of source together: Python's parser takes half a second for a MiB, and torch's much longer.
MAX_SOURCE_FILE_BYTES = MAX_SOURCE_BYTES = 2 * MIB
# Line tables, which nothing reads before an error, included.
MAX_CODE_BYTES = 32 * MIB
MAX_PICKLE_BYTES = 64 * MIB
MAX_SMALL_RECORD_BYTES = 4 * KIB
MAX_SAFETENSORS_HEADER_BYTES = 8 * MIB
MAX_NPY_HEADER_BYTES = 8 * KIB
MAX_ARRAY_AXES = 16


@dataclass(frozen=True)
class ZipLimits:
    """What a zip may hold. A deflated file may unpack to `free_bytes`, and beyond that to `max_ratio` times its size."""

    max_entries: int = 50_000
    max_name_bytes: int = 1024
    max_directory_bytes: int = 32 * MIB
    max_unpacked_bytes: int = 64 * GIB
    max_ratio: int = 300
    free_bytes: int = 256 * MIB

    def unpacked_allowance(self, packed_bytes: int) -> int:
        """How many bytes may come out of `packed_bytes` bytes."""
        return min(self.max_unpacked_bytes, max(self.free_bytes, self.max_ratio * packed_bytes))


DEFAULT_LIMITS = ZipLimits()
