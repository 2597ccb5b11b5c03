"""seccomp: which system calls a process may make, and with which arguments; a small assembler for the filter's language.

An allowlist: what is not named in `syscalls.py` answers EPERM, what is newer than this file ENOSYS, as on an older kernel.
Calls of a foreign ABI (32 bit, x32), whose numbers mean something else, end the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterable, Iterator

from pruning_server.sandbox import syscalls
from pruning_server.sandbox.kernel import LackError, call, column

Instruction = tuple[int, int, int, int]

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, _ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
REFUSE = _ERRNO | errno.EPERM
UNKNOWN = _ERRNO | errno.ENOSYS

# struct seccomp_data: the call's number, the architecture, the instruction pointer, six arguments of 64 bits.
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ARCHITECTURES = (0xC000003E, 0xC00000B7)
_X32_BIT = 0x40000000
# The last call when this was written (listxattrat and its like); a later one may do anything.
_NEWEST = 470

_SET_MODE_FILTER = 1
_LOW_32 = 0xFFFFFFFF

CLONE_THREAD = 0x00010000
# New namespaces: mounts, control groups, host names, IPC, users, processes, networks.
_CLONE_NEW = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_O_ACCMODE, _O_TRUNC = 3, os.O_TRUNC
_AF_UNIX = 1
_PR_SET_PDEATHSIG = 1
# Signals and names: PDEATHSIG (get), DUMPABLE (get), NAME (set, get), SECCOMP (get), CAPBSET (read), TIMERSLACK (set, get),
# NO_NEW_PRIVS (get), VMA (names of memory, set by libc).
_PRCTL = (2, 3, 15, 16, 21, 23, 29, 30, 39, 0x53564D41)
# DUPFD, GETFD, SETFD, GETFL, SETFL, locks, DUPFD_CLOEXEC, pipe sizes. Not SETOWN and SETSIG: they send signals to others.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# TIOCSTI, TIOCLINUX, FIOASYNC, FIOSETOWN, SIOCSPGRP: typing into terminals, and signals to others.
_IOCTL_NEVER = (0x5412, 0x541C, 0x5452, 0x8901, 0x8902)


def enter(*, is_cuda: bool) -> None:
    """Installs the filter for this thread and all that it starts; needs no_new_privs.

    Raises:
        LackError: the kernel has no seccomp filters, an outer sandbox forbids them, or the machine is not known.
    """
    code = assemble(program(column(), os.getpid(), is_cuda=is_cuda))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    try:
        call("seccomp", _SET_MODE_FILTER, 0, ctypes.c_char_p(header))
    except OSError as error:
        raise LackError(f"seccomp: the filter could not be installed ({error.strerror})") from error


def assemble(instructions: Iterable[Instruction]) -> bytes:
    """The program as the kernel reads it: struct sock_filter, 8 bytes each."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def program(machine: int, pid: int, *, is_cuda: bool) -> list[Instruction]:
    """The filter for a process.

    Args:
        machine: the column of `syscalls.py`.
        pid: of the process itself, the only one it may send signals to.
        is_cuda: whether the CUDA driver must work.
    """
    return [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, KILL),
        *_plain(machine, is_cuda=is_cuda),
        *_checked(machine, pid, is_cuda=is_cuda),
        (_AT_LEAST, 0, 1, _NEWEST + 1),
        (_RETURN, 0, 0, UNKNOWN),
        (_RETURN, 0, 0, REFUSE),
    ]


def _plain(machine: int, *, is_cuda: bool) -> Iterator[Instruction]:
    """What is decided by its number alone. First, so that kernels since 5.11 remember the answers and run nothing."""
    groups = [syscalls.FILES, syscalls.MEMORY, syscalls.THREADS, syscalls.SIGNALS, syscalls.TIME]
    groups += [syscalls.WAITING, syscalls.FACTS]
    verdicts = [(numbers[machine], ALLOW) for group in groups for numbers in group.values()]
    verdicts += [(numbers[machine], UNKNOWN) for numbers in syscalls.ABSENT.values()]
    if is_cuda:
        verdicts += [(numbers[machine], ALLOW) for name, numbers in syscalls.CUDA.items() if name != "socket"]
    for number, verdict in verdicts:
        if number is not None:
            yield (_EQUAL, 0, 1, number)
            yield (_RETURN, 0, 0, verdict)


def _checked(machine: int, pid: int, *, is_cuda: bool) -> Iterator[Instruction]:
    """What is decided by an argument."""
    rules = {
        "open": _opening(1),
        "openat": _opening(2),
        "clone": [*_argument(0), *_any_bit(_CLONE_NEW, REFUSE), *_any_bit(CLONE_THREAD, ALLOW)],
        "kill": [*_argument(0), *_one_of((pid,))],
        "tgkill": [*_argument(0), *_one_of((pid,))],
        # Dying with the server can be asked for, but not taken back.
        "prctl": [
            *_argument(0),
            *_one_of(_PRCTL),
            (_EQUAL, 0, 3, _PR_SET_PDEATHSIG),
            *_argument(1),
            *_one_of((int(signal.SIGKILL),)),
        ],
        "ioctl": [*_argument(1), *(_none_of(_IOCTL_NEVER) if is_cuda else _one_of(_IOCTL))],
        "fcntl": [*_argument(1), *_one_of(_FCNTL)],
        "prlimit64": [*_argument(0), *_one_of((0, pid))],
        "sched_setaffinity": [*_argument(0), *_one_of((0, pid))],
    }
    for name, rule in rules.items():
        yield from _for_call(syscalls.CHECKED[name][machine], rule)
    if is_cuda:
        yield from _for_call(syscalls.CUDA["socket"][machine], [*_argument(0), *_one_of((_AF_UNIX,))])


def _for_call(number: int | None, rule: list[Instruction]) -> Iterator[Instruction]:
    """Runs the rule for one call; what it leaves open is refused."""
    if number is None:
        return
    yield (_EQUAL, 0, len(rule) + 1, number)
    yield from rule
    yield (_RETURN, 0, 0, REFUSE)


def _argument(index: int) -> list[Instruction]:
    """Loads the low half of an argument; both architectures are little-endian, and the kernel reads no more of these."""
    return [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)]


def _one_of(values: Iterable[int]) -> list[Instruction]:
    return [step for value in values for step in ((_EQUAL, 0, 1, value & _LOW_32), (_RETURN, 0, 0, ALLOW))]


def _none_of(values: Iterable[int]) -> list[Instruction]:
    refused = [step for value in values for step in ((_EQUAL, 0, 1, value & _LOW_32), (_RETURN, 0, 0, REFUSE))]
    return [*refused, (_RETURN, 0, 0, ALLOW)]


def _any_bit(bits: int, verdict: int) -> list[Instruction]:
    return [(_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, verdict)]


def _opening(flags_index: int) -> list[Instruction]:
    """Landlock before ABI 3 does not see that a file is emptied by opening it for reading, or with access mode 3."""
    return [
        *_argument(flags_index),
        (_ANY_BIT, 3, 0, _O_ACCMODE),
        *_any_bit(_O_TRUNC, REFUSE),
        (_RETURN, 0, 0, ALLOW),
        *_masked_is(_O_ACCMODE, REFUSE),
        (_RETURN, 0, 0, ALLOW),
    ]


def _masked_is(bits: int, verdict: int) -> list[Instruction]:
    """The verdict where all of the (two) bits are set; destroys the argument that was loaded."""
    return [(0x54, 0, 0, bits), (_EQUAL, 0, 1, bits), (_RETURN, 0, 0, verdict)]
