"""Reads the end of a zip, 64-bit or not: torch and numpy write ZIP64 records for small files too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from pruning_server.archive.refusals import Refusals
from pruning_server.archive.zip_format import (
    END,
    END64,
    END64_SIGNATURE,
    END_SIGNATURE,
    LOCATOR64,
    LOCATOR64_SIGNATURE,
    UINT16_MAX,
    UINT32_MAX,
)


@dataclass(frozen=True)
class End:
    """How many entries there are, where their directory lies, and where the end record begins; offsets in bytes."""

    entries: int
    directory_bytes: int
    directory_offset: int
    position: int


def read_end(source: BinaryIO, total: int, refusals: Refusals) -> End:
    """Returns the end record of a zip of `total` bytes; it must be the last thing in it.

    Raises:
        InvalidArtifactError: there is none, it is not at the end, or it contradicts itself.
    """
    position = total - END.size
    source.seek(max(position, 0))
    tail = source.read(END.size)
    if position < 0 or not tail.startswith(END_SIGNATURE):
        raise _without_end(source, total, refusals)
    _, disk, first_disk, here, entries, size, offset, comment = END.unpack(tail)
    if comment:
        raise refusals.is_truncated(f"the {refusals.noun} ends in the middle of its zip comment")
    if (disk, first_disk) != (0, 0) or here != entries:
        raise refusals.is_refused(f"the {refusals.noun} is one part of a zip in several parts; send one whole file")
    end = End(entries, size, offset, position)
    locator_position = position - LOCATOR64.size
    if locator_position >= 0:
        source.seek(locator_position)
        locator = source.read(LOCATOR64.size)
        if locator.startswith(LOCATOR64_SIGNATURE):
            end = _read_end64(source, locator, locator_position, end, refusals)
    if end.directory_offset + end.directory_bytes != end.position:
        raise refusals.is_corrupt(f"the table of contents of the {refusals.noun} does not lie where the file says")
    return end


def _read_end64(source: BinaryIO, locator: bytes, locator_position: int, end32: End, refusals: Refusals) -> End:
    _, disk, position, disks = LOCATOR64.unpack(locator)
    damaged = refusals.is_corrupt(f"the 64-bit end record of the {refusals.noun} contradicts the file")
    if position != locator_position - END64.size or disk != 0 or disks > 1:
        raise damaged
    source.seek(position)
    signature, size, _, _, disk, first_disk, here, entries, directory_bytes, offset = END64.unpack(
        source.read(END64.size)
    )
    if signature != END64_SIGNATURE or size != END64.size - 12 or (disk, first_disk) != (0, 0) or here != entries:
        raise damaged
    pairs = (
        (end32.entries, entries, UINT16_MAX),
        (end32.directory_bytes, directory_bytes, UINT32_MAX),
        (end32.directory_offset, offset, UINT32_MAX),
    )
    if any(narrow not in {wide, limit} for narrow, wide, limit in pairs):
        raise damaged
    return End(entries, directory_bytes, offset, position)


def _without_end(source: BinaryIO, total: int, refusals: Refusals) -> Exception:
    """Tells a file that was cut off from one with something behind its end."""
    window = min(total, UINT16_MAX + END.size)
    source.seek(total - window)
    found = source.read(window).rfind(END_SIGNATURE)
    if 0 <= found <= window - END.size:
        behind = window - found - END.size
        return refusals.is_refused(
            f"the {refusals.noun} has {behind} bytes behind its end; remove them, or save it again without them"
        )
    return refusals.is_truncated(f"the {refusals.noun} begins as a zip and has no end: only {total} bytes are here")
