"""Landlock: which files a process gets at, no TCP, and no signals or abstract sockets to those outside.

The interface is linux/landlock.h; a kernel names the version (ABI) that it speaks, and knows the rights of that and all
earlier ones.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from pruning_server.sandbox.kernel import LackError, call

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

# Every right that exists since ABI 1: bits 0 to 12, among them making devices, sockets, pipes and links.
_FIRST_RIGHTS = (1 << 13) - 1
_LATER_RIGHTS = ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))

READ = READ_FILE | READ_DIR
# No links, sockets, pipes or devices: the server reads what lies here afterwards. No moving between folders either.
OWN = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
# What a rule about a file, rather than a folder, may hold.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_NET_ABI, _BIND_AND_CONNECT_TCP = 4, 0b11
_SCOPE_ABI, _ABSTRACT_SOCKETS_AND_SIGNALS = 6, 0b11
_RULE_PATH_BENEATH = 1
_CREATE_RULESET_VERSION = 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The version that this kernel speaks; 0: none."""
    try:
        return call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except (OSError, LackError):
        return 0


def enter(grants: Iterable[tuple[str, int]]) -> int:
    """Forbids this thread, and all that it starts, every file but the granted ones; needs no_new_privs.

    Args:
        grants: paths, each with the rights to it and to all below. What does not exist is skipped.

    Returns:
        the kernel's ABI.

    Raises:
        LackError: the kernel has no Landlock, or an outer sandbox forbids it.
    """
    version = abi()
    if version == 0:
        raise LackError(
            "Landlock: the kernel has none (it came with Linux 5.13), it is switched off, or forbidden here"
        )
    handled = _FIRST_RIGHTS
    for since, right in _LATER_RIGHTS:
        handled |= right if version >= since else 0
    attributes = _Ruleset(
        fs=handled,
        net=_BIND_AND_CONNECT_TCP if version >= _NET_ABI else 0,
        scoped=_ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPE_ABI else 0,
    )
    try:
        # Fields that an older kernel does not know are zero, which it accepts.
        ruleset = call("landlock_create_ruleset", ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
        for path, rights in grants:
            _grant(ruleset, path, rights & handled)
        call("landlock_restrict_self", ruleset, 0)
    except OSError as error:
        raise LackError(f"Landlock: the rules could not be installed ({error.strerror})") from error
    os.close(ruleset)
    return version


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # Not there, or not ours to reach: nothing to grant.
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.byref(_PathBeneath(rights, descriptor)), 0)
    finally:
        os.close(descriptor)
