"""Writes the canonical zip: payloads aligned to 64 bytes, fixed dates, no descriptors, ZIP64 only where it is needed.

The same entries always give the same bytes. torch maps aligned tensors straight into memory; numpy arrays likewise.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import BinaryIO

from pruning_server.archive.limits import ALIGNMENT_BYTES
from pruning_server.archive.zip_directory import Entry
from pruning_server.archive.zip_format import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    DEFLATED,
    END,
    END64,
    END64_SIGNATURE,
    END_SIGNATURE,
    FLAG_UTF8,
    LOCAL,
    LOCAL_SIGNATURE,
    LOCATOR64,
    LOCATOR64_SIGNATURE,
    STORED,
    UINT16_MAX,
    UINT32_MAX,
    ZIP64_EXTRA_ID,
)

_VERSION = 20
_VERSION_ZIP64 = 45
# 1980-01-01 00:00, the first moment that a zip can name.
_DOS_DATE = 0x0021
# The extra field by which torch itself aligns: an id, a length, and filling.
_PADDING_ID = 0x4246
_FILLER = b"Z"
_EXTRA_HEADER_BYTES = 4
_COMPRESSION_LEVEL = 6


class ZipWriter:
    """Appends entries to an empty, seekable file; `close` writes the table of contents.

    Args:
        destination: opened for writing, at its start.
        zip64_from: sizes and offsets from here on are written in 64 bits; lower only to try that out.
    """

    def __init__(self, destination: BinaryIO, *, zip64_from: int = UINT32_MAX) -> None:
        self._destination = destination
        self._zip64_from = zip64_from
        self._entries: list[Entry] = []
        self._offset = 0

    def copy(self, name: str, entry: Entry, packed: Iterable[bytes]) -> Entry:
        """Writes an entry of another zip under `name` as it is packed there; `packed` yields all of its bytes."""
        offset = self._begin(name, entry.method, entry.size_bytes, entry.packed_bytes, entry.crc32)
        for data in packed:
            self._destination.write(data)
        return self._end(name, entry.method, entry.size_bytes, entry.packed_bytes, entry.crc32, offset)

    def store(self, name: str, size_bytes: int, content: Iterable[bytes]) -> Entry:
        """Writes an entry of `size_bytes` bytes without compression."""
        offset = self._begin(name, STORED, size_bytes, size_bytes, 0)
        crc32 = 0
        for data in content:
            crc32 = zlib.crc32(data, crc32)
            self._destination.write(data)
        self._rewrite_header(name, STORED, size_bytes, size_bytes, crc32)
        return self._end(name, STORED, size_bytes, size_bytes, crc32, offset)

    def deflate(self, name: str, entry: Entry, content: Iterable[bytes], packed_range: range) -> Entry | None:
        """Writes a stored entry of another zip deflated; nothing, and returns None, where its size is not in the range."""
        offset = self._begin(name, DEFLATED, entry.size_bytes, entry.packed_bytes, entry.crc32)
        packer = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed_bytes = 0
        for data in content:
            # Still read to the end where it does not pay: the reader verifies the checksum with the last block.
            if packed_bytes < packed_range.stop:
                packed_bytes += self._destination.write(packer.compress(data))
        packed_bytes += self._destination.write(packer.flush())
        if packed_bytes not in packed_range:
            self._destination.seek(self._offset)
            self._destination.truncate()
            return None
        self._rewrite_header(name, DEFLATED, entry.size_bytes, packed_bytes, entry.crc32)
        return self._end(name, DEFLATED, entry.size_bytes, packed_bytes, entry.crc32, offset)

    def close(self) -> int:
        """Writes the table of contents and returns the size of the file in bytes."""
        start = self._offset
        for entry in self._entries:
            self._write(self._central(entry))
        size = self._offset - start
        count = len(self._entries)
        if count >= UINT16_MAX or size >= self._zip64_from or start >= self._zip64_from:
            position = self._offset
            self._write(
                END64.pack(
                    END64_SIGNATURE, END64.size - 12, _VERSION_ZIP64, _VERSION_ZIP64, 0, 0, count, count, size, start
                )
            )
            self._write(LOCATOR64.pack(LOCATOR64_SIGNATURE, 0, position, 1))
        narrow_count = min(count, UINT16_MAX)
        self._write(
            END.pack(END_SIGNATURE, 0, 0, narrow_count, narrow_count, self._narrow(size), self._narrow(start), 0)
        )
        return self._offset

    def _begin(self, name: str, method: int, size: int, packed: int, crc32: int) -> int:
        header = self._local(name, method, size, packed, crc32)
        self._destination.write(header)
        return self._offset + len(header)

    def _rewrite_header(self, name: str, method: int, size: int, packed: int, crc32: int) -> None:
        here = self._destination.tell()
        self._destination.seek(self._offset)
        self._destination.write(self._local(name, method, size, packed, crc32))
        self._destination.seek(here)

    def _end(self, name: str, method: int, size: int, packed: int, crc32: int, payload_offset: int) -> Entry:
        entry = Entry(name, method, crc32, packed, size, self._offset, payload_offset)
        self._entries.append(entry)
        self._offset = entry.end_offset
        return entry

    def _write(self, data: bytes) -> None:
        self._destination.write(data)
        self._offset += len(data)

    def _local(self, name: str, method: int, size: int, packed: int, crc32: int) -> bytes:
        """The local header, as long for every method, packed size and checksum: it is rewritten in place."""
        raw_name = name.encode()
        wide = max(size, packed) >= self._zip64_from
        extra = _extra(ZIP64_EXTRA_ID, size.to_bytes(8, "little") + packed.to_bytes(8, "little")) if wide else b""
        unpadded = self._offset + LOCAL.size + len(raw_name) + len(extra) + _EXTRA_HEADER_BYTES
        extra += _extra(_PADDING_ID, _FILLER * (-unpadded % ALIGNMENT_BYTES))
        header = LOCAL.pack(
            LOCAL_SIGNATURE, _VERSION_ZIP64 if wide else _VERSION, _flags(name), method, 0, _DOS_DATE, crc32,
            UINT32_MAX if wide else packed, UINT32_MAX if wide else size, len(raw_name), len(extra),
        )  # fmt: skip
        return header + raw_name + extra

    def _central(self, entry: Entry) -> bytes:
        raw_name = entry.name.encode()
        # Both sizes are wide or none, as in the local header.
        sizes = [entry.size_bytes, entry.packed_bytes]
        wide = sizes if max(sizes) >= self._zip64_from else []
        size, packed = (UINT32_MAX, UINT32_MAX) if wide else (entry.size_bytes, entry.packed_bytes)
        offset = self._narrow(entry.header_offset)
        wide += [entry.header_offset] if offset == UINT32_MAX else []
        extra = _extra(ZIP64_EXTRA_ID, b"".join(value.to_bytes(8, "little") for value in wide)) if wide else b""
        version = _VERSION_ZIP64 if wide else _VERSION
        header = CENTRAL.pack(
            CENTRAL_SIGNATURE, version, version, _flags(entry.name), entry.method, 0, _DOS_DATE, entry.crc32,
            packed, size, len(raw_name), len(extra), 0, 0, 0, 0, offset,
        )  # fmt: skip
        return header + raw_name + extra

    def _narrow(self, value: int) -> int:
        return UINT32_MAX if value >= self._zip64_from else value


def _extra(field_id: int, data: bytes) -> bytes:
    return field_id.to_bytes(2, "little") + len(data).to_bytes(2, "little") + data


def _flags(name: str) -> int:
    return 0 if name.isascii() else FLAG_UTF8
