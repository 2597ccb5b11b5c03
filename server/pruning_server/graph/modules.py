"""What a loaded module holds: its methods, its tensors, its prunable weights, its state. The room's front door."""

from __future__ import annotations

from pruning_server.graph.ir import method_names as exported_methods
from pruning_server.graph.slots import get_tensor
from pruning_server.graph.state import StateGuard, writes_state
from pruning_server.graph.survey import find_weights
from pruning_server.graph.values import KERNEL_KINDS, FrozenUse, Weight, WeightKind, WeightSurvey

__all__ = [
    "KERNEL_KINDS",
    "FrozenUse",
    "StateGuard",
    "Weight",
    "WeightKind",
    "WeightSurvey",
    "exported_methods",
    "find_weights",
    "get_tensor",
    "writes_state",
]
