"""What a model costs: parameters, bytes, MACs, measured latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pruning_server.spec.report import LatencySection


@dataclass(frozen=True)
class ParameterCount:
    """Elements of all parameters and kernels, each memory once, and how many of them are not 0."""

    parameters: int
    nonzero: int


def count_parameters(module: torch.jit.ScriptModule) -> ParameterCount:
    """Counts parameters, and kernels that are held in buffers, lists or constants."""
    raise NotImplementedError


def measure_latency(
    original: Callable[[], object],
    pruned: Callable[[], object],
    *,
    batch: int,
    device: str,
    threads: int,
    clock: Callable[[], float],
    synchronize: Callable[[], None] = lambda: None,
    max_seconds: float = 10.0,
) -> tuple[LatencySection, LatencySection]:
    """Seconds of one call of each, run in turns after a warm-up: (original, pruned).

    `clock` returns monotonic seconds; `synchronize` waits for the device.
    """
    raise NotImplementedError
