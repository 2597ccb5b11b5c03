"""The folder of a run, as `jobs/workspace.py` lays it out: the only place in the worker that touches the disk."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np

from pruning_server.jobs.workspace import JOB_FILE, WorkerJob
from pruning_server.spec.base import from_json

# Larger arrays go to a file, so that the outputs of big models cost disk rather than memory.
SCRATCH_FILE_BYTES = 1 << 28


class RunFolder:
    """Reads and writes the files of one run by their names in `jobs/workspace.py`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._scratch = 0

    def job(self) -> WorkerJob:
        """What the server asks for.

        Raises:
            ValueError: the file is missing or is not a job.
        """
        try:
            return from_json((self._root / JOB_FILE).read_bytes(), WorkerJob)
        except (OSError, msgspec.MsgspecError) as error:
            raise ValueError(f"{self._root / JOB_FILE} is not a job file: {error}") from error

    def within(self, name: str) -> RunFolder:
        """A folder in this one, for files that would meet others of their name; it is there once something is written."""
        return RunFolder(self._root / name)

    def path(self, name: str) -> Path:
        """Where a file of the run lies."""
        return self._root / name

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file whole or not at all."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def scratch(self, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 array of zeros to work with, on disk where it is large."""
        if int(np.prod(shape, dtype=np.int64)) * 4 <= SCRATCH_FILE_BYTES:
            return np.zeros(shape, dtype=np.float32)
        self._scratch += 1
        path = self._root / f"scratch-{self._scratch}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        # The mapping keeps the bytes; nothing is left behind however the run ends.
        path.unlink()
        return array
