"""Forms of code that the zoo's archives have and that went wrong once: small nets, shrunk and proven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import zoo
from zoo.entries import uniform
from zoo.shrinking import find_structure, plan, prove_equal, remove

RUNS = [(uniform(2, 3, 9, 9),), (uniform(3, 3, 9, 9),)]


class SamePadding(nn.Module):
    """Traced, a convolution whose padding has a name is an op of its own (EfficientNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.last = nn.Conv2d(8, 4, 3, padding="valid")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.deep(self.first(x))))


class StandardizedWeight(nn.Module):
    """A kernel is normalized over its inputs before it is used (Big Transfer, Kolesnikov et al. 2020, arXiv:1912.11370)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        flat = functional.batch_norm(weight.reshape(1, 8, -1), None, None, training=True, momentum=0.0)
        return self.last(torch.relu(functional.conv2d(self.first(x), flat.reshape_as(weight), self.second.bias)))


class NormalizedRows(nn.Module):
    """An instance norm sees the channels where it expects space."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).permute(0, 2, 3, 1)
        return self.last(torch.relu(self.second(functional.instance_norm(x).permute(0, 3, 1, 2))))


@pytest.mark.parametrize("kind", [SamePadding, StandardizedWeight, NormalizedRows])
@pytest.mark.parametrize("traces", [False, True])
def test_it_shrinks_and_is_proven(kind: type[nn.Module], traces: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    archive, smaller = tmp_path / "archive.pt", tmp_path / "shrunk.pt"
    (zoo.traced(net, *RUNS[0]) if traces else zoo.scripted(net)).save(str(archive))
    structure = find_structure(archive, RUNS, batch_size=2)
    assert structure.failed_rules == ()
    cut = remove(archive, structure, plan(archive, structure, 0.7), smaller)
    assert cut
    proof = prove_equal(archive, smaller, cut, RUNS)
    assert proof.max_relative_error <= 1e-4
    assert proof.max_relative_error_randomized is not None
    assert proof.max_relative_error_randomized <= 1e-9
