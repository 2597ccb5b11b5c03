"""Shapes and MACs of one run of `forward`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.graph.values import Macs, Observation

__all__ = ["Macs", "Observation", "count_macs", "observe"]


def observe(module: torch.jit.ScriptModule, inputs: Sequence[object]) -> Observation:
    """Runs a private copy of `module` once and returns the shapes that every op saw."""
    raise NotImplementedError


def count_macs(module: torch.jit.ScriptModule, inputs: Sequence[object], batch_size: int) -> Macs:
    """Multiply-accumulates of `forward` per sample, from one run on `batch_size` samples."""
    raise NotImplementedError
