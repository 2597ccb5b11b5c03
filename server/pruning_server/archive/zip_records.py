"""Streams the payloads of a zip, block by block, and proves each against its declared size and CRC-32."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pruning_server.archive.limits import BLOCK_BYTES
from pruning_server.archive.refusals import Refusals, shown
from pruning_server.archive.zip_directory import Entry
from pruning_server.archive.zip_format import STORED

# Deflated input is fed in small pieces, so that a bomb cannot make one call return much more than a block.
_PACKED_BLOCK_BYTES = 64 * 1024
_RAW_DEFLATE = -zlib.MAX_WBITS


@dataclass(frozen=True)
class Block:
    """A piece of an entry: the bytes as they lie in the file, and what they unpack to. Either may be empty."""

    packed: bytes
    unpacked: bytes


def stream_blocks(source: BinaryIO, entry: Entry, refusals: Refusals) -> Iterator[Block]:
    """Yields an entry in pieces of a few MiB at most; raises after the last if size or CRC-32 do not fit.

    Raises:
        InvalidArtifactError: the entry is damaged, or is longer or shorter than declared.
    """
    blocks = _stored(source, entry) if entry.method == STORED else _deflated(source, entry, refusals)
    crc32 = size = 0
    for block in blocks:
        crc32 = zlib.crc32(block.unpacked, crc32)
        size += len(block.unpacked)
        if size > entry.size_bytes:
            break
        yield block
    if size != entry.size_bytes:
        raise refusals.is_corrupt(
            f"the entry {shown(entry.name)} has not the {entry.size_bytes} bytes that it declares"
        )
    if crc32 != entry.crc32:
        raise refusals.is_corrupt(f"the bytes of the entry {shown(entry.name)} do not match their checksum")


def stream(source: BinaryIO, entry: Entry, refusals: Refusals) -> Iterator[bytes]:
    """Yields the content of an entry, verified as in `stream_blocks`."""
    for block in stream_blocks(source, entry, refusals):
        if block.unpacked:
            yield block.unpacked


def read_all(source: BinaryIO, entry: Entry, refusals: Refusals, limit_bytes: int) -> bytes:
    """Returns the whole, verified content of a small entry.

    Raises:
        InvalidArtifactError: it is damaged, or larger than `limit_bytes`.
    """
    if entry.size_bytes > limit_bytes:
        raise refusals.is_refused(f"{shown(entry.name)} has {entry.size_bytes} bytes; at most {limit_bytes} are taken")
    return b"".join(stream(source, entry, refusals))


def verify(source: BinaryIO, entry: Entry, refusals: Refusals) -> None:
    """Reads an entry once and keeps nothing; raises as `stream_blocks` does."""
    for _ in stream_blocks(source, entry, refusals):
        pass


def read_start(source: BinaryIO, entry: Entry, refusals: Refusals, count: int) -> bytes:
    """Returns the first `count` bytes of an entry, or all if it has fewer; the checksum is not looked at."""
    source.seek(entry.payload_offset)
    if entry.method == STORED:
        return source.read(min(count, entry.packed_bytes))
    unpacker = zlib.decompressobj(_RAW_DEFLATE)
    left = entry.packed_bytes
    start = b""
    try:
        while left and len(start) < count and not unpacker.eof:
            packed = source.read(min(left, _PACKED_BLOCK_BYTES))
            if not packed:
                break
            left -= len(packed)
            start += unpacker.decompress(packed, count - len(start))
    except zlib.error as error:
        raise _undecodable(entry, refusals) from error
    return start


def _stored(source: BinaryIO, entry: Entry) -> Iterator[Block]:
    source.seek(entry.payload_offset)
    left = entry.packed_bytes
    while left:
        data = source.read(min(left, BLOCK_BYTES))
        if not data:
            return
        left -= len(data)
        yield Block(data, data)
        # Whoever takes the blocks may have moved the file's position.
        source.seek(entry.end_offset - left)


def _deflated(source: BinaryIO, entry: Entry, refusals: Refusals) -> Iterator[Block]:
    unpacker = zlib.decompressobj(_RAW_DEFLATE)
    left = entry.packed_bytes
    try:
        while left:
            source.seek(entry.end_offset - left)
            packed = source.read(min(left, _PACKED_BLOCK_BYTES))
            if not packed or unpacker.eof:
                raise _undecodable(entry, refusals)
            left -= len(packed)
            yield Block(packed, unpacker.decompress(packed, BLOCK_BYTES))
            while unpacker.unconsumed_tail:
                yield Block(b"", unpacker.decompress(unpacker.unconsumed_tail, BLOCK_BYTES))
        rest = unpacker.flush()
    except zlib.error as error:
        raise _undecodable(entry, refusals) from error
    if rest:
        yield Block(b"", rest)
    if not unpacker.eof or unpacker.unused_data:
        raise _undecodable(entry, refusals)


def _undecodable(entry: Entry, refusals: Refusals) -> Exception:
    return refusals.is_corrupt(f"the compressed bytes of the entry {shown(entry.name)} cannot be unpacked")
