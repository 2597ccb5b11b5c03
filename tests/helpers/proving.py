"""Shrunk archives of nets whose code holds no widths, with the cut, for tests of the proof."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from helpers import cutting, zoo
from pruning_server.graph.coupling.groups import Coupling, couple
from pruning_server.graph.surgery.cut import AxisCut, Cut


class SmallNet(nn.Module):
    """[N, 3, H, W] in, [N, 4] out; biases, statistics and a residual stream, so that most mistakes have a place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.4)
        self.back = nn.Conv2d(12, 8, 1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = self.drop(torch.sigmoid(self.inner_norm(self.inner(x))))
        x = x + self.scale * self.back(y)
        return self.head(x.mean([2, 3]))


def loader(module: torch.jit.ScriptModule) -> Callable[[], torch.jit.ScriptModule]:
    """Loads of what is saved now."""
    content = module.save_to_buffer()
    return lambda: torch.jit.load(io.BytesIO(content))


def small_archive(way: str = "scripted", *, seed: int = 0, net: nn.Module | None = None) -> torch.jit.ScriptModule:
    """`SmallNet` (or another) with statistics and biases that matter, as callers save it."""
    torch.manual_seed(seed)
    net = net or SmallNet()
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            tensor.data.uniform_(-0.5, 0.5)
        elif name.endswith("running_var"):
            tensor.data.uniform_(0.5, 1.5)
    return zoo.traced(net.eval(), torch.rand(2, 3, 6, 6)) if way == "traced" else zoo.scripted(net.eval())


def cut_of(module: torch.jit.ScriptModule, coupling: Coupling, removed: cutting.Removed) -> Cut:
    """The cut that a removal of channels is."""
    found = []
    consumed = cutting.coordinates(coupling, removed, consumers=True)
    members = {(m.tensor, m.axis): m for number in removed for m in coupling.groups[number].members}
    gone = cutting.coordinates(coupling, removed)
    for (tensor, axis), member in members.items():
        size = cutting.stored(module)[tensor].shape[axis]
        lost = set(gone[tensor, axis])
        kept = tuple(one for one in range(size) if one not in lost)
        zeroed = tuple(sorted(set(consumed.get((tensor, axis), []))))
        found.append(AxisCut(tensor=tensor, aliases=member.aliases, axis=axis, size=size, kept=kept, zeroed=zeroed))
    return tuple(found)


def shrunk(
    module: torch.jit.ScriptModule, sample: Tensor, removed: Mapping[tuple[str, int], Sequence[int]]
) -> tuple[torch.jit.ScriptModule, Cut]:
    """The module without channels, named by a place (tensor, axis) of their group; loaded from a file, and the cut."""
    coupling = couple(zoo.reload(module), {"forward": [(sample,)]})
    numbers = {cutting.group_of(coupling, *place)[0]: list(channels) for place, channels in removed.items()}
    smaller = zoo.reload(module)
    cutting.put(smaller, cutting.smaller_tensors(module, coupling, numbers))
    return zoo.reload(smaller), cut_of(module, coupling, numbers)
