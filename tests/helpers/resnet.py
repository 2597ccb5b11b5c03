"""The CIFAR ResNets of He et al. 2016, as the maintainers' trained weights need them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from helpers.shared_data import shared_file

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (option A)."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shrinks = stride != 1
        self.padding = planes // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.shrinks:
            x = functional.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, self.padding, self.padding])
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """[N, 3, 32, 32] in, [N, 10] logits out; `depth` 20 or 56."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_planes, planes, stride)
        return nn.Sequential(first, *(Block(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=[2, 3]))


def trained_resnet(depth: int = 20) -> CifarResNet:
    """The net with the maintainers' trained weights, in evaluation mode; skips the calling test where they are missing."""
    net = CifarResNet(depth)
    net.load_state_dict(torch.load(shared_file(f"resnet{depth}_cifar10.state_dict.pt"), weights_only=True))
    return net.eval()
