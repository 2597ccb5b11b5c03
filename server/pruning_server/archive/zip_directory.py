"""Reads the table of contents of a zip so strictly that no two readers can disagree about what it holds.

Nothing before, between or after the entries; every local header says the same as the central directory; names are
unique even where case is ignored, as torch ignores it. Payloads are not read here: `zip_records`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from pruning_server.archive.limits import ZipLimits
from pruning_server.archive.refusals import Refusals, shown
from pruning_server.archive.zip_end import read_end
from pruning_server.archive.zip_format import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    DEFLATED,
    FLAG_DESCRIPTOR,
    FLAG_ENCRYPTED,
    FLAG_UTF8,
    LOCAL,
    LOCAL_SIGNATURE,
    STORED,
    UINT16_MAX,
    UINT32_MAX,
    ZIP64_EXTRA_ID,
)

# Bits 1 and 2 only tell how hard the packer tried.
_KNOWN_FLAGS = FLAG_DESCRIPTOR | FLAG_UTF8 | 0x0006
_ENCRYPTION_FLAGS = FLAG_ENCRYPTED | 0x0040 | 0x2000
# A data descriptor has 12 bytes, 20 with 64-bit sizes, and 4 more with its optional signature.
_DESCRIPTOR_BYTES = frozenset({12, 16, 20, 24})
_NO_BYTES = frozenset({0})
_METHOD_NAMES = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES"}


@dataclass(frozen=True)
class Entry:
    """One file of a zip; sizes and offsets in bytes."""

    name: str
    method: int
    crc32: int
    packed_bytes: int
    size_bytes: int
    header_offset: int
    payload_offset: int

    @property
    def end_offset(self) -> int:
        """Where the payload ends."""
        return self.payload_offset + self.packed_bytes


@dataclass(frozen=True)
class _Central:
    """An entry as the central directory tells it."""

    raw_name: bytes
    flags: int
    method: int
    crc32: int
    packed_bytes: int
    size_bytes: int
    header_offset: int


def read_directory(source: BinaryIO, refusals: Refusals, limits: ZipLimits) -> tuple[Entry, ...]:
    """Returns the entries of a zip in the order in which they lie in the file; folder entries are left out.

    Raises:
        InvalidArtifactError: the zip is truncated, damaged, or holds what is refused.
    """
    total = source.seek(0, os.SEEK_END)
    end = read_end(source, total, refusals)
    if end.entries > limits.max_entries or end.directory_bytes > limits.max_directory_bytes:
        raise refusals.is_refused(
            f"the {refusals.noun} has {end.entries} entries; at most {limits.max_entries} are taken"
        )
    source.seek(end.directory_offset)
    directory = source.read(end.directory_bytes)
    centrals = sorted(_parse_directory(directory, end.entries, refusals, limits), key=lambda c: c.header_offset)
    entries = [_locate(source, central, end.directory_offset, refusals) for central in centrals]
    _check_layout(centrals, entries, end.directory_offset, refusals)
    _check_names(entries, refusals)
    _check_sizes(entries, refusals, limits)
    return tuple(entry for entry in entries if not entry.name.endswith("/"))


def _parse_directory(data: bytes, count: int, refusals: Refusals, limits: ZipLimits) -> list[_Central]:
    found: list[_Central] = []
    position = 0
    damaged = refusals.is_corrupt(f"the table of contents of the {refusals.noun} is broken")
    while position < len(data):
        if len(data) - position < CENTRAL.size or not data.startswith(CENTRAL_SIGNATURE, position):
            raise damaged
        fields = CENTRAL.unpack_from(data, position)
        _, _, _, flags, method, _, _, crc32, packed, size, name_bytes, extra_bytes, comment_bytes, disk, _, _, at = (
            fields
        )
        name_end = position + CENTRAL.size + name_bytes
        end = name_end + extra_bytes + comment_bytes
        if end > len(data) or disk not in {0, UINT16_MAX}:
            raise damaged
        raw_name = data[position + CENTRAL.size : name_end]
        if name_bytes > limits.max_name_bytes:
            raise refusals.is_refused(
                f"an entry's name has {name_bytes} bytes; at most {limits.max_name_bytes} are taken"
            )
        sizes = _widen(size, packed, at, data[name_end : name_end + extra_bytes])
        if sizes is None:
            raise damaged
        found.append(_Central(raw_name, flags, method, crc32, sizes[1], sizes[0], sizes[2]))
        position = end
    if len(found) != count:
        raise damaged
    return found


def _widen(size: int, packed: int, offset: int, extra: bytes) -> tuple[int, int, int] | None:
    """Takes from the ZIP64 extra field what does not fit into 32 bits; None: it should be there and is not."""
    wanted = [value == UINT32_MAX for value in (size, packed, offset)]
    if not any(wanted):
        return size, packed, offset
    field = _extra_field(extra, ZIP64_EXTRA_ID)
    if field is None or len(field) < 8 * sum(wanted):
        return None
    wide = iter(struct.unpack_from(f"<{sum(wanted)}Q", field))
    size, packed, offset = (
        next(wide) if is_wide else value for is_wide, value in zip(wanted, (size, packed, offset), strict=True)
    )
    return size, packed, offset


def _extra_field(extra: bytes, wanted_id: int) -> bytes | None:
    position = 0
    while position + 4 <= len(extra):
        field_id, size = struct.unpack_from("<2H", extra, position)
        if field_id == wanted_id:
            return extra[position + 4 : position + 4 + size]
        position += 4 + size
    return None


def _locate(source: BinaryIO, central: _Central, directory_offset: int, refusals: Refusals) -> Entry:
    """Reads the local header, refuses what differs from the central directory, and finds the payload."""
    name = _decode_name(central, refusals)
    if central.flags & _ENCRYPTION_FLAGS:
        raise refusals.is_refused(f"the entry {shown(name)} is encrypted; send the {refusals.noun} without a password")
    if central.method not in {STORED, DEFLATED}:
        method = _METHOD_NAMES.get(central.method, f"method {central.method}")
        raise refusals.is_refused(f"the entry {shown(name)} is packed by {method}; only stored and deflated are taken")
    damaged = refusals.is_corrupt(f"the entry {shown(name)} contradicts the table of contents")
    if central.flags & ~_KNOWN_FLAGS or central.header_offset + LOCAL.size > directory_offset:
        raise damaged
    source.seek(central.header_offset)
    fields = LOCAL.unpack(source.read(LOCAL.size))
    signature, _, flags, method, _, _, crc32, packed, size, name_bytes, extra_bytes = fields
    if (signature, method, name_bytes) != (LOCAL_SIGNATURE, central.method, len(central.raw_name)):
        raise damaged
    variable = source.read(name_bytes + extra_bytes)
    if variable[:name_bytes] != central.raw_name or (flags ^ central.flags) & ~0x0006:
        raise damaged
    local = _widen(size, packed, 0, variable[name_bytes:])
    stated = (central.size_bytes, central.packed_bytes, central.crc32)
    has_descriptor = bool(flags & FLAG_DESCRIPTOR)
    if local is None or ((*local[:2], crc32) != stated and not (has_descriptor and (*local[:2], crc32) == (0, 0, 0))):
        raise damaged
    if central.method == STORED and central.size_bytes != central.packed_bytes:
        raise damaged
    payload_offset = central.header_offset + LOCAL.size + name_bytes + extra_bytes
    return Entry(
        name,
        central.method,
        central.crc32,
        central.packed_bytes,
        central.size_bytes,
        central.header_offset,
        payload_offset,
    )


def _decode_name(central: _Central, refusals: Refusals) -> str:
    encoding = "utf-8" if central.flags & FLAG_UTF8 else "ascii"
    try:
        return central.raw_name.decode(encoding)
    except UnicodeDecodeError:
        name = shown(central.raw_name.decode("latin-1"))
        raise refusals.is_refused(f"the entry name {name} is not {encoding}; rename it and save again") from None


def _check_layout(centrals: list[_Central], entries: list[Entry], directory_offset: int, refusals: Refusals) -> None:
    """Every byte belongs to an entry: they follow each other without gap or overlap, from the first byte on."""
    starts = [entry.header_offset for entry in entries] + [directory_offset]
    if starts[0] != 0:
        raise refusals.is_refused(f"the {refusals.noun} has {starts[0]} bytes before its first entry; remove them")
    for central, entry, next_start in zip(centrals, entries, starts[1:], strict=True):
        gap = next_start - entry.end_offset
        allowed = _DESCRIPTOR_BYTES if central.flags & FLAG_DESCRIPTOR else _NO_BYTES
        if gap < 0:
            raise refusals.is_corrupt(f"the entry {shown(entry.name)} reaches into the one behind it")
        if gap not in allowed:
            raise refusals.is_refused(
                f"behind the entry {shown(entry.name)} lie {gap} bytes that belong to no entry; save the {refusals.noun}"
                " again with the tool that made it"
            )


def _check_names(entries: list[Entry], refusals: Refusals) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        name = entry.name
        parts = name.removesuffix("/").split("/")
        if not name.isprintable() or "\\" in name or any(part in {"", ".", ".."} for part in parts):
            raise refusals.is_refused(f"the entry name {shown(name)} is not a plain relative path; rename it")
        # As torch compares: ASCII letters only. A second reader must not find another entry under the same name.
        folded = "".join(c.lower() if c.isascii() else c for c in name)
        if folded in seen:
            both = f"{shown(seen[folded])} and {shown(name)}" if seen[folded] != name else f"{shown(name)} twice"
            raise refusals.is_refused(f"the {refusals.noun} holds {both}; names must differ by more than case")
        seen[folded] = name


def _check_sizes(entries: list[Entry], refusals: Refusals, limits: ZipLimits) -> None:
    unpacked = sum(entry.size_bytes for entry in entries)
    packed = sum(entry.packed_bytes for entry in entries)
    if unpacked > limits.unpacked_allowance(packed):
        raise refusals.is_refused(
            f"the {refusals.noun} unpacks from {packed} to {unpacked} bytes; at most"
            f" {limits.unpacked_allowance(packed)} are taken: send it with less compression, or a smaller one"
        )
    for entry in entries:
        if entry.name.endswith("/") and entry.size_bytes:
            raise refusals.is_refused(f"the folder entry {shown(entry.name)} holds bytes; remove it")
