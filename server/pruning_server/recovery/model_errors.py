"""What running a caller's model can raise."""

from __future__ import annotations

import torch

from pruning_server.recovery.memory import is_out_of_memory

# What the TorchScript interpreter and the operators under it raise, besides a failed allocation.
MODEL_ERRORS: tuple[type[Exception], ...] = (RuntimeError, torch.jit.Error, IndexError, ValueError, TypeError)


def last_line(error: BaseException) -> str:
    """The last line of an error that says something: TorchScript puts its traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def reraise_out_of_memory(error: Exception) -> None:
    """Raises `error` again if an allocation failed, as that says nothing about the model."""
    if is_out_of_memory(error):
        raise error
