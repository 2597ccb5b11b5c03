"""What the image check is made with: buildah, a report, and a look at processes and files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


class CheckFailedError(Exception):
    """The image is not what it should be; the message says how."""


class Buildah:
    """Runs buildah on a storage of its own, so that the machine's images are left alone."""

    def __init__(self, work: Path) -> None:
        folders = ["--root", str(work / "storage"), "--runroot", str(work / "runroot")]
        # vfs and chroot: the two that work inside a container, where this mostly runs.
        self._storage = ["--storage-driver", "vfs", *folders]
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str, timeout_seconds: float = 600) -> str:
        """Runs a command to its end and returns its stdout."""
        done = subprocess.run(
            ["buildah", *self._storage, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if done.returncode != 0:
            raise CheckFailedError(f"buildah {' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return done.stdout.strip()

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a command that keeps running; stdout is a pipe, stderr goes to `log`."""
        with log.open("wb") as stderr:
            return subprocess.Popen(
                ["buildah", *self._storage, *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=stderr
            )


def as_list(value: object) -> list[object]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise CheckFailedError(f"a list was expected in the image's configuration, not {value!r}")
    return value


def as_dict(value: object) -> dict[str, object]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise CheckFailedError(f"an object was expected in the image's configuration, not {value!r}")
    return value


def files(path: Path) -> Iterator[Path]:
    """The file at `path`, or every file below it; nothing if it does not exist."""
    if path.is_file() and not path.is_symlink():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def descendants(pid: int) -> list[int]:
    """Every process that came from `pid`, nearest first."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = [pid]
    for process in found:
        found.extend(children.get(process, []))
    return found[1:]


def inside_container(pid: int) -> list[int]:
    """The descendants of `pid` that live in another root folder than this process."""
    found = []
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{child}/root/").samefile("/"):
                found.append(child)
    return found


def command_of(pid: int) -> str:
    """The command line, spaces between the arguments; empty if the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Reports how long a step took."""
    started = time.monotonic()
    yield
    report(f"{what}: {time.monotonic() - started:.1f} s")


def report(line: str) -> None:
    """One line of the summary."""
    print(f"image-check: {line}", flush=True)
