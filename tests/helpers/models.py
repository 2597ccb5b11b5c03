"""Small nets and datasets that tests save as TorchScript."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = 3
FEATURES = 8


class ConvNet(nn.Module):
    """Convolutions, batch norm, dropout and linear layers: [N, 1, 8, 8] in, [N, 3] logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(16 * 16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.flatten(1)))


def mlp(hidden: int = 32) -> nn.Sequential:
    """[N, 8] in, [N, 3] logits out."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, CLASSES))


def save_scripted(module: nn.Module, path: Path, extra_files: dict[str, str] | None = None) -> Path:
    """Scripts and saves."""
    torch.jit.script(module).save(str(path), _extra_files=extra_files or {})
    return path


def save_traced(module: nn.Module, example: torch.Tensor, path: Path) -> Path:
    """Traces in eval mode and saves."""
    torch.jit.trace(module.eval(), example).save(str(path))
    return path


def table_data(samples: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 8] float32 and labels [N] int64 that a small net can learn: the largest of three sums."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, FEATURES)).astype(np.float32)
    targets = inputs[:, :6].reshape(samples, CLASSES, 2).sum(axis=2).argmax(axis=1)
    return inputs, targets.astype(np.int64)


def image_data(samples: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 1, 8, 8] float32 and labels [N] int64: which third of the rows is brightest."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 1, 8, 8)).astype(np.float32)
    targets = rng.integers(0, CLASSES, size=samples)
    for row, label in enumerate(targets):
        inputs[row, 0, label * 2 : label * 2 + 3] += 1.5
    return inputs, targets.astype(np.int64)


def fitted(module: nn.Module, inputs: np.ndarray, targets: np.ndarray, epochs: int = 20) -> nn.Module:
    """Trains the net a little, in place, and returns it in eval mode."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return module.eval()
