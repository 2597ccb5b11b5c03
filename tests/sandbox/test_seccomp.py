"""The filter as the kernel would run it, on both architectures: what is allowed, refused, unknown or deadly."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from pruning_server.sandbox import syscalls
from pruning_server.sandbox.seccomp import ALLOW, KILL, REFUSE, UNKNOWN, assemble, program

PID = 4242
X86, ARM = 0, 1
ARCHITECTURES = (0xC000003E, 0xC00000B7)
GROUPS = (
    syscalls.FILES, syscalls.MEMORY, syscalls.THREADS, syscalls.SIGNALS, syscalls.TIME, syscalls.WAITING, syscalls.FACTS,
)  # fmt: skip
HEADERS = {X86: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ARM: Path("/usr/include/asm-generic/unistd.h")}
# What asm-generic calls otherwise.
GENERIC = {"fstatat": "newfstatat"}


def verdict(machine: int, number: int, *arguments: int, is_cuda: bool = False, architecture: int | None = None) -> int:
    """Runs the assembled filter on one call."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    found = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, found, 0, *(value & (2**64 - 1) for value in values))
    code = assemble(program(machine, PID, is_cuda=is_cuda))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("=HBBI", code, 8 * position)
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x45:
                position += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"no such operation: {operation:#x}")


def number_of(name: str, machine: int) -> int | None:
    for group in (*GROUPS, syscalls.CHECKED, syscalls.ABSENT, syscalls.CUDA, syscalls.INSTALL):
        if name in group:
            return group[name][machine]
    raise AssertionError(name)


@pytest.mark.parametrize("machine", [X86, ARM])
def test_the_numbers_are_the_kernel_s(machine: int) -> None:
    header = HEADERS[machine]
    if not header.is_file():
        pytest.skip("the kernel's headers are not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    known = {GENERIC.get(name, name): int(number) for name, number in found.items()}
    for group in (*GROUPS, syscalls.CHECKED, syscalls.ABSENT, syscalls.CUDA, syscalls.INSTALL):
        for name, numbers in group.items():
            assert numbers[machine] == known.get(name), name


@pytest.mark.parametrize("machine", [X86, ARM])
def test_every_call_has_the_verdict_of_its_group_and_all_others_none(machine: int) -> None:
    allowed = {numbers[machine] for group in GROUPS for numbers in group.values()} - {None}
    absent = {numbers[machine] for numbers in syscalls.ABSENT.values()} - {None}
    checked = {numbers[machine] for numbers in syscalls.CHECKED.values()} - {None}
    assert not allowed & (absent | checked)
    for number in set(range(480)) - checked:
        expected = ALLOW if number in allowed else UNKNOWN if number in absent or number > 470 else REFUSE
        assert verdict(machine, number) == expected, number
    assert verdict(machine, 1_000_000) == UNKNOWN


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (0x003D0F00,), ALLOW),  # what libc starts threads with
        ("clone", (0x00000011,), REFUSE),  # fork
        ("clone", (0x00010000 | 0x10000000,), REFUSE),  # a thread in a new user namespace
        ("kill", (PID, 9), ALLOW),
        ("kill", (PID + 1, 9), REFUSE),
        ("kill", (-1, 9), REFUSE),
        ("kill", (0, 9), REFUSE),
        ("tgkill", (PID, 1, 6), ALLOW),
        ("tgkill", (1, 1, 6), REFUSE),
        ("openat", (-100, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW),
        ("openat", (-100, 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), ALLOW),
        ("openat", (-100, 0, os.O_RDWR | os.O_CREAT | os.O_TRUNC), ALLOW),
        ("openat", (-100, 0, os.O_RDONLY | os.O_TRUNC), REFUSE),
        ("openat", (-100, 0, 3), REFUSE),
        ("openat", (-100, 0, 3 | os.O_TRUNC), REFUSE),
        ("prctl", (15, 0), ALLOW),
        ("prctl", (1, 9), ALLOW),  # die with the parent
        ("prctl", (1, 0), REFUSE),
        ("prctl", (4, 1), REFUSE),
        ("prctl", (38, 1), REFUSE),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), REFUSE),
        ("ioctl", (0, 0x46), REFUSE),
        ("fcntl", (0, 3), ALLOW),
        ("fcntl", (0, 8), REFUSE),
        ("fcntl", (0, 10), REFUSE),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (PID, 7), ALLOW),
        ("prlimit64", (PID + 1, 7), REFUSE),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (1,), REFUSE),
    ],
)
def test_arguments_decide(machine: int, name: str, arguments: tuple[int, ...], expected: int) -> None:
    number = number_of(name, machine)
    assert number is not None
    assert verdict(machine, number, *arguments) == expected


@pytest.mark.parametrize("machine", [X86, ARM])
def test_the_cuda_driver_gets_its_ioctls_and_a_local_socket_and_nothing_else(machine: int) -> None:
    socket, ioctl = number_of("socket", machine), number_of("ioctl", machine)
    assert socket is not None
    assert ioctl is not None
    assert verdict(machine, socket, 1, is_cuda=True) == ALLOW
    for family in (2, 10, 16, 17, 40):
        assert verdict(machine, socket, family, is_cuda=True) == REFUSE
    assert verdict(machine, socket, 1) == REFUSE
    assert verdict(machine, ioctl, 0, 0xC020462A, is_cuda=True) == ALLOW
    for request in (0x5412, 0x541C, 0x5452, 0x8901, 0x8902):
        assert verdict(machine, ioctl, 0, request, is_cuda=True) == REFUSE
    connect = {X86: 42, ARM: 203}[machine]
    assert verdict(machine, connect, is_cuda=True) == REFUSE


def test_foreign_abis_are_deadly() -> None:
    assert verdict(X86, 0, architecture=0x40000003) == KILL
    assert verdict(ARM, 0, architecture=0x40000028) == KILL
    assert verdict(X86, 0x40000000) == KILL


@pytest.mark.parametrize("machine", [X86, ARM])
def test_the_program_fits_the_kernel_s_limit(machine: int) -> None:
    assert len(program(machine, PID, is_cuda=True)) <= 4096
