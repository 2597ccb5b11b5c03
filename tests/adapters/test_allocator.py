"""The server bounds its heaps where the C library lets it."""

from __future__ import annotations

import platform

from pruning_server.adapters.allocator import bound_arenas


def test_arenas_are_bounded_with_glibc() -> None:
    assert bound_arenas() is (platform.libc_ver()[0] == "glibc")
