"""What every sandboxed process may read: Python, its libraries, and what these ask of the machine."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pruning_server.sandbox import landlock
from pruning_server.sandbox.policy import Policy

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64", "/etc/ld.so.cache")
# How many cores and how much memory there is, on which node, and which instructions they know; the time zone.
_FACTS = (
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)
_READ_DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")
_CUDA_FACTS = (
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/devices",
    "/proc/modules",
    "/sys/bus/pci",
    "/sys/module/nvidia",
    "/sys/module/nvidia_uvm",
    "/usr/share/nvidia",
    "/etc/nvidia",
    "/usr/local/cuda",
    "/run/nvidia",
    "/usr/lib/wsl",
)
_CUDA_DEVICES = ("nvidia*", "nvidia-caps/*", "dxg")


def grants(policy: Policy) -> Iterator[tuple[str, int]]:
    """Every path that is open under the policy, with its rights."""
    yield from ((path, landlock.OWN) for path in policy.write)
    for path in (*policy.read, *library_folders(), *_FACTS, *_READ_DEVICES):
        yield path, landlock.READ
    yield "/dev/null", landlock.DEVICE
    if policy.is_cuda:
        for path in (*_CUDA_FACTS, *map(str, Path("/sys/devices").glob("pci*"))):
            yield path, landlock.READ
        for pattern in _CUDA_DEVICES:
            yield from ((str(path), landlock.DEVICE) for path in Path("/dev").glob(pattern))


def library_folders() -> tuple[str, ...]:
    """Folders of Python's library, of the packages beside it, of this package, and of shared libraries."""
    installed = sysconfig.get_paths()
    python = {installed[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    given = {path for path in (*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(":")) if path.startswith("/")}
    this = str(Path(__file__).resolve().parent.parent)
    return (*sorted({*python, *given, this}), *_LIBRARIES)


def exposing(folder: Path) -> str | None:
    """The library folder in which `folder` lies, so that every sandboxed process could read it; None if there is none."""
    real = folder.resolve()
    return next((path for path in library_folders() if real.is_relative_to(Path(path).resolve())), None)
