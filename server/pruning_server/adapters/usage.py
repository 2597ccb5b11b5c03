"""What a child takes of the machine beyond what its resource limits bound: shared memory, threads, and disk."""

from __future__ import annotations

import enum
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMORY_SECONDS = 0.25
DISK_SECONDS = 2.0
MAX_THREADS = 1024
MAX_FILES = 10_000
# Half of what is free: two runs that both take all they may leave a quarter.
DISK_SHARE = 0.5
MIN_DISK_BYTES = 256 * 1024 * 1024

_MEMORY_FIELDS = re.compile(rb"^(RssAnon|RssShmem|VmSwap):\s+(\d+) kB", re.MULTILINE)
_THREADS_FIELD = re.compile(rb"^Threads:\s+(\d+)", re.MULTILINE)
_DELETED = " (deleted)"


class Resource(enum.StrEnum):
    """What there may be too much of."""

    MEMORY = "memory"
    THREADS = "threads"
    DISK = "disk"


@dataclass(frozen=True)
class Allowance:
    """What a child may take.

    Attributes:
        memory_bytes: anonymous, shared and swapped out, together; None: no limit.
        folder: the only one that it writes in; None: it writes nothing.
        disk_bytes: of the files in the folder, and of those that it deleted and still holds.
    """

    memory_bytes: int | None = None
    folder: Path | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True)
class Excess:
    """What a child took too much of: `used` of at most `limit` bytes, threads or files."""

    resource: Resource
    used: int
    limit: int

    def __str__(self) -> str:
        if self.resource is Resource.THREADS:
            return f"{self.used} threads (limit: {self.limit})"
        return f"{self.used / 2**20:,.0f} MiB of {self.resource.value} (limit: {self.limit / 2**20:,.0f} MiB)"


class Watchdog:
    """Looks at a child every now and then; `excess` may be called as often as one likes."""

    def __init__(self, pid: int, allowance: Allowance) -> None:
        self._proc = Path("/proc") / str(pid)
        self._allowance = allowance
        self._memory_at = self._disk_at = 0.0

    def excess(self) -> Excess | None:
        """What the child takes too much of now; None: nothing that was seen. A child that is gone takes nothing."""
        now = time.monotonic()
        if now - self._memory_at < MEMORY_SECONDS:
            return None
        self._memory_at = now
        found = self._status_excess()
        if found is not None or now - self._disk_at < DISK_SECONDS:
            return found
        self._disk_at = now
        return self._disk_excess()

    def _status_excess(self) -> Excess | None:
        try:
            status = (self._proc / "status").read_bytes()
        except OSError:
            return None
        threads = _THREADS_FIELD.search(status)
        if threads is not None and int(threads[1]) > MAX_THREADS:
            return Excess(Resource.THREADS, int(threads[1]), MAX_THREADS)
        used, limit = sum(int(kib) * 1024 for _, kib in _MEMORY_FIELDS.findall(status)), self._allowance.memory_bytes
        return Excess(Resource.MEMORY, used, limit) if limit is not None and used > limit else None

    def _disk_excess(self) -> Excess | None:
        folder, limit = self._allowance.folder, self._allowance.disk_bytes
        if folder is None or limit is None:
            return None
        used = _folder_bytes(folder)
        if used <= limit:
            used += self._deleted_bytes(folder)
        return Excess(Resource.DISK, used, limit) if used > limit else None

    def _deleted_bytes(self, folder: Path) -> int:
        """Disk of files that are gone from the folder, but open or mapped."""
        sizes: dict[int, int] = {}
        try:
            maps = (self._proc / "maps").read_text(errors="replace")
            for line in maps.splitlines():
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5].endswith(_DELETED) and fields[5].startswith(f"{folder}/"):
                    low, _, high = fields[0].partition("-")
                    inode = int(fields[4])
                    sizes[inode] = max(sizes.get(inode, 0), int(fields[2], 16) + int(high, 16) - int(low, 16))
            for entry in os.scandir(self._proc / "fd"):
                found = _regular(entry)
                if found is not None and found.st_nlink == 0:
                    sizes[found.st_ino] = found.st_blocks * 512
        except OSError:
            pass  # Gone, or not ours to look at; the folder itself was counted.
        return sum(sizes.values())


def disk_allowance(folder: Path) -> int:
    """How many bytes a run that starts now may write in `folder`."""
    found = os.statvfs(folder)
    return max(MIN_DISK_BYTES, int(DISK_SHARE * found.f_bavail * found.f_frsize))


def _folder_bytes(folder: Path) -> int:
    """Disk of the files below, links not followed; so many files that counting takes long are without end."""
    total = 0
    for count, size in enumerate(_file_bytes(folder)):
        total += size
        if count > MAX_FILES:
            return 1 << 62
    return total


def _file_bytes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):
        yield 4096
        for name in names:
            try:
                yield (Path(parent) / name).lstat().st_blocks * 512
            except OSError:
                continue


def _regular(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        found = entry.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def oom_kills() -> int | None:
    """How many processes the kernel has killed so far because memory ran out, on the whole machine; None: not told."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)
