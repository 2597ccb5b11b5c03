"""Makes `.train()` mean something for traced and frozen archives, and puts everything back."""

from __future__ import annotations

import torch

__all__ = ["TrainingHandle", "enable_training", "restore_constants", "thaw"]


def thaw(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy whose baked float tensors are attributes that `find_weights` sees; `module` itself where it has none."""
    raise NotImplementedError


def restore_constants(frozen: torch.jit.ScriptModule, thawed: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Writes the tensors of a thawed copy back into the constants of a fresh load of the archive, and returns that."""
    raise NotImplementedError


class TrainingHandle:
    """The module to train in the place of another.

    Attributes:
        module: train this; it is the module itself where nothing had to be rewritten.
        notes: what was rewritten, for people.
    """

    module: torch.jit.ScriptModule
    notes: tuple[str, ...]

    def restore(self) -> torch.jit.ScriptModule:
        """Copies every tensor of the trained module back into the one that `enable_training` got; returns that one."""
        raise NotImplementedError


def enable_training(module: torch.jit.ScriptModule) -> TrainingHandle:
    """Rewrites baked training flags of batch norm and dropout so that `handle.module.train()` and `.eval()` switch them."""
    raise NotImplementedError
