"""Models that keep instances of TorchScript classes in attributes and containers, loaded where nobody compiled the class."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import shrinking
from pruning_server.graph.structure import analyse

_SOURCE = """
import sys
import torch

@torch.jit.script
class Recipe:
    def __init__(self, factor: int, shape: list[int]):
        self.factor = factor
        self.shape = shape

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape([x.shape[0]] + self.shape) * self.factor

@torch.jit.script
class Counter:
    def __init__(self):
        self.count = 0

class Net(torch.nn.Module):
    recipes: dict[int, Recipe]

    def __init__(self, counts: bool):
        super().__init__()
        self.counts = counts
        self.counter = Counter()
        self.own = Recipe(2, [-1, 4])
        self.recipes = {2: Recipe(3, [-1])}
        self.first = torch.nn.Linear(6, 8)
        self.second = torch.nn.Linear(8, 8)
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        if self.counts:
            self.counter.count = self.counter.count + 1
        return self.last(self.recipes[2].apply(self.own.apply(x)))

torch.manual_seed(0)
torch.jit.script(Net(sys.argv[2] == "counts")).double().eval().save(sys.argv[1])
"""


@pytest.fixture(scope="module", params=["reads", "counts"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("instances")
    script, path = folder / "net.py", folder / "net.pt"
    script.write_text(_SOURCE)
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(path), request.param], check=True, timeout=120)
    return request.param, path


def test_what_instances_hold_is_read(archive: tuple[str, Path]) -> None:
    way, path = archive
    x = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.3
    y = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.3
    module = torch.jit.load(str(path))
    samples = {"forward": [(x,), (y,)]}
    if way == "counts":
        with pytest.raises(RuntimeError, match="set by the code"):
            analyse(module, samples)
        return
    structure = analyse(module, samples)
    # The first layer's outputs; the second's meet a reshape by numbers of the instance.
    numbers = [number for number, group in enumerate(structure.groups) if group.size == 8]
    assert numbers
    smaller, cut = shrinking.shrunk(module, structure, {numbers[0]: [1, 4, 5]})
    shrinking.assert_same(smaller, shrinking.mask(module, cut), "forward", (y,))
    again = torch.jit.load(io.BytesIO(smaller.save_to_buffer()))
    torch.testing.assert_close(again(x), smaller(x), rtol=0, atol=0)
