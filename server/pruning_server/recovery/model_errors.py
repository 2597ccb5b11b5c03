"""What running a caller's model can raise."""

from __future__ import annotations

import torch

# What the TorchScript interpreter and the operators under it raise, besides a failed allocation.
MODEL_ERRORS: tuple[type[Exception], ...] = (RuntimeError, torch.jit.Error, IndexError, ValueError, TypeError)
# ... and with it.
TRAINING_ERRORS: tuple[type[Exception], ...] = (*MODEL_ERRORS, MemoryError)
