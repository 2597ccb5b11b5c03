"""Every captured call is the regression that it says it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers import zoo
from pruning_server.graph.capture import LinearCall, capture
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.training import thaw


class _Mixed(nn.Module):
    """Grouped, dilated, strided and one-dimensional convolutions, a linear layer, a product with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2)
        self.same = nn.Conv2d(6, 5, (3, 2), padding="same", bias=False)
        self.flat = nn.Linear(5 * 4 * 4, 7)
        self.bare = nn.Parameter(torch.randn(7, 3))
        self.shift = nn.Parameter(torch.randn(3))
        self.line = nn.Conv1d(1, 3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.same(self.grouped(x).relu()).relu()
        h = self.flat(h.flatten(1))
        return torch.addmm(self.shift, h, self.bare), self.line(h.unsqueeze(1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return _Mixed().eval()


WAYS: dict[str, Callable[[nn.Module, torch.Tensor], torch.jit.ScriptModule]] = {
    "scripted": lambda net, _: zoo.scripted(net),
    "traced": zoo.traced,
    "frozen": lambda net, _: thaw(zoo.frozen(net)),
}


# torch says it once per process, to whoever is first.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_the_design_times_the_kernel_is_the_output(way: str, net: nn.Module) -> None:
    inputs = torch.randn(3, 4, 10, 10, generator=torch.Generator().manual_seed(1))
    module = WAYS[way](net, inputs)
    seen: list[str] = []

    def visit(call: LinearCall) -> None:
        seen.append(call.weight)
        kernel = call.kernel.movedim(call.out_axis, 0)
        flat = kernel.reshape(call.groups, len(kernel) // call.groups, -1)
        design = call.design()
        output = torch.einsum("gpf,gof->gop", design, flat).flatten(0, 1)
        bias = get_tensor(module, call.bias)[:, None] if call.bias else 0.0
        torch.testing.assert_close(output + bias, call.rows(), rtol=1e-4, atol=1e-5)
        assert design.shape[1] == call.positions()
        some = torch.arange(0, call.positions(), 2)
        assert torch.equal(call.design(some), design[:, some])

    given = capture(module, (inputs,), visit)
    assert len(seen) == len(set(seen)) == 5
    torch.testing.assert_close(given[0], net(inputs)[0], rtol=1e-4, atol=1e-5)


def test_columns_are_the_inputs_by_channel(net: nn.Module) -> None:
    inputs = torch.randn(2, 4, 10, 10, generator=torch.Generator().manual_seed(1))
    calls: dict[str, LinearCall] = {}
    capture(zoo.scripted(net), (inputs,), lambda call: calls.setdefault(call.weight, call))
    assert torch.equal(calls["grouped.weight"].columns(), inputs.transpose(0, 1).flatten(1))
    assert calls["flat.weight"].columns().shape == (80, 2)
    assert (calls["bare"].in_axis, calls["bare"].out_axis) == (0, 1)
    assert (calls["flat.weight"].in_axis, calls["flat.weight"].out_axis) == (1, 0)


def test_names_limit_the_calls_and_the_state_is_put_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).train()
    module = zoo.scripted(net).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seen: list[str] = []
    capture(module, (torch.randn(2, 1, 8, 8),), lambda call: seen.append(call.weight), {"3.weight"})
    assert seen == ["3.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_transposed_convolution_is_seen_and_has_no_design() -> None:
    torch.manual_seed(0)
    module = zoo.scripted(nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2)))
    calls: list[LinearCall] = []
    capture(module, (torch.randn(2, 3, 4, 4),), calls.append)
    (call,) = calls
    assert not call.has_design
    assert (call.in_axis, call.out_axis) == (0, 1)
    with pytest.raises(ValueError, match="design"):
        call.design()


def test_a_computed_kernel_is_no_stored_one() -> None:
    torch.manual_seed(0)
    net = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    calls: list[LinearCall] = []
    capture(torch.jit.trace(net, torch.randn(2, 4)), (torch.randn(2, 4),), calls.append)
    assert calls == []


def test_one_number_for_all_channels_is_no_bias_of_theirs() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.shift, x, self.weight)

    calls: list[LinearCall] = []
    capture(zoo.scripted(Shifted().eval()), (torch.randn(5, 4),), calls.append)
    assert [(call.weight, call.bias) for call in calls] == [("weight", None)]
