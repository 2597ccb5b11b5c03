"""Bare system calls of Linux, by ctypes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

from pruning_server.sandbox.syscalls import INSTALL

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

# The column of a machine in `syscalls.py`.
_COLUMNS = {"x86_64": 0, "aarch64": 1}

_CAPABILITY_VERSION_3 = 0x20080522
# Reading and writing files of others, where the server itself could: a worker must get at what the server hands it, and
# Landlock says at what besides. Every other capability goes.
_KEPT_CAPABILITIES = (1 << 1) | (1 << 2)


class LackError(Exception):
    """A part of the sandbox that this machine does not give; the message says which and why."""


def column() -> int:
    """The column of this machine in `syscalls.py`.

    Raises:
        LackError: neither Linux on x86-64 nor on aarch64.
    """
    found = _COLUMNS.get(platform.machine())
    if not sys.platform.startswith("linux") or found is None or sys.maxsize < 2**32:
        raise LackError(f"seccomp: no filter is known for {sys.platform} on {platform.machine()}")
    return found


@cache
def libc() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """Makes one of the `INSTALL` system calls and returns its result.

    Raises:
        OSError: it failed.
    """
    number = INSTALL[name][column()]
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = libc().syscall(ctypes.c_long(number or 0), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, value: int = 0) -> int:
    """Calls prctl.

    Raises:
        OSError: it failed.
    """
    result: int = libc().prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityWords(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_capabilities() -> None:
    """Gives up what root can do and a worker need not; nothing for other users.

    Raises:
        OSError: the kernel refuses.
    """
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = (_CapabilityWords * 2)()
    if libc().capget(ctypes.byref(header), words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    kept = words[0].permitted & _KEPT_CAPABILITIES
    words[0] = _CapabilityWords(kept, kept, 0)
    words[1] = _CapabilityWords(0, 0, 0)
    call("capset", ctypes.byref(header), words)
