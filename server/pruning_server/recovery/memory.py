"""Telling a failed allocation from other errors. Torch-free."""

from __future__ import annotations

_SIGNS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
_TAIL_CHARACTERS = 2000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, CUDA's, or one inside torch, which raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)[-_TAIL_CHARACTERS:].lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
