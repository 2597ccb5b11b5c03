"""Files of the artifact store on disk; knows nothing of the database.

<root>/blobs/<aa>/<sha256>        finished files, one per content; <aa> is the start of the hash
<root>/uploads/<artifact_id>.part bytes of an upload so far
<root>/uploads/<random>.tmp       a file of ours that is being copied in
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pruning_server.adapters.failpoints import Failpoints, no_failpoints
from pruning_server.errors import CapacityError, InvalidArtifactError, Reason

BLOCK_BYTES = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
# The disk, the user's quota on it, or the largest file that the process may write.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class StagedFile:
    """A durable copy of a file, not yet where it belongs."""

    path: Path
    sha256: str
    size_bytes: int


class BlobFiles:
    """Paths, durable renames and removals below `root`; every folder and file is for this user only."""

    def __init__(self, root: Path, failpoints: Failpoints = no_failpoints) -> None:
        self.root = root
        self.reach = failpoints
        self._blobs = root / "blobs"
        self._uploads = root / "uploads"
        for folder in (root, self._blobs, self._uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_folder(root)

    def blob(self, sha256: str) -> Path:
        """Where the finished file with this hash lies."""
        return self._blobs / sha256[:2] / sha256

    def part(self, artifact_id: str) -> Path:
        """Where the bytes of an upload lie."""
        return self._uploads / f"{artifact_id}.part"

    def has_blob(self, sha256: str, size_bytes: int) -> bool:
        """Whether the finished file is there, with the size that it must have."""
        try:
            return self.blob(sha256).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def publish(self, file: Path, sha256: str) -> None:
        """Renames a durable file of this store to its place among the blobs, durably and atomically."""
        blob = self.blob(sha256)
        with full_disk_explained():
            if not blob.parent.is_dir():
                blob.parent.mkdir(mode=0o700, exist_ok=True)
                fsync_folder(self._blobs)
            self.reach("publish.before")
            file.replace(blob)
            fsync_folder(blob.parent)
            self.reach("publish.after")

    def remove_blob(self, sha256: str) -> int:
        """Removes a finished file; whoever has it open reads on. Returns the bytes freed."""
        return remove(self.blob(sha256))

    def remove_part(self, artifact_id: str) -> int:
        """Removes what an upload left; returns the bytes freed."""
        return remove(self.part(artifact_id))

    def free_bytes(self) -> int:
        """Bytes that this user may still write."""
        return shutil.disk_usage(self.root).free

    def open_part(self, artifact_id: str) -> int:
        """Opens the file of an upload for reading and writing, durably created if it is missing; returns the fd."""
        path = self.part(artifact_id)
        existed = path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not existed:
            fsync_folder(self._uploads)
        return fd

    def stage(self, source: Path) -> StagedFile:
        """Copies a file of a run into the store, hashed on the way, and makes it durable.

        A copy and not a link, because whoever can write to the source could change a linked blob.

        Raises:
            InvalidArtifactError: it is empty, a link, or not a plain file.
            CapacityError: the disk is full; nothing is left behind.
        """
        path = self._uploads / f"{uuid.uuid4().hex}.tmp"
        try:
            with _open_plain(source) as source_fd, full_disk_explained():
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    self.reach("stage.write")
                    sha256, size_bytes = _copy(source_fd, fd)
                    self.reach("stage.sync")
                    os.fsync(fd)
                finally:
                    os.close(fd)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return StagedFile(path=path, sha256=sha256, size_bytes=size_bytes)

    def upload_files(self) -> Iterator[Path]:
        """Yields every part and every copy."""
        yield from (path for path in self._uploads.iterdir() if path.suffix in {".part", ".tmp"})

    def blobs(self) -> Iterator[Path]:
        """Yields every finished file."""
        for folder in self._blobs.iterdir():
            if folder.is_dir():
                yield from (path for path in folder.iterdir() if _SHA256.fullmatch(path.name))


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`; OSError leaves an unknown part of it written."""
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


def hash_prefix(fd: int, size_bytes: int) -> hashlib._Hash:
    """Returns the SHA-256 of the first `size_bytes` of a file, read in blocks."""
    digest = hashlib.sha256()
    offset = 0
    while offset < size_bytes:
        block = os.pread(fd, min(BLOCK_BYTES, size_bytes - offset), offset)
        if not block:
            raise OSError(errno.EIO, f"the file ends at {offset}, before {size_bytes}")
        digest.update(block)
        offset += len(block)
    return digest


def remove(path: Path) -> int:
    """Removes a file that may be gone already; returns its size in bytes."""
    try:
        size_bytes = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size_bytes


@contextmanager
def full_disk_explained() -> Iterator[None]:
    """Turns the system's words for a full disk into CapacityError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise storage_full() from error


def storage_full() -> CapacityError:
    """The error for a disk that has no room."""
    return CapacityError(
        Reason.STORAGE_FULL,
        "the server's disk is full; delete artifacts that you no longer need, or ask its operator to free space",
    )


@contextmanager
def _open_plain(source: Path) -> Iterator[int]:
    # A run could leave a link to a file of the server, or a pipe that never ends.
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
        raise InvalidArtifactError(Reason.RESULT_REFUSED, f"{source.name} is not a plain file") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise InvalidArtifactError(Reason.RESULT_REFUSED, f"{source.name} is empty or not a plain file")
        yield fd
    finally:
        os.close(fd)


def _copy(source_fd: int, fd: int) -> tuple[str, int]:
    """Copies in blocks; returns the SHA-256 and the size of what was written."""
    digest, size_bytes = hashlib.sha256(), 0
    while block := os.read(source_fd, BLOCK_BYTES):
        write_all(fd, block, size_bytes)
        digest.update(block)
        size_bytes += len(block)
    return digest.hexdigest(), size_bytes
