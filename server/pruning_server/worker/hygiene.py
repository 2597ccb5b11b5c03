"""What a worker does to itself before anything else: dies with its parent, has limits, dumps no core. Torch-free.

The calls are Linux's. Elsewhere the process runs without them: the server kills its workers by process group anyway.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_PARENT_GONE = 70


def contain() -> None:
    """Ties this process to its parent; to be called before threads and torch exist."""
    _die_with_parent()
    _limit(resource.RLIMIT_CORE, 0)


def limit_memory(memory_bytes: int) -> None:
    """Limits private memory; an allocation beyond it fails instead of taking the machine's.

    Private memory rather than the address space: a memory-mapped dataset and torch's libraries cost none of it.
    """
    _limit(resource.RLIMIT_DATA, memory_bytes)


def set_threads(threads: int) -> None:
    """Tells the numerical libraries how many threads they may start; they read it when they are loaded.

    Also asks cuBLAS for its reproducible workspace, which it reads when CUDA starts.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    # Threads that wait by spinning take the cores from those that work, where several jobs share a machine: a fivefold
    # slowdown was measured. Waiting in the kernel costs microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _die_with_parent() -> None:
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the call sends no signal. One that died before `getppid` shows as a broken pipe, which
    # the first heartbeat meets.
    if os.getppid() != parent:
        os._exit(EXIT_PARENT_GONE)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bounded, bounded))
