"""What a loaded module holds: its methods, its tensors, its prunable weights, its state. The room's front door."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import torch

from pruning_server.graph.values import FrozenUse, Weight, WeightKind, WeightSurvey

__all__ = [
    "FrozenUse",
    "StateGuard",
    "Weight",
    "WeightKind",
    "WeightSurvey",
    "exported_methods",
    "find_weights",
    "get_tensor",
]


def exported_methods(module: torch.jit.ScriptModule) -> tuple[str, ...]:
    """Names of the methods that a caller can call, `forward` first."""
    raise NotImplementedError


def find_weights(module: torch.jit.ScriptModule) -> WeightSurvey:
    """Finds the stored tensors that the graphs of all methods use as weights."""
    raise NotImplementedError


def get_tensor(module: torch.jit.ScriptModule, name: str) -> torch.Tensor:
    """The stored tensor itself (not a copy) under a dotted name; KeyError where there is none."""
    raise NotImplementedError


class StateGuard:
    """Puts buffers and attributes back as they were when the `with` block began; parameters too if the model writes them."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Takes the snapshot."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the snapshot, also after an exception; may be used again afterwards."""
        raise NotImplementedError
