"""What a model costs: parameters, and latency as measured. MACs: `graph.observe.count_macs`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.modules import find_weights, get_tensor
from pruning_server.spec.report import LatencySection

_WARM_UP_RUNS = 5
_MIN_RUNS = 5
_MAX_RUNS = 200
_WARM_UP_SHARE = 0.3


@dataclass(frozen=True)
class ParameterCount:
    """Elements of all parameters and weights, each memory once, and how many of them are not 0."""

    parameters: int
    nonzero: int


def count_parameters(module: torch.jit.ScriptModule) -> ParameterCount:
    """Counts parameters, and weights that are held in buffers, plain attributes, lists or thawed constants.

    Tensors that share memory count once, by the largest of them.
    """
    tensors = [parameter.detach() for parameter in module.parameters()]
    tensors += [get_tensor(module, weight.name).detach() for weight in find_weights(module).weights]
    distinct: dict[tuple[object, ...], torch.Tensor] = {}
    for tensor in tensors:
        distinct.setdefault(_memory(tensor), tensor)
    return ParameterCount(
        parameters=sum(tensor.numel() for tensor in distinct.values()),
        nonzero=sum(int(torch.count_nonzero(tensor).item()) for tensor in distinct.values()),
    )


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    # Two tied tensors may be transposes of each other, so that only where they begin and how much they hold is compared.
    return (str(tensor.device), tensor.data_ptr(), tensor.numel(), tensor.dtype)


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
    """Measures both models in one run, in turns, so that whatever else the machine does meets both alike.

    Args:
        original: one call of the original on one batch.
        pruned: the same for the pruned model.
        batch: samples per call, for the report.
        device: `cpu` or `cuda:N`, for the report.
        threads: for the report.
        clock: monotonic seconds.
        synchronize: waits until the device has finished.
        max_seconds: about the time that warm-up and measurement may take; slow models get at least one run each.

    Returns:
        (original, pruned): median and 95th percentile in seconds per call.
    """
    stopwatch = _Stopwatch(clock, synchronize)
    seconds = stopwatch.in_turns(original, pruned, max_seconds)
    original_seconds, pruned_seconds = (
        LatencySection(
            p50=percentile(one, 0.5),
            p95=percentile(one, 0.95),
            batch=batch,
            device=device,
            threads=threads,
            runs=len(one),
        )
        for one in seconds
    )
    return original_seconds, pruned_seconds


@dataclass(frozen=True)
class _Stopwatch:
    """Times calls, waiting for the device before and after."""

    clock: Callable[[], float]
    synchronize: Callable[[], None]

    def time(self, call: Callable[[], object]) -> float:
        self.synchronize()
        start = self.clock()
        call()
        self.synchronize()
        return self.clock() - start

    def in_turns(
        self, one: Callable[[], object], other: Callable[[], object], max_seconds: float
    ) -> tuple[list[float], list[float]]:
        end = self.clock() + max_seconds
        warm_end = self.clock() + max_seconds * _WARM_UP_SHARE
        # TorchScript compiles a plan in the first runs; those are not what a caller meets day by day.
        for _ in range(_WARM_UP_RUNS):
            self.time(one)
            self.time(other)
            if self.clock() > warm_end:
                break
        seconds: tuple[list[float], list[float]] = ([], [])
        while _goes_on(seconds[0], self.clock() < end, max_seconds):
            # Who goes first changes, so that neither always profits from what the other left in the caches.
            first = len(seconds[0]) % 2
            for which in (first, 1 - first):
                seconds[which].append(self.time((one, other)[which]))
        return seconds


def _goes_on(seconds: Sequence[float], in_time: bool, max_seconds: float) -> bool:
    if len(seconds) >= _MAX_RUNS:
        return False
    return not seconds or in_time or _affordable(seconds, max_seconds)


def _affordable(seconds: Sequence[float], max_seconds: float) -> bool:
    """Whether too few runs are done and they are quick enough to do the smallest number anyway."""
    return len(seconds) < _MIN_RUNS and sum(seconds) * _MIN_RUNS < max_seconds * len(seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (in (0, 1]) of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
