"""Running statistics become those of the present weights, whatever they were before and however they move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.lessons import ScriptedStudent, TensorData
from pruning_server.recovery.normalization import reestimate


def data_of(samples: int) -> TensorData:
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    return TensorData(inputs, None, torch.zeros(samples, 1))


def student_of(net: nn.Module) -> ScriptedStudent:
    return ScriptedStudent(torch.jit.script(net.eval()))


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, None])
def test_statistics_are_those_of_the_data_whatever_the_momentum_and_the_past(momentum: float | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=momentum))
    net[1].running_mean.fill_(50.0)
    net[1].running_var.fill_(1000.0)
    student, data = student_of(net), data_of(96)
    assert reestimate(student, data, batch_size=96, seed=0)
    values = net[0](data.inputs).detach()
    torch.testing.assert_close(student.module[1].running_mean, values.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(student.module[1].running_var, values.var(dim=0), rtol=1e-4, atol=1e-4)
    assert int(student.module[1].num_batches_tracked) == 0
    assert not student.module.training


def test_buffers_that_do_not_move_stay() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)
            self.register_buffer("scale", torch.full((6,), 2.5))
            self.register_buffer("place", torch.tensor(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) / self.scale + self.place

    student, data = student_of(Scaled()), data_of(64)
    assert reestimate(student, data, batch_size=32, seed=0)
    assert torch.equal(student.module.scale, torch.full((6,), 2.5))
    assert int(student.module.place) == 3
    torch.testing.assert_close(student.module.norm.running_mean, data.inputs.mean(dim=0), rtol=1e-3, atol=1e-3)


def test_a_model_without_statistics_does_not_change() -> None:
    student = student_of(nn.Linear(6, 2))
    assert not reestimate(student, data_of(20), batch_size=8, seed=0)


def test_statistics_that_move_in_another_way_are_run_until_they_forget() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("largest", torch.full((6,), 100.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.largest.copy_(torch.maximum(self.largest * 0.9, x.amax(dim=0)))
            return x / self.largest

    student, data = student_of(Odd()), data_of(64)
    assert reestimate(student, data, batch_size=32, seed=0)
    assert bool((student.module.largest < 20).all())


def test_the_same_seed_gives_the_same_bits() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        student = student_of(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4)))
        reestimate(student, data_of(50), batch_size=16, seed=7)
        found.append(student.module.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
