"""The way in, from which there is none out: limits, capabilities, no_new_privs, Landlock, seccomp, in this order."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from pruning_server.sandbox import kernel, landlock, seccomp
from pruning_server.sandbox.kernel import LackError
from pruning_server.sandbox.paths import grants
from pruning_server.sandbox.policy import Policy

_PARENT_VARIABLE = "PRUNING_PARENT_PID"


def enter(policy: Policy) -> int:
    """Puts this process inside, for good; to be called while it has one thread, before it has read what a caller sent.

    Returns:
        the kernel's Landlock ABI.

    Raises:
        LackError: the machine does not give all of it. The process may be half inside and should end.
    """
    kernel.column()
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise LackError("the process has several threads already, and the walls would stand around one of them")
    _die_with_parent()
    os.umask(0o077)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, policy.open_files)
    if policy.file_bytes is not None:
        limit(resource.RLIMIT_FSIZE, policy.file_bytes)
    try:
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise LackError(f"no_new_privs: giving up privileges failed ({error.strerror})") from error
    # Keeps /proc's entry for this process the very one that the rule below is about, however long it runs.
    os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    version = landlock.enter(grants(policy))
    seccomp.enter(is_cuda=policy.is_cuda)
    return version


def limit(kind: int, value: int) -> None:
    """Lowers a resource limit, soft and hard."""
    _, hard = resource.getrlimit(kind)
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bounded, bounded))


def _die_with_parent() -> None:
    """Asks the kernel to kill this process with the thread that started it, and notices one that was faster."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL))
    parent = os.environ.get(_PARENT_VARIABLE)
    if parent is not None and parent != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)
