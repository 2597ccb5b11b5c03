"""Nets drawn at random: zeros in what consumes a channel, and a net without it, give the same output."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import cutting, zoo
from pruning_server.graph.coupling.groups import couple


class Norm(nn.Module):
    """A convolution with batch norm and an activation."""

    def __init__(self, given: int, made: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, made, kernel, padding=kernel // 2, bias=kernel == 1)
        self.norm = nn.BatchNorm2d(made)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Sum(nn.Module):
    """A residual block, added in place."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = Norm(width, inner, 3)
        self.second = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        y += x
        return torch.relu(y)


class Dense(nn.Module):
    """Joins its input with new channels."""

    def __init__(self, width: int, grown: int) -> None:
        super().__init__()
        self.left = Norm(width, grown, 3)
        self.right = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), x, self.right(x)], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(width, inner, 1)
        self.up = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(self.pool(x)))))


class Up(nn.Module):
    """Doubles the size by a transposed convolution and halves it again."""

    def __init__(self, width: int, made: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, made, 2, stride=2)
        self.down = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


class Net(nn.Module):
    """[N, 3, 4, 4] in, [N, 4] out."""

    def __init__(self, plan: list[tuple[str, int]], *, flat: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for kind, number in plan:
            layer, width = self._layer(kind, width, number)
            layers.append(layer)
        self.body = nn.Sequential(*layers)
        self.flat = flat
        self.pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(width * 16 if flat else width, 6)
        self.head = nn.Linear(6, 4)

    @staticmethod
    def _layer(kind: str, width: int, number: int) -> tuple[nn.Module, int]:
        if kind == "conv":
            return Norm(width, number, 3), number
        if kind == "sum":
            return Sum(width, number), width
        if kind == "dense":
            return Dense(width, number), width + number + 2
        if kind == "gate":
            return Gate(width, number), width
        return Up(width, number), number

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.body(x)), 1)
        return self.head(nn.functional.leaky_relu(self.hidden(x)))


PLANS = st.lists(
    st.tuples(st.sampled_from(["conv", "sum", "dense", "gate", "up"]), st.integers(2, 5)), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(plan=PLANS, flat=st.booleans(), scripted=st.booleans(), data=st.data())
def test_masked_equals_sliced(plan: list[tuple[str, int]], flat: bool, scripted: bool, data: st.DataObject) -> None:
    net = Net(plan, flat=flat)
    cutting.randomize(net, seed=len(plan))
    x = torch.rand(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, x[:2])
    coupling = couple(zoo.reload(archive), {"forward": [(x[:2],)]})
    # Every layer's output is free but the last one's: nothing was frozen without need.
    free = {member.tensor for group in coupling.groups for member in group.members}
    kernels = {name for name, tensor in net.named_parameters() if tensor.dim() > 1}
    assert kernels <= free
    removed = {}
    for number, group in enumerate(coupling.groups):
        channels = st.lists(st.integers(0, group.size - 1), unique=True, max_size=group.size - 1)
        removed[number] = data.draw(channels, label=f"group {number}")
    masked, sliced = zoo.reload(archive), zoo.reload(archive)
    cutting.zero_consumers(masked, coupling, removed)
    cutting.put(sliced, cutting.smaller_tensors(archive, coupling, removed))
    sliced = zoo.reload(sliced)
    # Compiling for speed would take longer than the runs.
    with torch.no_grad(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(sliced(x), masked(x), rtol=1e-9, atol=1e-9)
    counts = [sum(tensor.numel() for tensor in module.parameters()) for module in (sliced, masked)]
    assert (counts[0] < counts[1]) == any(removed.values())
