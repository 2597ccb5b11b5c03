"""Parameters counted once per memory; latency measured in turns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import zoo
from pruning_server.evaluation.cost import count_parameters, measure_latency, percentile
from pruning_server.graph.training import thaw
from pruning_server.spec.report import LatencySection


def test_every_parameter_counts_once_and_zeros_do_not_count_as_nonzero() -> None:
    module = zoo.scripted(zoo.Residual())
    expected = sum(parameter.numel() for parameter in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
        module.conv1.weight[0] = 0.0
    counted = count_parameters(module)
    assert counted.parameters == expected
    assert counted.nonzero == expected - 27


def test_tied_weights_and_flat_lists_count_once() -> None:
    text = zoo.Text()
    assert count_parameters(zoo.scripted(text)).parameters == sum(one.numel() for one in text.parameters())


def test_weights_outside_of_parameters_count_too() -> None:
    assert count_parameters(zoo.scripted(zoo.Functional())).parameters == 24 + 30 + 30 + 5 + 15 + 3 + 6
    frozen = thaw(zoo.frozen(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))))
    assert count_parameters(frozen).parameters == 12 + 4 + 8 + 2


class Machine:
    """A clock and two models that take a set time, so that the measurement is exact."""

    def __init__(self, seconds: tuple[float, float]) -> None:
        self.now = 100.0
        self.calls: list[int] = []
        self.pending = 0.0
        self.seconds = seconds

    def call(self, which: int) -> None:
        self.calls.append(which)
        self.pending += self.seconds[which]

    def synchronize(self) -> None:
        self.now += self.pending
        self.pending = 0.0

    def measure(self, max_seconds: float = 10.0) -> tuple[LatencySection, LatencySection]:
        return measure_latency(
            lambda: self.call(0),
            lambda: self.call(1),
            batch=8,
            device="cpu",
            threads=2,
            clock=lambda: self.now,
            synchronize=self.synchronize,
            max_seconds=max_seconds,
        )


def test_both_models_are_measured_alike_and_waited_for() -> None:
    machine = Machine((0.004, 0.001))
    original, pruned = machine.measure()
    assert original.p50 == pytest.approx(0.004, abs=1e-9)
    assert original.p95 == pytest.approx(0.004, abs=1e-9)
    assert pruned.p50 == pytest.approx(0.001, abs=1e-9)
    assert original.runs == pruned.runs == 200
    assert (original.batch, original.device, original.threads) == (8, "cpu", 2)
    assert machine.calls.count(0) == machine.calls.count(1)
    first_of_pair = machine.calls[-400::2]
    assert first_of_pair.count(0) == first_of_pair.count(1)  # neither always profits from the other's warm caches


@pytest.mark.parametrize("seconds", [0.05, 1.0, 100.0])
def test_slow_models_are_measured_within_about_the_time_given(seconds: float) -> None:
    machine = Machine((seconds, seconds))
    original, _ = machine.measure(max_seconds=10.0)
    assert original.runs >= 1
    assert machine.now - 100.0 <= 10.0 + 6 * seconds


def test_percentiles_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.95) == 95.0
    assert percentile([3.0], 0.95) == 3.0
