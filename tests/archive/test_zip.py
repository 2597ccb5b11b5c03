"""The zip reader and writer by themselves: 64-bit records, layout, and what other tools write."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.archives import zipped
from pruning_server.archive.limits import ALIGNMENT_BYTES, DEFAULT_LIMITS
from pruning_server.archive.refusals import DATASET_REFUSALS, MODEL_REFUSALS
from pruning_server.archive.zip_directory import Entry, read_directory
from pruning_server.archive.zip_format import DEFLATED
from pruning_server.archive.zip_records import read_start, stream
from pruning_server.archive.zip_writer import ZipWriter
from pruning_server.errors import InvalidArtifactError, Reason

names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=8)
contents = st.dictionaries(names, st.binary(max_size=300), max_size=6).filter(
    lambda d: len({"".join(c.lower() if c.isascii() else c for c in n) for n in d}) == len(d)
)


def read(data: bytes) -> dict[str, bytes]:
    """Name -> content, by our own reader."""
    source = io.BytesIO(data)
    entries = read_directory(source, MODEL_REFUSALS, DEFAULT_LIMITS)
    return {entry.name: b"".join(stream(source, entry, MODEL_REFUSALS)) for entry in entries}


def written(content: dict[str, bytes], **options: int) -> bytes:
    """A zip by our own writer."""
    destination = io.BytesIO()
    writer = ZipWriter(destination, **options)
    for name, data in content.items():
        writer.store(name, len(data), [data[:10], data[10:]])
    assert writer.close() == len(destination.getvalue())
    return destination.getvalue()


@settings(max_examples=60, deadline=None)
@given(content=contents, wide=st.booleans())
def test_python_reads_what_we_write_and_so_do_we(content: dict[str, bytes], wide: bool) -> None:
    # `wide` writes everything above 20 bytes with 64-bit records, as an archive above 4 GiB needs them.
    data = written(content, zip64_from=20) if wide else written(content)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {info.filename: archive.read(info) for info in archive.infolist()} == content
        assert archive.testzip() is None
    assert read(data) == content
    entries = read_directory(io.BytesIO(data), MODEL_REFUSALS, DEFAULT_LIMITS)
    assert all(entry.payload_offset % ALIGNMENT_BYTES == 0 for entry in entries)


@settings(max_examples=40, deadline=None)
@given(content=contents, method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_we_read_what_python_writes(content: dict[str, bytes], method: int) -> None:
    assert read(zipped(content, method)) == content


class Unseekable(io.RawIOBase):
    """A pipe: what is written to it cannot be rewritten."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data) -> int:
        """Appends."""
        self.data += data
        return len(data)


def test_we_read_what_is_written_to_a_pipe() -> None:
    pipe = Unseekable()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"x" * 100)
        with archive.open("b", "w", force_zip64=True) as entry:
            entry.write(b"y" * 50)
    assert read(bytes(pipe.data)) == {"a": b"x" * 100, "b": b"y" * 50}


def test_a_deflated_record_is_taken_only_in_its_range() -> None:
    source = io.BytesIO(written({"zeros": bytes(10_000)}))
    (entry,) = read_directory(source, MODEL_REFUSALS, DEFAULT_LIMITS)
    for acceptable, is_taken in ((range(9_000), True), (range(5), False), (range(5_000, 9_000), False)):
        destination = io.BytesIO()
        writer = ZipWriter(destination)
        result = writer.deflate("zeros", entry, stream(source, entry, MODEL_REFUSALS), acceptable)
        assert (result is not None) is is_taken
        if result is None:
            writer.copy("zeros", entry, stream(source, entry, MODEL_REFUSALS))
        else:
            assert result.method == DEFLATED
        writer.close()
        assert read(destination.getvalue()) == {"zeros": bytes(10_000)}


def test_the_start_of_a_bomb_costs_only_its_start() -> None:
    source = io.BytesIO(zipped({"zeros": bytes(50_000_000)}, zipfile.ZIP_DEFLATED))
    (entry,) = read_directory(source, DATASET_REFUSALS, DEFAULT_LIMITS)
    assert read_start(source, entry, DATASET_REFUSALS, 100) == bytes(100)


def refusal(data: bytes) -> InvalidArtifactError:
    """The refusal of a zip, which must come."""
    with pytest.raises(InvalidArtifactError) as refused:
        read(data)
    return refused.value


def test_bytes_between_entries_are_refused() -> None:
    first, second = written({"a": b"1"}), written({"b": b"2"})
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        end = archive.start_dir
    hidden = first[:end] + b"hidden code" + first[end:-6] + struct.pack("<I", end + 11) + b"\0\0"
    assert "11 bytes that belong to no entry" in refusal(hidden).message
    with zipfile.ZipFile(io.BytesIO(second + first)) as archive:
        assert archive.namelist() == ["a"]
    assert refusal(second + first).reason is Reason.MODEL_CORRUPT


def test_local_and_central_names_must_agree() -> None:
    data = written({"inner": b"1"})
    assert refusal(data.replace(b"inner", b"outer", 1)).reason is Reason.MODEL_CORRUPT


def test_a_comment_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"1")
        archive.comment = b"hello"
    assert refusal(buffer.getvalue()).reason is Reason.MODEL_REFUSED


def test_overlapping_entries_are_refused() -> None:
    """Two entries of the central directory that share one payload, as in bombs that do without recursion."""
    data = bytearray(zipped({"a": b"12345678", "b": b"12345678"}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    second = data.index(b"PK\x01\x02", start + 4)
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    assert refusal(bytes(data)).reason in {Reason.MODEL_CORRUPT, Reason.MODEL_REFUSED}


def test_a_deflate_stream_with_something_behind_it_is_refused() -> None:
    data = zipped({"a": b"1" * 100}, zipfile.ZIP_DEFLATED)
    source = io.BytesIO(data)
    (entry,) = read_directory(source, MODEL_REFUSALS, DEFAULT_LIMITS)
    longer = Entry(
        entry.name, DEFLATED, entry.crc32, entry.packed_bytes + 4, 100, entry.header_offset, entry.payload_offset
    )
    with pytest.raises(InvalidArtifactError):
        b"".join(stream(source, longer, MODEL_REFUSALS))


READ_WITH_64_MIB = """
import resource, sys
from pruning_server.archive.limits import ZipLimits
from pruning_server.archive.refusals import MODEL_REFUSALS
from pruning_server.archive.zip_directory import read_directory
from pruning_server.archive.zip_records import stream

used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), used + (64 << 20)))
with open(sys.argv[1], "rb") as file:
    (entry,) = read_directory(file, MODEL_REFUSALS, ZipLimits(max_ratio=2000))
    print(sum(map(len, stream(file, entry, MODEL_REFUSALS))))
"""


@pytest.mark.parametrize("deflated", [False, True])
def test_memory_stays_flat_for_large_entries(deflated: bool, tmp_path: Path) -> None:
    size = 400 << 20
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        # Sparse input, packed with little effort: only the reader is on trial.
        archive.compresslevel = 1
        with archive.open("zeros", "w") as entry:
            for _ in range(size >> 22):
                entry.write(bytes(1 << 22))
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_64_MIB, str(path)], capture_output=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (b"%d\n" % size, b"")
