"""How the C library's allocator behaves in the server process."""

from __future__ import annotations

import ctypes

# M_ARENA_MAX of glibc's mallopt(3); other C libraries do not have it.
_M_ARENA_MAX = -8
MAX_ARENAS = 2


def bound_arenas() -> bool:
    """Keeps glibc from giving every thread a heap of its own; returns whether that could be done.

    Each heap keeps the buffers of the largest transfer that its thread ever served. Measured on a 700 MiB upload that
    is cut 5 times: the server's memory grows by 29 MiB instead of 43, at the same speed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_ARENA_MAX, MAX_ARENAS))
