"""The cost model against torch's own counter, and against what is really there after a removal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import shrinking, zoo
from helpers.resnet import CifarResNet
from pruning_server.graph.coupling.leaves import enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.observe import count_macs
from pruning_server.graph.structure import analyse


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(n, t, 12))
        return x + self.down(torch.relu(self.up(x)))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip


MODELS = {
    "resnet-20": (lambda: CifarResNet(20), (3, 32, 32)),
    "convolutions": (convolutions, (3, 12, 12)),
    "perceptron": (lambda: nn.Sequential(nn.Linear(20, 40), nn.GELU(), nn.Linear(40, 5)), (20,)),
    "attention": (Attend, (7, 12)),
}


def counted_by_torch(module: torch.jit.ScriptModule, x: Tensor) -> int:
    """Multiply-accumulates of one sample: torch counts two operations each."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.jit.optimized_execution(False):
        module(x)
    return counter.get_total_flops() // 2 // len(x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_macs_and_bytes_before_and_after(name: str, form: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    x = torch.rand(2, *shape)
    archive = zoo.scripted(build().eval()) if form == "scripted" else zoo.traced(build(), x)
    structure = analyse(zoo.reload(archive), {"forward": [(x,), (torch.rand(3, *shape),)]}, batch_size=2)
    removal = shrinking.draw(structure, 1)
    smaller, _ = shrinking.shrunk(archive, structure, removal)
    for module, cost in ((archive, structure.cost({})), (smaller, structure.cost(removal))):
        assert cost.macs == counted_by_torch(module, x) == count_macs(module, (x,), 2).total
        assert cost.parameters == sum(parameter.numel() for parameter in module.parameters())
        baked = enumerate_constants(compile_methods(module).values())
        stored = [*module.state_dict().values(), *(one.tensor for one in baked)]
        assert cost.stored_bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert structure.cost(removal).macs < structure.cost({}).macs
