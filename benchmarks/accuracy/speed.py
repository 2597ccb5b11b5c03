"""How much faster one model is than another, on this machine."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

Model = torch.jit.ScriptModule | nn.Module
WARM_UP_RUNS = 5


def speed_up(original: Model, pruned: Model, inputs: torch.Tensor, runs: int = 40) -> float:
    """Original / pruned, median seconds per run; both run in turn, so that both meet the same disturbances."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for run in range(WARM_UP_RUNS + runs):
            for model, found in zip((original.eval(), pruned.eval()), seconds, strict=True):
                start = time.perf_counter()
                model(inputs)
                if run >= WARM_UP_RUNS:
                    found.append(time.perf_counter() - start)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def store_channels_last(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Turns the kernels of its convolutions, in place: with those, convolutions of small nets are faster on CPUs."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
