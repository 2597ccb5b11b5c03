"""Which models' kernels are better stored channels last."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import zoo
from pruning_server.graph.surgery.layout import prefers_channels_last


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3)), True),
        (nn.Sequential(nn.Conv2d(3, 7, 3)), True),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), True),
        (nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2)), True),
        (nn.Sequential(nn.Conv2d(3, 16, 3)).double(), False),
        (nn.Sequential(nn.Conv2d(3, 16, 3).bfloat16(), nn.Conv2d(16, 8, 3)), False),
        (nn.Sequential(nn.Conv1d(3, 16, 3)), False),
        (nn.Sequential(nn.Conv3d(3, 16, 3)), False),
        (nn.Sequential(nn.Linear(8, 8)), False),
    ],
)
@pytest.mark.parametrize("way", ["scripted", "frozen"])
def test_kernels_over_images_in_float32(net: nn.Module, expected: bool, way: str) -> None:
    model = getattr(zoo, way)(net.eval())
    assert isinstance(model, torch.jit.ScriptModule)
    assert prefers_channels_last(model) == expected
